//! Ids in the path. What is not an id names nothing, hence 404 and not 400.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use claimcheck_common::domain::{BatchId, FileId, Id, IdKind, JobId, ProjectId};

use crate::error::{ApiError, Problem};

/// The `{id}` of a job route.
#[derive(Debug, Clone, Copy)]
pub struct JobIdPath(pub JobId);

impl<S: Send + Sync> FromRequestParts<S> for JobIdPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let text = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| job_not_found())?;
        text.parse().map(Self).map_err(|_| {
            let message = "There is no such job; a job id is `job_` followed by 26 lower-case letters and digits.";
            ApiError::NotFound(Problem::new("job_not_found", message).at("id"))
        })
    }
}

/// The one answer for jobs that do not exist and for jobs of others.
pub fn job_not_found() -> ApiError {
    ApiError::NotFound(Problem::new("job_not_found", "There is no such job.").at("id"))
}

/// The `{id}` of any other route.
#[derive(Debug, Clone, Copy)]
pub struct IdPath<T>(pub T);

impl<S: Send + Sync, K: IdKind> FromRequestParts<S> for IdPath<Id<K>> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        let id = text.ok().and_then(|Path(text)| text.parse().ok());
        id.map(Self).ok_or_else(|| {
            let message = format!(
                "There is no such thing; an id here is `{}` followed by 26 lower-case letters and digits.",
                K::PREFIX
            );
            ApiError::NotFound(Problem::new("not_found", message).at("id"))
        })
    }
}

/// The `{id}` of a project and what is named beside it.
#[derive(Debug, Clone, Copy)]
pub struct InProject<T> {
    /// The project.
    pub project: ProjectId,
    /// What is in it.
    pub id: T,
}

impl<S: Send + Sync, K: IdKind> FromRequestParts<S> for InProject<Id<K>> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let texts = Path::<(String, String)>::from_request_parts(parts, state).await;
        let ids = texts
            .ok()
            .and_then(|Path((project, id))| project.parse().ok().zip(id.parse().ok()));
        let found = ids.map(|(project, id)| Self { project, id });
        found.ok_or_else(project_not_found)
    }
}

/// The one answer for projects that do not exist and for those of others.
pub fn project_not_found() -> ApiError {
    let message = "There is no such project; GET /v1/projects lists those that you may act in.";
    ApiError::NotFound(Problem::new("project_not_found", message))
}

/// What a path names by anything but an id. What does not read is nobody's name.
#[derive(Debug, Clone)]
pub struct NamePath(pub String);

impl<S: Send + Sync> FromRequestParts<S> for NamePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        Ok(Self(text.map_or_else(|_| String::new(), |Path(text)| text)))
    }
}

/// The same of a path that names two things.
#[derive(Debug, Clone)]
pub struct NamesPath(pub String, pub String);

impl<S: Send + Sync> FromRequestParts<S> for NamesPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let texts = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((one, other)) = texts.unwrap_or_else(|_| Path(Default::default()));
        Ok(Self(one, other))
    }
}

/// The `{id}` of a file route.
#[derive(Debug, Clone, Copy)]
pub struct FileIdPath(pub FileId);

impl<S: Send + Sync> FromRequestParts<S> for FileIdPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        let id = text.ok().and_then(|text| text.parse().ok());
        id.map(Self).ok_or_else(file_not_found)
    }
}

/// The one answer for files that do not exist and for files of others.
pub fn file_not_found() -> ApiError {
    ApiError::NotFound(Problem::new("file_not_found", "There is no such file.").at("id"))
}

/// The `{id}` of a batch route.
#[derive(Debug, Clone, Copy)]
pub struct BatchIdPath(pub BatchId);

impl<S: Send + Sync> FromRequestParts<S> for BatchIdPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        let id = text.ok().and_then(|text| text.parse().ok());
        id.map(Self).ok_or_else(batch_not_found)
    }
}

/// The one answer for batches that do not exist and for batches of others.
pub fn batch_not_found() -> ApiError {
    ApiError::NotFound(Problem::new("batch_not_found", "There is no such batch.").at("id"))
}
