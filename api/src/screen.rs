//! Holds prompts against the content policy before they become jobs. What a hit means for a finished text is the worker's
//! (`worker/src/results.rs`).

use claimcheck_common::domain::{GenerationParams, Prompt};
use claimcheck_common::policy::{Hit, Unfit};
use claimcheck_common::store::audit::{self, Entry};
use claimcheck_common::store::models::ServedModel;

use crate::app::AppState;
use crate::error::ApiError;
use crate::extract::Caller;

/// Takes out of a prompt what is to be taken out, and answers the rules that it met; 400 if one of them rejects it.
pub async fn prompt(
    state: &AppState,
    caller: &Caller,
    served: &ServedModel,
    prompt: &mut Prompt,
) -> Result<Vec<Hit>, ApiError> {
    let tokenizer = state.catalog.tokenizer(served).await?;
    let policy = state.policy.current();
    let screened = policy.screen(prompt, served.vocabulary_size, |ids| tokenizer.decode(ids));
    match screened {
        Ok(hits) => Ok(hits),
        Err(Unfit::Unreadable(error)) => Err(ApiError::internal(error)),
        Err(Unfit::Rejected(rejection)) => {
            let entry = Entry::rejected(caller.tenant_id, None, &rejection.hit);
            audit::record(&state.pool, &caller.by(), entry).await?;
            Err(ApiError::Invalid(rejection.problem()))
        }
    }
}

/// Under strict sampling only one of `temperature` and `top_p` may narrow the choice (`CLAIMCHECK_STRICT_SAMPLING`).
pub fn sampling(state: &AppState, params: &GenerationParams) -> Result<(), ApiError> {
    if state.strict_sampling && params.temperature < 1.0 && params.top_p < 1.0 {
        let message = "`temperature` and `top_p` are both below 1, of which only one is taken here; leave one out.";
        return Err(ApiError::invalid("top_p", message));
    }
    Ok(())
}
