//! What the engine counts. Names follow Prometheus: a unit at the end, `_total` for counters.

use std::time::{Duration, Instant};

use metrics::{counter, histogram};

use super::parts::{Part, StepParts};
use super::scheduler::Scheduler;
use super::sequence::Sequence;
use crate::gauge_share::GaugeShare;
use crate::gpt2::StepRow;

/// What one engine says by the gauges, in which the engines of a process add up.
pub(super) struct Gauges {
    slots: GaugeShare,
    in_use: GaugeShare,
    waiting: GaugeShare,
    blocks: GaugeShare,
    free: GaugeShare,
}

impl Gauges {
    pub(super) fn of_room(slots: usize, blocks: usize) -> Self {
        let gauges = Self {
            slots: GaugeShare::new("claimcheck_engine_slots"),
            in_use: GaugeShare::new("claimcheck_engine_slots_in_use"),
            waiting: GaugeShare::new("claimcheck_engine_waiting_sequences"),
            blocks: GaugeShare::new("claimcheck_engine_blocks"),
            free: GaugeShare::new("claimcheck_engine_blocks_free"),
        };
        gauges.slots.set(slots);
        gauges.blocks.set(blocks);
        gauges
    }
}

pub(super) fn occupancy(gauges: &Gauges, scheduler: &mut Scheduler) {
    gauges.in_use.set(scheduler.running());
    gauges.waiting.set(scheduler.waiting());
    gauges.free.set(scheduler.free_blocks());
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
