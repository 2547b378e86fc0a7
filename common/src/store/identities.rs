//! Who users are elsewhere: an issuer's subject leads to one account, by which its owner signs in.
//!
//! Must never link an account to a subject because their addresses are the same: only its own signed-in user does that.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use super::accounts::{self, Account, NewUser, account};
use super::audit::{self, By, Entry, Origin};
use super::row::get;
use super::{Pool, StoreResult, transaction};
use crate::domain::{Id, IdentityId, SessionId, UserId};

/// Somebody, as a provider knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Who says so.
    pub issuer: String,
    /// Its name for them.
    pub subject: String,
    /// An address that it has verified.
    pub email: String,
}

/// A link from an issuer's subject to an account.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its id.
    pub id: IdentityId,
    /// Who says who this is.
    pub issuer: String,
    /// The address by which the link was made.
    pub email: String,
    /// When that was.
    pub created_at: OffsetDateTime,
    /// When it was last signed in by.
    pub last_used_at: Option<OffsetDateTime>,
}

/// Whose account the subject leads to; notes that it was used.
pub async fn recognise(executor: impl PgExecutor<'_>, issuer: &str, subject: &str) -> StoreResult<Option<Account>> {
    let row = sqlx::query(
        "WITH used AS (
             UPDATE identities SET last_used_at = now() WHERE issuer = $1 AND subject = $2 RETURNING user_id
         )
         SELECT u.* FROM users u JOIN used ON used.user_id = u.id",
    )
    .bind(issuer)
    .bind(subject)
    .fetch_optional(executor)
    .await?;
    row.as_ref().map(account).transpose()
}

/// Creates a user without a password, who signs in as `subject`.
///
/// [`super::StoreError::Conflict`] names what is taken: `users_username_key`, `users_email_key`, `identities_issuer_subject_key`.
pub async fn register(pool: &Pool, user: NewUser, subject: Subject, origin: Origin) -> StoreResult<Account> {
    transaction(pool, move |connection| {
        let (user, subject, origin) = (user.clone(), subject.clone(), origin.clone());
        Box::pin(async move {
            let account = accounts::insert(connection, user, origin.clone()).await?;
            sqlx::query("UPDATE users SET has_password = false WHERE id = $1")
                .bind(account.user_id.uuid())
                .execute(&mut *connection)
                .await?;
            let by = By {
                origin,
                ..By::from(account.user_id)
            };
            insert(connection, &account, subject, &by).await?;
            Ok(account)
        })
    })
    .await
}

async fn insert(connection: &mut PgConnection, account: &Account, subject: Subject, by: &By) -> StoreResult<()> {
    let id = IdentityId::new();
    let details = serde_json::json!({"issuer": subject.issuer});
    sqlx::query(
        "INSERT INTO identities (id, user_id, issuer, subject, email, last_used_at) VALUES ($1, $2, $3, $4, $5, now())",
    )
    .bind(id.uuid())
    .bind(account.user_id.uuid())
    .bind(subject.issuer)
    .bind(subject.subject)
    .bind(subject.email)
    .execute(&mut *connection)
    .await?;
    let entry = Entry::done(Some(account.tenant_id), "identity.linked", Some(id.uuid()));
    audit::record(connection, by, entry.with(details)).await
}

/// Who has the session, if it still goes on and they are active.
pub async fn owner(executor: impl PgExecutor<'_>, session: SessionId) -> StoreResult<Option<Account>> {
    let row = sqlx::query(
        "SELECT u.* FROM sessions s JOIN users u ON u.id = s.user_id
         WHERE s.id = $1 AND s.ended_at IS NULL AND s.expires_at > now() AND u.is_active",
    )
    .bind(session.uuid())
    .fetch_optional(executor)
    .await?;
    row.as_ref().map(account).transpose()
}

/// Links the subject to an account, whose user asks for it.
///
/// [`super::StoreError::Conflict`] names what is taken: `identities_issuer_subject_key` (the subject, by anybody),
/// `identities_user_issuer_key` (the account has one of this issuer).
pub async fn link(pool: &Pool, account: Account, subject: Subject, by: By) -> StoreResult<()> {
    transaction(pool, move |connection| {
        let (account, subject, by) = (account.clone(), subject.clone(), by.clone());
        Box::pin(async move { insert(connection, &account, subject, &by).await })
    })
    .await
}

/// A user's links, the oldest first. There is one for each issuer at most.
pub async fn list(executor: impl PgExecutor<'_>, user: UserId) -> StoreResult<Vec<Identity>> {
    let rows = sqlx::query("SELECT * FROM identities WHERE user_id = $1 ORDER BY id")
        .bind(user.uuid())
        .fetch_all(executor)
        .await?;
    rows.iter().map(identity).collect()
}

/// What came of unlinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlinked {
    /// It is done.
    Done,
    /// The user has no such link.
    Unknown,
    /// It stays: the user would have no way in.
    LastWayIn,
}

/// Ends a link.
pub async fn unlink(pool: &Pool, user: UserId, id: IdentityId, by: By) -> StoreResult<Unlinked> {
    transaction(pool, move |connection| {
        let by = by.clone();
        Box::pin(async move { remove(connection, user, id, &by).await })
    })
    .await
}

async fn remove(connection: &mut PgConnection, user: UserId, id: IdentityId, by: &By) -> StoreResult<Unlinked> {
    // The user's row is locked, so that the last two links cannot go at the same time.
    let row = sqlx::query("SELECT * FROM users WHERE id = $1 FOR NO KEY UPDATE")
        .bind(user.uuid())
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else { return Ok(Unlinked::Unknown) };
    let known = list(&mut *connection, user).await?;
    let Some(link) = known.iter().find(|one| one.id == id) else {
        return Ok(Unlinked::Unknown);
    };
    if known.len() == 1 && !get::<bool, _>(&row, "has_password")? {
        return Ok(Unlinked::LastWayIn);
    }
    sqlx::query("DELETE FROM identities WHERE id = $1")
        .bind(id.uuid())
        .execute(&mut *connection)
        .await?;
    let entry = Entry::done(Some(account(&row)?.tenant_id), "identity.unlinked", Some(id.uuid()));
    let details = serde_json::json!({"issuer": link.issuer});
    audit::record(connection, by, entry.with(details)).await?;
    Ok(Unlinked::Done)
}

fn identity(row: &PgRow) -> StoreResult<Identity> {
    Ok(Identity {
        id: Id::from_uuid(get(row, "id")?),
        issuer: get(row, "issuer")?,
        email: get(row, "email")?,
        created_at: get(row, "created_at")?,
        last_used_at: get(row, "last_used_at")?,
    })
}
