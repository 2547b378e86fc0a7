//! A model with its cache: the one place that owns tensors between steps.

use super::{Gpt2, Gpt2Backend, Span, StepError, StepModel, StepRow};

/// Computes the engine's steps.
pub struct Gpt2Runner<B: Gpt2Backend> {
    model: Gpt2<B>,
    cache: B::Cache,
    slots: usize,
}

impl<B: Gpt2Backend> Gpt2Runner<B> {
    /// Allocates the cache for `slots` sequences of full length.
    pub fn new(model: Gpt2<B>, slots: usize) -> Self {
        let cache = model.new_cache(slots);
        Self { model, cache, slots }
    }

    fn check(&self, row: &StepRow) -> Result<(), StepError> {
        let (vocab, context) = (self.vocab_size(), self.context_length());
        let complaint = if row.slot >= self.slots {
            format!("slot {} of {}", row.slot, self.slots)
        } else if row.tokens.is_empty() {
            "no tokens".to_owned()
        } else if row.position + row.tokens.len() > context {
            format!("{} tokens at position {} of {context}", row.tokens.len(), row.position)
        } else if let Some(token) = row.tokens.iter().find(|token| **token as usize >= vocab) {
            format!("token {token} of {vocab}")
        } else {
            return Ok(());
        };
        Err(StepError::OutOfBounds(complaint))
    }
}

impl<B: Gpt2Backend> StepModel for Gpt2Runner<B>
where
    Gpt2<B>: Send,
{
    fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    fn context_length(&self) -> usize {
        self.model.config().n_positions
    }

    fn slots(&self) -> usize {
        self.slots
    }

    fn step(&mut self, rows: &[StepRow]) -> Result<Vec<f32>, StepError> {
        rows.iter().try_for_each(|row| self.check(row))?;
        let (mut tokens, mut spans, mut wanted) = (Vec::new(), Vec::with_capacity(rows.len()), Vec::new());
        for row in rows {
            spans.push(Span {
                slot: row.slot,
                position: row.position,
                len: row.tokens.len(),
            });
            tokens.extend_from_slice(&row.tokens);
            if row.wants_logits {
                wanted.push(tokens.len() - 1);
            }
        }
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        // A step of prefill alone still has to write the cache; its last token stands in for "no logits wanted".
        let nobody = wanted.is_empty();
        if nobody {
            wanted.push(tokens.len() - 1);
        }
        let logits = self.model.forward(&tokens, &spans, &wanted, &mut self.cache);
        if nobody {
            return Ok(Vec::new());
        }
        Ok(logits.into_data().into_vec().expect("logits are f32"))
    }
}
