//! Accounts of services: made for a project, known by an id and a secret, good for their scopes until they are revoked.
//!
//! Must never see a secret itself, only its digest.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use super::access::Changed;
use super::api_keys::{Digest, scopes};
use super::audit::{self, By, Entry};
use super::idempotency::{Answer, Claim};
use super::once::{Once, make_once};
use super::row::get;
use super::{Pool, StoreResult, sessions, transaction};
use crate::domain::{Id, ProjectId, Scope, Scopes, ServiceAccountId, TenantId, UserId};

/// Service accounts that a project may have at a time.
pub const ACCOUNTS_MAX: i64 = 100;

/// One to be made.
#[derive(Debug, Clone)]
pub struct NewServiceAccount {
    /// Its project's organization.
    pub tenant_id: TenantId,
    /// Where its jobs go.
    pub project_id: ProjectId,
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub scopes: Scopes,
    /// The first characters of its secret.
    pub hint: String,
    /// The secret's digest.
    pub sha256: Digest,
    /// A hash that no password fits.
    pub password_hash: String,
    /// Who makes it, for the audit log.
    pub by: By,
}

/// One as people see it.
#[derive(Debug, Clone)]
pub struct ServiceAccount {
    /// Its id.
    pub id: ServiceAccountId,
    /// Where its jobs go.
    pub project_id: ProjectId,
    /// What people call it.
    pub name: String,
    /// The first characters of its secret.
    pub hint: String,
    /// What it may do.
    pub scopes: Scopes,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it last got a token.
    pub last_used_at: Option<OffsetDateTime>,
    /// When it was revoked.
    pub revoked_at: Option<OffsetDateTime>,
}

impl ServiceAccount {
    /// What the rest of the house knows it as.
    pub const fn user_id(&self) -> UserId {
        Id::from_uuid(self.id.uuid())
    }
}

/// Keeps a new one, unless its project has [`ACCOUNTS_MAX`]: then `None`. `render` makes the answer that a repeated request with
/// the same key will be shown.
pub async fn create(
    pool: &Pool,
    new: NewServiceAccount,
    claim: Option<Claim>,
    render: fn(&ServiceAccount) -> Answer,
) -> StoreResult<Once<Option<ServiceAccount>>> {
    make_once(pool, claim, render, move |connection| {
        let new = new.clone();
        Box::pin(async move { insert(connection, new).await })
    })
    .await
}

async fn insert(connection: &mut PgConnection, new: NewServiceAccount) -> StoreResult<Option<ServiceAccount>> {
    let id = ServiceAccountId::new();
    // The project's row is locked, so that two requests cannot both find room for the last one.
    sqlx::query("SELECT id FROM projects WHERE id = $1 FOR NO KEY UPDATE")
        .bind(new.project_id.uuid())
        .execute(&mut *connection)
        .await?;
    // Nobody reads mail at `.invalid` (RFC 2606).
    let made = sqlx::query(
        "INSERT INTO users (id, tenant_id, project_id, username, email, password_hash, has_password, is_service)
         SELECT $1, $2, $3, $4, $4 || '@service.invalid', $5, false, true
         WHERE (SELECT count(*) FROM service_accounts WHERE project_id = $3 AND revoked_at IS NULL) < $6",
    )
    .bind(id.uuid())
    .bind(new.tenant_id.uuid())
    .bind(new.project_id.uuid())
    .bind(id.to_string())
    .bind(new.password_hash)
    .bind(ACCOUNTS_MAX)
    .execute(&mut *connection)
    .await?;
    if made.rows_affected() == 0 {
        return Ok(None);
    }
    let row = sqlx::query(
        "INSERT INTO service_accounts (id, project_id, name, hint, scopes) VALUES ($1, $2, $3, $4, $5) RETURNING *",
    )
    .bind(id.uuid())
    .bind(new.project_id.uuid())
    .bind(new.name)
    .bind(new.hint)
    .bind(new.scopes.iter().map(Scope::as_str).collect::<Vec<_>>())
    .fetch_one(&mut *connection)
    .await?;
    keep_secret(connection, id, new.sha256).await?;
    write(connection, &new.by, id, "service_account.created").await?;
    service_account(&row).map(Some)
}

async fn keep_secret(connection: &mut PgConnection, id: ServiceAccountId, sha256: Digest) -> StoreResult<()> {
    sqlx::query("INSERT INTO service_account_secrets (sha256, service_account_id) VALUES ($1, $2)")
        .bind(sha256.as_slice())
        .bind(id.uuid())
        .execute(connection)
        .await?;
    Ok(())
}

async fn write(connection: &mut PgConnection, by: &By, id: ServiceAccountId, action: &str) -> StoreResult<()> {
    let tenant = sqlx::query_scalar("SELECT tenant_id FROM users WHERE id = $1")
        .bind(id.uuid())
        .fetch_one(&mut *connection)
        .await?;
    let entry = Entry::done(Some(Id::from_uuid(tenant)), action, Some(id.uuid()));
    audit::record(connection, by, entry).await
}

/// A project's, the newest first, those that were revoked as well; at most `limit` of those older than `after`.
pub async fn list(
    executor: impl PgExecutor<'_>,
    project: ProjectId,
    after: Option<ServiceAccountId>,
    limit: u32,
) -> StoreResult<Vec<ServiceAccount>> {
    let rows = sqlx::query(
        "SELECT * FROM service_accounts
         WHERE project_id = $1 AND id < coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
         ORDER BY id DESC LIMIT $3",
    )
    .bind(project.uuid())
    .bind(after.map(Id::uuid))
    .bind(i64::from(limit))
    .fetch_all(executor)
    .await?;
    rows.iter().map(service_account).collect()
}

/// The one whose id and secret these are, if it holds now and its project goes on; notes that it was used.
pub async fn recognise(
    executor: impl PgExecutor<'_>,
    id: ServiceAccountId,
    sha256: Digest,
) -> StoreResult<Option<ServiceAccount>> {
    let row = sqlx::query(
        "UPDATE service_accounts a SET last_used_at = now()
         FROM service_account_secrets s, users u, projects p
         WHERE a.id = $1 AND s.sha256 = $2 AND s.service_account_id = a.id AND u.id = a.id AND p.id = a.project_id
           AND a.revoked_at IS NULL AND u.is_active AND p.archived_at IS NULL
           AND coalesce(s.expires_at, 'infinity') > now()
         RETURNING a.*",
    )
    .bind(id.uuid())
    .bind(sha256.as_slice())
    .fetch_optional(executor)
    .await?;
    row.as_ref().map(service_account).transpose()
}

/// What to give one instead of the secret that is in use.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Which.
    pub id: ServiceAccountId,
    /// Its project.
    pub project_id: ProjectId,
    /// The first characters of the new secret.
    pub hint: String,
    /// Its digest.
    pub sha256: Digest,
    /// Seconds for which the old one still holds.
    pub overlap: u32,
    /// Who rotates it, for the audit log.
    pub by: By,
}

/// Gives one that is not revoked a new secret; the one in use ends after the overlap, older ones at once.
pub async fn rotate(pool: &Pool, rotation: Rotation) -> StoreResult<Option<ServiceAccount>> {
    transaction(pool, move |connection| {
        let rotation = rotation.clone();
        Box::pin(async move {
            let row = sqlx::query(
                "UPDATE service_accounts SET hint = $3
                 WHERE id = $1 AND project_id = $2 AND revoked_at IS NULL RETURNING *",
            )
            .bind(rotation.id.uuid())
            .bind(rotation.project_id.uuid())
            .bind(rotation.hint)
            .fetch_optional(&mut *connection)
            .await?;
            let Some(row) = row else { return Ok(None) };
            sqlx::query(
                "WITH gone AS (
                     DELETE FROM service_account_secrets WHERE service_account_id = $1 AND expires_at IS NOT NULL
                 )
                 UPDATE service_account_secrets SET expires_at = now() + make_interval(secs => $2)
                 WHERE service_account_id = $1 AND expires_at IS NULL",
            )
            .bind(rotation.id.uuid())
            .bind(f64::from(rotation.overlap))
            .execute(&mut *connection)
            .await?;
            keep_secret(connection, rotation.id, rotation.sha256).await?;
            write(connection, &rotation.by, rotation.id, "service_account.rotated").await?;
            service_account(&row).map(Some)
        })
    })
    .await
}

/// Ends one at once, with its tokens and keys. Safe to repeat; the first end stands.
pub async fn revoke(
    pool: &Pool,
    project: ProjectId,
    id: ServiceAccountId,
    by: By,
) -> StoreResult<Changed<Option<ServiceAccount>>> {
    let ended = transaction(pool, move |connection| {
        let by = by.clone();
        Box::pin(async move { end(connection, project, id, &by).await })
    })
    .await?;
    Ok(Changed::of(ended, Some(id.uuid())))
}

async fn end(
    connection: &mut PgConnection,
    project: ProjectId,
    id: ServiceAccountId,
    by: &By,
) -> StoreResult<Option<ServiceAccount>> {
    let row = sqlx::query("SELECT * FROM service_accounts WHERE id = $1 AND project_id = $2 FOR NO KEY UPDATE")
        .bind(id.uuid())
        .bind(project.uuid())
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let known = service_account(&row)?;
    if known.revoked_at.is_some() {
        return Ok(Some(known));
    }
    let row = sqlx::query(
        "WITH gone AS (DELETE FROM service_account_secrets WHERE service_account_id = $1),
         out AS (UPDATE users SET is_active = false WHERE id = $1)
         UPDATE service_accounts SET revoked_at = now() WHERE id = $1 RETURNING *",
    )
    .bind(id.uuid())
    .fetch_one(&mut *connection)
    .await?;
    sessions::end_all(connection, known.user_id(), "revoked").await?;
    write(connection, by, id, "service_account.revoked").await?;
    service_account(&row).map(Some)
}

fn service_account(row: &PgRow) -> StoreResult<ServiceAccount> {
    Ok(ServiceAccount {
        id: Id::from_uuid(get(row, "id")?),
        project_id: Id::from_uuid(get(row, "project_id")?),
        name: get(row, "name")?,
        hint: get(row, "hint")?,
        scopes: scopes(&get::<Vec<String>, _>(row, "scopes")?),
        created_at: get(row, "created_at")?,
        last_used_at: get(row, "last_used_at")?,
        revoked_at: get(row, "revoked_at")?,
    })
}
