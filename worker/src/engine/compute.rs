//! Running a step so that one bad row fails alone.
//!
//! A step that fails or panics is run again in halves until the bad row stands by itself. Running rows twice is harmless:
//! they write the same values to the same places of the cache.

use std::panic::{AssertUnwindSafe, catch_unwind};

use claimcheck_common::domain::JobError;

use crate::gpt2::{StepModel, StepRow};

/// What came of one row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum RowOutcome {
    /// Its tokens are in the cache; no logits were wanted.
    Prefilled,
    /// The logits after its last token, `[vocab_size]`.
    Logits(Vec<f32>),
    /// It cannot be computed.
    Failed(JobError),
}

/// One outcome a row, in order.
pub(super) fn run(model: &mut dyn StepModel, rows: &[StepRow]) -> Vec<RowOutcome> {
    let complaint = match catch_unwind(AssertUnwindSafe(|| model.step(rows))) {
        Ok(Ok(logits)) => return split(rows, &logits, model.vocab_size()),
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
    let mut outcomes = run(model, left);
    outcomes.extend(run(model, right));
    outcomes
}

fn split(rows: &[StepRow], logits: &[f32], vocab_size: usize) -> Vec<RowOutcome> {
    let mut logits = logits.chunks_exact(vocab_size);
    let outcome = |row: &StepRow| {
        let logits = row
            .wants_logits
            .then(|| logits.next().expect("a row of logits for each that wants them"));
        logits.map_or(RowOutcome::Prefilled, |logits| RowOutcome::Logits(logits.to_vec()))
    };
    rows.iter().map(outcome).collect()
}
