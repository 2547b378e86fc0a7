//! `/v1/admin/aliases`: names that lead to models, one or several by weights. For admins (auditors may look); every change stands
//! in the audit log.

use std::collections::HashSet;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use claimcheck_common::catalog::Unfound;
use claimcheck_common::store::aliases::{self, AliasTargets, Set, Target};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::AppState;
use crate::catalog;
use crate::docs::{BadBody, NeedsAdmin, NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::path::NamePath;
use crate::extract::{self, Caller, Query};
use crate::validate::number::Whole;
use crate::validate::text::{Text, check};

/// A model's name on the hub and a folder's are shorter.
const NAME_MAX: usize = 256;
/// More revisions than anybody compares at a time.
const TARGETS_MAX: usize = 16;

/// Where a name is to lead.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
pub struct AliasIn {
    /// One model, or up to 16 that share the jobs by their weights and have the same tokenizer.
    pub targets: Vec<TargetIn>,
}

/// A model that a name is to lead to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
pub struct TargetIn {
    /// The name under which workers announced it.
    #[schema(value_type = String)]
    pub model: Text<1, NAME_MAX>,
    /// Its part of the jobs, beside the other targets' weights (1).
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 1000)]
    pub weight: Option<Whole<1, 1000>>,
}

/// A name that leads to models.
#[derive(Debug, Serialize, ToSchema)]
pub struct AliasBody {
    /// The name, as requests use it.
    pub id: String,
    /// Always `alias`.
    pub object: &'static str,
    /// The heaviest first.
    pub targets: Vec<TargetBody>,
    /// Since when it leads there.
    pub changed_at: i64,
}

/// A model that a name leads to.
#[derive(Debug, Serialize, ToSchema)]
pub struct TargetBody {
    /// The model's own name.
    pub model: String,
    /// Its part of the jobs, beside the other targets' weights.
    pub weight: u32,
}

/// All names.
#[derive(Debug, Serialize, ToSchema)]
pub struct AliasList {
    /// Always `list`.
    pub object: &'static str,
    /// By name.
    pub data: Vec<AliasBody>,
}

/// List aliases
#[utoipa::path(get, path = "/v1/admin/aliases", tag = "Operators",
    responses((status = 200, body = AliasList, description = "All names"), NeedsToken, NeedsAdmin, Trouble))]
pub async fn list_aliases(State(state): State<AppState>, query: Query) -> Result<Json<AliasList>, ApiError> {
    query.only(&[])?;
    let data = aliases::list(&state.pool).await?.into_iter().map(AliasBody::from);
    Ok(Json(AliasList {
        object: "list",
        data: data.collect(),
    }))
}

/// Set an alias
///
/// From its answer on, every submit by this name goes to one of these models, drawn by their weights; jobs that were accepted
/// before keep theirs. A name goes before a model that is called the same. Safe to repeat.
#[utoipa::path(put, path = "/v1/admin/aliases/{name}", tag = "Operators",
    params(("name" = String, Path, description = "The name; a `/` in it as `%2F`")), request_body = AliasIn,
    responses((status = 200, body = AliasBody, description = "It leads there"),
              (status = 404, body = ErrorBody, description = "No worker has announced such a model (`model_not_found`)"),
              BadBody, NeedsToken, NeedsAdmin, Trouble))]
pub async fn set_alias(
    State(state): State<AppState>,
    caller: Caller,
    NamePath(name): NamePath,
    body: extract::Json<AliasIn>,
) -> Result<Json<AliasBody>, ApiError> {
    check(&name, 1, NAME_MAX).map_err(|what| ApiError::invalid("name", format!("An alias {what}.")))?;
    let targets = valid(body.value)?;
    let at = |place: usize, field: &str| format!("targets[{place}].{field}");
    let set = aliases::set(&state.pool, name.clone(), targets.clone(), caller.by()).await;
    tell_everybody(&state).await;
    match set? {
        Set::Done(changed_at) => Ok(Json(AliasBody::from(AliasTargets {
            name,
            changed_at,
            targets: heaviest_first(targets),
        }))),
        Set::Unknown(place) => {
            let unknown = Unfound::Unknown(targets[place].model.clone()).problem();
            Err(ApiError::NotFound(unknown.at(at(place, "model"))))
        }
        Set::OtherTokenizer(place) => Err(ApiError::invalid(
            at(place, "model"),
            format!(
                "`{}` has another tokenizer than `{}`; prompts are counted before one of them is drawn, so the targets of a name \
                 share theirs.",
                targets[place].model, targets[0].model
            ),
        )),
    }
}

/// Remove an alias
///
/// A model that is called the same answers to its name again.
#[utoipa::path(delete, path = "/v1/admin/aliases/{name}", tag = "Operators",
    params(("name" = String, Path, description = "The name")),
    responses((status = 204, description = "It leads nowhere"),
              (status = 404, body = ErrorBody, description = "No such alias"), NeedsToken, NeedsAdmin, Trouble))]
pub async fn remove_alias(
    State(state): State<AppState>,
    caller: Caller,
    NamePath(name): NamePath,
    query: Query,
) -> Result<StatusCode, ApiError> {
    query.only(&[])?;
    let unknown = || ApiError::NotFound(Problem::new("alias_not_found", "There is no such alias.").at("name"));
    check(&name, 1, NAME_MAX).map_err(|_| unknown())?;
    let removed = aliases::remove(&state.pool, name, caller.by()).await;
    tell_everybody(&state).await;
    if removed? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(unknown())
    }
}

/// Names may lead elsewhere now, also where the answer to the commit was lost: from here on no process goes by what it knew.
async fn tell_everybody(state: &AppState) {
    if !state.limits.forget_names().await {
        tokio::time::sleep(catalog::LIFE).await;
    }
}

fn valid(body: AliasIn) -> Result<Vec<Target>, ApiError> {
    if body.targets.is_empty() || body.targets.len() > TARGETS_MAX {
        let message = format!("`targets` names 1 to {TARGETS_MAX} models.");
        return Err(ApiError::invalid("targets", message));
    }
    let mut known = HashSet::new();
    let targets = body.targets.into_iter().enumerate().map(|(place, target)| {
        let model = target.model.as_str().to_owned();
        if !known.insert(model.clone()) {
            let message = format!("`{model}` stands twice in `targets`.");
            return Err(ApiError::invalid(format!("targets[{place}].model"), message));
        }
        let weight = target.weight.map_or(1, |weight| weight.get() as u32);
        Ok(Target { model, weight })
    });
    targets.collect()
}

fn heaviest_first(mut targets: Vec<Target>) -> Vec<Target> {
    targets.sort_by(|a, b| (b.weight, &a.model).cmp(&(a.weight, &b.model)));
    targets
}

impl From<AliasTargets> for AliasBody {
    fn from(alias: AliasTargets) -> Self {
        let targets = alias.targets.into_iter().map(|target| TargetBody {
            model: target.model,
            weight: target.weight,
        });
        Self {
            id: alias.name,
            object: "alias",
            targets: targets.collect(),
            changed_at: alias.changed_at.unix_timestamp(),
        }
    }
}
