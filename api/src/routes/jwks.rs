//! `GET /.well-known/jwks.json`: the public keys that access tokens are verified by (RFC 7517).

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::AppState;
use crate::docs::Trouble;
use crate::error::ApiError;

/// A new key is published for longer before it signs.
const KEPT: [(HeaderName, &str); 1] = [(header::CACHE_CONTROL, "public, max-age=60")];

/// The keys.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeySet {
    /// JSON Web Keys; none if tokens are signed by a shared secret.
    #[schema(value_type = Vec<Object>)]
    pub keys: Vec<serde_json::Value>,
}

/// List the keys of access tokens
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "Accounts", responses(
    (status = 200, body = KeySet, description = "The keys that are accepted"),
    Trouble,
))]
pub async fn jwks(State(state): State<AppState>) -> Result<([(HeaderName, &'static str); 1], Json<KeySet>), ApiError> {
    let known = state.tokens.public_keys();
    let keys = known.keys.iter().map(serde_json::to_value);
    let keys = keys.collect::<Result<_, _>>().map_err(ApiError::internal)?;
    Ok((KEPT, Json(KeySet { keys })))
}
