//! The served models as lines name them, with their tokenizers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use claimcheck_common::domain::{ModelRef, Prompt};
use claimcheck_common::store::models::{self, Alias, ServedModel};
use claimcheck_common::store::{Pool, StoreResult};
use claimcheck_common::tokenizer::Tokenizer;
use claimcheck_common::validate::Problem;
use claimcheck_common::validate::job::ModelLimits;

/// Few models are served at a time; beyond this the cache starts anew.
const KEPT: usize = 8;

/// Tokenizers by their digest. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Models {
    tokenizers: Arc<Mutex<HashMap<String, Arc<Tokenizer>>>>,
}

/// What is served at one moment.
pub(super) struct Served {
    aliases: Vec<(Alias, Arc<Tokenizer>)>,
}

impl Models {
    pub(super) async fn now(&self, pool: &Pool) -> StoreResult<Served> {
        let mut aliases = Vec::new();
        for alias in models::aliases(pool).await? {
            match self.tokenizer(pool, &alias.served).await? {
                Some(tokenizer) => aliases.push((alias, tokenizer)),
                None => tracing::warn!(model = alias.name, "this model's tokenizer does not read"),
            }
        }
        Ok(Served { aliases })
    }

    async fn tokenizer(&self, pool: &Pool, model: &ServedModel) -> StoreResult<Option<Arc<Tokenizer>>> {
        let digest = &model.tokenizer_sha256;
        if let Some(known) = self.kept().get(digest) {
            return Ok(Some(known.clone()));
        }
        let Some(bytes) = models::tokenizer(pool, &model.model).await? else {
            return Ok(None);
        };
        let read = tokio::task::spawn_blocking(move || Tokenizer::from_bytes(&bytes)).await;
        let Ok(Ok(tokenizer)) = read else { return Ok(None) };
        let tokenizer = Arc::new(tokenizer);
        let mut kept = self.kept();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(digest.clone(), tokenizer.clone());
        Ok(Some(tokenizer))
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Tokenizer>>> {
        self.tokenizers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Served {
    /// Whether anything is served: what is not now may be in a moment.
    pub(super) const fn is_empty(&self) -> bool {
        self.aliases.is_empty()
    }

    /// The model of that name; without one, the only one there is.
    pub(super) fn find(&self, name: Option<&str>) -> Result<Model<'_>, Problem> {
        let found = match (name, self.aliases.as_slice()) {
            (Some(name), all) => all.iter().find(|(alias, _)| alias.name == name),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        let missing = || {
            let message =
                "The model is not served here, or several are and the line names none; GET /v1/models lists them.";
            Problem::new("model_not_found", message).at("model")
        };
        let (alias, tokenizer) = found.ok_or_else(missing)?;
        Ok(Model {
            served: &alias.served,
            tokenizer,
        })
    }
}

/// A model that a line goes to.
pub(super) struct Model<'a> {
    served: &'a ServedModel,
    tokenizer: &'a Tokenizer,
}

impl Model<'_> {
    pub(super) fn reference(&self) -> ModelRef {
        self.served.model.clone()
    }

    pub(super) const fn limits(&self) -> ModelLimits {
        ModelLimits {
            context_length: self.served.context_length,
            vocab_size: self.served.vocabulary_size,
        }
    }

    /// The prompt's length in tokens.
    pub(super) fn count(&self, prompt: &Prompt) -> Result<u32, Problem> {
        match prompt {
            Prompt::Tokens(ids) => Ok(ids.len() as u32),
            Prompt::Text(text) => {
                let failed =
                    |_| Problem::new("not_encodable", "The model's tokenizer does not take this prompt.").at("prompt");
                Ok(self.tokenizer.encode(text).map_err(failed)?.len() as u32)
            }
        }
    }
}
