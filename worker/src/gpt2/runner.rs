//! A model with its cache: the one place that owns tensors between steps.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::{BLOCK, Draw, Drawn, Gpt2, Gpt2Backend, Span, StepError, StepModel, StepRow};

/// Computes the engine's steps.
pub struct Gpt2Runner<B: Gpt2Backend> {
    model: Gpt2<B>,
    cache: B::Cache,
    blocks: usize,
    /// How long the last step waited for the device, if it is not the processor.
    waited: Option<Duration>,
}

impl<B: Gpt2Backend> Gpt2Runner<B>
where
    Gpt2<B>: Send,
{
    /// Makes a cache of so many blocks, or as many as a sequence of full length takes.
    pub fn new(model: Gpt2<B>, blocks: usize) -> Self {
        let blocks = blocks.max(model.config().n_positions.div_ceil(BLOCK));
        let cache = model.new_cache(blocks);
        let waited = None;
        Self {
            model,
            cache,
            blocks,
            waited,
        }
    }

    fn check(&self, row: &StepRow) -> Result<(), StepError> {
        let (vocab, context) = (self.vocab_size(), self.context_length());
        let end = row.position + row.tokens.len();
        let complaint = if let Some(block) = row.blocks.iter().find(|block| **block as usize >= self.blocks) {
            format!("block {block} of {}", self.blocks)
        } else if row.tokens.is_empty() {
            "no tokens".to_owned()
        } else if end > context {
            format!("{} tokens at position {} of {context}", row.tokens.len(), row.position)
        } else if end > row.blocks.len() * BLOCK {
            format!("{end} tokens in {} blocks", row.blocks.len())
        } else if let Some(token) = row.tokens.iter().find(|token| **token as usize >= vocab) {
            format!("token {token} of {vocab}")
        } else {
            return Ok(());
        };
        Err(StepError::OutOfBounds(complaint))
    }

    /// The blocks that a step writes are each one row's own.
    fn check_writes(rows: &[StepRow]) -> Result<(), StepError> {
        let mut written = HashSet::new();
        for row in rows {
            let places = row.position / BLOCK..(row.position + row.tokens.len()).div_ceil(BLOCK);
            if let Some(block) = row.blocks[places].iter().find(|block| !written.insert(**block)) {
                return Err(StepError::OutOfBounds(format!("block {block} is written by two rows")));
            }
        }
        Ok(())
    }

    /// Computes a step, and reads back what `read` makes of the logits of the rows that want them: nothing, if none does.
    fn compute<T: Send + 'static>(
        &mut self,
        rows: &[StepRow],
        read: impl FnOnce(B::Floats) -> Result<Vec<T>, StepError> + Send,
    ) -> Result<Vec<T>, StepError> {
        rows.iter().try_for_each(|row| self.check(row))?;
        Self::check_writes(rows)?;
        let (mut tokens, mut spans, mut wanted) = (Vec::new(), Vec::with_capacity(rows.len()), Vec::new());
        for row in rows {
            spans.push(Span {
                blocks: &row.blocks,
                position: row.position,
                len: row.tokens.len(),
            });
            tokens.extend_from_slice(&row.tokens);
            if row.wants_logits {
                wanted.push(tokens.len() - 1);
            }
        }
        if tokens.is_empty() {
            self.waited = None;
            return Ok(Vec::new());
        }
        // A step of prefill alone still has to write the cache; its last token stands in for "no logits wanted".
        let nobody = wanted.is_empty();
        if nobody {
            wanted.push(tokens.len() - 1);
        }
        let multiplications = tokens.len() * self.model.config().matrix_weights();
        let device = self.model.device().clone();
        B::share(&device, multiplications, move || {
            let logits = self.model.forward(&tokens, &spans, &wanted, &mut self.cache);
            let began = Instant::now();
            let answer = if nobody { Ok(Vec::new()) } else { read(logits) };
            self.waited = B::QUEUES.then(|| began.elapsed());
            answer
        })
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

    fn blocks(&self) -> usize {
        self.blocks
    }

    fn step(&mut self, rows: &[StepRow]) -> Result<Vec<f32>, StepError> {
        self.compute(rows, B::values)
    }

    fn waited(&self) -> Option<Duration> {
        self.waited
    }

    fn draws(&self) -> bool {
        B::draws(self.model.device())
    }

    fn draw(&mut self, rows: &[StepRow], draws: &[Draw]) -> Result<Vec<Drawn>, StepError> {
        let wanted = rows.iter().filter(|row| row.wants_logits).count();
        if draws.len() != wanted {
            let complaint = format!("{} draws of {wanted} rows", draws.len());
            return Err(StepError::OutOfBounds(complaint));
        }
        let vocab = self.vocab_size();
        let known = |draw: &Draw| draw.edits.iter().all(|edit| (edit.token as usize) < vocab);
        if !draws.iter().all(known) {
            return Err(StepError::OutOfBounds(format!("an edit of a token beyond {vocab}")));
        }
        self.compute(rows, |logits| B::draw(logits, draws))
    }
}
