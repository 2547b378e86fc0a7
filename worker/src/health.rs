//! How far this process has come, as `http.rs` tells it to whoever asks.
//!
//! Written by `app.rs`, `announce.rs` and `consumer.rs`. Must never decide anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use claimcheck_common::domain::Class;

/// The facts; cheap to clone.
#[derive(Debug, Clone)]
pub struct Health {
    stopping: Arc<AtomicBool>,
    models: Arc<[ModelHealth]>,
}

/// How far one of the models has come; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ModelHealth {
    facts: Arc<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    loaded: AtomicBool,
    announced: AtomicBool,
    subscribed: [AtomicBool; Class::ALL.len()],
}

impl Health {
    /// Nothing has happened yet, with so many models. What does not generate has none and waits for none.
    pub fn new(models: usize) -> Self {
        Self {
            stopping: Arc::default(),
            models: (0..models).map(|_| ModelHealth::default()).collect(),
        }
    }

    /// Where the model at this place tells of itself.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn of_model(&self, at: usize) -> ModelHealth {
        self.models[at].clone()
    }

    /// No new work is taken.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// What a start still waits for.
    pub fn starting(&self) -> Option<&'static str> {
        self.models.iter().find_map(ModelHealth::starting)
    }

    /// Why not all work is taken at the moment.
    pub fn not_ready(&self) -> Option<&'static str> {
        if self.stopping.load(Ordering::Relaxed) {
            return Some("the worker is stopping");
        }
        self.models.iter().find_map(ModelHealth::not_ready)
    }
}

impl ModelHealth {
    /// The weights are in memory.
    pub fn loaded(&self) {
        self.facts.loaded.store(true, Ordering::Relaxed);
    }

    /// The database knows what this worker serves.
    pub fn announced(&self) {
        self.facts.announced.store(true, Ordering::Relaxed);
    }

    /// Whether deliveries of a class can arrive.
    pub fn subscribed(&self, class: Class, is: bool) {
        for (of, fact) in Class::ALL.iter().zip(&self.facts.subscribed) {
            if *of == class {
                fact.store(is, Ordering::Relaxed);
            }
        }
    }

    fn starting(&self) -> Option<&'static str> {
        first_missing(&[(&self.facts.loaded, "a model is being loaded")])
    }

    fn not_ready(&self) -> Option<&'static str> {
        let [interactive, batch] = &self.facts.subscribed;
        let announced = (
            &self.facts.announced,
            "a model could not be announced to the database yet",
        );
        self.starting().or_else(|| {
            first_missing(&[
                announced,
                (interactive, "there is no subscription to an interactive queue"),
                (batch, "there is no subscription to a batch queue"),
            ])
        })
    }
}

fn first_missing(steps: &[(&AtomicBool, &'static str)]) -> Option<&'static str> {
    let missing = steps.iter().find(|(done, _)| !done.load(Ordering::Relaxed));
    missing.map(|(_, why)| *why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generating_worker_is_ready_once_each_model_is_loaded_announced_and_subscribed() {
        let health = Health::new(2);
        let [first, second] = [0, 1].map(|at| health.of_model(at));
        for model in [&first, &second] {
            assert!(health.starting().is_some());
            model.loaded();
        }
        assert!(health.starting().is_none());
        first.announced();
        second.announced();
        first.subscribed(Class::Interactive, true);
        assert!(health.not_ready().is_some(), "the other queue is missing");
        first.subscribed(Class::Batch, true);
        assert!(health.not_ready().is_some(), "the other model is missing");
        second.subscribed(Class::Interactive, true);
        second.subscribed(Class::Batch, true);
        assert!(health.not_ready().is_none());
        second.subscribed(Class::Batch, false);
        assert!(health.not_ready().is_some());
    }

    #[test]
    fn a_maintaining_worker_waits_for_no_model_and_a_stopping_one_is_not_ready() {
        let health = Health::new(0);
        assert!(health.starting().is_none() && health.not_ready().is_none());
        health.stopping();
        assert!(health.not_ready().is_some());
    }
}
