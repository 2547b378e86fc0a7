//! Sessions: what begins with a sign-in and ends with a logout. Access tokens name theirs, and refresh tokens renew them.
//!
//! A refresh token is good once: it buys the next one (RFC 9700, section 4.14.2). One that comes back later was stolen from
//! or by somebody, so its session ends, with every token of it. Must never see a token itself, only digests.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use super::access::Changed;
use super::accounts::{Account, account};
use super::api_keys::{self, Digest};
use super::audit::{By, Origin};
use super::rescue::CHUNK;
use super::row::{column, get};
use super::{Pool, StoreResult, transaction};
use crate::domain::{Id, ProjectId, Scope, Scopes, SessionId, TenantId, UserId};

/// A refresh token that comes twice within this was sent twice: the second one gets nothing, and nobody is blamed.
const SENT_TWICE_SECS: f64 = 5.0;

/// Begins a session of a service that is good for `scopes` and cannot be renewed.
pub async fn begin_service(
    pool: &Pool,
    service: UserId,
    scopes: Scopes,
    lifetime: Duration,
    by: By,
) -> StoreResult<SessionId> {
    let scopes: Vec<&'static str> = scopes.iter().map(Scope::as_str).collect();
    transaction(pool, move |connection| {
        let (scopes, by) = (scopes.clone(), by.clone());
        Box::pin(async move { insert(connection, service, Some(scopes), lifetime, &by).await })
    })
    .await
}

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
            let id = insert(connection, user, None, lifetime, &by).await?;
            keep(connection, id, refresh).await?;
            Ok(id)
        })
    })
    .await
}

async fn insert(
    connection: &mut PgConnection,
    user: UserId,
    scopes: Option<Vec<&'static str>>,
    lifetime: Duration,
    by: &By,
) -> StoreResult<SessionId> {
    let id = SessionId::new();
    sqlx::query(
        "WITH session AS (
             INSERT INTO sessions (id, user_id, expires_at, scopes)
             VALUES ($1, $2, now() + make_interval(secs => $3), $8)
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
    .bind(scopes)
    .execute(connection)
    .await?;
    Ok(id)
}

async fn keep(connection: &mut PgConnection, session: SessionId, refresh: Digest) -> StoreResult<()> {
    sqlx::query("INSERT INTO refresh_tokens (sha256, session_id) VALUES ($1, $2)")
        .bind(refresh.as_slice())
        .bind(session.uuid())
        .execute(connection)
        .await?;
    Ok(())
}

/// Who asks to act: a user in a session, in the project that the request names, if it names one.
pub type Asked = (UserId, SessionId, Option<ProjectId>);

/// Somebody whose session goes on.
#[derive(Debug, Clone)]
pub struct Present {
    /// Who it is.
    pub account: Account,
    /// What the session is good for; `None` is everything.
    pub scopes: Option<Scopes>,
    /// Where they act; `None`: they may not act in the project that was named.
    pub place: Option<Place>,
    /// How much longer the session can go on.
    pub left: Duration,
}

/// A project and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The organization.
    pub tenant_id: TenantId,
    /// The project.
    pub project_id: ProjectId,
}

/// Of those who ask, the ones whose session goes on.
pub async fn present(executor: impl PgExecutor<'_>, asked: Vec<Asked>) -> StoreResult<Vec<(Asked, Present)>> {
    let rows = sqlx::query(
        "SELECT u.*, s.id AS session_id, s.scopes, asked.project_id AS asked_project,
             extract(epoch FROM s.expires_at - now())::float8 AS seconds_left,
             place.project_id AS place_project, place.organization_id AS place_tenant
         FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS asked (user_id, session_id, project_id)
         JOIN sessions s ON s.id = asked.session_id AND s.user_id = asked.user_id
         JOIN users u ON u.id = s.user_id
         LEFT JOIN LATERAL (
             SELECT a.project_id, a.organization_id FROM project_access a
             WHERE a.user_id = u.id AND a.project_id = coalesce(asked.project_id, u.project_id) LIMIT 1
         ) AS place ON true
         WHERE s.ended_at IS NULL AND s.expires_at > now()",
    )
    .bind(column(&asked, |(user, ..)| user.uuid()))
    .bind(column(&asked, |(_, session, _)| session.uuid()))
    .bind(column(&asked, |(.., project)| project.map(Id::uuid)))
    .fetch_all(executor)
    .await?;
    rows.iter().map(one_present).collect()
}

fn one_present(row: &PgRow) -> StoreResult<(Asked, Present)> {
    let account = account(row)?;
    let (asked, project, tenant): (Option<Uuid>, Option<Uuid>, Option<Uuid>) = (
        get(row, "asked_project")?,
        get(row, "place_project")?,
        get(row, "place_tenant")?,
    );
    let scopes: Option<Vec<String>> = get(row, "scopes")?;
    let present = Present {
        scopes: scopes.map(|names| api_keys::scopes(&names)),
        place: tenant.zip(project).map(|(tenant, project)| Place {
            tenant_id: Id::from_uuid(tenant),
            project_id: Id::from_uuid(project),
        }),
        left: left(row)?.unwrap_or_default(),
        account,
    };
    let session = Id::from_uuid(get(row, "session_id")?);
    Ok(((present.account.user_id, session, asked.map(Id::from_uuid)), present))
}

/// How much longer a credential is good, on the database's clock; `None`: for ever.
pub(super) fn left(row: &PgRow) -> StoreResult<Option<Duration>> {
    let seconds: Option<f64> = get(row, "seconds_left")?;
    Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()))
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
pub async fn refresh(pool: &Pool, shown: Digest, next: Digest, origin: Origin) -> StoreResult<Changed<Refreshed>> {
    let refreshed = transaction(pool, move |connection| {
        let origin = origin.clone();
        Box::pin(async move { exchange(connection, shown, next, origin).await })
    })
    .await?;
    let whose = match &refreshed {
        Refreshed::Reused(user) => Some(user.uuid()),
        Refreshed::Renewed(..) | Refreshed::Refused => None,
    };
    Ok(Changed::of(refreshed, whose))
}

async fn exchange(
    connection: &mut PgConnection,
    shown: Digest,
    next: Digest,
    origin: Origin,
) -> StoreResult<Refreshed> {
    // Two that come together meet at this row: one finds it unused.
    let used = sqlx::query(
        "UPDATE refresh_tokens SET used_at = clock_timestamp() WHERE sha256 = $1 AND used_at IS NULL RETURNING session_id",
    )
    .bind(shown.as_slice())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(used) = used else {
        return seen_before(connection, shown, origin).await;
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

async fn seen_before(connection: &mut PgConnection, shown: Digest, origin: Origin) -> StoreResult<Refreshed> {
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
    // By whom is not known: the user, or whoever has stolen from them.
    let by = By {
        origin,
        ..By::from("anonymous")
    };
    end_one(connection, user, Id::from_uuid(get(&row, "session_id")?), "reuse", &by).await?;
    Ok(Refreshed::Reused(user))
}

/// Ends a user's session, with its access tokens and its refresh token. Safe to repeat.
pub async fn end(pool: &Pool, user: UserId, session: SessionId, by: By) -> StoreResult<Changed<()>> {
    transaction(pool, move |connection| {
        let by = by.clone();
        Box::pin(async move { end_one(connection, user, session, "logout", &by).await })
    })
    .await?;
    Ok(Changed::of((), Some(user.uuid())))
}

async fn end_one(
    connection: &mut PgConnection,
    user: UserId,
    session: SessionId,
    why: &'static str,
    by: &By,
) -> StoreResult<()> {
    sqlx::query(
        "WITH ended AS (
             UPDATE sessions SET ended_at = now(), ended_because = $3
             WHERE id = $2 AND user_id = $1 AND ended_at IS NULL RETURNING id, user_id
         )
         INSERT INTO audit_log (tenant_id, actor, credential, address, request_id, action, subject, details)
         SELECT u.tenant_id, $4, $5, $6, $7, 'session.ended', e.id, jsonb_build_object('because', $3::text)
         FROM ended e JOIN users u ON u.id = e.user_id",
    )
    .bind(user.uuid())
    .bind(session.uuid())
    .bind(why)
    .bind(&by.actor)
    .bind(by.credential())
    .bind(by.address())
    .bind(by.request_id())
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
