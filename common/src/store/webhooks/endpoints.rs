//! Endpoints: making, changing, deleting, and the secrets that they sign with (sealed: this file never sees one).

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::{EndpointId, EventId, EventType, Id, JobId, PayloadKind, ProjectId, TenantId};
use crate::store::audit::{self, By, Entry};
use crate::store::idempotency::{Answer, Claim};
use crate::store::once::{Once, make_once};
use crate::store::row::{get, parse, unsigned};
use crate::store::{Pool, StoreResult, transaction};

/// Most endpoints of a project.
pub const ENDPOINTS_MAX: usize = 50;

/// Whose endpoint it is, and who acts.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The organization.
    pub tenant: TenantId,
    /// The project.
    pub project: ProjectId,
    /// For the audit log.
    pub by: By,
}

/// Everything that a caller may set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSettings {
    /// Checked.
    pub url: String,
    /// The caller's own words.
    pub description: Option<String>,
    /// Which events; none named is all but `job.started`.
    pub events: Vec<EventType>,
    /// How much a body holds.
    pub payload: PayloadKind,
    /// Most deliveries a second.
    pub rate_limit: Option<u32>,
    /// Most deliveries at the same time.
    pub concurrency: u32,
}

/// An endpoint to be made.
#[derive(Debug, Clone)]
pub struct NewEndpoint {
    /// Drawn by the caller.
    pub id: EndpointId,
    /// What the caller set.
    pub settings: EndpointSettings,
    /// Sent with every delivery.
    pub headers: SealedHeaders,
    /// What it signs with, sealed.
    pub secret: Vec<u8>,
}

/// A change of some settings; `None` leaves them.
#[derive(Debug, Clone, Default)]
pub struct EndpointChange {
    /// Checked.
    pub url: Option<String>,
    /// The caller's own words.
    pub description: Option<Option<String>>,
    /// Which events.
    pub events: Option<Vec<EventType>>,
    /// How much a body holds.
    pub payload: Option<PayloadKind>,
    /// Most deliveries a second.
    pub rate_limit: Option<Option<u32>>,
    /// Most deliveries at the same time.
    pub concurrency: Option<u32>,
    /// Sent with every delivery.
    pub headers: Option<SealedHeaders>,
    /// Whether it gets deliveries.
    pub enabled: Option<bool>,
}

/// Headers, readable by name alone.
#[derive(Debug, Clone, Default)]
pub struct SealedHeaders {
    /// Their names.
    pub names: Vec<String>,
    /// Names and values; `None` if there are none.
    pub sealed: Option<Vec<u8>>,
}

/// An endpoint as its project sees it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Its id.
    pub id: EndpointId,
    /// Where deliveries go; `None`: to the URLs that jobs bring along.
    pub url: Option<String>,
    /// The caller's own words.
    pub description: Option<String>,
    /// Which events; none named is all but `job.started`.
    pub events: Vec<String>,
    /// How much a body holds.
    pub payload: PayloadKind,
    /// The names of its headers.
    pub header_names: Vec<String>,
    /// Most deliveries a second.
    pub rate_limit: Option<u32>,
    /// Most deliveries at the same time.
    pub concurrency: u32,
    /// Why it gets none.
    pub disabled_reason: Option<String>,
    /// The first failure since the last success.
    pub failing_since: Option<OffsetDateTime>,
    /// Sealed.
    pub secret: Vec<u8>,
    /// The one before and until when it signs too, if it still does.
    pub old_secret: Option<(Vec<u8>, OffsetDateTime)>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it was last changed.
    pub updated_at: OffsetDateTime,
}

/// Where one job's events go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobWebhook {
    /// The project's endpoint for jobs, who signs.
    pub endpoint: EndpointId,
    /// Checked.
    pub url: String,
    /// Scheme, host and port: who receives.
    pub origin: String,
    /// Which events; none named is all but `job.started`.
    pub events: Vec<EventType>,
    /// How much a body holds.
    pub payload: PayloadKind,
}

/// Makes an endpoint. `None` if the project has as many as it may. `render` makes the answer that a repeated request with the same
/// key will be shown.
pub async fn create(
    pool: &Pool,
    owner: Owner,
    new: NewEndpoint,
    claim: Option<Claim>,
    render: impl Fn(&Endpoint) -> Answer + Send + Sync + 'static,
) -> StoreResult<Once<Option<Endpoint>>> {
    make_once(pool, claim, render, move |connection| {
        let (owner, new) = (owner.clone(), new.clone());
        Box::pin(async move {
            let NewEndpoint {
                id,
                settings,
                headers,
                secret,
            } = new;
            // Two that are made at the same time must not both be the last one.
            sqlx::query("SELECT FROM projects WHERE id = $1 FOR NO KEY UPDATE")
                .bind(owner.project.uuid())
                .execute(&mut *connection)
                .await?;
            if list(&mut *connection, owner.project).await?.len() >= ENDPOINTS_MAX {
                return Ok(None);
            }
            let row = sqlx::query(
                "INSERT INTO webhook_endpoints (id, tenant_id, project_id, url, description, events, payload, rate_limit,
                                                concurrency, headers, header_names, secret)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING *",
            )
            .bind(id.uuid())
            .bind(owner.tenant.uuid())
            .bind(owner.project.uuid())
            .bind(&settings.url)
            .bind(&settings.description)
            .bind(names(&settings.events))
            .bind(settings.payload.as_str())
            .bind(settings.rate_limit.map(u32::cast_signed))
            .bind(settings.concurrency.cast_signed())
            .bind(headers.sealed)
            .bind(headers.names)
            .bind(secret)
            .fetch_one(&mut *connection)
            .await?;
            write_down(connection, &owner, "webhook_endpoint.created", id).await?;
            endpoint(&row).map(Some)
        })
    })
    .await
}

/// The project's endpoint that signs for the URLs of jobs; made with `id` and `secret` if there is none yet.
pub async fn for_jobs(pool: &Pool, owner: &Owner, id: EndpointId, secret: &[u8]) -> StoreResult<Endpoint> {
    if let Some(found) = found_for_jobs(pool, owner.project).await? {
        return Ok(found);
    }
    let _somebody_else_was_first = sqlx::query(
        "INSERT INTO webhook_endpoints (id, tenant_id, project_id, secret) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(id.uuid())
    .bind(owner.tenant.uuid())
    .bind(owner.project.uuid())
    .bind(secret)
    .execute(pool)
    .await?;
    let found = found_for_jobs(pool, owner.project).await?;
    found.ok_or_else(|| crate::store::StoreError::contradiction("an endpoint vanished after it was made"))
}

/// As [`for_jobs`], if it is there.
pub async fn found_for_jobs(executor: impl PgExecutor<'_>, project: ProjectId) -> StoreResult<Option<Endpoint>> {
    let row = sqlx::query("SELECT * FROM webhook_endpoints WHERE project_id = $1 AND url IS NULL")
        .bind(project.uuid())
        .fetch_optional(executor)
        .await?;
    row.as_ref().map(endpoint).transpose()
}

/// One endpoint of a project. A foreign one does not exist.
pub async fn find(executor: impl PgExecutor<'_>, project: ProjectId, id: EndpointId) -> StoreResult<Option<Endpoint>> {
    let row = sqlx::query("SELECT * FROM webhook_endpoints WHERE id = $1 AND project_id = $2 AND deleted_at IS NULL")
        .bind(id.uuid())
        .bind(project.uuid())
        .fetch_optional(executor)
        .await?;
    row.as_ref().map(endpoint).transpose()
}

/// A project's endpoints with a URL of their own, the oldest first.
pub async fn list(executor: impl PgExecutor<'_>, project: ProjectId) -> StoreResult<Vec<Endpoint>> {
    let rows = sqlx::query(
        "SELECT * FROM webhook_endpoints WHERE project_id = $1 AND deleted_at IS NULL AND url IS NOT NULL ORDER BY id",
    )
    .bind(project.uuid())
    .fetch_all(executor)
    .await?;
    rows.iter().map(endpoint).collect()
}

/// Changes an endpoint with a URL of its own. `None`: there is no such one.
pub async fn update(
    pool: &Pool,
    owner: Owner,
    id: EndpointId,
    change: EndpointChange,
) -> StoreResult<Option<Endpoint>> {
    transaction(pool, move |connection| {
        let (owner, change) = (owner.clone(), change.clone());
        Box::pin(async move {
            let headers = change.headers.clone().unwrap_or_default();
            let row = sqlx::query(
                "UPDATE webhook_endpoints SET
                     url = coalesce($3, url),
                     description = CASE WHEN $4 THEN $5 ELSE description END,
                     events = coalesce($6, events),
                     payload = coalesce($7, payload),
                     rate_limit = CASE WHEN $8 THEN $9 ELSE rate_limit END,
                     concurrency = coalesce($10, concurrency),
                     headers = CASE WHEN $11 THEN $12 ELSE headers END,
                     header_names = CASE WHEN $11 THEN $13 ELSE header_names END,
                     status = CASE $14 WHEN true THEN 'enabled' WHEN false THEN 'disabled' ELSE status END,
                     disabled_reason = CASE $14 WHEN false THEN 'requested' WHEN true THEN NULL ELSE disabled_reason END,
                     failing_since = CASE WHEN $14 THEN NULL ELSE failing_since END,
                     updated_at = now()
                 WHERE id = $1 AND project_id = $2 AND deleted_at IS NULL AND url IS NOT NULL RETURNING *",
            )
            .bind(id.uuid())
            .bind(owner.project.uuid())
            .bind(&change.url)
            .bind(change.description.is_some())
            .bind(change.description.flatten())
            .bind(change.events.as_deref().map(names))
            .bind(change.payload.map(PayloadKind::as_str))
            .bind(change.rate_limit.is_some())
            .bind(change.rate_limit.flatten().map(u32::cast_signed))
            .bind(change.concurrency.map(u32::cast_signed))
            .bind(change.headers.is_some())
            .bind(headers.sealed)
            .bind(headers.names)
            .bind(change.enabled)
            .fetch_optional(&mut *connection)
            .await?;
            let Some(row) = row else { return Ok(None) };
            write_down(connection, &owner, "webhook_endpoint.updated", id).await?;
            endpoint(&row).map(Some)
        })
    })
    .await
}

/// Deletes an endpoint with a URL of its own: its secrets go at once, its log with the time. `false`: there is no such one.
pub async fn delete(pool: &Pool, owner: Owner, id: EndpointId) -> StoreResult<bool> {
    transaction(pool, move |connection| {
        let owner = owner.clone();
        Box::pin(async move {
            let done = sqlx::query(
                "UPDATE webhook_endpoints SET deleted_at = now(), secret = '', old_secret = NULL, headers = NULL
                 WHERE id = $1 AND project_id = $2 AND deleted_at IS NULL AND url IS NOT NULL",
            )
            .bind(id.uuid())
            .bind(owner.project.uuid())
            .execute(&mut *connection)
            .await?;
            if done.rows_affected() == 0 {
                return Ok(false);
            }
            write_down(connection, &owner, "webhook_endpoint.deleted", id).await?;
            Ok(true)
        })
    })
    .await
}

/// Signs with a new secret from now on, and with the present one as well for `overlap`.
pub async fn rotate(
    pool: &Pool,
    owner: Owner,
    id: EndpointId,
    secret: Vec<u8>,
    overlap: Duration,
) -> StoreResult<Option<Endpoint>> {
    transaction(pool, move |connection| {
        let (owner, secret) = (owner.clone(), secret.clone());
        Box::pin(async move {
            let row = sqlx::query(
                "UPDATE webhook_endpoints SET old_secret = secret, old_secret_until = now() + $4::interval, secret = $3,
                     updated_at = now()
                 WHERE id = $1 AND project_id = $2 AND deleted_at IS NULL RETURNING *",
            )
            .bind(id.uuid())
            .bind(owner.project.uuid())
            .bind(secret)
            .bind(overlap)
            .fetch_optional(&mut *connection)
            .await?;
            let Some(row) = row else { return Ok(None) };
            write_down(connection, &owner, "webhook_endpoint.secret_rotated", id).await?;
            endpoint(&row).map(Some)
        })
    })
    .await
}

/// Writes an event for one endpoint alone, which is sent like any other. Answers its id.
pub async fn send_example(
    pool: &Pool,
    project: ProjectId,
    id: EndpointId,
    kind: EventType,
    data: serde_json::Value,
) -> StoreResult<EventId> {
    let event = EventId::new();
    sqlx::query("INSERT INTO events (id, project_id, type, data, audience) VALUES ($1, $2, $3, $4, $5)")
        .bind(event.uuid())
        .bind(project.uuid())
        .bind(kind.as_str())
        .bind(data)
        .bind(id.uuid())
        .execute(pool)
        .await?;
    Ok(event)
}

/// Writes where jobs want their events to go, within the transaction that makes the jobs.
pub(crate) async fn attach(connection: &mut PgConnection, hooks: &[(JobId, &JobWebhook)]) -> StoreResult<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    for (job, hook) in hooks {
        sqlx::query(
            "INSERT INTO job_webhooks (job_id, endpoint_id, lane, url, events, payload)
             VALUES ($1, $2, md5($2::text || $3)::uuid, $4, $5, $6)",
        )
        .bind(job.uuid())
        .bind(hook.endpoint.uuid())
        .bind(&hook.origin)
        .bind(&hook.url)
        .bind(names(&hook.events))
        .bind(hook.payload.as_str())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

fn names(events: &[EventType]) -> Vec<&'static str> {
    events.iter().map(|kind| kind.as_str()).collect()
}

async fn write_down(connection: &mut PgConnection, owner: &Owner, action: &str, id: EndpointId) -> StoreResult<()> {
    let entry = Entry::done(Some(owner.tenant), action, Some(id.uuid()));
    audit::record(connection, &owner.by, entry).await
}

fn endpoint(row: &PgRow) -> StoreResult<Endpoint> {
    let until: Option<OffsetDateTime> = get(row, "old_secret_until")?;
    let old: Option<Vec<u8>> = get(row, "old_secret")?;
    Ok(Endpoint {
        id: Id::from_uuid(get::<Uuid, _>(row, "id")?),
        url: get(row, "url")?,
        description: get(row, "description")?,
        events: get(row, "events")?,
        payload: parse(row, "payload")?,
        header_names: get(row, "header_names")?,
        rate_limit: get::<Option<i32>, _>(row, "rate_limit")?.map(i32::cast_unsigned),
        concurrency: unsigned(row, "concurrency")?,
        disabled_reason: get(row, "disabled_reason")?,
        failing_since: get(row, "failing_since")?,
        secret: get(row, "secret")?,
        old_secret: old.zip(until),
        created_at: get(row, "created_at")?,
        updated_at: get(row, "updated_at")?,
    })
}
