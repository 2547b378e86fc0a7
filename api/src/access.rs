//! What routes need of their callers: stated in `router.rs` beside each route ([`Needs::needs`]), seen to by a layer before
//! the handler runs and before a body is read, and written into the OpenAPI document.
//!
//! Roles and scopes both have to hold: the role says what the user may do, the scope what an API key may do for the user.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use claimcheck_common::domain::{Role, Scope};
use utoipa::IntoResponses;
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::SecurityRequirement;
use utoipa_axum::router::UtoipaMethodRouter;

use crate::auth::Doorkeeper;
use crate::docs::{API_KEY, BEARER, BadQuery, NeedsAdmin, NeedsToken};
use crate::error::{ApiError, Problem};
use crate::extract::metered::Counted;
use crate::extract::{Caller, Origin};

/// Where the document says what an operation needs.
pub const X_NEEDS: &str = "x-needs";

/// What a route needs of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: open to everybody.
    Nothing,
    /// Any credential that holds.
    Credential,
    /// The scope `jobs:read`.
    JobsRead,
    /// The scope `jobs:write`.
    JobsWrite,
    /// The same, within the caller's rates: the route makes jobs, and its requests are counted (`limits/mod.rs`).
    Generate,
    /// The scope `batches`.
    Batches,
    /// The scope `webhooks`.
    Webhooks,
    /// The scope `admin`, whatever the role: a user's own API keys.
    Keys,
    /// An access token: the user in person.
    User,
    /// The scope `admin` and the role `auditor`.
    Auditor,
    /// The scope `admin` and the role `admin`.
    Admin,
}

impl Need {
    /// What an API key must be good for.
    const fn scope(self) -> Option<Scope> {
        match self {
            Self::Nothing | Self::Credential | Self::User => None,
            Self::JobsRead => Some(Scope::JobsRead),
            Self::JobsWrite | Self::Generate => Some(Scope::JobsWrite),
            Self::Batches => Some(Scope::Batches),
            Self::Webhooks => Some(Scope::Webhooks),
            Self::Keys | Self::Auditor | Self::Admin => Some(Scope::Admin),
        }
    }

    /// What the user must at least be.
    const fn role(self) -> Role {
        match self {
            Self::Auditor => Role::Auditor,
            Self::Admin => Role::Admin,
            _ => Role::User,
        }
    }

    /// As the document says it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Credential => "credential",
            Self::JobsRead => "jobs:read",
            Self::JobsWrite | Self::Generate => "jobs:write",
            Self::Batches => "batches",
            Self::Webhooks => "webhooks",
            Self::Keys => "keys",
            Self::User => "user",
            Self::Auditor => "auditor",
            Self::Admin => "admin",
        }
    }

    /// Whether requests are counted.
    pub fn counts(self) -> bool {
        self == Self::Generate
    }

    /// 403 for who lacks it.
    pub fn met_by(self, caller: &Caller) -> Result<(), ApiError> {
        if self == Self::User && !caller.is_in_person() {
            let message = "This needs an access token of the user; API keys and services are not accepted here.";
            return Err(ApiError::Forbidden(Problem::new("user_only", message)));
        }
        if caller.role < self.role() {
            let code = if self == Self::Admin {
                "admin_only"
            } else {
                "auditor_only"
            };
            let message = format!("This needs the role `{}`.", self.role());
            return Err(ApiError::Forbidden(Problem::new(code, message)));
        }
        self.scope().map_or(Ok(()), |scope| caller.must_have(scope))
    }

    fn describe(self, operation: &mut Operation) {
        let stated = ExtensionsBuilder::new().add(X_NEEDS, self.as_str()).build();
        operation.extensions.get_or_insert_default().merge(stated);
        operation.security = None;
        if self == Self::Nothing {
            return;
        }
        let scopes: Vec<&str> = self.scope().iter().map(|scope| scope.as_str()).collect();
        let mut accepted = vec![SecurityRequirement::new(BEARER, scopes.clone())];
        if self != Self::User {
            accepted.push(SecurityRequirement::new(API_KEY, scopes));
        }
        operation.security = Some(accepted);
        let refusals = NeedsToken::responses().into_iter().chain(NeedsAdmin::responses());
        for (status, response) in refusals.chain(BadQuery::responses()) {
            operation.responses.responses.entry(status).or_insert(response);
        }
    }
}

/// Routes that can say what they need.
pub trait Needs {
    /// Lets nobody through who does not bring it.
    #[must_use]
    fn needs(self, need: Need) -> Self;
}

impl<S: Clone + Send + Sync + 'static> Needs for MethodRouter<S> {
    fn needs(self, need: Need) -> Self {
        if need == Need::Nothing {
            return self;
        }
        self.route_layer(from_fn_with_state(need, admit))
    }
}

impl<S: Clone + Send + Sync + 'static> Needs for UtoipaMethodRouter<S> {
    fn needs(self, need: Need) -> Self {
        let (schemas, mut paths, router) = self;
        for item in paths.paths.values_mut() {
            for operation in operations(item) {
                need.describe(operation);
            }
        }
        (schemas, paths, router.needs(need))
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.patch,
        &mut item.head,
    ]
    .into_iter()
    .flatten()
}

/// Recognises the caller, asks for what the route needs, counts the request where the route says so, and hands the caller on to the
/// handler.
async fn admit(
    State(need): State<Need>,
    Extension(doorkeeper): Extension<Arc<Doorkeeper>>,
    mut request: Request,
    next: Next,
) -> Response {
    let origin = request.extensions().get::<Origin>().cloned().unwrap_or_default();
    match doorkeeper.recognise(request.headers(), need, &origin).await {
        Ok(caller) => {
            if need.counts() {
                request.extensions_mut().insert(Counted);
            }
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}
