//! Draws from a step's rows, side by side on the threads that compute where that is worth while: each row has a generator of its own,
//! so nothing depends on which thread takes it, or when.

use std::collections::HashMap;

use claimcheck_common::domain::{JobError, JobKey};
use rayon::prelude::*;

use super::compute::RowOutcome;
use super::job::Job;
use super::scheduler::Planned;
use super::sequence::Token;
use crate::gpt2::Drawn;

/// From so many logits a token is drawn about as soon as another thread has woken. What the device drew costs nothing here.
const WORTH_A_TASK: usize = 1 << 13;

/// The tokens of all rows that have one; a row whose logits are not numbers fails.
pub(super) fn draw(
    jobs: &HashMap<JobKey, Job>,
    plan: &[Planned],
    outcomes: Vec<RowOutcome<Drawn>>,
) -> Vec<RowOutcome<Token>> {
    let logits: usize = outcomes.iter().map(logits_of).sum();
    let task = WORTH_A_TASK * plan.len() / logits.max(1) + 1;
    let rows = plan.par_iter().zip(outcomes).with_min_len(task);
    let drawn = rows.map(|(planned, outcome)| match outcome {
        RowOutcome::Prefilled => RowOutcome::Prefilled,
        RowOutcome::Failed(error) => RowOutcome::Failed(error),
        RowOutcome::Drawn(drawn) => jobs[&planned.id.key]
            .draw(planned.id.choice, drawn)
            .map_or_else(|| RowOutcome::Failed(numerical_error()), RowOutcome::Drawn),
    });
    drawn.collect()
}

const fn logits_of(outcome: &RowOutcome<Drawn>) -> usize {
    match outcome {
        RowOutcome::Drawn(Drawn::Logits(logits)) => logits.len(),
        _ => 0,
    }
}

fn numerical_error() -> JobError {
    JobError::server("numerical_error", "The model's output for this job was not a number.")
}
