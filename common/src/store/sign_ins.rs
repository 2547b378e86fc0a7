//! Sign-ins with providers that have begun: each is taken once, by the browser that holds its secret, before its time is over.
//!
//! Must never see the secret itself, only its digest.

use std::time::Duration;

use sqlx::PgExecutor;

use super::StoreResult;
use super::api_keys::Digest;
use super::rescue::CHUNK;
use super::row::get;
use crate::domain::{Id, SessionId};

/// A sign-in that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// Whose user links the provider to their account; `None`: somebody signs in.
    pub session: Option<SessionId>,
}

/// Begins one.
pub async fn begin(
    executor: impl PgExecutor<'_>,
    sha256: Digest,
    provider: &str,
    session: Option<SessionId>,
    lifetime: Duration,
) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO sign_ins (sha256, provider, session_id, expires_at)
         VALUES ($1, $2, $3, now() + make_interval(secs => $4))",
    )
    .bind(sha256.as_slice())
    .bind(provider)
    .bind(session.map(Id::uuid))
    .bind(lifetime.as_secs_f64())
    .execute(executor)
    .await?;
    Ok(())
}

/// Takes one: `None` if it was taken before, began with another provider or is too old.
pub async fn take(executor: impl PgExecutor<'_>, sha256: Digest, provider: &str) -> StoreResult<Option<Begun>> {
    let row = sqlx::query(
        "DELETE FROM sign_ins WHERE sha256 = $1 AND provider = $2 AND expires_at > now() RETURNING session_id",
    )
    .bind(sha256.as_slice())
    .bind(provider)
    .fetch_optional(executor)
    .await?;
    row.map(|row| {
        let session: Option<uuid::Uuid> = get(&row, "session_id")?;
        Ok(Begun {
            session: session.map(Id::from_uuid),
        })
    })
    .transpose()
}

/// Deletes a chunk of those that nobody came back from; answers how many.
pub async fn forget(executor: impl PgExecutor<'_>) -> StoreResult<u64> {
    let gone = sqlx::query(
        "DELETE FROM sign_ins WHERE sha256 IN (
             SELECT sha256 FROM sign_ins WHERE expires_at < now()
             ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
         )",
    )
    .bind(CHUNK)
    .execute(executor)
    .await?;
    Ok(gone.rows_affected())
}
