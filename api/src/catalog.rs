//! The served models as requests ask for them: [`claimcheck_common::catalog`], with reads that many requests share.
//!
//! What names lead to is gone by for [`LIFE`] at most, under the mark that the request's call to Redis brought (`limits/shared.rs`):
//! whoever changes a name takes the mark away before answering, or waits for so long. A worker that announces a model does neither.
//! Where a name is unknown, or there is no mark, the database is asked.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use claimcheck_common::catalog::{self, Tokenizers, TokenizersError, Unfound};
use claimcheck_common::domain::{Encoded, Prompt};
use claimcheck_common::store::Pool;
use claimcheck_common::store::models::{Alias, ServedModel};
use claimcheck_common::tokenizer::Tokenizer;

use crate::error::ApiError;
use crate::limits::Mark;
use crate::reads::ModelReads;

/// Shorter prompts are encoded in place: handing them to another thread would cost more.
const SHORT_PROMPT_BYTES: usize = 512;

/// How long names are known. A new revision that a worker announces is drawn after so long at the latest.
pub const LIFE: Duration = Duration::from_secs(1);

/// The served models.
#[derive(Clone)]
pub struct Catalog {
    pool: Pool,
    reads: ModelReads,
    tokenizers: Tokenizers,
    kept: Arc<Mutex<Option<Kept>>>,
}

/// All names as they were read while a mark stood.
struct Kept {
    all: Arc<[Alias]>,
    mark: Mark,
    since: Instant,
}

impl Catalog {
    /// Nothing is read yet. Must be called within a runtime.
    pub fn new(pool: Pool) -> Self {
        Self {
            reads: ModelReads::open(pool.clone()),
            pool,
            tokenizers: Tokenizers::default(),
            kept: Arc::default(),
        }
    }

    /// All names with what they lead to, by name.
    pub async fn list(&self) -> Result<Arc<[Alias]>, ApiError> {
        Ok(self.reads.all().await?)
    }

    /// The model that is to do what a request asks for: of several behind a name one is drawn. `mark` is what the request knows of
    /// the names.
    pub async fn find(&self, name: Option<&str>, mark: Option<Mark>) -> Result<ServedModel, ApiError> {
        if let Some(all) = mark.and_then(|mark| self.kept(mark))
            && let Ok(found) = catalog::find(&all, name)
        {
            return Ok(found.drawn(rand::random()).clone());
        }
        let since = Instant::now();
        let all = self.reads.all().await?;
        if let Some(mark) = mark {
            let kept = Kept {
                all: all.clone(),
                mark,
                since,
            };
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        }
        Ok(named(&all, name)?.drawn(rand::random()).clone())
    }

    /// What a name leads to now.
    pub async fn name(&self, name: &str) -> Result<Alias, ApiError> {
        let all = self.reads.all().await?;
        named(&all, Some(name)).cloned()
    }

    /// All names, if they are known under this mark.
    fn kept(&self, mark: Mark) -> Option<Arc<[Alias]>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept
            .as_ref()
            .filter(|kept| kept.mark == mark && kept.since.elapsed() < LIFE);
        kept.map(|kept| kept.all.clone())
    }

    /// The prompt's length in the model's tokens, and the tokens of a text.
    pub async fn encode(&self, model: &ServedModel, prompt: &Prompt) -> Result<(u32, Option<Encoded>), ApiError> {
        let tokenizer = match prompt {
            Prompt::Tokens(ids) => return Ok((ids.len() as u32, None)),
            Prompt::Text(_) => self.tokenizer(model).await?,
        };
        if matches!(prompt, Prompt::Text(text) if text.len() <= SHORT_PROMPT_BYTES) {
            return catalog::encode(&tokenizer, prompt).map_err(ApiError::internal);
        }
        let prompt = prompt.clone();
        let encoding = tokio::task::spawn_blocking(move || catalog::encode(&tokenizer, &prompt));
        encoding.await.map_err(ApiError::internal)?.map_err(ApiError::internal)
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

/// What a name leads to; without one, the only model there is.
fn named<'a>(all: &'a [Alias], name: Option<&str>) -> Result<&'a Alias, ApiError> {
    catalog::find(all, name).map_err(|unfound| match unfound {
        Unfound::Nothing => ApiError::busy("No model is served yet; start a worker, or try again in a moment.", 5),
        Unfound::Several(_) => ApiError::Invalid(unfound.problem()),
        // 404, as OpenAI answers an unknown model.
        Unfound::Unknown(_) => ApiError::NotFound(unfound.problem()),
    })
}
