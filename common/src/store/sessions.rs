//! Sessions: what begins with a sign-in and ends with a logout. Access tokens name theirs, and refresh tokens renew them.
//!
//! A refresh token is good once: it buys the next one (RFC 9700, section 4.14.2). One that comes back later was stolen from
//! or by somebody, so its session ends, with every token of it. Must never see a token itself, only digests.

use std::time::Duration;

use sqlx::{PgConnection, PgExecutor};

use super::accounts::{Account, account};
use super::api_keys::Digest;
use super::audit::By;
use super::rescue::CHUNK;
use super::row::{column, get};
use super::{Pool, StoreResult, transaction};
use crate::domain::{Id, SessionId, UserId};

/// A refresh token that comes twice within this was sent twice: the second one gets nothing, and nobody is blamed.
const SENT_TWICE_SECS: f64 = 5.0;

/// Begins a session of a user, with its first refresh token.
pub async fn begin(
    pool: &Pool,
    user: UserId,
    refresh: Digest,
    lifetime: Duration,
    by: impl Into<By>,
) -> StoreResult<SessionId> {
    let by = by.into();
    transaction(pool, move |connection| {
        let by = by.clone();
        Box::pin(async move {
            let id = SessionId::new();
            sqlx::query(
                "WITH session AS (
                     INSERT INTO sessions (id, user_id, expires_at) VALUES ($1, $2, now() + make_interval(secs => $3))
                 )
                 INSERT INTO audit_log (tenant_id, actor, address, request_id, credential, action, subject)
                 SELECT tenant_id, $4, $5, $6, $7, 'session.begun', $1 FROM users WHERE id = $2",
            )
            .bind(id.uuid())
            .bind(user.uuid())
            .bind(lifetime.as_secs_f64())
            .bind(&by.actor)
            .bind(by.address())
            .bind(by.request_id())
            .bind(by.credential())
            .execute(&mut *connection)
            .await?;
            keep(connection, id, refresh).await?;
            Ok(id)
        })
    })
    .await
}

async fn keep(connection: &mut PgConnection, session: SessionId, refresh: Digest) -> StoreResult<()> {
    sqlx::query("INSERT INTO refresh_tokens (sha256, session_id) VALUES ($1, $2)")
        .bind(refresh.as_slice())
        .bind(session.uuid())
        .execute(connection)
        .await?;
    Ok(())
}

/// Of users in their sessions, those whose session goes on.
pub async fn accounts(
    executor: impl PgExecutor<'_>,
    asked: Vec<(UserId, SessionId)>,
) -> StoreResult<Vec<(SessionId, Account)>> {
    let rows = sqlx::query(
        "SELECT u.*, s.id AS session_id FROM sessions s JOIN users u ON u.id = s.user_id
         WHERE (s.user_id, s.id) IN (SELECT * FROM unnest($1::uuid[], $2::uuid[]))
           AND s.ended_at IS NULL AND s.expires_at > now()",
    )
    .bind(column(&asked, |(user, _)| user.uuid()))
    .bind(column(&asked, |(_, session)| session.uuid()))
    .fetch_all(executor)
    .await?;
    rows.iter()
        .map(|row| Ok((Id::from_uuid(get(row, "session_id")?), account(row)?)))
        .collect()
}

/// What came of a refresh token.
#[derive(Debug)]
pub enum Refreshed {
    /// It was good: the session goes on with the next one.
    Renewed(Box<Account>, SessionId),
    /// Nobody's, too late, or of a session that ended.
    Refused,
    /// It was used before; its session is over now.
    Reused(UserId),
}

/// Exchanges a refresh token for the next one.
pub async fn refresh(pool: &Pool, shown: Digest, next: Digest) -> StoreResult<Refreshed> {
    transaction(pool, move |connection| Box::pin(exchange(connection, shown, next))).await
}

async fn exchange(connection: &mut PgConnection, shown: Digest, next: Digest) -> StoreResult<Refreshed> {
    // Two that come together meet at this row: one finds it unused.
    let used = sqlx::query(
        "UPDATE refresh_tokens SET used_at = clock_timestamp() WHERE sha256 = $1 AND used_at IS NULL RETURNING session_id",
    )
    .bind(shown.as_slice())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(used) = used else {
        return seen_before(connection, shown).await;
    };
    let session: SessionId = Id::from_uuid(get(&used, "session_id")?);
    let row = sqlx::query(
        "SELECT u.* FROM sessions s JOIN users u ON u.id = s.user_id
         WHERE s.id = $1 AND s.ended_at IS NULL AND s.expires_at > now() AND u.is_active FOR SHARE OF s",
    )
    .bind(session.uuid())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(Refreshed::Refused) };
    keep(connection, session, next).await?;
    Ok(Refreshed::Renewed(Box::new(account(&row)?), session))
}

async fn seen_before(connection: &mut PgConnection, shown: Digest) -> StoreResult<Refreshed> {
    let row = sqlx::query(
        "SELECT t.session_id, s.user_id, t.used_at > clock_timestamp() - make_interval(secs => $2) AS just_now
         FROM refresh_tokens t JOIN sessions s ON s.id = t.session_id WHERE t.sha256 = $1",
    )
    .bind(shown.as_slice())
    .bind(SENT_TWICE_SECS)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(Refreshed::Refused) };
    if get::<bool, _>(&row, "just_now")? {
        return Ok(Refreshed::Refused);
    }
    let user = Id::from_uuid(get(&row, "user_id")?);
    end_one(connection, user, Id::from_uuid(get(&row, "session_id")?), "reuse").await?;
    Ok(Refreshed::Reused(user))
}

/// Ends a user's session, with its access tokens and its refresh token. Safe to repeat.
pub async fn end(pool: &Pool, user: UserId, session: SessionId) -> StoreResult<()> {
    transaction(pool, move |connection| {
        Box::pin(end_one(connection, user, session, "logout"))
    })
    .await
}

async fn end_one(
    connection: &mut PgConnection,
    user: UserId,
    session: SessionId,
    why: &'static str,
) -> StoreResult<()> {
    sqlx::query(
        "WITH ended AS (
             UPDATE sessions SET ended_at = now(), ended_because = $3
             WHERE id = $2 AND user_id = $1 AND ended_at IS NULL RETURNING id, user_id
         )
         INSERT INTO audit_log (tenant_id, actor, action, subject, details)
         SELECT u.tenant_id, 'user:' || u.id, 'session.ended', e.id, jsonb_build_object('because', $3::text)
         FROM ended e JOIN users u ON u.id = e.user_id",
    )
    .bind(user.uuid())
    .bind(session.uuid())
    .bind(why)
    .execute(connection)
    .await?;
    Ok(())
}

/// Ends every session of a user, in the transaction that is the reason for it.
pub(super) async fn end_all(connection: &mut PgConnection, user: UserId, why: &'static str) -> StoreResult<()> {
    sqlx::query(
        "WITH locked AS MATERIALIZED (
             SELECT id FROM sessions WHERE user_id = $1 AND ended_at IS NULL ORDER BY id FOR UPDATE
         )
         UPDATE sessions s SET ended_at = now(), ended_because = $2 FROM locked WHERE s.id = locked.id",
    )
    .bind(user.uuid())
    .bind(why)
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes a chunk of the sessions whose time was over a day ago, with their refresh tokens; answers how many.
pub async fn forget(executor: impl PgExecutor<'_>) -> StoreResult<u64> {
    let gone = sqlx::query(
        "DELETE FROM sessions WHERE id IN (
             SELECT id FROM sessions WHERE expires_at < now() - interval '1 day'
             ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
         )",
    )
    .bind(CHUNK)
    .execute(executor)
    .await?;
    Ok(gone.rows_affected())
}
