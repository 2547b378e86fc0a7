//! What the engine counts. Names follow Prometheus: a unit at the end, `_total` for counters.

use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};

use super::scheduler::Scheduler;
use super::sequence::Sequence;
use crate::gpt2::StepRow;

pub(super) fn room(slots: usize, blocks: usize) {
    gauge!("claimcheck_engine_slots").set(slots as f64);
    gauge!("claimcheck_engine_blocks").set(blocks as f64);
}

pub(super) fn occupancy(scheduler: &mut Scheduler) {
    gauge!("claimcheck_engine_slots_in_use").set(scheduler.running() as f64);
    gauge!("claimcheck_engine_waiting_sequences").set(scheduler.waiting() as f64);
    gauge!("claimcheck_engine_blocks_free").set(scheduler.free_blocks() as f64);
    let counts = scheduler.take_counts();
    counter!("claimcheck_engine_admitted_tokens_total").increment(counts.admitted_tokens);
    counter!("claimcheck_engine_prefix_hit_tokens_total").increment(counts.hit_tokens);
    counter!("claimcheck_engine_preemptions_total").increment(counts.preemptions);
}

pub(super) fn panicked() {
    counter!("claimcheck_engine_panics_total").increment(1);
}

/// What the step gives, and how long it took.
pub(super) fn timed_step<T>(rows: &[StepRow], step: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let outcome = step();
    let took = began.elapsed();
    counter!("claimcheck_engine_steps_total").increment(1);
    histogram!("claimcheck_engine_step_rows").record(rows.len() as f64);
    histogram!("claimcheck_engine_step_tokens").record(rows.iter().map(|row| row.tokens.len()).sum::<usize>() as f64);
    histogram!("claimcheck_engine_step_duration_seconds").record(took);
    (outcome, took)
}

pub(super) fn token(sequence: &mut Sequence, arrived: Instant) {
    let now = Instant::now();
    counter!("claimcheck_engine_tokens_generated_total").increment(1);
    match sequence.touch(now) {
        None => histogram!("claimcheck_engine_time_to_first_token_seconds").record(now - arrived),
        Some(before) => histogram!("claimcheck_engine_time_per_output_token_seconds").record(now - before),
    }
}
