//! Which models can be asked for, and the tokenizers that read their prompts: by the same rules for a request and for a
//! batch's line.
//!
//! Models are registered by workers; everybody else knows them from the store alone. Tokenizers are kept by their digest, so
//! that a new revision can never be counted by an old one's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::{Encoded, Prompt};
use crate::store::models::{self, Alias, ServedModel};
use crate::store::{Pool, StoreError};
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::validate::Problem;

/// Few models are served at a time; beyond this the cache starts anew.
const KEPT: usize = 32;
/// Of a name that nobody knows so many characters are shown again.
const SHOWN: usize = 64;

/// A name that leads to no model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfound {
    /// Nothing is served at the moment.
    Nothing,
    /// None was named, and several are served.
    Several(Vec<String>),
    /// No model has this name.
    Unknown(String),
}

impl Unfound {
    /// What to tell whoever asked.
    pub fn problem(&self) -> Problem {
        let problem = match self {
            Self::Nothing => Problem::new("model_not_found", "No model is served yet."),
            Self::Several(names) => {
                let names = names.join(", ");
                Problem::new(
                    "missing_field",
                    format!("`model` is required, since several are served: {names}."),
                )
            }
            Self::Unknown(name) => {
                let shown: String = name.chars().take(SHOWN).collect();
                let message = format!("The model `{shown}` is not served here; GET /v1/models lists those that are.");
                Problem::new("model_not_found", message)
            }
        };
        problem.at("model")
    }
}

/// What that name leads to; without one, the only model there is.
pub fn find<'a>(aliases: &'a [Alias], name: Option<&str>) -> Result<&'a Alias, Unfound> {
    let Some(name) = name else {
        return only(aliases);
    };
    let found = aliases.iter().find(|alias| alias.name == name);
    found.ok_or_else(|| Unfound::Unknown(name.to_owned()))
}

fn only(aliases: &[Alias]) -> Result<&Alias, Unfound> {
    let mut models = aliases.iter().filter(|alias| !alias.given);
    match (models.next(), models.next(), aliases) {
        (Some(only), None, _) | (None, _, [only]) => Ok(only),
        (_, _, []) => Err(Unfound::Nothing),
        (_, _, all) => Err(Unfound::Several(all.iter().map(|alias| alias.name.clone()).collect())),
    }
}

/// The prompt's length in the model's tokens, and the tokens of a text.
pub fn encode(tokenizer: &Tokenizer, prompt: &Prompt) -> Result<(u32, Option<Encoded>), TokenizerError> {
    match prompt {
        Prompt::Tokens(ids) => Ok((ids.len() as u32, None)),
        Prompt::Text(text) => {
            let encoded = tokenizer.encode_marked(text)?;
            Ok((encoded.tokens.len() as u32, Some(encoded)))
        }
    }
}

/// A tokenizer that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TokenizersError {
    /// It could not be read from the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store does not have it.
    #[error("{0} has no tokenizer")]
    Missing(String),
    /// It is none.
    #[error(transparent)]
    Unreadable(#[from] TokenizerError),
    /// Reading it panicked.
    #[error("a tokenizer could not be read")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Tokenizers by their digest. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tokenizers {
    kept: Arc<Mutex<HashMap<String, Arc<Tokenizer>>>>,
}

impl Tokenizers {
    /// The model's own.
    pub async fn of(&self, pool: &Pool, model: &ServedModel) -> Result<Arc<Tokenizer>, TokenizersError> {
        if let Some(known) = self.kept().get(&model.tokenizer_sha256) {
            return Ok(known.clone());
        }
        let bytes = models::tokenizer(pool, &model.model).await?;
        let bytes = bytes.ok_or_else(|| TokenizersError::Missing(model.model.name.clone()))?;
        // A file of some megabytes: not on a thread that serves others.
        let tokenizer = Arc::new(tokio::task::spawn_blocking(move || Tokenizer::from_bytes(&bytes)).await??);
        let mut kept = self.kept();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(model.tokenizer_sha256.clone(), tokenizer.clone());
        Ok(tokenizer)
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<String, Arc<Tokenizer>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
