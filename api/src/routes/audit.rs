//! `GET /v1/audit`: who did what, newest first. Auditors and admins read everything, others what concerns their tenant.

use axum::Json;
use axum::extract::State;
use claimcheck_common::domain::{EventId, JobId, ProjectId, TenantId, UserId, WorkerId};
use claimcheck_common::store::audit::{self, AuditFilter, AuditRow, Outcome};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::paging::{LIMIT_MAX, Limit, after};
use crate::app::AppState;
use crate::docs::{NeedsAdmin, NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::{Caller, Query};
use crate::validate::number::unix_time;
use crate::validate::text::check;

/// Something that was done, or refused.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditBody {
    /// Greater is later.
    pub id: String,
    /// Always `audit`.
    pub object: &'static str,
    /// When.
    pub occurred_at: i64,
    /// The organization that it concerns; null for what concerns the whole service.
    #[schema(required)]
    pub tenant: Option<String>,
    /// `user:<uuid>`, `worker:<uuid>`, `service`, `operator` or `anonymous`.
    pub actor: String,
    /// `token` or `key:<uuid>`; null for the service itself and for who signs in.
    #[schema(required)]
    pub credential: Option<String>,
    /// The client's address.
    #[schema(required)]
    pub address: Option<String>,
    /// The `x-request-id` of the answer.
    #[schema(required)]
    pub request_id: Option<String>,
    /// As `thing.done`.
    pub action: String,
    /// The uuid of what it was done to.
    #[schema(required)]
    pub subject: Option<String>,
    /// `ok` or `refused`.
    pub outcome: String,
    /// What else there is to say.
    #[schema(required, value_type = Option<Object>)]
    pub details: Option<Value>,
}

/// A page of the audit log.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditList {
    /// Always `list`.
    pub object: &'static str,
    /// Newest first.
    pub data: Vec<AuditBody>,
    /// The first one's id.
    #[schema(required)]
    pub first_id: Option<String>,
    /// The last one's id: the next page's `after`.
    #[schema(required)]
    pub last_id: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

/// Read the audit log
///
/// Auditors and admins see everything, others what concerns their own organization.
#[utoipa::path(get, path = "/v1/audit", tag = "Operators",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "Rows on a page (20)"),
        ("after" = Option<String>, Query, description = "Only rows older than this id"),
        ("tenant" = Option<String>, Query, description = "Only of this organization"),
        ("actor" = Option<String>, Query, description = "Only by this actor, as a row shows it"),
        ("action" = Option<String>, Query, description = "Only actions that begin so, as `job.`"),
        ("subject" = Option<String>, Query, description = "Only about this: an id or its uuid"),
        ("request_id" = Option<String>, Query, description = "Only of this request"),
        ("outcome" = Option<String>, Query, description = "Only `ok` or only `refused`"),
        ("since" = Option<i64>, Query, description = "Only at this Unix time or later"),
        ("until" = Option<i64>, Query, description = "Only before this Unix time"),
    ),
    responses(
        (status = 200, body = AuditList, description = "A page, newest first"),
        (status = 400, body = ErrorBody, description = "A parameter is unknown or beyond its limit"),
        NeedsToken, NeedsAdmin, Trouble,
    ))]
pub async fn list_audit(
    State(state): State<AppState>,
    caller: Caller,
    query: Query,
) -> Result<Json<AuditList>, ApiError> {
    let (filter, limit) = filter(&caller, query)?;
    let mut found = audit::list(&state.pool, &filter).await?;
    let has_more = limit.cut(&mut found);
    let data: Vec<_> = found.into_iter().map(AuditBody::from).collect();
    Ok(Json(AuditList {
        object: "list",
        first_id: data.first().map(|row| row.id.clone()),
        last_id: data.last().map(|row| row.id.clone()),
        data,
        has_more,
    }))
}

/// What is asked for, within what the caller may see, and how much of it.
fn filter(caller: &Caller, query: Query) -> Result<(AuditFilter, Limit), ApiError> {
    let query = query.only(&[
        "limit",
        "after",
        "tenant",
        "actor",
        "action",
        "subject",
        "request_id",
        "outcome",
        "since",
        "until",
    ])?;
    let word = |text: &str| check(text, 1, 128).map(|()| text.to_owned());
    let limit = Limit::of(&query, LIMIT_MAX)?;
    let tenant = query.get("tenant", |text| {
        text.parse::<TenantId>().map_err(|_| "must be an `org_…`".to_owned())
    })?;
    let filter = AuditFilter {
        tenant: visible(caller, tenant)?,
        actor: query.get("actor", word)?,
        action: query.get("action", word)?,
        subject: query.get("subject", subject)?,
        request_id: query.get("request_id", word)?,
        outcome: query.get("outcome", outcome)?,
        since: query.get("since", unix_time)?,
        until: query.get("until", unix_time)?,
        after: after(&query, "a row")?,
        limit: limit.look_for(),
    };
    Ok((filter, limit))
}

/// The tenant to read of; `None` is all of them.
fn visible(caller: &Caller, asked: Option<TenantId>) -> Result<Option<TenantId>, ApiError> {
    if caller.is_auditor() {
        return Ok(asked);
    }
    if !caller.is_at_home {
        let message = "An organization's log is for its own users and for auditors.";
        return Err(ApiError::Forbidden(Problem::new("auditor_only", message)));
    }
    match asked {
        Some(other) if other != caller.tenant_id => Err(ApiError::Forbidden(
            Problem::new("auditor_only", "Other organizations' logs need the role `auditor`.").at("tenant"),
        )),
        _ => Ok(Some(caller.tenant_id)),
    }
}

fn subject(text: &str) -> Result<Uuid, String> {
    let id = text.parse::<Uuid>().ok();
    id.or_else(|| Some(text.parse::<JobId>().ok()?.uuid()))
        .or_else(|| Some(text.parse::<UserId>().ok()?.uuid()))
        .or_else(|| Some(text.parse::<TenantId>().ok()?.uuid()))
        .or_else(|| Some(text.parse::<ProjectId>().ok()?.uuid()))
        .or_else(|| Some(text.parse::<WorkerId>().ok()?.uuid()))
        .or_else(|| Some(text.parse::<EventId>().ok()?.uuid()))
        .ok_or_else(|| "must be an id, as `job_…`, or a uuid".to_owned())
}

fn outcome(text: &str) -> Result<String, String> {
    let known = [Outcome::Ok, Outcome::Refused].map(Outcome::as_str);
    let found = known.contains(&text).then(|| text.to_owned());
    found.ok_or_else(|| "must be ok or refused".to_owned())
}

impl From<AuditRow> for AuditBody {
    fn from(row: AuditRow) -> Self {
        Self {
            id: row.id.to_string(),
            object: "audit",
            occurred_at: row.occurred_at.unix_timestamp(),
            tenant: row.tenant_id.map(|id| TenantId::from_uuid(id).to_string()),
            actor: row.actor,
            credential: row.credential,
            address: row.address,
            request_id: row.request_id,
            action: row.action,
            subject: row.subject.map(|id| id.to_string()),
            outcome: row.outcome,
            details: row.details,
        }
    }
}
