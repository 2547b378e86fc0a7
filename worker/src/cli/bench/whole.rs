//! The whole engine on rows like those that the model was measured with: scheduler, draws at temperature 1 and text included,
//! and what a step's time goes to.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use claimcheck_common::tokenizer::Tokenizer;
use serde::Serialize;

use super::scenarios::{Bench, Watched, endings};
use crate::engine::{EngineConfig, Part, StepParts};

/// What is left of the model's tokens a second, and the mean of the steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Whole {
    /// New tokens a second, all sequences together, the reading of their prompts included.
    tokens_per_second: f64,
    steps: u64,
    /// A step, in milliseconds.
    step_ms: f64,
    /// Each part of it, in milliseconds.
    parts_ms: BTreeMap<&'static str, f64>,
}

/// `requests` for each of `slots` slots, one after the other.
pub(super) async fn measure(
    model: Watched,
    tokenizer: Arc<Tokenizer>,
    slots: usize,
    (prompt, new): (usize, usize),
    requests: usize,
) -> anyhow::Result<Whole> {
    let config = EngineConfig {
        slots,
        ..EngineConfig::default()
    };
    let mut bench = Bench::new(model, tokenizer, config);
    let jobs: Vec<_> = (0..slots * requests)
        .map(|number| {
            let mut job = bench.job(prompt, new);
            (job.params.temperature, job.params.seed) = (1.0, number as i64);
            job
        })
        .collect();
    let (engine, mut events) = bench.start();
    let began = Instant::now();
    let count = jobs.len();
    let submit = async {
        for job in jobs {
            engine.submit(job).await?;
        }
        anyhow::Ok(())
    };
    let (submitted, ended) = tokio::join!(submit, endings(&mut events, count));
    submitted.and(ended)?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Whole::new((count * new) as f64 / seconds, &engine.step_parts()))
}

impl Whole {
    fn new(tokens_per_second: f64, parts: &StepParts) -> Self {
        let mean = |seconds: f64| 1e3 * seconds / parts.steps.max(1) as f64;
        let of = |part: Part| (part.as_str(), mean(parts.of(part).as_secs_f64()));
        Self {
            tokens_per_second,
            steps: parts.steps,
            step_ms: mean(parts.whole().as_secs_f64()),
            parts_ms: Part::ALL.map(of).into(),
        }
    }
}

impl fmt::Display for Whole {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tokens, step) = (self.tokens_per_second, self.step_ms);
        write!(
            formatter,
            "the engine whole: {tokens:.1} tokens/s at temperature 1; a step takes {step:.2} ms: "
        )?;
        let parts = Part::ALL.map(|part| format!("{} {:.2}", part.as_str(), self.parts_ms[part.as_str()]));
        formatter.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenarios::{Scenario, tests::small};
    use super::*;

    #[tokio::test]
    async fn every_part_of_a_step_is_told_and_together_they_are_the_step() {
        let (model, tokenizer) = small(Scenario::Lengths, 4);
        let began = Instant::now();
        let seen = measure(Watched::new(model), tokenizer, 4, (8, 5), 3).await.unwrap();
        let took = began.elapsed().as_secs_f64() * 1e3;
        // Three times five steps, of which the last one may go on when its events are out.
        assert!(seen.tokens_per_second > 0.0 && seen.steps >= 14, "{seen:?}");
        let told = seen.to_string();
        for part in Part::ALL.map(Part::as_str) {
            assert!(told.contains(part), "{told}");
        }
        let parts: f64 = seen.parts_ms.values().sum();
        assert!((parts - seen.step_ms).abs() < 1e-6 * seen.step_ms, "{seen:?}");
        assert!(seen.step_ms * seen.steps as f64 <= took, "{seen:?} in {took} ms");
        for part in [Part::Schedule, Part::Compute, Part::Sample, Part::Text, Part::Other] {
            assert!(seen.parts_ms[part.as_str()] > 0.0, "{seen:?}");
        }
        // A processor computes when it is told to.
        for part in [Part::Launch, Part::ReadBack] {
            assert!(seen.parts_ms[part.as_str()].abs() < f64::EPSILON, "{seen:?}");
        }
    }
}
