//! The caller of a route that generates: known, and within its rates. The layer in `access.rs` has counted the request before; a
//! handler that takes `Metered` on a route which does not say that it generates is a mistake of ours and answers 500.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::Caller;
use crate::error::ApiError;

/// A caller whose request was counted (`limits/mod.rs`).
#[derive(Debug, Clone)]
pub struct Metered(pub Caller);

/// Said of a request that was counted.
#[derive(Debug, Clone, Copy)]
pub struct Counted;

impl<S: Send + Sync> FromRequestParts<S> for Metered {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        if parts.extensions.get::<Counted>().is_none() {
            return Err(ApiError::internal(
                "a route that counts nothing asks for a counted caller",
            ));
        }
        Caller::from_request_parts(parts, state).await.map(Self)
    }
}
