//! `GET /v1/jobs/{id}/receipt`: what an ended job cost and on what it ran, signed; and the key to verify it by.

use axum::Json;
use axum::extract::State;
use claimcheck_common::store::receipts::{self, Attempt, Found, Receipt};
use claimcheck_common::view::{ParametersBody, UsageBody};
use serde::Serialize;
use utoipa::ToSchema;

use super::retry_job::not_ended;
use crate::app::AppState;
use crate::docs::{BadQuery, NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::path::job_not_found;
use crate::extract::{Caller, JobIdPath, Query};

/// What an ended job cost. Times are Unix seconds, durations seconds.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReceiptStatement {
    /// The job's id.
    pub job_id: String,
    /// How it ended.
    pub status: &'static str,
    /// The model's name.
    pub model: String,
    /// The revision that the job asked for.
    pub model_revision: String,
    /// SHA-256 of the weights that it ran on, in hexadecimal; null if no attempt ended it.
    #[schema(required)]
    pub weights_sha256: Option<String>,
    /// What the weights were kept in.
    #[schema(required)]
    pub dtype: Option<String>,
    /// The worker's version, with the commit where the build told.
    #[schema(required)]
    pub build: Option<String>,
    /// `interactive` or `batch`.
    pub class: &'static str,
    /// The API key that it came by; null with an access token.
    #[schema(required)]
    pub api_key_id: Option<String>,
    /// How it was generated, the seed included; null once it is erased.
    #[schema(required)]
    pub parameters: Option<ParametersBody>,
    /// Tokens read and written; 0 where there is no output.
    pub usage: UsageBody,
    /// How often a worker took it up.
    pub attempts: u32,
    /// How often one fell silent over it.
    pub lapses: u32,
    /// When it was accepted.
    pub accepted_at: i64,
    /// When it ended.
    pub finished_at: i64,
    /// From the time at which the last attempt could have run to its first prefill.
    pub queue_seconds: f64,
    /// From the first prefill to the first token.
    #[schema(required)]
    pub prefill_seconds: Option<f64>,
    /// From the first token to the last.
    #[schema(required)]
    pub decode_seconds: Option<f64>,
    /// Of each step's time the part that this job's tokens were of the step's.
    #[schema(required)]
    pub device_seconds: Option<f64>,
    /// The part of `device_seconds` that went into positions without a token: 0 to 1.
    #[schema(required)]
    pub padding_share: Option<f64>,
}

/// A statement with its signature.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReceiptBody {
    /// Always `job.receipt`.
    pub object: &'static str,
    /// What is stated.
    #[serde(flatten)]
    pub statement: ReceiptStatement,
    /// A compact JWS (Ed25519) whose payload is the statement: all other fields but `object`. Its key is in
    /// `/.well-known/receipt-keys.json`.
    pub signature: String,
}

/// Get a job's receipt
///
/// What an ended job cost and on what it ran, signed. It outlives its job: erasing takes only the parameters out.
#[utoipa::path(get, path = "/v1/jobs/{id}/receipt", tag = "Jobs",
    params(("id" = String, Path, description = "The ended job's id")),
    responses(
        (status = 200, body = ReceiptBody, description = "The receipt"),
        (status = 404, body = ErrorBody, description = "No such job, or not yours, or it ended before receipts were kept \
            (`receipt_not_found`)"),
        (status = 409, body = ErrorBody, description = "It has not ended (`job_not_ended`)"),
        NeedsToken, Trouble,
    ))]
pub async fn get_receipt(
    State(state): State<AppState>,
    caller: Caller,
    JobIdPath(id): JobIdPath,
    query: Query,
) -> Result<Json<ReceiptBody>, ApiError> {
    query.only(&[])?;
    let receipt = match receipts::find(&state.pool, caller.project_id, id).await? {
        Found::Receipt(receipt) => receipt,
        Found::Running => return Err(not_ended("accounted for")),
        Found::Unknown => return Err(job_not_found()),
        Found::Missing => {
            let message = "This job ended before receipts were kept.";
            return Err(ApiError::NotFound(Problem::new("receipt_not_found", message).at("id")));
        }
    };
    let statement = ReceiptStatement::from(*receipt);
    let signature = state.receipt_key.sign(&statement).map_err(ApiError::internal)?;
    Ok(Json(ReceiptBody {
        object: "job.receipt",
        statement,
        signature,
    }))
}

/// The keys that receipts are verified by
///
/// A JWK set (RFC 7517) with an Ed25519 key, open to everybody.
#[utoipa::path(get, path = "/.well-known/receipt-keys.json", tag = "Service",
    responses((status = 200, body = serde_json::Value, description = "A JWK set"), BadQuery, Trouble))]
pub async fn receipt_keys(
    State(state): State<AppState>,
    query: Query,
) -> Result<Json<jsonwebtoken::jwk::JwkSet>, ApiError> {
    query.only(&[])?;
    Ok(Json(state.receipt_key.published()))
}

impl From<Receipt> for ReceiptStatement {
    fn from(receipt: Receipt) -> Self {
        let attempt = receipt.attempt.as_ref();
        let of = |value: fn(&Attempt) -> f64| attempt.map(value);
        Self {
            job_id: receipt.job_id.to_string(),
            status: receipt.status.as_str(),
            weights_sha256: attempt.map(|attempt| attempt.runtime.weights_sha256.clone()),
            dtype: attempt.map(|attempt| attempt.runtime.dtype.clone()),
            build: attempt.map(|attempt| attempt.runtime.build.clone()),
            class: receipt.class.as_str(),
            api_key_id: receipt.api_key_id.map(|id| id.to_string()),
            parameters: receipt.params.as_ref().map(ParametersBody::from),
            usage: receipt.usage.into(),
            attempts: receipt.attempts,
            lapses: receipt.lapses,
            accepted_at: receipt.accepted_at.unix_timestamp(),
            finished_at: receipt.finished_at.unix_timestamp(),
            queue_seconds: receipt.queue_seconds,
            prefill_seconds: of(|attempt| attempt.prefill),
            decode_seconds: of(|attempt| attempt.decode),
            device_seconds: of(|attempt| attempt.device),
            padding_share: of(Attempt::padding_share),
            model: receipt.model.name,
            model_revision: receipt.model.revision,
        }
    }
}
