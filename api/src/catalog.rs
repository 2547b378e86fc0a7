//! Which models can be asked for, and how long a prompt is for each of them.
//!
//! Models are registered by workers; the API knows them from the store alone. Tokenizers are kept by their digest, so
//! that a new revision can never be counted by an old one's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use claimcheck_common::domain::Prompt;
use claimcheck_common::store::Pool;
use claimcheck_common::store::models::{self, ServedModel};
use claimcheck_common::tokenizer::Tokenizer;

use crate::error::{ApiError, Problem};
use crate::reads::ModelReads;

/// Few models are served at a time; beyond this the cache starts anew.
const KEPT: usize = 32;
/// Shorter prompts are encoded in place: handing them to another thread would cost more.
const SHORT_PROMPT_BYTES: usize = 512;

/// The served models.
#[derive(Clone)]
pub struct Catalog {
    pool: Pool,
    reads: ModelReads,
    tokenizers: Arc<Mutex<HashMap<String, Arc<Tokenizer>>>>,
}

impl Catalog {
    /// Nothing is read yet. Must be called within a runtime.
    pub fn new(pool: Pool) -> Self {
        Self {
            reads: ModelReads::open(pool.clone()),
            pool,
            tokenizers: Arc::default(),
        }
    }

    /// All models, by name.
    pub async fn list(&self) -> Result<Vec<ServedModel>, ApiError> {
        Ok(self
            .reads
            .all()
            .await?
            .iter()
            .map(|alias| alias.served.clone())
            .collect())
    }

    /// The model that a request asks for; without a name, the only one there is.
    pub async fn find(&self, name: Option<&str>) -> Result<ServedModel, ApiError> {
        if let Some(name) = name {
            return self.named(name).await?.ok_or_else(|| not_found(name));
        }
        let mut all = self.list().await?;
        match all.len() {
            0 => Err(ApiError::busy(
                "No model is served yet; start a worker, or try again in a moment.",
                5,
            )),
            1 => Ok(all.swap_remove(0)),
            _ => {
                let names: Vec<_> = all.iter().map(|served| served.model.name.as_str()).collect();
                let message = format!("`model` is required, since several are served: {}.", names.join(", "));
                Err(ApiError::Invalid(Problem::new("missing_field", message).at("model")))
            }
        }
    }

    /// The model of that name, if it is served.
    pub async fn named(&self, name: &str) -> Result<Option<ServedModel>, ApiError> {
        let all = self.reads.all().await?;
        Ok(all
            .iter()
            .find(|alias| alias.name == name)
            .map(|alias| alias.served.clone()))
    }

    /// The prompt's length in the model's tokens.
    pub async fn count_tokens(&self, model: &ServedModel, prompt: &Prompt) -> Result<u32, ApiError> {
        let text = match prompt {
            Prompt::Tokens(ids) => return Ok(ids.len() as u32),
            Prompt::Text(text) => text,
        };
        let tokenizer = self.tokenizer(model).await?;
        if text.len() <= SHORT_PROMPT_BYTES {
            return count(&tokenizer, text);
        }
        let text = text.clone();
        tokio::task::spawn_blocking(move || count(&tokenizer, &text))
            .await
            .map_err(ApiError::internal)?
    }

    /// The text that tokens of the model spell.
    pub async fn decode(&self, model: &ServedModel, ids: &[u32]) -> Result<String, ApiError> {
        let tokenizer = self.tokenizer(model).await?;
        tokenizer.decode(ids).map_err(ApiError::internal)
    }

    /// The model's own tokenizer.
    pub async fn tokenizer(&self, model: &ServedModel) -> Result<Arc<Tokenizer>, ApiError> {
        if let Some(known) = self.kept().get(&model.tokenizer_sha256) {
            return Ok(known.clone());
        }
        let bytes = models::tokenizer(&self.pool, &model.model).await?;
        let bytes = bytes.ok_or_else(|| ApiError::internal(format!("{} has no tokenizer", model.model.name)))?;
        let read = tokio::task::spawn_blocking(move || Tokenizer::from_bytes(&bytes)).await;
        let tokenizer = Arc::new(read.map_err(ApiError::internal)?.map_err(ApiError::internal)?);
        let mut kept = self.kept();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(model.tokenizer_sha256.clone(), tokenizer.clone());
        Ok(tokenizer)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Tokenizer>>> {
        self.tokenizers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(tokenizer: &Tokenizer, text: &str) -> Result<u32, ApiError> {
    Ok(tokenizer.encode(text).map_err(ApiError::internal)?.len() as u32)
}

/// 404, as OpenAI answers an unknown model.
pub fn not_found(name: &str) -> ApiError {
    let shown: String = name.chars().take(64).collect();
    let message = format!("The model `{shown}` is not served here; GET /v1/models lists those that are.");
    ApiError::NotFound(Problem::new("model_not_found", message).at("model"))
}
