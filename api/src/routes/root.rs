//! `GET /` and `GET /version`: what runs here.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::docs::{BadQuery, Trouble};
use crate::error::ApiError;
use crate::extract::Query;

/// What runs here, and where to go on.
#[derive(Debug, Serialize, ToSchema)]
pub struct Root {
    /// `claimcheck`
    pub name: &'static str,
    /// One sentence.
    pub description: &'static str,
    /// The running version.
    pub version: &'static str,
    /// Pages to read and to try.
    pub docs: &'static str,
    /// The OpenAPI document.
    pub openapi: &'static str,
}

/// What runs here
#[utoipa::path(get, path = "/", tag = "Service", responses((status = 200, body = Root, description = "Name, version and where to go on"), BadQuery, Trouble))]
pub async fn root(query: Query) -> Result<Json<Root>, ApiError> {
    query.only(&[])?;
    Ok(Json(Root {
        name: "claimcheck",
        description: "A queue-based asynchronous job service for text generation.",
        version: env!("CARGO_PKG_VERSION"),
        docs: "/docs",
        openapi: "/openapi.json",
    }))
}

/// The running version.
#[derive(Debug, Serialize, ToSchema)]
pub struct Version {
    /// `claimcheck`
    pub name: &'static str,
    /// The crate's version.
    pub version: &'static str,
    /// The commit it was built from, where the build told.
    #[schema(required)]
    pub commit: Option<&'static str>,
}

/// Version
#[utoipa::path(get, path = "/version", tag = "Service", responses((status = 200, body = Version, description = "What runs here"), BadQuery, Trouble))]
pub async fn version(query: Query) -> Result<Json<Version>, ApiError> {
    query.only(&[])?;
    Ok(Json(Version {
        name: "claimcheck",
        version: env!("CARGO_PKG_VERSION"),
        commit: option_env!("CLAIMCHECK_COMMIT"),
    }))
}
