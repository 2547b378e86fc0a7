//! How far this process has come, as `http.rs` tells it to whoever asks.
//!
//! Written by `app.rs`, `announce.rs` and `consumer.rs`. Must never decide anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use claimcheck_common::domain::Class;

use crate::roles::Role;

/// The facts; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health {
    facts: Arc<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    generates: bool,
    model_loaded: AtomicBool,
    announced: AtomicBool,
    subscribed: [AtomicBool; Class::ALL.len()],
    stopping: AtomicBool,
}

impl Health {
    /// Nothing has happened yet. What does not generate waits for no model.
    pub fn new(roles: &[Role]) -> Self {
        let facts = Facts {
            generates: roles.contains(&Role::Generate),
            ..Facts::default()
        };
        Self { facts: Arc::new(facts) }
    }

    /// The weights are in memory.
    pub fn model_loaded(&self) {
        self.facts.model_loaded.store(true, Ordering::Relaxed);
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

    /// No new work is taken.
    pub fn stopping(&self) {
        self.facts.stopping.store(true, Ordering::Relaxed);
    }

    /// What a start still waits for.
    pub fn starting(&self) -> Option<&'static str> {
        self.first_missing(&[(&self.facts.model_loaded, "the model is being loaded")])
    }

    /// Why no work is taken at the moment.
    pub fn not_ready(&self) -> Option<&'static str> {
        if self.facts.stopping.load(Ordering::Relaxed) {
            return Some("the worker is stopping");
        }
        let [interactive, batch] = &self.facts.subscribed;
        self.first_missing(&[
            (&self.facts.model_loaded, "the model is being loaded"),
            (
                &self.facts.announced,
                "the model could not be announced to the database yet",
            ),
            (interactive, "there is no subscription to the interactive queue"),
            (batch, "there is no subscription to the batch queue"),
        ])
    }

    fn first_missing(&self, steps: &[(&AtomicBool, &'static str)]) -> Option<&'static str> {
        let missing = steps.iter().find(|(done, _)| !done.load(Ordering::Relaxed));
        missing.filter(|_| self.facts.generates).map(|(_, why)| *why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generating_worker_is_ready_once_loaded_announced_and_subscribed() {
        let health = Health::new(&Role::ALL);
        assert!(health.starting().is_some());
        health.model_loaded();
        assert!(health.starting().is_none());
        health.announced();
        assert!(health.not_ready().is_some());
        health.subscribed(Class::Interactive, true);
        assert!(health.not_ready().is_some(), "the other queue is missing");
        health.subscribed(Class::Batch, true);
        assert!(health.not_ready().is_none());
        health.subscribed(Class::Batch, false);
        assert!(health.not_ready().is_some());
    }

    #[test]
    fn a_maintaining_worker_waits_for_no_model_and_a_stopping_one_is_not_ready() {
        let health = Health::new(&[Role::Maintain]);
        assert!(health.starting().is_none() && health.not_ready().is_none());
        health.stopping();
        assert!(health.not_ready().is_some());
    }
}
