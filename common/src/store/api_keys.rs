//! API keys: made, listed, rotated, revoked, and found by the digest of what a caller shows.
//!
//! Must never see a key itself. Whether one holds is decided here, by the database's clock.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor, Row};
use time::OffsetDateTime;
use uuid::Uuid;

use super::access::Changed;
use super::accounts::{Account, account};
use super::audit::By;
use super::idempotency::{Answer, Claim};
use super::once::{Once, make_once};
use super::row::{column, get};
use super::sessions::{Place, left};
use super::{Pool, StoreError, StoreResult, budgets, transaction};
use crate::domain::{ApiKeyId, Budget, BudgetStanding, Id, ProjectId, Scope, Scopes, TenantId, UserId};
use crate::validate::Problem;

/// SHA-256 of a key.
pub type Digest = [u8; 32];

/// Keys that a user may have at a time; expired ones count until they are revoked.
pub const KEYS_MAX: i64 = 100;

/// What a key is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// What it may do.
    pub scopes: Scopes,
    /// The models that it may use; `None` is any.
    pub models: Option<Vec<String>>,
    /// Most `max_tokens` of one request.
    pub max_tokens: Option<u32>,
}

impl Grant {
    /// Whether a generation by this model, which an alias may have led to, of so many tokens, keeps within it. Asked of
    /// everything that starts one.
    pub fn permits(&self, model: &str, alias: Option<&str>, max_tokens: u32) -> Result<(), Problem> {
        if let Some(models) = &self.models
            && !models
                .iter()
                .any(|known| known == model || Some(known.as_str()) == alias)
        {
            let message = format!("This API key may use {} only.", models.join(", "));
            return Err(Problem::new("model_not_allowed", message).at("model"));
        }
        match self.max_tokens {
            Some(most) if max_tokens > most => {
                let message = format!("This API key may ask for at most {most} tokens; send `max_tokens`.");
                Err(Problem::new("max_tokens_not_allowed", message).at("max_tokens"))
            }
            _ => Ok(()),
        }
    }
}

/// A key to be made.
#[derive(Debug, Clone)]
pub struct NewApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Its user's organization.
    pub tenant_id: TenantId,
    /// Where its jobs go.
    pub project_id: ProjectId,
    /// Whom it acts for.
    pub user_id: UserId,
    /// What its user calls it.
    pub name: String,
    /// The first characters of the key.
    pub hint: String,
    /// The key's digest.
    pub sha256: Digest,
    /// What it is good for.
    pub grant: Grant,
    /// When it ends.
    pub expires_at: Option<OffsetDateTime>,
    /// What it may use.
    pub budget: Option<Budget>,
    /// Who makes it, for the audit log.
    pub by: By,
}

/// A key as its user sees it.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Where its jobs go.
    pub project_id: ProjectId,
    /// What its user calls it.
    pub name: String,
    /// The first characters of the key.
    pub hint: String,
    /// What it is good for.
    pub grant: Grant,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it ends.
    pub expires_at: Option<OffsetDateTime>,
    /// When it was revoked.
    pub revoked_at: Option<OffsetDateTime>,
    /// When it was last used, some seconds late.
    pub last_used_at: Option<OffsetDateTime>,
    /// How many requests it was used for, some seconds late.
    pub usage_count: u64,
}

/// Whom a key that holds stands for.
#[derive(Debug, Clone)]
pub struct Holder {
    /// The key.
    pub id: ApiKeyId,
    /// Where its jobs go, where its user may still act.
    pub place: Place,
    /// What it is good for.
    pub grant: Grant,
    /// Its user, who may be deactivated.
    pub account: Account,
    /// How much longer it is good; `None`: until it is revoked.
    pub left: Option<Duration>,
}

/// A key that was just made, and what is used of its budget, if it has one.
pub type MadeApiKey = (ApiKey, Option<BudgetStanding>);

/// Keeps a new key, unless its user has [`KEYS_MAX`]: then `None`. `render` makes the answer that a repeated request with the same
/// idempotency key will be shown.
pub async fn create(
    pool: &Pool,
    key: NewApiKey,
    claim: Option<Claim>,
    render: fn(&MadeApiKey) -> Answer,
) -> StoreResult<Once<Option<MadeApiKey>>> {
    make_once(pool, claim, render, move |connection| {
        let key = key.clone();
        Box::pin(async move { insert(connection, key).await })
    })
    .await
}

async fn insert(connection: &mut PgConnection, key: NewApiKey) -> StoreResult<Option<MadeApiKey>> {
    // The user's row is locked, so that two requests cannot both find room for the last one.
    sqlx::query("SELECT id FROM users WHERE id = $1 FOR NO KEY UPDATE")
        .bind(key.user_id.uuid())
        .execute(&mut *connection)
        .await?;
    let row = sqlx::query(
        "INSERT INTO api_keys (id, tenant_id, project_id, user_id, name, hint, scopes, models, max_tokens, expires_at)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10
         WHERE (SELECT count(*) FROM api_keys WHERE user_id = $4 AND revoked_at IS NULL) < $11
         RETURNING *",
    )
    .bind(key.id.uuid())
    .bind(key.tenant_id.uuid())
    .bind(key.project_id.uuid())
    .bind(key.user_id.uuid())
    .bind(key.name)
    .bind(key.hint)
    .bind(key.grant.scopes.iter().map(Scope::as_str).collect::<Vec<_>>())
    .bind(key.grant.models)
    .bind(key.grant.max_tokens.map(u32::cast_signed))
    .bind(key.expires_at)
    .bind(KEYS_MAX)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    keep_secret(connection, key.id, key.sha256).await?;
    let mut budget = None;
    if key.budget.is_some() {
        let id = key.id.uuid();
        budgets::set(&mut *connection, key.tenant_id.uuid(), id, key.budget).await?;
        budget = budgets::find(&mut *connection, vec![id]).await?.remove(&id);
    }
    audit(connection, &key.by, "api_key.created", key.id).await?;
    Ok(Some((api_key(&row)?, budget)))
}

async fn keep_secret(connection: &mut PgConnection, id: ApiKeyId, sha256: Digest) -> StoreResult<()> {
    sqlx::query("INSERT INTO api_key_secrets (sha256, api_key_id) VALUES ($1, $2)")
        .bind(sha256.as_slice())
        .bind(id.uuid())
        .execute(connection)
        .await?;
    Ok(())
}

async fn audit(connection: &mut PgConnection, by: &By, action: &str, id: ApiKeyId) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO audit_log (tenant_id, actor, credential, address, request_id, action, subject)
         SELECT tenant_id, $2, $3, $4, $5, $6, id FROM api_keys WHERE id = $1",
    )
    .bind(id.uuid())
    .bind(&by.actor)
    .bind(by.credential())
    .bind(by.address())
    .bind(by.request_id())
    .bind(action)
    .execute(connection)
    .await?;
    Ok(())
}

/// A user's keys in a project, the newest first, at most `limit` of those older than `after`.
pub async fn list(
    executor: impl PgExecutor<'_>,
    user: UserId,
    project: ProjectId,
    after: Option<ApiKeyId>,
    limit: u32,
) -> StoreResult<Vec<ApiKey>> {
    let rows = sqlx::query(
        "SELECT * FROM api_keys
         WHERE user_id = $1 AND project_id = $4 AND id < coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
         ORDER BY id DESC LIMIT $3",
    )
    .bind(user.uuid())
    .bind(after.map(Id::uuid))
    .bind(i64::from(limit))
    .bind(project.uuid())
    .fetch_all(executor)
    .await?;
    rows.iter().map(api_key).collect()
}

/// One of a user's keys in a project.
pub async fn get_one(
    executor: impl PgExecutor<'_>,
    user: UserId,
    project: ProjectId,
    id: ApiKeyId,
) -> StoreResult<Option<ApiKey>> {
    let row = sqlx::query("SELECT * FROM api_keys WHERE id = $1 AND user_id = $2 AND project_id = $3")
        .bind(id.uuid())
        .bind(user.uuid())
        .bind(project.uuid())
        .fetch_optional(executor)
        .await?;
    row.as_ref().map(api_key).transpose()
}

/// What to give a key instead of the one that is in use.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Which key.
    pub id: ApiKeyId,
    /// Its user.
    pub user_id: UserId,
    /// Its project.
    pub project_id: ProjectId,
    /// The first characters of the new one.
    pub hint: String,
    /// The new one's digest.
    pub sha256: Digest,
    /// Seconds for which the old one still holds.
    pub overlap: u32,
    /// Who rotates it, for the audit log.
    pub by: By,
}

/// Gives a key that is not revoked a new secret; the one in use ends after the overlap, older ones at once.
pub async fn rotate(pool: &Pool, rotation: Rotation) -> StoreResult<Changed<Option<ApiKey>>> {
    let user = rotation.user_id;
    let rotated = transaction(pool, move |connection| {
        let rotation = rotation.clone();
        Box::pin(async move {
            let row = sqlx::query(
                "UPDATE api_keys SET hint = $3
                 WHERE id = $1 AND user_id = $2 AND project_id = $4 AND revoked_at IS NULL RETURNING *",
            )
            .bind(rotation.id.uuid())
            .bind(rotation.user_id.uuid())
            .bind(rotation.hint)
            .bind(rotation.project_id.uuid())
            .fetch_optional(&mut *connection)
            .await?;
            let Some(row) = row else { return Ok(None) };
            sqlx::query("DELETE FROM api_key_secrets WHERE api_key_id = $1 AND expires_at IS NOT NULL")
                .bind(rotation.id.uuid())
                .execute(&mut *connection)
                .await?;
            sqlx::query(
                "UPDATE api_key_secrets SET expires_at = now() + make_interval(secs => $2) WHERE api_key_id = $1",
            )
            .bind(rotation.id.uuid())
            .bind(f64::from(rotation.overlap))
            .execute(&mut *connection)
            .await?;
            keep_secret(connection, rotation.id, rotation.sha256).await?;
            audit(connection, &rotation.by, "api_key.rotated", rotation.id).await?;
            api_key(&row).map(Some)
        })
    })
    .await?;
    Ok(Changed::of(rotated, Some(user.uuid())))
}

/// Ends a key at once. Safe to repeat; the first end stands.
pub async fn revoke(
    pool: &Pool,
    user: UserId,
    project: ProjectId,
    id: ApiKeyId,
    by: impl Into<By>,
) -> StoreResult<Changed<Option<ApiKey>>> {
    let by = by.into();
    let revoked = transaction(pool, move |connection| {
        let by = by.clone();
        Box::pin(async move {
            let row = sqlx::query(
                "UPDATE api_keys SET revoked_at = now()
                 WHERE id = $1 AND user_id = $2 AND project_id = $3 AND revoked_at IS NULL RETURNING *",
            )
            .bind(id.uuid())
            .bind(user.uuid())
            .bind(project.uuid())
            .fetch_optional(&mut *connection)
            .await?;
            let Some(row) = row else {
                return get_one(connection, user, project, id).await;
            };
            sqlx::query("DELETE FROM api_key_secrets WHERE api_key_id = $1")
                .bind(id.uuid())
                .execute(&mut *connection)
                .await?;
            audit(connection, &by, "api_key.revoked", id).await?;
            api_key(&row).map(Some)
        })
    })
    .await?;
    Ok(Changed::of(revoked, Some(user.uuid())))
}

/// Gives one of a user's keys a budget, another one, or none any more. `false` if there is no such key that is not revoked.
pub async fn set_budget(
    pool: &Pool,
    user: UserId,
    project: ProjectId,
    id: ApiKeyId,
    budget: Option<Budget>,
    by: impl Into<By>,
) -> StoreResult<bool> {
    let by = by.into();
    transaction(pool, move |connection| {
        let by = by.clone();
        Box::pin(async move {
            let tenant: Option<Uuid> = sqlx::query_scalar(
                "SELECT tenant_id FROM api_keys
                 WHERE id = $1 AND user_id = $2 AND project_id = $3 AND revoked_at IS NULL FOR NO KEY UPDATE",
            )
            .bind(id.uuid())
            .bind(user.uuid())
            .bind(project.uuid())
            .fetch_optional(&mut *connection)
            .await?;
            let Some(tenant) = tenant else { return Ok(false) };
            budgets::set(&mut *connection, tenant, id.uuid(), budget).await?;
            audit(connection, &by, "api_key.budget_set", id).await?;
            Ok(true)
        })
    })
    .await
}

/// Those of the digests that belong to a key that holds now, each with whom it stands for.
pub async fn holders(executor: impl PgExecutor<'_>, digests: Vec<Digest>) -> StoreResult<Vec<(Digest, Holder)>> {
    let rows = sqlx::query(
        "SELECT s.sha256, k.id AS key_id, place.project_id AS place_project, place.organization_id AS place_tenant, k.scopes,
             k.models, k.max_tokens, extract(epoch FROM least(k.expires_at, s.expires_at) - now())::float8 AS seconds_left, u.*
         FROM api_key_secrets s JOIN api_keys k ON k.id = s.api_key_id JOIN users u ON u.id = k.user_id
         CROSS JOIN LATERAL (
             SELECT a.project_id, a.organization_id FROM project_access a
             WHERE a.user_id = k.user_id AND a.project_id = k.project_id LIMIT 1
         ) AS place
         WHERE s.sha256 = ANY($1) AND k.revoked_at IS NULL
           AND coalesce(k.expires_at, 'infinity') > now() AND coalesce(s.expires_at, 'infinity') > now()",
    )
    .bind(column(&digests, <[u8; 32]>::as_slice))
    .fetch_all(executor)
    .await?;
    rows.iter()
        .map(|row| {
            let digest: &[u8] = row.try_get("sha256")?;
            let holder = Holder {
                id: Id::from_uuid(get(row, "key_id")?),
                place: Place {
                    tenant_id: Id::from_uuid(get(row, "place_tenant")?),
                    project_id: Id::from_uuid(get(row, "place_project")?),
                },
                grant: grant(row)?,
                account: account(row)?,
                left: left(row)?,
            };
            Ok((digest.try_into().map_err(StoreError::contradiction)?, holder))
        })
        .collect()
}

/// How often a key was used since it was last written down.
#[derive(Debug, Clone, Copy)]
pub struct KeyUse {
    /// Which key.
    pub id: ApiKeyId,
    /// Requests.
    pub count: u32,
    /// The last of them.
    pub last: OffsetDateTime,
}

/// Adds up what keys were used for.
pub async fn note_use(pool: &Pool, mut uses: Vec<KeyUse>) -> StoreResult<()> {
    uses.sort_unstable_by_key(|one| one.id);
    transaction(pool, move |connection| {
        let uses = uses.clone();
        Box::pin(async move {
            // Locked in id order: two processes write of the same keys at the same time.
            sqlx::query(
                "WITH used AS (SELECT * FROM unnest($1::uuid[], $2::int[], $3::timestamptz[]) AS t (id, count, last)),
                 locked AS MATERIALIZED (
                     SELECT id FROM api_keys WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE
                 )
                 UPDATE api_keys k SET usage_count = usage_count + used.count,
                     last_used_at = greatest(last_used_at, used.last)
                 FROM used, locked WHERE k.id = used.id AND locked.id = used.id",
            )
            .bind(column(&uses, |one| one.id.uuid()))
            .bind(column(&uses, |one| one.count as i32))
            .bind(column(&uses, |one| one.last))
            .execute(connection)
            .await?;
            Ok(())
        })
    })
    .await
}

/// A scope that this release does not know opens nothing.
pub(super) fn scopes(names: &[String]) -> Scopes {
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

pub(super) fn grant(row: &PgRow) -> StoreResult<Grant> {
    let max_tokens: Option<i32> = get(row, "max_tokens")?;
    Ok(Grant {
        scopes: scopes(&get::<Vec<String>, _>(row, "scopes")?),
        models: get(row, "models")?,
        max_tokens: max_tokens.map(i32::cast_unsigned),
    })
}

fn api_key(row: &PgRow) -> StoreResult<ApiKey> {
    Ok(ApiKey {
        id: Id::from_uuid(get(row, "id")?),
        project_id: Id::from_uuid(get(row, "project_id")?),
        name: get(row, "name")?,
        hint: get(row, "hint")?,
        grant: grant(row)?,
        created_at: get(row, "created_at")?,
        expires_at: get(row, "expires_at")?,
        revoked_at: get(row, "revoked_at")?,
        last_used_at: get(row, "last_used_at")?,
        usage_count: get::<i64, _>(row, "usage_count")?.cast_unsigned(),
    })
}
