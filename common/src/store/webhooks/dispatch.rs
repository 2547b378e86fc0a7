//! What dispatchers do: claim what is due, and record what came of it.
//!
//! Claims are made one after the other, under one advisory lock that lasts a few milliseconds: so the limits of a receiver hold
//! over any number of dispatchers. No transaction is open while anything is sent: a claim is a lease on the database's clock, and
//! what a dispatcher records is keyed by the attempt that it claimed.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::domain::{EndpointId, EventId, EventType, Id, PayloadKind, ProjectId};
use crate::store::events::{self, Event, NewEvent};
use crate::store::row::{column, get, parse, unsigned};
use crate::store::{Pool, StoreResult, transaction};

/// Anything but the other advisory locks' keys.
const CLAIM_LOCK: i64 = 0x7765_6268_6f6f_6b73;
/// Most rows that one claim brings forward or closes.
const CHUNK: i64 = 500;
/// Bytes of a message and of an answer that are kept.
const KEPT: usize = 1024;

/// How a claim is made.
#[derive(Debug, Clone, Copy)]
pub struct ClaimTerms {
    /// Most deliveries.
    pub limit: u32,
    /// How long they are this dispatcher's.
    pub lease: Duration,
    /// A delivery whose dispatcher fell silent so often is given up.
    pub tries_max: u32,
}

/// What a claim brought.
#[derive(Debug)]
pub struct Claimed {
    /// To be sent now.
    pub deliveries: Vec<Delivery>,
    /// Whether more is ready than could be claimed: a receiver is at its limit, or the claim was.
    pub more: bool,
}

/// A delivery that is this dispatcher's until its lease ends.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Whose it is, and who signs.
    pub endpoint: EndpointId,
    /// The event's id.
    pub event_id: EventId,
    /// The event; `None` once it is forgotten.
    pub event: Option<Event>,
    /// Whose event.
    pub project: ProjectId,
    /// The number of this attempt.
    pub attempt: u32,
    /// Tries since it was written or sent again on request, with this one.
    pub tries: u32,
    /// How long ago the event was written.
    pub age: Duration,
    /// Where it goes; `None` if the job that said so is forgotten.
    pub url: Option<String>,
    /// How much its body holds.
    pub payload: PayloadKind,
    /// Sealed.
    pub headers: Option<Vec<u8>>,
    /// Sealed.
    pub secret: Vec<u8>,
    /// The one before, while it signs as well. Sealed.
    pub old_secret: Option<Vec<u8>>,
}

/// What came of an attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Whose delivery.
    pub endpoint: EndpointId,
    /// Of which event.
    pub event: EventId,
    /// Its number.
    pub number: u32,
    /// Since it began.
    pub ago: Duration,
    /// Until the answer's head came or none would come.
    pub latency: Duration,
    /// Of the answer, if there was one.
    pub status_code: Option<u16>,
    /// A word for what went wrong.
    pub error: Option<&'static str>,
    /// A sentence about it.
    pub message: Option<String>,
    /// The first bytes of the answer.
    pub answer: Option<String>,
    /// What becomes of the delivery.
    pub verdict: Verdict,
    /// It failed on our side: that is held against no receiver.
    pub is_ours: bool,
}

/// What becomes of a delivery after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver took it.
    Delivered,
    /// To be tried again after this time.
    Again(Duration),
    /// To be given up.
    Failed,
    /// To be given up, and its endpoint with it.
    Gone,
}

impl Verdict {
    const fn status(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Again(_) => "waiting",
            Self::Failed | Self::Gone => "failed",
        }
    }
}

/// Claims what is due: receiver by receiver in turn, each within its own limits.
pub async fn claim(pool: &Pool, terms: ClaimTerms) -> StoreResult<Claimed> {
    transaction(pool, move |connection| {
        Box::pin(async move {
            // A statement of its own, so that the next one sees what the claim before wrote.
            sqlx::query("SELECT pg_advisory_xact_lock($1)")
                .bind(CLAIM_LOCK)
                .execute(&mut *connection)
                .await?;
            bring_forward(connection, terms).await?;
            let rows = sqlx::query(CLAIM)
                .bind(i64::from(terms.limit))
                .bind(terms.lease)
                .bind(CHUNK)
                .fetch_all(&mut *connection)
                .await?;
            let more = sqlx::query_scalar("SELECT EXISTS (SELECT FROM webhook_deliveries WHERE status = 'ready')")
                .fetch_one(connection)
                .await?;
            Ok(Claimed {
                deliveries: rows.iter().map(delivery).collect::<StoreResult<_>>()?,
                more,
            })
        })
    })
    .await
}

/// Makes ready what has waited long enough, and what its dispatcher left: that is written down as an attempt of unknown outcome.
async fn bring_forward(connection: &mut PgConnection, terms: ClaimTerms) -> StoreResult<()> {
    sqlx::query(
        "WITH due AS MATERIALIZED (
             SELECT endpoint_id, event_id, attempt, next_at, status = 'sending' AS lapsed,
                 status = 'sending' AND tries >= $2 AS given_up
             FROM webhook_deliveries WHERE next_at <= now() ORDER BY next_at LIMIT $1 FOR UPDATE SKIP LOCKED
         ), lapsed AS (
             INSERT INTO webhook_attempts (endpoint_id, event_id, number, started_at, error, message)
             SELECT endpoint_id, event_id, attempt, next_at - $3::interval, 'interrupted',
                 'The dispatcher ended before it knew the outcome.'
             FROM due WHERE lapsed ON CONFLICT DO NOTHING
         )
         UPDATE webhook_deliveries d SET status = CASE WHEN given_up THEN 'failed' ELSE 'ready' END,
             next_at = NULL, ended_at = CASE WHEN given_up THEN now() END
         FROM due WHERE d.endpoint_id = due.endpoint_id AND d.event_id = due.event_id",
    )
    .bind(CHUNK)
    .bind(terms.tries_max.cast_signed())
    .bind(terms.lease)
    .execute(connection)
    .await?;
    Ok(())
}

const CLAIM: &str = "
    WITH RECURSIVE lane AS (
        -- Who has something ready, one look by index for each.
        (SELECT lane, endpoint_id FROM webhook_deliveries WHERE status = 'ready' ORDER BY lane, event_id LIMIT 1)
        UNION ALL
        SELECT next.lane, next.endpoint_id FROM lane CROSS JOIN LATERAL (
            SELECT d.lane, d.endpoint_id FROM webhook_deliveries d WHERE d.status = 'ready' AND d.lane > lane.lane
            ORDER BY d.lane, d.event_id LIMIT 1) next
    ), off AS MATERIALIZED (
        SELECT d.endpoint_id, d.event_id FROM lane JOIN webhook_endpoints p ON p.id = lane.endpoint_id CROSS JOIN LATERAL (
            SELECT d.endpoint_id, d.event_id FROM webhook_deliveries d WHERE d.lane = lane.lane AND d.status = 'ready'
            ORDER BY d.event_id LIMIT $3 FOR UPDATE SKIP LOCKED) d
        WHERE p.status = 'disabled' OR p.deleted_at IS NOT NULL
    ), closed AS (
        UPDATE webhook_deliveries d SET status = 'failed', ended_at = now()
        FROM off WHERE d.endpoint_id = off.endpoint_id AND d.event_id = off.event_id
    ), open AS MATERIALIZED (
        SELECT lane.lane, greatest(0, least($1,
            -- One that fails gets one at a time until it takes one.
            CASE WHEN p.failing_since IS NULL THEN p.concurrency ELSE 1 END
                - (SELECT count(*) FROM webhook_deliveries b WHERE b.lane = lane.lane AND b.status = 'sending'),
            -- A second's worth may come at once; without a limit this is null, which `least` passes over.
            floor(p.rate_limit * extract(epoch FROM now() + interval '1 second' - greatest(p.paced_until, now())))
        ))::bigint AS room
        FROM lane JOIN webhook_endpoints p ON p.id = lane.endpoint_id
        WHERE p.status = 'enabled' AND p.deleted_at IS NULL
    ), candidate AS MATERIALIZED (
        SELECT d.endpoint_id, d.event_id, row_number() OVER (PARTITION BY open.lane ORDER BY d.event_id) AS turn
        FROM open CROSS JOIN LATERAL (
            SELECT d.endpoint_id, d.event_id FROM webhook_deliveries d WHERE d.lane = open.lane AND d.status = 'ready'
            ORDER BY d.event_id LIMIT open.room FOR UPDATE SKIP LOCKED) d
    ), chosen AS MATERIALIZED (
        SELECT endpoint_id, event_id FROM candidate ORDER BY turn, event_id LIMIT $1
    ), paced AS (
        UPDATE webhook_endpoints p
        SET paced_until = greatest(p.paced_until, now()) + make_interval(secs => taken.deliveries::float8 / p.rate_limit)
        FROM (SELECT endpoint_id, count(*) AS deliveries FROM chosen GROUP BY endpoint_id) taken
        WHERE p.id = taken.endpoint_id AND p.rate_limit IS NOT NULL
    ), claimed AS (
        UPDATE webhook_deliveries d SET status = 'sending', attempt = attempt + 1, tries = tries + 1,
            next_at = now() + $2::interval
        FROM chosen WHERE d.endpoint_id = chosen.endpoint_id AND d.event_id = chosen.event_id
        RETURNING d.*
    )
    SELECT c.endpoint_id, c.event_id, c.attempt, c.tries, p.project_id,
        extract(epoch FROM clock_timestamp() - c.created_at)::float8 AS age,
        coalesce(p.url, w.url) AS url, coalesce(w.payload, p.payload) AS payload, p.headers, p.secret,
        CASE WHEN p.old_secret_until > now() THEN p.old_secret END AS old_secret,
        e.id, e.type, e.job_id, e.data, e.created_at
    FROM claimed c JOIN webhook_endpoints p ON p.id = c.endpoint_id LEFT JOIN events e ON e.id = c.event_id
    LEFT JOIN job_webhooks w ON w.job_id = e.job_id AND w.endpoint_id = c.endpoint_id
    ORDER BY c.event_id";

fn delivery(row: &PgRow) -> StoreResult<Delivery> {
    let known: Option<Uuid> = get(row, "id")?;
    Ok(Delivery {
        endpoint: Id::from_uuid(get(row, "endpoint_id")?),
        event_id: Id::from_uuid(get(row, "event_id")?),
        event: known.map(|_| events::event(row)).transpose()?,
        project: Id::from_uuid(get(row, "project_id")?),
        attempt: unsigned(row, "attempt")?,
        tries: unsigned(row, "tries")?,
        age: Duration::from_secs_f64(get::<f64, _>(row, "age")?.max(0.0)),
        url: get(row, "url")?,
        payload: parse(row, "payload")?,
        headers: get(row, "headers")?,
        secret: get(row, "secret")?,
        old_secret: get(row, "old_secret")?,
    })
}

/// Records attempts, and answers which endpoints were disabled by them: those that are gone, and those that did nothing but fail
/// for `patience`.
pub async fn record(pool: &Pool, attempts: Vec<Attempt>, patience: Duration) -> StoreResult<Vec<EndpointId>> {
    transaction(pool, move |connection| {
        let attempts = attempts.clone();
        Box::pin(async move {
            write_down(connection, &attempts).await?;
            let of = |wanted: fn(&Attempt) -> bool| -> BTreeSet<Uuid> {
                let wanted = attempts.iter().filter(|attempt| wanted(attempt));
                wanted.map(|attempt| attempt.endpoint.uuid()).collect()
            };
            let well = of(|attempt| attempt.verdict == Verdict::Delivered);
            let badly = &of(|attempt| attempt.verdict != Verdict::Delivered && !attempt.is_ours) - &well;
            let gone = of(|attempt| attempt.verdict == Verdict::Gone);
            note_health(connection, &well, &badly).await?;
            disable(connection, &badly, &gone, patience).await
        })
    })
    .await
}

async fn write_down(connection: &mut PgConnection, attempts: &[Attempt]) -> StoreResult<()> {
    sqlx::query(
        "WITH outcome AS MATERIALIZED (
             SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::integer[], $4::float8[], $5::integer[], $6::integer[], $7::text[],
                 $8::text[], $9::text[], $10::text[], $11::float8[])
             AS outcome (endpoint_id, event_id, number, ago, latency_ms, status_code, error, message, answer, status, pause)
         ), changed AS (
             -- Whoever claimed it since has a greater number.
             UPDATE webhook_deliveries d SET status = o.status,
                 next_at = now() + make_interval(secs => o.pause),
                 ended_at = CASE WHEN o.pause IS NULL THEN now() END
             FROM outcome o WHERE d.endpoint_id = o.endpoint_id AND d.event_id = o.event_id AND d.attempt = o.number
                 AND d.status IN ('sending', 'ready')
         )
         INSERT INTO webhook_attempts (endpoint_id, event_id, number, started_at, latency_ms, status_code, error, message, answer)
         SELECT o.endpoint_id, o.event_id, o.number, now() - make_interval(secs => o.ago), o.latency_ms, o.status_code, o.error,
             o.message, o.answer
         FROM outcome o JOIN webhook_deliveries d ON d.endpoint_id = o.endpoint_id AND d.event_id = o.event_id
         -- It was held to be interrupted, and was only late.
         ON CONFLICT (endpoint_id, event_id, number) DO UPDATE SET latency_ms = excluded.latency_ms,
             status_code = excluded.status_code, error = excluded.error, message = excluded.message, answer = excluded.answer",
    )
    .bind(column(attempts, |one| one.endpoint.uuid()))
    .bind(column(attempts, |one| one.event.uuid()))
    .bind(column(attempts, |one| one.number.cast_signed()))
    .bind(column(attempts, |one| one.ago.as_secs_f64()))
    .bind(column(attempts, |one| i32::try_from(one.latency.as_millis()).unwrap_or(i32::MAX)))
    .bind(column(attempts, |one| one.status_code.map(i32::from)))
    .bind(column(attempts, |one| one.error))
    .bind(column(attempts, |one| one.message.as_deref().map(storable)))
    .bind(column(attempts, |one| one.answer.as_deref().map(storable)))
    .bind(column(attempts, |one| one.verdict.status()))
    .bind(column(attempts, |one| match one.verdict {
        Verdict::Again(pause) => Some(pause.as_secs_f64()),
        _ => None,
    }))
    .execute(connection)
    .await?;
    Ok(())
}

/// Postgres holds no U+0000, and the log no long stories.
fn storable(text: &str) -> String {
    let mut kept = text.replace('\0', "\u{fffd}");
    kept.truncate(kept.floor_char_boundary(KEPT));
    kept
}

async fn note_health(connection: &mut PgConnection, well: &BTreeSet<Uuid>, badly: &BTreeSet<Uuid>) -> StoreResult<()> {
    // Rarely a change: an endpoint's row is not rewritten by each delivery.
    sqlx::query(
        "WITH changed AS MATERIALIZED (
             SELECT id, id = ANY ($1) AS well FROM webhook_endpoints
             WHERE url IS NOT NULL AND (id = ANY ($1) AND failing_since IS NOT NULL OR id = ANY ($2) AND failing_since IS NULL)
             ORDER BY id FOR NO KEY UPDATE
         )
         UPDATE webhook_endpoints p SET failing_since = CASE WHEN well THEN NULL ELSE now() END
         FROM changed WHERE p.id = changed.id",
    )
    .bind(well.iter().copied().collect::<Vec<_>>())
    .bind(badly.iter().copied().collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Disables endpoints and says so: in the audit log, and by an event that the project's other endpoints and its feed show.
async fn disable(
    connection: &mut PgConnection,
    badly: &BTreeSet<Uuid>,
    gone: &BTreeSet<Uuid>,
    patience: Duration,
) -> StoreResult<Vec<EndpointId>> {
    if badly.is_empty() && gone.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "WITH off AS MATERIALIZED (
             SELECT id FROM webhook_endpoints WHERE status = 'enabled' AND url IS NOT NULL AND deleted_at IS NULL
                 AND (id = ANY ($2) OR id = ANY ($1) AND failing_since < now() - $3::interval)
             ORDER BY id FOR NO KEY UPDATE
         ), disabled AS (
             UPDATE webhook_endpoints p SET status = 'disabled', updated_at = now(),
                 disabled_reason = CASE WHEN p.id = ANY ($2) THEN 'gone' ELSE 'failing' END
             FROM off WHERE p.id = off.id RETURNING p.*
         ), audit AS (
             INSERT INTO audit_log (tenant_id, actor, action, subject, details)
             SELECT tenant_id, 'service', 'webhook_endpoint.disabled', id, jsonb_build_object('reason', disabled_reason)
             FROM disabled
         )
         SELECT id, project_id, disabled_reason FROM disabled",
    )
    .bind(badly.iter().copied().collect::<Vec<_>>())
    .bind(gone.iter().copied().collect::<Vec<_>>())
    .bind(patience)
    .fetch_all(&mut *connection)
    .await?;
    let mut notices = Vec::with_capacity(rows.len());
    let mut disabled = Vec::with_capacity(rows.len());
    for row in rows {
        let id = EndpointId::from_uuid(row.try_get("id")?);
        let reason: String = row.try_get("disabled_reason")?;
        notices.push(NewEvent {
            project: Id::from_uuid(row.try_get("project_id")?),
            kind: EventType::EndpointDisabled,
            data: serde_json::json!({"id": id, "object": "webhook_endpoint", "status": "disabled", "reason": reason,
                "url": format!("/v1/webhook_endpoints/{id}")}),
        });
        disabled.push(id);
    }
    events::record(connection, &notices).await?;
    Ok(disabled)
}
