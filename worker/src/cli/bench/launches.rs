//! Counts what a device is told to do: kernels that are started, and times that the host waits for what they made.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use serde::Serialize;

/// Hears of the counters of `gpt2/gpu/launch.rs`, and of nothing else.
#[derive(Default)]
struct Listener {
    kernels: Arc<AtomicU64>,
    readbacks: Arc<AtomicU64>,
}

/// The mean of some steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Launches {
    kernels_per_step: f64,
    readbacks_per_step: f64,
}

/// What `steps` steps start that are taken on this thread; `None` where nothing is started, as on a processor.
pub(super) fn counted<T>(steps: usize, take: impl FnOnce() -> T) -> (T, Option<Launches>) {
    let listener = Listener::default();
    let outcome = metrics::with_local_recorder(&listener, take);
    let mean = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64 / steps.max(1) as f64;
    let launches = Launches {
        kernels_per_step: mean(&listener.kernels),
        readbacks_per_step: mean(&listener.readbacks),
    };
    (outcome, (launches.kernels_per_step > 0.0).then_some(launches))
}

impl fmt::Display for Launches {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kernels, readbacks) = (self.kernels_per_step, self.readbacks_per_step);
        write!(formatter, "{kernels:.0} kernels and {readbacks:.2} read-backs a step")
    }
}

impl Recorder for Listener {
    fn describe_counter(&self, _name: KeyName, _unit: Option<Unit>, _text: SharedString) {}

    fn describe_gauge(&self, _name: KeyName, _unit: Option<Unit>, _text: SharedString) {}

    fn describe_histogram(&self, _name: KeyName, _unit: Option<Unit>, _text: SharedString) {}

    fn register_counter(&self, key: &Key, _metadata: &Metadata<'_>) -> Counter {
        match key.name() {
            "claimcheck_engine_kernel_launches_total" => Counter::from_arc(self.kernels.clone()),
            "claimcheck_engine_readbacks_total" => Counter::from_arc(self.readbacks.clone()),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, _key: &Key, _metadata: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _key: &Key, _metadata: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_the_steps_is_told_and_nothing_where_no_kernel_was_started() {
        let started = |count| metrics::counter!("claimcheck_engine_kernel_launches_total").increment(count);
        let (outcome, launches) = counted(4, || {
            started(20);
            metrics::counter!("claimcheck_engine_readbacks_total").increment(4);
            metrics::counter!("claimcheck_engine_steps_total").increment(9);
            started(2);
            7
        });
        assert_eq!(outcome, 7);
        assert_eq!(launches.unwrap().to_string(), "6 kernels and 1.00 read-backs a step");
        assert_eq!(counted(4, || ()).1, None);
    }
}
