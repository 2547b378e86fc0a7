//! The audit log: who did what, by which credential, from where. Rows are written in the transaction of what they tell of,
//! and never hold a prompt, an output or a secret.
//!
//! Whoever changes something takes a [`By`] and hands it on to the statement that writes the row ([`record`] where there is
//! no such statement). Rows are sealed into a chain in the background: [`seal`](super::seal).

use std::net::IpAddr;

use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor, QueryBuilder};
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreResult;
use super::row::get;
use crate::domain::{BatchId, Id, JobId, TenantId, UserId};
use crate::policy::Hit;

/// Who acts, and how they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By {
    /// `user:<uuid>`, `worker:<uuid>`, `service`, `operator`; `anonymous` for who is not known.
    pub actor: String,
    /// How they came, if by a request.
    pub origin: Origin,
}

/// How an actor came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// `token`, `key:<uuid>`, or `provider:<name>` for who has just signed in with one.
    pub credential: Option<String>,
    /// The client's address.
    pub address: Option<IpAddr>,
    /// The request's id, as its answer carries it.
    pub request_id: Option<String>,
}

impl By {
    /// The service itself.
    pub fn service() -> Self {
        Self::from("service")
    }

    /// The user's uuid, if it is one.
    pub(super) fn user(&self) -> Option<Uuid> {
        self.actor.strip_prefix("user:")?.parse().ok()
    }

    /// The address as it is stored.
    pub(super) fn address(&self) -> Option<String> {
        self.origin.address.map(|address| address.to_string())
    }

    /// The credential as it is stored.
    pub(super) fn credential(&self) -> Option<&str> {
        self.origin.credential.as_deref()
    }

    /// The request's id.
    pub(super) fn request_id(&self) -> Option<&str> {
        self.origin.request_id.as_deref()
    }
}

impl From<String> for By {
    fn from(actor: String) -> Self {
        let origin = Origin::default();
        Self { actor, origin }
    }
}

impl From<&str> for By {
    fn from(actor: &str) -> Self {
        actor.to_owned().into()
    }
}

impl From<UserId> for By {
    fn from(user: UserId) -> Self {
        format!("user:{}", user.uuid()).into()
    }
}

impl From<&By> for By {
    fn from(by: &By) -> Self {
        by.clone()
    }
}

/// How an action went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Ok,
    /// It was not allowed: a wrong password, a missing right, a limit.
    Refused,
}

impl Outcome {
    /// The stored and shown form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// Whose log it belongs to; `None` is the operators' alone.
    pub tenant: Option<TenantId>,
    /// What was done, as `thing.done` (`key.created`).
    pub action: &'a str,
    /// The uuid of what was acted upon.
    pub subject: Option<Uuid>,
    /// How it went.
    pub outcome: Outcome,
    /// What else there is to say: never a text of a caller, never a secret.
    pub details: Option<Value>,
}

impl<'a> Entry<'a> {
    /// An action that was done.
    pub const fn done(tenant: Option<TenantId>, action: &'a str, subject: Option<Uuid>) -> Self {
        Self {
            tenant,
            action,
            subject,
            outcome: Outcome::Ok,
            details: None,
        }
    }

    /// A prompt that a rule of the content policy rejects; the subject is the batch that it is a line of.
    pub fn rejected(tenant: TenantId, batch: Option<BatchId>, hit: &Hit) -> Self {
        Self::done(Some(tenant), "policy.rejected", batch.map(Id::uuid))
            .with(serde_json::json!(hit))
            .refused()
    }

    /// The same, with more to say.
    #[must_use]
    pub fn with(self, details: Value) -> Self {
        Self {
            details: Some(details),
            ..self
        }
    }

    /// The same, refused.
    #[must_use]
    pub fn refused(self) -> Self {
        Self {
            outcome: Outcome::Refused,
            ..self
        }
    }
}

/// Writes a row, in the transaction of what it tells of.
pub async fn record(executor: impl PgExecutor<'_>, by: &By, entry: Entry<'_>) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO audit_log (tenant_id, actor, credential, address, request_id, action, subject, outcome, details)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(entry.tenant.map(Id::uuid))
    .bind(&by.actor)
    .bind(by.credential())
    .bind(by.address())
    .bind(by.request_id())
    .bind(entry.action)
    .bind(entry.subject)
    .bind(entry.outcome.as_str())
    .bind(entry.details)
    .execute(executor)
    .await?;
    Ok(())
}

/// Writes a row for each rule of the content policy that a job's text met.
pub(super) async fn record_hits(connection: &mut PgConnection, by: &By, hits: Vec<(JobId, Hit)>) -> StoreResult<()> {
    if hits.is_empty() {
        return Ok(());
    }
    let jobs: Vec<Uuid> = hits.iter().map(|(job, _)| job.uuid()).collect();
    let actions: Vec<String> = hits.iter().map(|(_, hit)| hit.action.done().to_owned()).collect();
    let details: Vec<Value> = hits.iter().map(|(_, hit)| serde_json::json!(hit)).collect();
    sqlx::query(
        "INSERT INTO audit_log (tenant_id, actor, credential, address, request_id, action, subject, details)
         SELECT j.tenant_id, $1, $2, $3, $4, hit.action, j.id, hit.details
         FROM unnest($5::uuid[], $6::text[], $7::jsonb[]) AS hit (job_id, action, details) JOIN jobs j ON j.id = hit.job_id",
    )
    .bind(&by.actor)
    .bind(by.credential())
    .bind(by.address())
    .bind(by.request_id())
    .bind(jobs)
    .bind(actions)
    .bind(details)
    .execute(connection)
    .await?;
    Ok(())
}

/// A row of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRow {
    /// Greater is later.
    pub id: i64,
    /// When its transaction began.
    pub occurred_at: OffsetDateTime,
    /// Whose log it belongs to.
    pub tenant_id: Option<Uuid>,
    /// Who.
    pub actor: String,
    /// By which credential.
    pub credential: Option<String>,
    /// From where.
    pub address: Option<String>,
    /// In which request.
    pub request_id: Option<String>,
    /// What.
    pub action: String,
    /// To what.
    pub subject: Option<Uuid>,
    /// `ok`, `refused`.
    pub outcome: String,
    /// What else there is to say.
    pub details: Option<Value>,
}

/// Which rows to show. What is `None` does not narrow.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Of one tenant.
    pub tenant: Option<TenantId>,
    /// By one actor.
    pub actor: Option<String>,
    /// Of one action, or of all that begin so (`job.`).
    pub action: Option<String>,
    /// About one thing.
    pub subject: Option<Uuid>,
    /// Of one request.
    pub request_id: Option<String>,
    /// That went so.
    pub outcome: Option<String>,
    /// At this time or later.
    pub since: Option<OffsetDateTime>,
    /// Before this time.
    pub until: Option<OffsetDateTime>,
    /// Older than this row.
    pub after: Option<i64>,
    /// At most this many.
    pub limit: u32,
}

/// Rows, newest first.
pub async fn list(executor: impl PgExecutor<'_>, filter: &AuditFilter) -> StoreResult<Vec<AuditRow>> {
    // Conditions are written out only where they apply: the planner then sees the index that fits.
    let mut query = QueryBuilder::new("SELECT * FROM audit_log WHERE true");
    if let Some(tenant) = filter.tenant {
        query.push(" AND tenant_id = ").push_bind(tenant.uuid());
    }
    if let Some(actor) = &filter.actor {
        query.push(" AND actor = ").push_bind(actor);
    }
    if let Some(action) = &filter.action {
        query.push(" AND starts_with(action, ").push_bind(action).push(")");
    }
    if let Some(subject) = filter.subject {
        query.push(" AND subject = ").push_bind(subject);
    }
    if let Some(request_id) = &filter.request_id {
        query.push(" AND request_id = ").push_bind(request_id);
    }
    if let Some(outcome) = &filter.outcome {
        query.push(" AND outcome = ").push_bind(outcome);
    }
    if let Some(since) = filter.since {
        query.push(" AND occurred_at >= ").push_bind(since);
    }
    if let Some(until) = filter.until {
        query.push(" AND occurred_at < ").push_bind(until);
    }
    if let Some(after) = filter.after {
        query.push(" AND id < ").push_bind(after);
    }
    query
        .push(" ORDER BY id DESC LIMIT ")
        .push_bind(i64::from(filter.limit));
    let rows = query.build().persistent(false).fetch_all(executor).await?;
    rows.iter().map(audit_row).collect()
}

pub(super) fn audit_row(row: &PgRow) -> StoreResult<AuditRow> {
    Ok(AuditRow {
        id: get(row, "id")?,
        occurred_at: get(row, "occurred_at")?,
        tenant_id: get(row, "tenant_id")?,
        actor: get(row, "actor")?,
        credential: get(row, "credential")?,
        address: get(row, "address")?,
        request_id: get(row, "request_id")?,
        action: get(row, "action")?,
        subject: get(row, "subject")?,
        outcome: get(row, "outcome")?,
        details: get(row, "details")?,
    })
}
