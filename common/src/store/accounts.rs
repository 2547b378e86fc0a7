//! Users with their personal organization and project.

use sqlx::{PgConnection, PgExecutor, Row};

use super::access::Changed;
use super::audit::{By, Origin};
use super::row::{get, parse};
use super::{Pool, StoreResult, sessions, transaction};
use crate::domain::{Id, ProjectId, Role, TenantId, UserId};

/// What registering needs. Name and address were checked, the password is hashed already.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// Unique whatever its case.
    pub username: String,
    /// Unique whatever its case.
    pub email: String,
    /// PHC string of argon2id.
    pub password_hash: String,
}

/// A user and where their jobs go.
#[derive(Debug, Clone)]
pub struct Account {
    /// The user.
    pub user_id: UserId,
    /// Their organization.
    pub tenant_id: TenantId,
    /// Their project.
    pub project_id: ProjectId,
    /// Whether it is a service, and no person.
    pub is_service: bool,
    /// The name they log in with.
    pub username: String,
    /// Where they are reached.
    pub email: String,
    /// PHC string of argon2id.
    pub password_hash: String,
    /// Whether somebody knows the password: whoever came by a provider has none.
    pub has_password: bool,
    /// What they may do.
    pub role: Role,
    /// A deactivated user keeps their data and loses their access.
    pub is_active: bool,
    /// When they registered.
    pub created_at: time::OffsetDateTime,
}

/// Creates a user with a personal organization and one project.
///
/// [`super::StoreError::Conflict`] names `users_username_key` or `users_email_key`.
pub async fn register(pool: &Pool, user: NewUser, origin: Origin) -> StoreResult<Account> {
    transaction(pool, move |connection| {
        let (user, origin) = (user.clone(), origin.clone());
        Box::pin(async move { insert(connection, user, origin).await })
    })
    .await
}

pub(super) async fn insert(connection: &mut PgConnection, user: NewUser, origin: Origin) -> StoreResult<Account> {
    let (user_id, tenant_id, project_id) = (UserId::new(), TenantId::new(), ProjectId::new());
    let row = sqlx::query(
        "WITH organization AS (
             INSERT INTO organizations (id, name) VALUES ($2, $4)
         ), project AS (
             INSERT INTO projects (id, organization_id, name) VALUES ($3, $2, 'default')
         ), audit AS (
             INSERT INTO audit_log (tenant_id, actor, address, request_id, action, subject)
             VALUES ($2, 'user:' || $1::uuid, $7, $8, 'user.registered', $1)
         )
         INSERT INTO users (id, tenant_id, project_id, username, email, password_hash)
         VALUES ($1, $2, $3, $4, $5, $6) RETURNING *",
    )
    .bind(user_id.uuid())
    .bind(tenant_id.uuid())
    .bind(project_id.uuid())
    .bind(user.username)
    .bind(user.email)
    .bind(user.password_hash)
    .bind(origin.address.map(|address| address.to_string()))
    .bind(origin.request_id)
    .fetch_one(connection)
    .await?;
    account(&row)
}

/// The user of that name, whatever its case. No service is found by this.
pub async fn find_by_username(executor: impl PgExecutor<'_>, username: &str) -> StoreResult<Option<Account>> {
    let row = sqlx::query("SELECT * FROM users WHERE lower(username) = lower($1) AND NOT is_service")
        .bind(username)
        .fetch_optional(executor)
        .await?;
    row.as_ref().map(account).transpose()
}

/// The user of that id.
pub async fn find(executor: impl PgExecutor<'_>, id: UserId) -> StoreResult<Option<Account>> {
    let row = sqlx::query("SELECT * FROM users WHERE id = $1")
        .bind(id.uuid())
        .fetch_optional(executor)
        .await?;
    row.as_ref().map(account).transpose()
}

pub(super) fn account(row: &sqlx::postgres::PgRow) -> StoreResult<Account> {
    Ok(Account {
        user_id: Id::from_uuid(row.try_get("id")?),
        tenant_id: Id::from_uuid(row.try_get("tenant_id")?),
        project_id: Id::from_uuid(row.try_get("project_id")?),
        is_service: get(row, "is_service")?,
        username: get(row, "username")?,
        email: get(row, "email")?,
        password_hash: get(row, "password_hash")?,
        has_password: get(row, "has_password")?,
        role: parse(row, "role")?,
        is_active: get(row, "is_active")?,
        created_at: get(row, "created_at")?,
    })
}

/// Gives a user another password, unless the present one is not `known` any more, and ends all sessions.
pub async fn set_password(
    pool: &Pool,
    user: UserId,
    known: String,
    hash: String,
    by: By,
) -> StoreResult<Changed<bool>> {
    let changed = transaction(pool, move |connection| {
        let (known, hash, by) = (known.clone(), hash.clone(), by.clone());
        Box::pin(async move {
            let done = sqlx::query(
                "WITH changed AS (
                     UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2 RETURNING id, tenant_id
                 )
                 INSERT INTO audit_log (tenant_id, actor, credential, address, request_id, action, subject)
                 SELECT tenant_id, $4, $5, $6, $7, 'user.password', id FROM changed",
            )
            .bind(user.uuid())
            .bind(known)
            .bind(hash)
            .bind(&by.actor)
            .bind(by.credential())
            .bind(by.address())
            .bind(by.request_id())
            .execute(&mut *connection)
            .await?;
            if done.rows_affected() == 0 {
                return Ok(false);
            }
            sessions::end_all(connection, user, "password").await?;
            Ok(true)
        })
    })
    .await?;
    Ok(Changed::of(changed, changed.then_some(user.uuid())))
}

/// What an admin changes about a user.
#[derive(Debug, Clone, Copy, Default)]
pub struct UserChange {
    /// Whether they have access.
    pub is_active: Option<bool>,
    /// What they may do.
    pub role: Option<Role>,
}

/// Changes a user, and writes it down. Whoever is deactivated loses all sessions; API keys rest until the user is back.
pub async fn change(
    pool: &Pool,
    user: UserId,
    change: UserChange,
    by: impl Into<By>,
) -> StoreResult<Changed<Option<Account>>> {
    let by = by.into();
    let changed = transaction(pool, move |connection| {
        let by = by.clone();
        Box::pin(async move {
            let row = sqlx::query(
                "WITH audit AS (
                     INSERT INTO audit_log (tenant_id, actor, credential, address, request_id, action, subject, details)
                     SELECT tenant_id, $4, $5, $6, $7, 'user.changed', id,
                         jsonb_strip_nulls(jsonb_build_object('is_active', $2::boolean, 'role', $3::text))
                     FROM users WHERE id = $1
                 )
                 UPDATE users SET is_active = coalesce($2, is_active), role = coalesce($3, role) WHERE id = $1 RETURNING *",
            )
            .bind(user.uuid())
            .bind(change.is_active)
            .bind(change.role.map(Role::as_str))
            .bind(&by.actor)
            .bind(by.credential())
            .bind(by.address())
            .bind(by.request_id())
            .fetch_optional(&mut *connection)
            .await?;
            if change.is_active == Some(false) {
                sessions::end_all(connection, user, "deactivated").await?;
            }
            row.as_ref().map(account).transpose()
        })
    })
    .await?;
    Ok(Changed::of(changed, Some(user.uuid())))
}

/// Users, the newest first, at most `limit` of those older than `after`.
pub async fn list(executor: impl PgExecutor<'_>, after: Option<UserId>, limit: u32) -> StoreResult<Vec<Account>> {
    let rows = sqlx::query(
        "SELECT * FROM users WHERE NOT is_service AND id < coalesce($1, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
         ORDER BY id DESC LIMIT $2",
    )
    .bind(after.map(Id::uuid))
    .bind(i64::from(limit))
    .fetch_all(executor)
    .await?;
    rows.iter().map(account).collect()
}

/// Gives a user another role, and writes it down. `false` if there is no such user.
pub async fn set_role(executor: impl PgExecutor<'_>, username: &str, role: Role) -> StoreResult<bool> {
    let done = sqlx::query(
        "WITH changed AS (
             UPDATE users SET role = $2 WHERE lower(username) = lower($1) RETURNING id, tenant_id
         )
         INSERT INTO audit_log (tenant_id, actor, action, subject, details)
         SELECT tenant_id, 'operator', 'user.role', id, jsonb_build_object('role', $2) FROM changed",
    )
    .bind(username)
    .bind(role.as_str())
    .execute(executor)
    .await?;
    Ok(done.rows_affected() > 0)
}
