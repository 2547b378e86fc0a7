//! Running a step so that one bad row fails alone.
//!
//! A step that fails or panics is run again in halves until the bad row stands by itself. Running rows twice is harmless:
//! they write the same values to the same places of the cache. If none is bad, the step was too large for the device.

use std::panic::{AssertUnwindSafe, catch_unwind};

use claimcheck_common::domain::JobError;

use crate::gpt2::{Draw, Drawn, StepModel, StepRow};

/// What came of one row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum RowOutcome<T> {
    /// Its tokens are in the cache; no logits were wanted.
    Prefilled,
    /// What was drawn after its last token, or is to be drawn from.
    Drawn(T),
    /// It cannot be computed.
    Failed(JobError),
}

/// What came of a step.
pub(super) struct Computed {
    /// One outcome a row, in order.
    pub(super) outcomes: Vec<RowOutcome<Drawn>>,
    /// The most rows that were computed at once.
    at_once: usize,
}

impl Computed {
    /// How many rows the device had room for, if it had none for all of them though none of them is bad.
    pub(super) fn room(&self) -> Option<usize> {
        let failed = |outcome: &RowOutcome<_>| matches!(outcome, RowOutcome::Failed(_));
        (self.at_once < self.outcomes.len() && !self.outcomes.iter().any(failed)).then_some(self.at_once)
    }
}

/// Runs a step, in parts where it has to be. `draws` is empty, or has one for each row that wants logits.
pub(super) fn run(model: &mut dyn StepModel, rows: &[StepRow], draws: &[Draw]) -> Computed {
    let vocab_size = model.vocab_size();
    let compute = || match draws {
        [] => model.step(rows).map(|logits| Drawn::left(&logits, vocab_size)),
        draws => model.draw(rows, draws),
    };
    let complaint = match catch_unwind(AssertUnwindSafe(compute)) {
        Ok(Ok(answers)) => {
            return Computed {
                outcomes: sort(rows, answers),
                at_once: rows.len(),
            };
        }
        Ok(Err(error)) => error.to_string(),
        Err(_panic) => "the step panicked".to_owned(),
    };
    if let [row] = rows {
        tracing::error!(complaint, tokens = row.tokens.len(), "a row cannot be computed");
        let error = JobError::server("engine_error", "The model could not compute this job.");
        return Computed {
            outcomes: vec![RowOutcome::Failed(error)],
            at_once: 0,
        };
    }
    tracing::warn!(complaint, rows = rows.len(), "a step failed and is run again in halves");
    let (left, right) = rows.split_at(rows.len() / 2);
    let on_the_left = left.iter().filter(|row| row.wants_logits).count().min(draws.len());
    let (draws_left, draws_right) = draws.split_at(on_the_left);
    let mut computed = run(model, left, draws_left);
    let on_the_right = run(model, right, draws_right);
    computed.outcomes.extend(on_the_right.outcomes);
    computed.at_once = computed.at_once.max(on_the_right.at_once);
    computed
}

fn sort(rows: &[StepRow], drawn: Vec<Drawn>) -> Vec<RowOutcome<Drawn>> {
    let mut drawn = drawn.into_iter();
    let outcome = |row: &StepRow| {
        let drawn = row
            .wants_logits
            .then(|| drawn.next().expect("logits or a token for each row that wants them"));
        drawn.map_or(RowOutcome::Prefilled, RowOutcome::Drawn)
    };
    rows.iter().map(outcome).collect()
}
