//! What the engine asks of a model, and gets.

use std::time::Duration;

use super::{Draw, Drawn};

/// One row of a step: some consecutive tokens of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRow {
    /// The blocks of the cache that hold the sequence, from its first token on, up to the last of `tokens` or beyond.
    pub blocks: Vec<u32>,
    /// Tokens of this sequence that are in the cache already.
    pub position: usize,
    /// One token when decoding, a chunk when prefilling; never empty.
    pub tokens: Vec<u32>,
    /// Whether the logits after the last token are wanted.
    pub wants_logits: bool,
}

/// A step that could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A row asks for something the model does not have. The engine never does; a bug otherwise.
    #[error("a row of the step is out of bounds: {0}")]
    OutOfBounds(String),
    /// The device failed, or has no memory left.
    #[error("the device could not compute the step: {0}")]
    Device(String),
}

/// What became of a model while it rested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// Nothing: its cache holds what it held.
    AsItWas,
    /// It was unloaded and loaded again: its cache is empty.
    Emptied,
    /// It is not in memory yet, for others have the room. To be asked again.
    NotYet,
}

/// A model that computes steps.
pub trait StepModel: Send {
    /// Token ids are below this.
    fn vocab_size(&self) -> usize;
    /// Most tokens of one sequence.
    fn context_length(&self) -> usize;
    /// How many blocks the cache has. One sequence of full length fits in at least.
    fn blocks(&self) -> usize;
    /// Token positions that the device computes for a step of so many tokens: more where it fills up to a fixed shape.
    fn positions(&self, tokens: usize) -> usize {
        tokens
    }
    /// Computes one step and writes the cache. Answers `[rows that want logits, vocab_size]`, row-major, in the order of
    /// those rows.
    fn step(&mut self, rows: &[StepRow]) -> Result<Vec<f32>, StepError>;

    /// How long the last step waited for what a device beside the processor computed; `None` where the processor computes.
    fn waited(&self) -> Option<Duration> {
        None
    }

    /// Whether [`Self::draw`] draws tokens itself, so that it is worth asking.
    fn draws(&self) -> bool {
        false
    }

    /// [`Self::step`], and what `draws` ask of those rows that want logits, in their order.
    fn draw(&mut self, rows: &[StepRow], draws: &[Draw]) -> Result<Vec<Drawn>, StepError> {
        debug_assert_eq!(draws.len(), rows.iter().filter(|row| row.wants_logits).count());
        let logits = self.step(rows)?;
        Ok(Drawn::left(&logits, self.vocab_size()))
    }

    /// There is work. Brings it back from its [`Self::rest`], or fails if it cannot be brought back; may block for a while.
    fn wake(&mut self) -> Result<Woken, StepError> {
        Ok(Woken::AsItWas)
    }

    /// There is no work: until [`Self::wake`] it may be unloaded.
    fn rest(&mut self) {}

    /// Whether others wait for its memory, so that it should come to its rest.
    fn is_wanted_out(&self) -> bool {
        false
    }
}
