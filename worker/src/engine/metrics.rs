//! What the engine counts. Names follow Prometheus: a unit at the end, `_total` for counters.

use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};

use super::parts::{Part, StepParts};
use super::scheduler::Scheduler;
use super::sequence::Sequence;
use crate::gpt2::StepRow;

/// What one engine has said by the gauges, in which the engines of a process add up.
#[derive(Default)]
pub(super) struct Gauges {
    slots: usize,
    in_use: usize,
    waiting: usize,
    blocks: usize,
    free: usize,
}

impl Gauges {
    pub(super) fn room(&mut self, slots: usize, blocks: usize) {
        shift("claimcheck_engine_slots", &mut self.slots, slots);
        shift("claimcheck_engine_blocks", &mut self.blocks, blocks);
    }

    fn use_of_room(&mut self, in_use: usize, waiting: usize, free: usize) {
        shift("claimcheck_engine_slots_in_use", &mut self.in_use, in_use);
        shift("claimcheck_engine_waiting_sequences", &mut self.waiting, waiting);
        shift("claimcheck_engine_blocks_free", &mut self.free, free);
    }
}

impl Drop for Gauges {
    fn drop(&mut self) {
        self.room(0, 0);
        self.use_of_room(0, 0, 0);
    }
}

fn shift(name: &'static str, said: &mut usize, now: usize) {
    gauge!(name).increment(now as f64 - *said as f64);
    *said = now;
}

pub(super) fn occupancy(gauges: &mut Gauges, scheduler: &mut Scheduler) {
    gauges.use_of_room(scheduler.running(), scheduler.waiting(), scheduler.free_blocks());
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

/// What a step's time went to.
pub(super) fn parts(step: &StepParts) {
    for part in Part::ALL {
        histogram!("claimcheck_engine_step_part_seconds", "part" => part.as_str()).record(step.of(part));
    }
}

pub(super) fn token(sequence: &mut Sequence, arrived: Instant) {
    let now = Instant::now();
    counter!("claimcheck_engine_tokens_generated_total").increment(1);
    match sequence.touch(now) {
        None => histogram!("claimcheck_engine_time_to_first_token_seconds").record(now - arrived),
        Some(before) => histogram!("claimcheck_engine_time_per_output_token_seconds").record(now - before),
    }
}
