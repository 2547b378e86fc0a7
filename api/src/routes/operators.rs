//! `/v1/admin/…`: pausing, draining, limits, and who works. For admins (auditors may look); every change stands in the audit log.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use claimcheck_common::domain::{Class, TenantId, WorkerId};
use claimcheck_common::store::operators::{self, PauseScope, TenantLimits};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::AppState;
use crate::docs::{BadBody, NeedsAdmin, NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::path::{NamePath, NamesPath};
use crate::extract::{self, Caller, Query};
use crate::validate::budget::BudgetIn;
use crate::validate::number::Whole;
use crate::validate::text::check;

/// Something that is paused.
#[derive(Debug, Serialize, ToSchema)]
pub struct PauseBody {
    /// `class`, `model` or `tenant`.
    pub scope: String,
    /// Which one.
    pub value: String,
    /// Since when.
    pub created_at: i64,
}

/// All that is paused.
#[derive(Debug, Serialize, ToSchema)]
pub struct PauseList {
    /// Always `list`.
    pub object: &'static str,
    /// By scope and value.
    pub data: Vec<PauseBody>,
}

/// A worker.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkerBody {
    /// `worker_…`: one life of one process.
    pub id: String,
    /// The model's name.
    pub model: String,
    /// `starting`, `ready`, `draining` or `silent`.
    pub state: &'static str,
    /// When the process started.
    pub started_at: i64,
    /// When it was last heard of.
    pub last_seen_at: i64,
    /// Jobs in its hands.
    pub jobs: u32,
}

/// Who works, and who tries to.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkerList {
    /// Always `list`.
    pub object: &'static str,
    /// Heard of within ten minutes, the newest first.
    pub data: Vec<WorkerBody>,
    /// Models whose workers fall silent soon after they start, three times within ten minutes or more.
    pub crash_looping: Vec<CrashLoopBody>,
}

/// A model whose workers start again and again.
#[derive(Debug, Serialize, ToSchema)]
pub struct CrashLoopBody {
    /// The model's name.
    pub model: String,
    /// How often in ten minutes.
    pub starts: u32,
}

/// A tenant's own limits; null leaves it to the service's.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
pub struct LimitsIn {
    /// Jobs that may wait; a submit beyond it is refused with 429.
    #[schema(value_type = Option<u32>)]
    pub max_queued: Option<Whole<0, { i32::MAX as i64 }>>,
    /// Jobs that may be with the broker or a worker; what is beyond it waits.
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub max_running: Option<Whole<1, { i32::MAX as i64 }>>,
    /// The plan whose request rates the tenant has (`CLAIMCHECK_PLANS`).
    pub plan: Option<String>,
    /// Tokens in the prompts of waiting lines of batches; further lines wait in their files (`CLAIMCHECK_BATCH_TOKENS`).
    #[schema(value_type = Option<u64>, minimum = 0)]
    pub max_batch_tokens: Option<Whole<0, { i64::MAX }>>,
    /// What its jobs may use (as much as comes).
    pub budget: Option<BudgetIn>,
}

/// List pauses
#[utoipa::path(get, path = "/v1/admin/pauses", tag = "Operators",
    responses((status = 200, body = PauseList, description = "All that is paused"), NeedsToken, NeedsAdmin, Trouble))]
pub async fn list_pauses(State(state): State<AppState>, query: Query) -> Result<Json<PauseList>, ApiError> {
    query.only(&[])?;
    let data = operators::pauses(&state.pool)
        .await?
        .into_iter()
        .map(|pause| PauseBody {
            value: shown(&pause.scope, pause.value),
            scope: pause.scope,
            created_at: pause.created_at.unix_timestamp(),
        });
    Ok(Json(PauseList {
        object: "list",
        data: data.collect(),
    }))
}

/// Pause
///
/// Jobs of a class, a model or a tenant wait from now on (those that run go on); they are accepted all the same. Safe to
/// repeat.
#[utoipa::path(put, path = "/v1/admin/pauses/{scope}/{value}", tag = "Operators",
    params(("scope" = String, Path, description = "`class`, `model` or `tenant`"),
           ("value" = String, Path, description = "Which one; a `/` in a model's name as `%2F`")),
    responses((status = 204, description = "It is paused"),
              (status = 400, body = ErrorBody, description = "There is no such thing to pause"),
              NeedsToken, NeedsAdmin, Trouble))]
pub async fn pause(
    state: State<AppState>,
    caller: Caller,
    path: NamesPath,
    query: Query,
) -> Result<StatusCode, ApiError> {
    query.only(&[])?;
    set_pause(state, caller, path, true).await
}

/// Resume
///
/// Safe to repeat.
#[utoipa::path(delete, path = "/v1/admin/pauses/{scope}/{value}", tag = "Operators",
    params(("scope" = String, Path, description = "`class`, `model` or `tenant`"),
           ("value" = String, Path, description = "Which one")),
    responses((status = 204, description = "It is not paused"),
              (status = 400, body = ErrorBody, description = "There is no such thing to pause"),
              NeedsToken, NeedsAdmin, Trouble))]
pub async fn resume(
    state: State<AppState>,
    caller: Caller,
    path: NamesPath,
    query: Query,
) -> Result<StatusCode, ApiError> {
    query.only(&[])?;
    set_pause(state, caller, path, false).await
}

async fn set_pause(
    State(state): State<AppState>,
    caller: Caller,
    NamesPath(scope, value): NamesPath,
    paused: bool,
) -> Result<StatusCode, ApiError> {
    let (scope, value) = pausable(&scope, value)?;
    operators::set_pause(&state.pool, scope, value, paused, caller.by()).await?;
    state.outgoing.anywhere();
    Ok(StatusCode::NO_CONTENT)
}

fn pausable(scope: &str, value: String) -> Result<(PauseScope, String), ApiError> {
    let refuse = |message: String| ApiError::invalid("value", message);
    match scope {
        "class" => {
            let class: Class = value
                .parse()
                .map_err(|_| refuse("A class is `interactive` or `batch`.".to_owned()))?;
            Ok((PauseScope::Class, class.as_str().to_owned()))
        }
        "model" => {
            check(&value, 1, 256).map_err(|what| refuse(format!("A model's name {what}.")))?;
            Ok((PauseScope::Model, value))
        }
        "tenant" => {
            let tenant: TenantId = value.parse().map_err(|_| refuse("A tenant is `org_…`.".to_owned()))?;
            Ok((PauseScope::Tenant, tenant.uuid().to_string()))
        }
        _ => Err(ApiError::invalid("scope", "`scope` must be class, model or tenant.")),
    }
}

/// Tenants are stored by their uuid.
fn shown(scope: &str, value: String) -> String {
    match value.parse() {
        Ok(uuid) if scope == "tenant" => TenantId::from_uuid(uuid).to_string(),
        _ => value,
    }
}

/// List workers
#[utoipa::path(get, path = "/v1/admin/workers", tag = "Operators",
    responses((status = 200, body = WorkerList, description = "Who works"), NeedsToken, NeedsAdmin, Trouble))]
pub async fn list_workers(State(state): State<AppState>, query: Query) -> Result<Json<WorkerList>, ApiError> {
    query.only(&[])?;
    let data = operators::workers(&state.pool)
        .await?
        .into_iter()
        .map(|worker| WorkerBody {
            id: worker.id.to_string(),
            state: match (worker.alive, worker.draining, worker.ready_at) {
                (false, _, _) => "silent",
                (true, true, _) => "draining",
                (true, false, None) => "starting",
                (true, false, Some(_)) => "ready",
            },
            model: worker.model,
            started_at: worker.started_at.unix_timestamp(),
            last_seen_at: worker.last_seen_at.unix_timestamp(),
            jobs: worker.jobs,
        });
    let loops = operators::crash_loops(&state.pool).await?.into_iter();
    Ok(Json(WorkerList {
        object: "list",
        data: data.collect(),
        crash_looping: loops
            .map(|one| CrashLoopBody {
                model: one.model,
                starts: one.starts,
            })
            .collect(),
    }))
}

/// Drain a worker
///
/// It takes no more jobs; those it has go on, for as long as a stop would give them, and what is left is handed back. Safe
/// to repeat.
#[utoipa::path(post, path = "/v1/admin/workers/{id}/drain", tag = "Operators",
    params(("id" = String, Path, description = "The worker's id")),
    responses((status = 202, description = "It will hear of it with its next heartbeat"),
              (status = 404, body = ErrorBody, description = "No such worker"), NeedsToken, NeedsAdmin, Trouble))]
pub async fn drain_worker(
    State(state): State<AppState>,
    caller: Caller,
    NamePath(id): NamePath,
    query: Query,
) -> Result<StatusCode, ApiError> {
    query.only(&[])?;
    let unknown = || ApiError::NotFound(Problem::new("worker_not_found", "There is no such worker.").at("id"));
    let id: WorkerId = id.parse().map_err(|_| unknown())?;
    if operators::drain(&state.pool, id, caller.by()).await? {
        Ok(StatusCode::ACCEPTED)
    } else {
        Err(unknown())
    }
}

/// Set a tenant's limits
#[utoipa::path(put, path = "/v1/admin/tenants/{id}/limits", tag = "Operators",
    params(("id" = String, Path, description = "The tenant's id, `org_…`")), request_body = LimitsIn,
    responses((status = 204, description = "They hold from now on"),
              (status = 404, body = ErrorBody, description = "No such tenant"),
              BadBody, NeedsToken, NeedsAdmin, Trouble))]
pub async fn set_limits(
    State(state): State<AppState>,
    caller: Caller,
    NamePath(id): NamePath,
    body: extract::Json<LimitsIn>,
) -> Result<StatusCode, ApiError> {
    let unknown = || ApiError::NotFound(Problem::new("tenant_not_found", "There is no such tenant.").at("id"));
    let tenant: TenantId = id.parse().map_err(|_| unknown())?;
    if let Some(plan) = &body.value.plan
        && !state.limits.has_plan(plan)
    {
        return Err(ApiError::invalid("plan", "`plan` must be one of the configured plans."));
    }
    let limits = TenantLimits {
        plan: body.value.plan,
        max_queued: body.value.max_queued.map(|value| value.get() as u32),
        max_running: body.value.max_running.map(|value| value.get() as u32),
        max_batch_tokens: body.value.max_batch_tokens.map(|value| value.get().unsigned_abs()),
        budget: match body.value.budget {
            Some(budget) => budget.valid(&state.prices)?,
            None => None,
        },
    };
    if operators::set_limits(&state.pool, tenant, limits, caller.by()).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(unknown())
    }
}
