//! A model that leaves memory while it rests, if others need the room, and is loaded again when there is work for it.
//!
//! Between the engine, which says when it has work, and `model_memory.rs`, which says whether there is room.

use std::time::Duration;

use crate::gpt2::{Draw, Drawn, LoadError, StepError, StepModel, StepRow, Woken};
use crate::model_memory::{Entered, ModelMemory, Place};

/// The memory that a process' models share.
pub type Memory = ModelMemory<Box<dyn StepModel>>;

/// The engine goes on to take arrivals and cancels between two tries.
const PATIENCE: Duration = Duration::from_millis(50);

/// Loads the model anew, the same as before.
pub type Load = Box<dyn Fn() -> Result<Box<dyn StepModel>, LoadError> + Send>;

/// A model and its place in memory.
pub struct Unloadable {
    name: String,
    place: Place<Box<dyn StepModel>>,
    load: Load,
    /// While it works.
    model: Option<Box<dyn StepModel>>,
    vocab_size: usize,
    context_length: usize,
    blocks: usize,
    draws: bool,
}

impl Unloadable {
    /// Waits for room in its place, loads the model with `load`, and lets it rest. Blocks. `load` must give the same model every
    /// time.
    pub fn load(name: String, mut place: Place<Box<dyn StepModel>>, load: Load) -> Result<Self, LoadError> {
        while matches!(place.enter(PATIENCE), Entered::NotYet) {}
        let model = load()?;
        loaded(&name);
        let mut resting = Self {
            vocab_size: model.vocab_size(),
            context_length: model.context_length(),
            blocks: model.blocks(),
            draws: model.draws(),
            model: Some(model),
            name,
            place,
            load,
        };
        resting.rest();
        Ok(resting)
    }

    fn working(&mut self) -> Result<&mut Box<dyn StepModel>, StepError> {
        let model = self.model.as_mut();
        model.ok_or_else(|| StepError::Device("the model is not in memory".to_owned()))
    }
}

fn loaded(name: &str) {
    metrics::counter!("claimcheck_model_loads_total", "model" => name.to_owned()).increment(1);
}

impl StepModel for Unloadable {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_length(&self) -> usize {
        self.context_length
    }

    fn blocks(&self) -> usize {
        self.blocks
    }

    fn positions(&self, tokens: usize) -> usize {
        self.model.as_ref().map_or(tokens, |model| model.positions(tokens))
    }

    fn step(&mut self, rows: &[StepRow]) -> Result<Vec<f32>, StepError> {
        self.working()?.step(rows)
    }

    fn waited(&self) -> Option<Duration> {
        self.model.as_ref().and_then(|model| model.waited())
    }

    fn draws(&self) -> bool {
        self.draws
    }

    fn draw(&mut self, rows: &[StepRow], draws: &[Draw]) -> Result<Vec<Drawn>, StepError> {
        self.working()?.draw(rows, draws)
    }

    fn wake(&mut self) -> Result<Woken, StepError> {
        if self.model.is_some() {
            return Ok(Woken::AsItWas);
        }
        match self.place.enter(PATIENCE) {
            Entered::NotYet => Ok(Woken::NotYet),
            Entered::Found(model) => {
                self.model = Some(model);
                Ok(Woken::AsItWas)
            }
            Entered::Room => {
                let model = (self.load)().map_err(|error| StepError::Device(error.to_string()))?;
                loaded(&self.name);
                tracing::info!(model = self.name, "the model is loaded again");
                self.model = Some(model);
                Ok(Woken::Emptied)
            }
        }
    }

    fn rest(&mut self) {
        match self.model.take() {
            Some(model) => self.place.rest(model),
            None => self.place.give_up(),
        }
    }

    fn is_wanted_out(&self) -> bool {
        self.place.wanted()
    }
}
