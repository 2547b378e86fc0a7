//! Gauges in which the parts of a process add up: each of its models has an engine, jobs in flight and followers of its own.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What one part says by a gauge. Taken back when it is dropped.
#[derive(Debug)]
pub(crate) struct GaugeShare {
    name: &'static str,
    said: AtomicUsize,
}

impl GaugeShare {
    /// A part that has said nothing yet.
    pub(crate) const fn new(name: &'static str) -> Self {
        Self {
            name,
            said: AtomicUsize::new(0),
        }
    }

    /// The part counts for so much from now on.
    pub(crate) fn set(&self, now: usize) {
        let said = self.said.swap(now, Ordering::Relaxed);
        metrics::gauge!(self.name).increment(now as f64 - said as f64);
    }
}

impl Drop for GaugeShare {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn shares_add_up_and_one_that_is_gone_counts_for_nothing() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let shown = || recorder.handle().render();
        metrics::with_local_recorder(&recorder, || {
            let [first, second] = [(); 2].map(|()| GaugeShare::new("apples"));
            first.set(3);
            second.set(4);
            first.set(2);
            assert!(shown().contains("apples 6"), "{}", shown());
            drop(first);
            assert!(shown().contains("apples 4"), "{}", shown());
        });
    }
}
