//! Running a step so that one bad row fails alone.
//!
//! A step that fails or panics is run again in halves until the bad row stands by itself. Running rows twice is harmless:
//! they write the same values to the same places of the cache.

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

/// One outcome a row, in order. `draws` is empty, or has one for each row that wants logits.
pub(super) fn run(model: &mut dyn StepModel, rows: &[StepRow], draws: &[Draw]) -> Vec<RowOutcome<Drawn>> {
    let vocab_size = model.vocab_size();
    let compute = || match draws {
        [] => model.step(rows).map(|logits| Drawn::left(&logits, vocab_size)),
        draws => model.draw(rows, draws),
    };
    let complaint = match catch_unwind(AssertUnwindSafe(compute)) {
        Ok(Ok(answers)) => return sort(rows, answers),
        Ok(Err(error)) => error.to_string(),
        Err(_panic) => "the step panicked".to_owned(),
    };
    if let [row] = rows {
        tracing::error!(complaint, tokens = row.tokens.len(), "a row cannot be computed");
        let error = JobError::server("engine_error", "The model could not compute this job.");
        return vec![RowOutcome::Failed(error)];
    }
    tracing::warn!(complaint, rows = rows.len(), "a step failed and is run again in halves");
    let (left, right) = rows.split_at(rows.len() / 2);
    let on_the_left = left.iter().filter(|row| row.wants_logits).count().min(draws.len());
    let (draws_left, draws_right) = draws.split_at(on_the_left);
    let mut outcomes = run(model, left, draws_left);
    outcomes.extend(run(model, right, draws_right));
    outcomes
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
