//! The keys that sign access tokens: published, then signing, then retired. All replicas of the API share them.
//!
//! A private half is kept sealed, and must never be seen here in clear.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use super::row::get;
use super::{Pool, StoreResult, transaction};

/// A key as it is stored.
#[derive(Debug, Clone)]
pub struct StoredKey {
    /// Its public name.
    pub kid: String,
    /// The private half, sealed.
    pub sealed: Vec<u8>,
    /// When it was published.
    pub created_at: OffsetDateTime,
    /// When it begins to sign; of those that have begun, the one that began last signs.
    pub signs_from: Option<OffsetDateTime>,
    /// When it was retired: from then on what it signed is not accepted.
    pub retired_at: Option<OffsetDateTime>,
    /// Whether it may sign by now.
    pub may_sign: bool,
}

/// Those that are not retired, and with `all` the retired ones too. The one that signs comes first.
pub async fn list(executor: impl PgExecutor<'_>, all: bool) -> StoreResult<Vec<StoredKey>> {
    let rows = sqlx::query(
        "SELECT *, retired_at IS NULL AND coalesce(signs_from <= now(), false) AS may_sign FROM signing_keys
         WHERE $1 OR retired_at IS NULL
         ORDER BY may_sign DESC, signs_from DESC NULLS LAST, created_at DESC",
    )
    .bind(all)
    .fetch_all(executor)
    .await?;
    rows.iter().map(stored_key).collect()
}

/// Publishes a key; it signs from so many seconds later on, or not before it is told to.
pub async fn publish(pool: &Pool, kid: String, sealed: Vec<u8>, signs_after: Option<u32>) -> StoreResult<()> {
    transaction(pool, move |connection| {
        let (kid, sealed) = (kid.clone(), sealed.clone());
        Box::pin(async move { insert(connection, &kid, &sealed, signs_after).await })
    })
    .await
}

/// Publishes a key that signs at once, unless there is one besides those in `seen`: of several processes that find no key
/// of theirs, one makes it.
pub async fn publish_first(pool: &Pool, kid: String, sealed: Vec<u8>, seen: Vec<String>) -> StoreResult<()> {
    transaction(pool, move |connection| {
        let (kid, sealed, seen) = (kid.clone(), sealed.clone(), seen.clone());
        Box::pin(async move {
            sqlx::query("SELECT pg_advisory_xact_lock(hashtext('signing_keys'))")
                .execute(&mut *connection)
                .await?;
            let another = sqlx::query("SELECT kid FROM signing_keys WHERE retired_at IS NULL AND NOT kid = ANY($1)")
                .bind(seen)
                .fetch_optional(&mut *connection)
                .await?;
            if another.is_none() {
                insert(connection, &kid, &sealed, Some(0)).await?;
            }
            Ok(())
        })
    })
    .await
}

async fn insert(connection: &mut PgConnection, kid: &str, sealed: &[u8], signs_after: Option<u32>) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO signing_keys (kid, sealed, signs_from) VALUES ($1, $2, now() + make_interval(secs => $3))",
    )
    .bind(kid)
    .bind(sealed)
    .bind(signs_after.map(f64::from))
    .execute(&mut *connection)
    .await?;
    audit(connection, "signing_key.published", kid).await
}

async fn audit(connection: &mut PgConnection, action: &str, kid: &str) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO audit_log (actor, action, details) VALUES ('operator', $1, jsonb_build_object('kid', $2::text))",
    )
    .bind(action)
    .bind(kid)
    .execute(connection)
    .await?;
    Ok(())
}

/// Lets a published key sign from now on. `false` if there is no such key, or it is retired.
pub async fn sign_with(pool: &Pool, kid: String) -> StoreResult<bool> {
    let sql = "UPDATE signing_keys SET signs_from = now() WHERE kid = $1 AND retired_at IS NULL";
    change(pool, kid, sql, "signing_key.signs").await
}

/// Retires a key. `false` if there is no such key, or it is retired, or no other one has taken over from it.
pub async fn retire(pool: &Pool, kid: String) -> StoreResult<bool> {
    let sql = "UPDATE signing_keys k SET retired_at = now() WHERE kid = $1 AND retired_at IS NULL AND (
                   coalesce(signs_from > now(), true) OR EXISTS (
                       SELECT FROM signing_keys other WHERE other.retired_at IS NULL AND other.signs_from <= now()
                         AND other.signs_from > k.signs_from))";
    change(pool, kid, sql, "signing_key.retired").await
}

async fn change(pool: &Pool, kid: String, sql: &'static str, action: &'static str) -> StoreResult<bool> {
    transaction(pool, move |connection| {
        let kid = kid.clone();
        Box::pin(async move {
            let done = sqlx::query(sql).bind(&kid).execute(&mut *connection).await?;
            if done.rows_affected() == 0 {
                return Ok(false);
            }
            audit(connection, action, &kid).await?;
            Ok(true)
        })
    })
    .await
}

fn stored_key(row: &PgRow) -> StoreResult<StoredKey> {
    Ok(StoredKey {
        kid: get(row, "kid")?,
        sealed: get(row, "sealed")?,
        created_at: get(row, "created_at")?,
        signs_from: get(row, "signs_from")?,
        retired_at: get(row, "retired_at")?,
        may_sign: get(row, "may_sign")?,
    })
}
