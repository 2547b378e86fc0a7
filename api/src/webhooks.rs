//! What the handlers of webhooks share: the vault, the networks that are open, where links lead.

use std::sync::Arc;

use claimcheck_common::config::{ConfigError, WebhookConfig};
use claimcheck_common::domain::EndpointId;
use claimcheck_common::store::webhooks::endpoints::{self, Endpoint, JobWebhook, Owner};
use claimcheck_common::validate::webhook::JobHook;
use claimcheck_common::webhook::{SigningSecret, Target, Vault};
use ipnet::IpNet;
use url::Url;

use crate::app::AppState;
use crate::error::{ApiError, Problem};
use crate::extract::Caller;

/// The path segment that stands for the project's signer of the URLs that jobs bring along.
const FOR_JOBS: &str = "jobs";
/// Nothing changes before the operator does something.
const NOT_SET_UP_FOR: u32 = 600;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Webhooks {
    vault: Option<Arc<Vault>>,
    opened: Arc<[IpNet]>,
    links: Option<Url>,
}

impl Webhooks {
    /// As configured.
    pub fn new(config: &WebhookConfig) -> Result<Self, ConfigError> {
        Ok(Self {
            vault: config.vault()?.map(Arc::new),
            opened: config.allow.as_slice().into(),
            links: config.public_url.clone(),
        })
    }

    /// What seals and opens secrets.
    pub fn vault(&self) -> Result<&Vault, ApiError> {
        self.vault.as_deref().ok_or(ApiError::busy(
            "Webhooks are not set up here; the operator has to set CLAIMCHECK_WEBHOOK_KEY.",
            NOT_SET_UP_FOR,
        ))
    }

    /// A URL that may be called; `param` is the field that it stands in.
    pub fn target(&self, param: &'static str, url: &str) -> Result<Target, ApiError> {
        Target::parse(url, &self.opened).map_err(|wrong| ApiError::invalid(param, format!("`{param}` {wrong}.")))
    }

    /// What links in events begin with.
    pub const fn links(&self) -> Option<&Url> {
        self.links.as_ref()
    }
}

/// Who the caller is to endpoints.
pub fn owner(caller: &Caller) -> Owner {
    Owner {
        tenant: caller.tenant_id,
        project: caller.project_id,
        by: caller.by(),
    }
}

/// A new secret of an endpoint, and how it is stored.
pub fn draw(vault: &Vault, id: EndpointId) -> Result<(SigningSecret, Vec<u8>), ApiError> {
    let secret = SigningSecret::draw().map_err(ApiError::internal)?;
    let sealed = vault.seal(id, &secret.to_bytes()).map_err(ApiError::internal)?;
    Ok((secret, sealed))
}

/// The endpoint that a path names: one of the caller's project, or `jobs`, which is there as soon as somebody asks.
pub async fn find(state: &AppState, caller: &Caller, segment: &str) -> Result<Endpoint, ApiError> {
    if segment == FOR_JOBS {
        return for_jobs(state, caller).await;
    }
    let found = match segment.parse() {
        Ok(id) => endpoints::find(&state.pool, caller.project_id, id).await?,
        Err(_) => None,
    };
    found.ok_or_else(not_found)
}

/// As [`find`], for what only an endpoint with a URL of its own can do.
pub async fn find_own(state: &AppState, caller: &Caller, segment: &str) -> Result<Endpoint, ApiError> {
    if segment == FOR_JOBS {
        let message = "`jobs` signs for the URLs that jobs bring along; this is for endpoints with a URL of their own.";
        return Err(ApiError::invalid("endpoint_id", message));
    }
    find(state, caller, segment).await
}

/// There is no such endpoint, or it is somebody else's.
pub fn not_found() -> ApiError {
    let message = "There is no such webhook endpoint; an id is `whe_` followed by 26 characters, or `jobs`.";
    ApiError::NotFound(Problem::new("webhook_endpoint_not_found", message).at("endpoint_id"))
}

/// Where a job's events are to go, checked.
pub async fn of_job(state: &AppState, caller: &Caller, hook: Option<JobHook>) -> Result<Option<JobWebhook>, ApiError> {
    let Some(hook) = hook else { return Ok(None) };
    let target = state.webhooks.target("webhook", hook.url.as_str())?;
    let signer = for_jobs(state, caller).await?;
    Ok(Some(JobWebhook {
        endpoint: signer.id,
        url: target.url().to_string(),
        origin: target.origin(),
        events: hook.events.map(|events| events.0).unwrap_or_default(),
        payload: hook.payload.unwrap_or_default(),
    }))
}

async fn for_jobs(state: &AppState, caller: &Caller) -> Result<Endpoint, ApiError> {
    let vault = state.webhooks.vault()?;
    if let Some(found) = endpoints::found_for_jobs(&state.pool, caller.project_id).await? {
        return Ok(found);
    }
    let id = EndpointId::new();
    let (_, sealed) = draw(vault, id)?;
    Ok(endpoints::for_jobs(&state.pool, &owner(caller), id, &sealed).await?)
}
