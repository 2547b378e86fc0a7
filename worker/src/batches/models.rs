//! The served models as lines name them, with their tokenizers.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use claimcheck_common::domain::{ModelRef, Prompt};
use claimcheck_common::policy::{Hit, Policy, Side};
use claimcheck_common::store::models::{self, Alias, ServedModel};
use claimcheck_common::store::{Pool, StoreResult};
use claimcheck_common::tokenizer::{Tokenizer, TokenizerError};
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
            if let Some(tokenizer) = self.tokenizer(pool, &alias.served).await? {
                aliases.push((alias, tokenizer));
            } else {
                tracing::warn!(model = alias.name, "this model's tokenizer does not read");
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

    /// Takes out of a prompt what the content policy takes out, and answers the rules that it met.
    pub(super) fn screen(&self, policy: &Policy, prompt: &mut Prompt) -> Result<Vec<Hit>, Problem> {
        let text = match prompt {
            // The model has no such tokens: the line will fail for that.
            Prompt::Tokens(ids) if ids.iter().any(|id| *id >= self.served.vocabulary_size) => return Ok(Vec::new()),
            Prompt::Text(text) => Cow::Borrowed(text.as_str()),
            Prompt::Tokens(ids) => Cow::Owned(self.tokenizer.decode(ids).map_err(not_readable)?),
        };
        let verdict = policy.look(Side::Prompt, &text);
        if let Some(hit) = verdict.rejected_by() {
            return Err(against_policy(
                "The prompt goes against this service's content policy",
                hit,
            ));
        }
        match (verdict.redacted, prompt) {
            (None, _) => {}
            (Some(redacted), Prompt::Text(text)) => *text = redacted,
            (Some(_), Prompt::Tokens(_)) => {
                let message = "These tokens hold what the content policy takes out; send the prompt as a text";
                if let Some(hit) = verdict.hits.first() {
                    return Err(against_policy(message, hit));
                }
            }
        }
        Ok(verdict.hits)
    }

    /// The prompt's length in tokens.
    pub(super) fn count(&self, prompt: &Prompt) -> Result<u32, Problem> {
        match prompt {
            Prompt::Tokens(ids) => Ok(ids.len() as u32),
            Prompt::Text(text) => Ok(self.tokenizer.encode(text).map_err(not_readable)?.len() as u32),
        }
    }
}

fn not_readable(_: TokenizerError) -> Problem {
    Problem::new("not_encodable", "The model's tokenizer does not take this prompt.").at("prompt")
}

fn against_policy(message: &str, hit: &Hit) -> Problem {
    metrics::counter!("claimcheck_policy_rejected_total", "side" => "prompt").increment(1);
    let message = format!("{message} (category `{}`).", hit.category);
    Problem::new("content_policy_violation", message).at("prompt")
}
