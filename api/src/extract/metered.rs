//! The caller of a route that generates: known, and within its rates. Such a route takes `Metered(caller)` where others
//! take `caller`, and that is all there is to it.

use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;

use super::{Caller, Origin};
use crate::app::AppState;
use crate::error::ApiError;

/// A caller whose request was counted (`limits/mod.rs`).
#[derive(Debug, Clone)]
pub struct Metered(pub Caller);

impl<S> FromRequestParts<S> for Metered
where
    AppState: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let Ok(origin) = Origin::from_request_parts(parts, state).await;
        AppState::from_ref(state).limits.generation(&caller, &origin).await?;
        Ok(Self(caller))
    }
}
