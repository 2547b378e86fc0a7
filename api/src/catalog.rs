//! The served models as requests ask for them: [`claimcheck_common::catalog`], with reads that many requests share.

use std::sync::Arc;

use claimcheck_common::catalog::{self, Tokenizers, TokenizersError, Unfound};
use claimcheck_common::domain::Prompt;
use claimcheck_common::store::Pool;
use claimcheck_common::store::models::{Alias, ServedModel};
use claimcheck_common::tokenizer::Tokenizer;

use crate::error::ApiError;
use crate::reads::ModelReads;

/// Shorter prompts are encoded in place: handing them to another thread would cost more.
const SHORT_PROMPT_BYTES: usize = 512;

/// The served models.
#[derive(Clone)]
pub struct Catalog {
    pool: Pool,
    reads: ModelReads,
    tokenizers: Tokenizers,
}

impl Catalog {
    /// Nothing is read yet. Must be called within a runtime.
    pub fn new(pool: Pool) -> Self {
        Self {
            reads: ModelReads::open(pool.clone()),
            pool,
            tokenizers: Tokenizers::default(),
        }
    }

    /// All names with what they lead to, by name.
    pub async fn list(&self) -> Result<Arc<[Alias]>, ApiError> {
        Ok(self.reads.all().await?)
    }

    /// The model that is to do what a request asks for: of several behind a name one is drawn.
    pub async fn find(&self, name: Option<&str>) -> Result<ServedModel, ApiError> {
        Ok(self.name(name).await?.drawn(rand::random()).clone())
    }

    /// What a name leads to; without one, the only model there is.
    pub async fn name(&self, name: Option<&str>) -> Result<Alias, ApiError> {
        let all = self.reads.all().await?;
        match catalog::find(&all, name) {
            Ok(found) => Ok(found.clone()),
            Err(Unfound::Nothing) => Err(ApiError::busy(
                "No model is served yet; start a worker, or try again in a moment.",
                5,
            )),
            Err(several @ Unfound::Several(_)) => Err(ApiError::Invalid(several.problem())),
            // 404, as OpenAI answers an unknown model.
            Err(unknown @ Unfound::Unknown(_)) => Err(ApiError::NotFound(unknown.problem())),
        }
    }

    /// The prompt's length in the model's tokens.
    pub async fn count_tokens(&self, model: &ServedModel, prompt: &Prompt) -> Result<u32, ApiError> {
        let tokenizer = match prompt {
            Prompt::Tokens(ids) => return Ok(ids.len() as u32),
            Prompt::Text(_) => self.tokenizer(model).await?,
        };
        if matches!(prompt, Prompt::Text(text) if text.len() <= SHORT_PROMPT_BYTES) {
            return catalog::count(&tokenizer, prompt).map_err(ApiError::internal);
        }
        let prompt = prompt.clone();
        let counting = tokio::task::spawn_blocking(move || catalog::count(&tokenizer, &prompt));
        counting.await.map_err(ApiError::internal)?.map_err(ApiError::internal)
    }

    /// The model's own tokenizer.
    pub async fn tokenizer(&self, model: &ServedModel) -> Result<Arc<Tokenizer>, ApiError> {
        match self.tokenizers.of(&self.pool, model).await {
            Ok(tokenizer) => Ok(tokenizer),
            Err(TokenizersError::Store(error)) => Err(error.into()),
            Err(error) => Err(ApiError::internal(error)),
        }
    }
}
