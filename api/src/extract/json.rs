//! JSON bodies: the typed value together with the raw bytes (an idempotency key is bound to those).
//!
//! Refusals name the field and what it takes, and never repeat a value: a body may hold a secret or a megabyte.

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use serde::de::DeserializeOwned;

use claimcheck_common::validate::json;

use super::body;
use crate::error::ApiError;

/// A JSON body of at most `LIMIT` bytes.
#[derive(Debug)]
pub struct Json<T, const LIMIT: usize = { body::MAX_BODY }> {
    /// What it says.
    pub value: T,
    /// How it said it.
    pub raw: Bytes,
}

impl<S: Send + Sync, T: DeserializeOwned, const LIMIT: usize> FromRequest<S> for Json<T, LIMIT> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let raw = body::read(request, "application/json", LIMIT).await?;
        Ok(Self {
            value: parse(&raw)?,
            raw,
        })
    }
}

/// A JSON body of at most `LIMIT` bytes that is not read yet: the route has a question about its bytes first.
#[derive(Debug)]
pub struct RawJson<const LIMIT: usize = { body::MAX_BODY }>(pub Bytes);

impl<S: Send + Sync, const LIMIT: usize> FromRequest<S> for RawJson<LIMIT> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        body::read(request, "application/json", LIMIT).await.map(Self)
    }
}

/// Reads one JSON value that fills the whole body.
pub fn parse<T: DeserializeOwned>(raw: &[u8]) -> Result<T, ApiError> {
    Ok(json::parse(raw, "The request body")?)
}
