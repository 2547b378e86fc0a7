//! What the OpenAPI document says besides the routes, and the pages to read it with. Both come from the binary alone.

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use claimcheck_common::domain::Scope;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Flow, OAuth2, Password, Scopes, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi, ToSchema};
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::error::{ApiError, ErrorBody, Problem};

/// The document's head; the paths are added by `router.rs`.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Claimcheck",
        description = "A queue for text generation: hand in a prompt, get a job id at once, collect the result later.\n\n\
            Every error has the same body, `{\"error\": {message, type, param, code}}`; every answer carries \
            `x-request-id` and `x-process-time` (seconds). Times are Unix seconds."
    ),
    modifiers(&Security),
    tags(
        (name = "Jobs", description = "Submit, watch, list and cancel."),
        (name = "OpenAI", description = "What OpenAI's client libraries call."),
        (name = "Webhooks", description = "Be told what happens, or read it as a feed."),
        (name = "Batches", description = "Upload a file of requests, watch it being done, read what came of it."),
        (name = "Operators", description = "Pause, drain, limit, redrive; for admins."),
        (name = "Models", description = "What can be asked for."),
        (name = "Accounts", description = "Register, get an access token, keep API keys."),
        (name = "Projects", description = "Keep work apart, let others in, make accounts for services."),
        (name = "Service", description = "Probes, metrics, version."),
    )
)]
pub struct ApiDoc;

/// The name of a security scheme in the document: an access token, or an API key in its place.
pub const BEARER: &str = "bearer";
/// The name of a security scheme in the document: an API key in a header of its own.
pub const API_KEY: &str = "api_key";

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        // As an OAuth 2 flow, so that the reading pages can log in by themselves.
        let scopes = Scopes::from_iter(Scope::ALL.map(|scope| (scope.as_str(), "")));
        let password = Flow::Password(Password::new("/v1/auth/token", scopes));
        let key = ApiKey::Header(ApiKeyValue::new("X-API-Key"));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(BEARER, SecurityScheme::OAuth2(OAuth2::new([password])));
        components.add_security_scheme(API_KEY, SecurityScheme::ApiKey(key));
    }
}

/// Answers of every route that reads a body.
#[derive(IntoResponses)]
pub enum BadBody {
    /// The body is malformed, has an unknown field or a value beyond its limit; `param` names it.
    #[response(status = 400)]
    Invalid(ErrorBody),
    /// The body came too slowly.
    #[response(status = 408)]
    Slow(ErrorBody),
    /// The body is larger than this route reads.
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// The body is of another type, or compressed.
    #[response(status = 415)]
    WrongType(ErrorBody),
}

/// Answers of every route that takes none but named parameters.
#[derive(IntoResponses)]
pub enum BadQuery {
    /// A parameter is unknown, stands there twice or does not read; `param` names it.
    #[response(status = 400)]
    Invalid(ErrorBody),
}

/// Answers of every route that needs a token.
#[derive(IntoResponses)]
pub enum NeedsToken {
    /// The access token or API key is missing, bad, expired or revoked, or the account is not active.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "`Bearer …`")))]
    Unauthenticated(ErrorBody),
}

/// Answers of every route that needs a role or a scope.
#[derive(IntoResponses)]
pub enum NeedsAdmin {
    /// The account lacks the role, or the API key the scope (`insufficient_scope`).
    #[response(status = 403)]
    Forbidden(ErrorBody),
}

/// Answers that any route can give.
#[derive(IntoResponses)]
pub enum Trouble {
    /// Something went wrong inside.
    #[response(status = 500)]
    Internal(ErrorBody),
    /// The database is away or the service is full; try again.
    #[response(status = 503, headers(("Retry-After" = u32, description = "Seconds")))]
    Unavailable(ErrorBody),
    /// The time limit was reached; not to be retried blindly (`x-should-retry: false`).
    #[response(status = 504)]
    TimedOut(ErrorBody),
}

/// A server-sent event of a stream in OpenAI's shape.
#[derive(Debug, ToSchema)]
#[schema(as = StreamEvent)]
#[expect(dead_code, reason = "it describes, nothing makes one")]
pub struct StreamEvent {
    /// Which kind, where there are several.
    event: Option<String>,
    /// JSON, by its kind; `[DONE]` at the end of a completion.
    data: String,
}

/// The reading pages at `/docs`.
pub fn pages<S: Clone + Send + Sync + 'static>() -> Router<S> {
    // Without "none" the pages would ask a validator on the internet about the document.
    let config = Config::new(["/openapi.json"])
        .validator_url("none")
        .persist_authorization(true);
    Router::from(SwaggerUi::new("/docs").config(config)).layer(from_fn(in_our_envelope))
}

/// A page that does not exist is a 404 like any other.
async fn in_our_envelope(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if response.status() == StatusCode::NOT_FOUND {
        return ApiError::NotFound(Problem::new("not_found", "There is no such page; start at /docs/."))
            .into_response();
    }
    response
}
