//! Holds prompts against the content policy before they become jobs. What a hit means for a finished text is the worker's
//! (`worker/src/results.rs`).

use std::borrow::Cow;

use claimcheck_common::domain::{GenerationParams, Prompt};
use claimcheck_common::policy::{Hit, Side};
use claimcheck_common::store::audit::{self, Entry};
use claimcheck_common::store::models::ServedModel;

use crate::app::AppState;
use crate::error::{ApiError, Problem};
use crate::extract::Caller;

/// Takes out of a prompt what is to be taken out, and answers the rules that it met; 400 if one of them rejects it.
pub async fn prompt(
    state: &AppState,
    caller: &Caller,
    served: &ServedModel,
    prompt: &mut Prompt,
) -> Result<Vec<Hit>, ApiError> {
    let text = match prompt {
        // The model has no such tokens: the request will be refused for that.
        Prompt::Tokens(ids) if ids.iter().any(|id| *id >= served.vocabulary_size) => return Ok(Vec::new()),
        Prompt::Text(text) => Cow::Borrowed(text.as_str()),
        Prompt::Tokens(ids) => Cow::Owned(state.catalog.decode(served, ids).await?),
    };
    let verdict = state.policy.current().look(Side::Prompt, &text);
    if let Some(hit) = verdict.rejected_by() {
        return Err(rejected(
            state,
            caller,
            hit,
            "The prompt goes against this service's content policy",
        )
        .await);
    }
    match (verdict.redacted, prompt) {
        (None, _) => {}
        (Some(redacted), Prompt::Text(text)) => *text = redacted,
        (Some(_), Prompt::Tokens(_)) => {
            let first = verdict.hits.first();
            let message = "These tokens hold what the content policy takes out; send the prompt as a text";
            return Err(match first {
                Some(hit) => rejected(state, caller, hit, message).await,
                None => ApiError::internal("something is taken out by no rule"),
            });
        }
    }
    Ok(verdict.hits)
}

/// Under strict sampling only one of `temperature` and `top_p` may narrow the choice (`CLAIMCHECK_STRICT_SAMPLING`).
pub fn sampling(state: &AppState, params: &GenerationParams) -> Result<(), ApiError> {
    if state.strict_sampling && params.temperature < 1.0 && params.top_p < 1.0 {
        let message = "`temperature` and `top_p` are both below 1, of which only one is taken here; leave one out.";
        return Err(ApiError::invalid("top_p", message));
    }
    Ok(())
}

/// The refusal, once it is written down.
async fn rejected(state: &AppState, caller: &Caller, hit: &Hit, message: &str) -> ApiError {
    metrics::counter!("claimcheck_policy_rejected_total", "side" => "prompt").increment(1);
    let entry = Entry::done(Some(caller.tenant_id), "policy.rejected", None)
        .with(serde_json::json!(hit))
        .refused();
    if let Err(error) = audit::record(&state.pool, &caller.by(), entry).await {
        return error.into();
    }
    let message = format!("{message} (category `{}`).", hit.category);
    ApiError::Invalid(Problem::new("content_policy_violation", message).at("prompt"))
}
