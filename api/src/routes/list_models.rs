//! `GET /v1/models`: what can be asked for, in OpenAI's shape with the limits added.

use axum::Json;
use axum::extract::State;
use claimcheck_common::store::models::{Alias, ServedModel};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::AppState;
use crate::docs::{NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody};
use crate::extract::Query;

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelBody {
    /// The name that requests use.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// When it was first announced.
    pub created: i64,
    /// Always `claimcheck`.
    pub owned_by: &'static str,
    /// Which weights.
    pub revision: String,
    /// Most tokens of prompt and output together.
    pub context_length: u32,
    /// Token ids are below this.
    pub vocabulary_size: u32,
    /// The arithmetic it is served in.
    pub dtype: String,
    /// Workers that were heard of within the last half minute. Jobs for a model without one wait.
    pub workers: u32,
    /// Of an alias, the models that it leads to, the heaviest first, whose revision and dtype stand above, with the least of their
    /// lengths and the sum of their workers. Null for a model's own name.
    #[schema(required)]
    pub targets: Option<Vec<ModelTargetBody>>,
}

/// A model that an alias leads to.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelTargetBody {
    /// The model's own name.
    pub model: String,
    /// Which weights.
    pub revision: String,
    /// Its part of the jobs, beside the other targets' weights.
    pub weight: u32,
    /// Its workers.
    pub workers: u32,
}

/// All models.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    /// By name.
    pub data: Vec<ModelBody>,
    /// The first one's name.
    #[schema(required)]
    pub first_id: Option<String>,
    /// The last one's name.
    #[schema(required)]
    pub last_id: Option<String>,
    /// Always false.
    pub has_more: bool,
}

/// List models
#[utoipa::path(get, path = "/v1/models", tag = "Models", responses(
    (status = 200, body = ModelList, description = "All models"),
    (status = 400, body = ErrorBody, description = "A parameter is unknown"),
    NeedsToken, Trouble,
))]
pub async fn list_models(State(state): State<AppState>, query: Query) -> Result<Json<ModelList>, ApiError> {
    query.only(&[])?;
    let data: Vec<_> = state.catalog.list().await?.iter().map(ModelBody::from).collect();
    Ok(Json(ModelList {
        object: "list",
        first_id: data.first().map(|model| model.id.clone()),
        last_id: data.last().map(|model| model.id.clone()),
        data,
        has_more: false,
    }))
}

impl From<&Alias> for ModelBody {
    fn from(alias: &Alias) -> Self {
        let models = || alias.targets.iter().map(|(served, _)| served);
        let heaviest = alias.heaviest();
        let target = |(served, weight): &(ServedModel, u32)| ModelTargetBody {
            model: served.model.name.clone(),
            revision: served.model.revision.clone(),
            weight: *weight,
            workers: served.workers,
        };
        Self {
            id: alias.name.clone(),
            object: "model",
            created: heaviest.registered_at.unix_timestamp(),
            owned_by: "claimcheck",
            revision: heaviest.model.revision.clone(),
            context_length: models().map(|served| served.context_length).min().unwrap_or_default(),
            vocabulary_size: models().map(|served| served.vocabulary_size).min().unwrap_or_default(),
            dtype: heaviest.dtype.clone(),
            workers: models().map(|served| served.workers).sum(),
            targets: alias.given.then(|| alias.targets.iter().map(target).collect()),
        }
    }
}
