//! The served models as lines name them, with their tokenizers.

use std::collections::HashMap;
use std::sync::Arc;

use claimcheck_common::catalog::{self, Tokenizers, TokenizersError};
use claimcheck_common::store::models::{self, Alias, ServedModel};
use claimcheck_common::store::{Pool, StoreResult};
use claimcheck_common::tokenizer::Tokenizer;
use claimcheck_common::validate::Problem;

/// Looks up what is served. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Models {
    tokenizers: Tokenizers,
}

/// What is served at one moment.
pub(super) struct Served {
    aliases: Vec<Alias>,
    /// By their digests.
    tokenizers: HashMap<String, Arc<Tokenizer>>,
}

impl Models {
    pub(super) async fn now(&self, pool: &Pool) -> StoreResult<Served> {
        let (mut aliases, mut tokenizers) = (Vec::new(), HashMap::new());
        for alias in models::aliases(pool).await? {
            // All that a name leads to has one tokenizer.
            match self.tokenizers.of(pool, alias.heaviest()).await {
                Ok(tokenizer) => {
                    tokenizers.insert(alias.heaviest().tokenizer_sha256.clone(), tokenizer);
                    aliases.push(alias);
                }
                Err(TokenizersError::Store(error)) => return Err(error),
                Err(error) => {
                    let error = super::error_chain(&error);
                    tracing::warn!(model = alias.name, error, "this model's tokenizer does not read");
                }
            }
        }
        Ok(Served { aliases, tokenizers })
    }
}

impl Served {
    /// Whether anything is served: what is not now may be in a moment.
    pub(super) const fn is_empty(&self) -> bool {
        self.aliases.is_empty()
    }

    /// A model of that name, drawn where there are several, with its tokenizer; without a name, the only one there is.
    pub(super) fn find(&self, name: Option<&str>) -> Result<(&ServedModel, &Tokenizer), Problem> {
        let found = catalog::find(&self.aliases, name).map_err(|unfound| unfound.problem())?;
        let served = found.drawn(rand::random());
        let tokenizer = self.tokenizers.get(&served.tokenizer_sha256);
        let tokenizer = tokenizer.ok_or_else(|| catalog::Unfound::Nothing.problem())?;
        Ok((served, tokenizer))
    }
}
