//! `/v1/auth/identities`: the providers that a user is linked to.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use claimcheck_common::domain::IdentityId;
use claimcheck_common::store::identities::{self, Identity, Unlinked};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::app::AppState;
use crate::docs::Trouble;
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::{Caller, IdPath, Query};

/// A link from a provider's user to the account.
#[derive(Debug, Serialize, ToSchema)]
pub struct IdentityBody {
    /// `ident_…`
    pub id: String,
    /// Always `identity`.
    pub object: &'static str,
    /// The provider's name; null if it is configured no more.
    #[schema(required)]
    pub provider: Option<String>,
    /// Who vouches.
    pub issuer: String,
    /// The address by which the link was made.
    pub email: String,
    /// When it was made.
    pub created_at: i64,
    /// When it was last signed in by.
    #[schema(required)]
    pub last_used_at: Option<i64>,
}

/// The user's links.
#[derive(Debug, Serialize, ToSchema)]
pub struct IdentityList {
    /// Always `list`.
    pub object: &'static str,
    /// The oldest first; one for each provider at most.
    pub data: Vec<IdentityBody>,
}

/// List linked providers
#[utoipa::path(get, path = "/v1/auth/identities", tag = "Accounts", responses(
    (status = 200, body = IdentityList, description = "The caller's links"),
    Trouble,
))]
pub async fn list_identities(
    State(state): State<AppState>,
    caller: Caller,
    query: Query,
) -> Result<Reply<IdentityList>, ApiError> {
    query.only(&[])?;
    let known = identities::list(&state.pool, caller.user_id).await?;
    Ok(Reply(IdentityList {
        object: "list",
        data: known.into_iter().map(|one| body(&state, one)).collect(),
    }))
}

fn body(state: &AppState, identity: Identity) -> IdentityBody {
    IdentityBody {
        id: identity.id.to_string(),
        object: "identity",
        provider: state.providers.of_issuer(&identity.issuer).map(|one| one.name.clone()),
        issuer: identity.issuer,
        email: identity.email,
        created_at: identity.created_at.unix_timestamp(),
        last_used_at: identity.last_used_at.map(OffsetDateTime::unix_timestamp),
    }
}

/// Unlink a provider
///
/// Nobody signs in by it any more. Sessions that it began go on until they are logged out.
#[utoipa::path(delete, path = "/v1/auth/identities/{id}", tag = "Accounts",
    params(("id" = String, Path, description = "The link's id")),
    responses(
        (status = 204, description = "It is unlinked"),
        (status = 404, body = ErrorBody, description = "The caller has no such link"),
        (status = 409, body = ErrorBody, description = "The account has no password and no other link (`last_way_in`)"),
        Trouble,
    ))]
pub async fn unlink(
    State(state): State<AppState>,
    caller: Caller,
    IdPath(id): IdPath<IdentityId>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    query.only(&[])?;
    match identities::unlink(&state.pool, caller.user_id, id, caller.by()).await? {
        Unlinked::Done => Ok(StatusCode::NO_CONTENT),
        Unlinked::Unknown => {
            let problem = Problem::new("not_found", "There is no such link.").at("id");
            Err(ApiError::NotFound(problem))
        }
        Unlinked::LastWayIn => {
            let message = "The account has no password, and nobody could sign in to it without this link; link another \
                           provider first.";
            Err(ApiError::Conflict(Problem::new("last_way_in", message)))
        }
    }
}
