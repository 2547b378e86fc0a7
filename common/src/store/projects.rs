//! Projects, and who may act in them. The rule itself is the view `project_access` (`migrations/20261126000201_projects.sql`);
//! all who need it ask there.
//!
//! Must never tell a project that a user may not act in from one that does not exist.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use super::access::Changed;
use super::audit::{self, By, Entry};
use super::idempotency::{Answer, Claim};
use super::once::{Once, make_once};
use super::row::{get, parse};
use super::{Pool, StoreResult, transaction};
use crate::domain::{Id, ProjectId, ProjectRole, TenantId, UserId};

/// Projects that an organization may have at a time.
pub const PROJECTS_MAX: i64 = 100;
/// Members that a project may have.
pub const MEMBERS_MAX: i64 = 100;

/// A project as one of those who may act in it sees it.
#[derive(Debug, Clone)]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// What people call it.
    pub name: String,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// What the user who asks is in it.
    pub role: ProjectRole,
}

/// A user who may act in a project of another organization.
#[derive(Debug, Clone)]
pub struct Member {
    /// The user.
    pub user_id: UserId,
    /// The name they log in with.
    pub username: String,
    /// What they are.
    pub role: ProjectRole,
    /// Since when.
    pub created_at: OffsetDateTime,
}

/// The projects that a user may act in, the oldest first.
pub async fn list(executor: impl PgExecutor<'_>, user: UserId) -> StoreResult<Vec<Project>> {
    let rows = sqlx::query(
        "SELECT p.*, a.role FROM project_access a JOIN projects p ON p.id = a.project_id WHERE a.user_id = $1 ORDER BY p.id",
    )
    .bind(user.uuid())
    .fetch_all(executor)
    .await?;
    rows.iter().map(project).collect()
}

/// One that the user may act in.
pub async fn find(executor: impl PgExecutor<'_>, user: UserId, id: ProjectId) -> StoreResult<Option<Project>> {
    let row = sqlx::query(
        "SELECT p.*, a.role FROM project_access a JOIN projects p ON p.id = a.project_id
         WHERE a.user_id = $1 AND a.project_id = $2",
    )
    .bind(user.uuid())
    .bind(id.uuid())
    .fetch_optional(executor)
    .await?;
    row.as_ref().map(project).transpose()
}

/// Makes a project in the organization of a user's own, unless it has [`PROJECTS_MAX`]: then `None`. `render` makes the answer that
/// a repeated request with the same key will be shown.
pub async fn create(
    pool: &Pool,
    user: UserId,
    name: String,
    by: By,
    claim: Option<Claim>,
    render: fn(&Project) -> Answer,
) -> StoreResult<Once<Option<Project>>> {
    make_once(pool, claim, render, move |connection| {
        let (name, by) = (name.clone(), by.clone());
        Box::pin(async move {
            // The organization's row is locked, so that two requests cannot both find room for the last one.
            sqlx::query(
                "SELECT o.id FROM organizations o JOIN users u ON u.tenant_id = o.id WHERE u.id = $1 FOR NO KEY UPDATE OF o",
            )
            .bind(user.uuid())
            .execute(&mut *connection)
            .await?;
            let id = ProjectId::new();
            let row = sqlx::query(
                "INSERT INTO projects (id, organization_id, name)
                 SELECT $2, u.tenant_id, $3 FROM users u WHERE u.id = $1 AND NOT u.is_service AND $4 >
                     (SELECT count(*) FROM projects WHERE organization_id = u.tenant_id AND archived_at IS NULL)
                 RETURNING *, 'admin' AS role",
            )
            .bind(user.uuid())
            .bind(id.uuid())
            .bind(name)
            .bind(PROJECTS_MAX)
            .fetch_optional(&mut *connection)
            .await?;
            let Some(row) = row else { return Ok(None) };
            let made = project(&row)?;
            write(connection, &by, made.tenant_id, "project.created", id).await?;
            Ok(Some(made))
        })
    })
    .await
}

/// Gives a project another name.
pub async fn rename(pool: &Pool, seen: Project, name: String, by: By) -> StoreResult<Project> {
    transaction(pool, move |connection| {
        let (seen, name, by) = (seen.clone(), name.clone(), by.clone());
        Box::pin(async move {
            sqlx::query("UPDATE projects SET name = $2 WHERE id = $1")
                .bind(seen.id.uuid())
                .bind(&name)
                .execute(&mut *connection)
                .await?;
            write(connection, &by, seen.tenant_id, "project.renamed", seen.id).await?;
            Ok(Project { name, ..seen })
        })
    })
    .await
}

/// What came of archiving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archived {
    /// It is done.
    Done,
    /// It is where its organization's user is without naming another one.
    Default,
    /// Jobs in it have not ended.
    Busy,
}

/// Lets nobody act in a project any more. What it holds stays.
pub async fn archive(pool: &Pool, seen: Project, by: By) -> StoreResult<Changed<Archived>> {
    let id = seen.id;
    let archived = transaction(pool, move |connection| {
        let (seen, by) = (seen.clone(), by.clone());
        Box::pin(async move { shut(connection, &seen, &by).await })
    })
    .await?;
    Ok(Changed::of(archived, Some(id.uuid())))
}

async fn shut(connection: &mut PgConnection, seen: &Project, by: &By) -> StoreResult<Archived> {
    let row = sqlx::query(
        "SELECT EXISTS (SELECT FROM users WHERE project_id = $1 AND NOT is_service) AS is_default,
             EXISTS (SELECT FROM jobs WHERE project_id = $1 AND finished_at IS NULL) AS is_busy",
    )
    .bind(seen.id.uuid())
    .fetch_one(&mut *connection)
    .await?;
    if get::<bool, _>(&row, "is_default")? {
        return Ok(Archived::Default);
    }
    if get::<bool, _>(&row, "is_busy")? {
        return Ok(Archived::Busy);
    }
    sqlx::query("UPDATE projects SET archived_at = coalesce(archived_at, now()) WHERE id = $1")
        .bind(seen.id.uuid())
        .execute(&mut *connection)
        .await?;
    write(connection, by, seen.tenant_id, "project.archived", seen.id).await?;
    Ok(Archived::Done)
}

/// The members of a project, the longest first.
pub async fn members(executor: impl PgExecutor<'_>, id: ProjectId) -> StoreResult<Vec<Member>> {
    let rows = sqlx::query(
        "SELECT m.*, u.username FROM project_members m JOIN users u ON u.id = m.user_id
         WHERE m.project_id = $1 ORDER BY m.created_at, m.user_id",
    )
    .bind(id.uuid())
    .fetch_all(executor)
    .await?;
    rows.iter().map(member).collect()
}

/// What came of letting somebody in.
#[derive(Debug, Clone)]
pub enum Joined {
    /// They are a member now, in this role.
    Done(Member),
    /// There is nobody of that name or address who is active.
    Nobody,
    /// They are of the organization and in all of its projects.
    OwnUser,
    /// There are [`MEMBERS_MAX`].
    Full,
}

/// Makes the user of that name or address a member of the project, or gives the member another role.
pub async fn join(pool: &Pool, seen: Project, name: String, role: ProjectRole, by: By) -> StoreResult<Joined> {
    transaction(pool, move |connection| {
        let (seen, name, by) = (seen.clone(), name.clone(), by.clone());
        Box::pin(async move { admit(connection, &seen, &name, role, &by).await })
    })
    .await
}

async fn admit(
    connection: &mut PgConnection,
    seen: &Project,
    name: &str,
    role: ProjectRole,
    by: &By,
) -> StoreResult<Joined> {
    sqlx::query("SELECT id FROM projects WHERE id = $1 FOR NO KEY UPDATE")
        .bind(seen.id.uuid())
        .execute(&mut *connection)
        .await?;
    let row = sqlx::query(
        "SELECT id, tenant_id = $2 AS is_own,
             $4 <= (SELECT count(*) FROM project_members WHERE project_id = $3 AND user_id <> u.id) AS is_full
         FROM users u WHERE (lower(username) = lower($1) OR lower(email) = lower($1)) AND is_active AND NOT is_service",
    )
    .bind(name)
    .bind(seen.tenant_id.uuid())
    .bind(seen.id.uuid())
    .bind(MEMBERS_MAX)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(Joined::Nobody) };
    if get::<bool, _>(&row, "is_own")? {
        return Ok(Joined::OwnUser);
    }
    if get::<bool, _>(&row, "is_full")? {
        return Ok(Joined::Full);
    }
    let user: UserId = Id::from_uuid(get(&row, "id")?);
    let row = sqlx::query(
        "WITH joined AS (
             INSERT INTO project_members (project_id, user_id, role) VALUES ($1, $2, $3)
             ON CONFLICT (project_id, user_id) DO UPDATE SET role = EXCLUDED.role RETURNING *
         )
         SELECT joined.*, u.username FROM joined JOIN users u ON u.id = joined.user_id",
    )
    .bind(seen.id.uuid())
    .bind(user.uuid())
    .bind(role.as_str())
    .fetch_one(&mut *connection)
    .await?;
    let details = serde_json::json!({"user": user.to_string(), "role": role.as_str()});
    let entry = Entry::done(Some(seen.tenant_id), "project.member_joined", Some(seen.id.uuid()));
    audit::record(connection, by, entry.with(details)).await?;
    member(&row).map(Joined::Done)
}

/// Ends a membership; `false` if there is none. What the member's keys and tokens did in the project ends with it.
pub async fn leave(pool: &Pool, seen: Project, user: UserId, by: By) -> StoreResult<Changed<bool>> {
    let left = transaction(pool, move |connection| {
        let (seen, by) = (seen.clone(), by.clone());
        Box::pin(async move {
            let gone = sqlx::query("DELETE FROM project_members WHERE project_id = $1 AND user_id = $2")
                .bind(seen.id.uuid())
                .bind(user.uuid())
                .execute(&mut *connection)
                .await?;
            if gone.rows_affected() == 0 {
                return Ok(false);
            }
            let details = serde_json::json!({"user": user.to_string()});
            let entry = Entry::done(Some(seen.tenant_id), "project.member_left", Some(seen.id.uuid()));
            audit::record(connection, &by, entry.with(details)).await?;
            Ok(true)
        })
    })
    .await?;
    Ok(Changed::of(left, left.then_some(user.uuid())))
}

async fn write(
    connection: &mut PgConnection,
    by: &By,
    tenant: TenantId,
    action: &str,
    project: ProjectId,
) -> StoreResult<()> {
    audit::record(connection, by, Entry::done(Some(tenant), action, Some(project.uuid()))).await
}

fn project(row: &PgRow) -> StoreResult<Project> {
    Ok(Project {
        id: Id::from_uuid(get(row, "id")?),
        tenant_id: Id::from_uuid(get(row, "organization_id")?),
        name: get(row, "name")?,
        created_at: get(row, "created_at")?,
        role: parse(row, "role")?,
    })
}

fn member(row: &PgRow) -> StoreResult<Member> {
    Ok(Member {
        user_id: Id::from_uuid(get(row, "user_id")?),
        username: get(row, "username")?,
        role: parse(row, "role")?,
        created_at: get(row, "created_at")?,
    })
}
