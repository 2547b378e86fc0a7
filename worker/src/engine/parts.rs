//! What the engine's time goes to, part by part. All of it goes to one: together they are the time in which there was
//! something to do.

use std::time::{Duration, Instant};

/// A part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Who runs, and where in the cache.
    Schedule,
    /// On a card: telling it what to compute.
    Launch,
    /// On a processor: computing.
    Compute,
    /// On a card: waiting for what it computes.
    ReadBack,
    /// From logits to tokens, where the card does not.
    Sample,
    /// From tokens to text, and telling it.
    Text,
    /// Jobs that come, end or are cancelled, and all else.
    Other,
}

impl Part {
    /// In the order of a step.
    pub const ALL: [Self; 7] = [
        Self::Schedule,
        Self::Launch,
        Self::Compute,
        Self::ReadBack,
        Self::Sample,
        Self::Text,
        Self::Other,
    ];

    /// As metrics and `bench` call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Launch => "launch",
            Self::Compute => "compute",
            Self::ReadBack => "read_back",
            Self::Sample => "sample",
            Self::Text => "text",
            Self::Other => "other",
        }
    }
}

/// The time of some steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepParts {
    /// How many steps.
    pub steps: u64,
    parts: [Duration; Part::ALL.len()],
}

impl StepParts {
    /// What went to a part.
    pub const fn of(&self, part: Part) -> Duration {
        self.parts[part as usize]
    }

    /// All of it.
    pub fn whole(&self) -> Duration {
        self.parts.iter().sum()
    }

    /// Adds the time of other steps.
    pub(super) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        for (part, more) in self.parts.iter_mut().zip(other.parts) {
            *part += more;
        }
    }
}

/// Tells the parts of a step from each other.
pub(super) struct Clock {
    last: Instant,
    step: StepParts,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self {
            last: Instant::now(),
            step: StepParts::default(),
        }
    }

    /// There was nothing to do until now.
    pub(super) fn restart(&mut self) {
        self.last = Instant::now();
    }

    /// All since the last call went to this part.
    pub(super) fn lap(&mut self, part: Part) {
        let time = self.since();
        self.add(part, time);
    }

    /// All since the last call went to the model, which waited so long for its device, if it has one besides the processor.
    pub(super) fn lap_of_model(&mut self, waited: Option<Duration>) {
        let time = self.since();
        match waited.map(|waited| waited.min(time)) {
            None => self.add(Part::Compute, time),
            Some(waited) => {
                self.add(Part::Launch, time.saturating_sub(waited));
                self.add(Part::ReadBack, waited);
            }
        }
    }

    fn since(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.last, now)
    }

    fn add(&mut self, part: Part, time: Duration) {
        self.step.parts[part as usize] += time;
    }

    /// A step has ended: its time, and what there was to do before it.
    pub(super) fn take_step(&mut self) -> StepParts {
        self.lap(Part::Other);
        let parts = std::mem::take(&mut self.step);
        StepParts { steps: 1, ..parts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cards_time_is_launching_but_for_what_was_waited_and_never_more_than_passed() {
        let mut clock = Clock::start();
        let spin = |time: Duration| {
            let began = Instant::now();
            while began.elapsed() < time {}
        };
        spin(Duration::from_millis(3));
        clock.lap_of_model(Some(Duration::from_millis(2)));
        let step = clock.take_step();
        assert_eq!(step.of(Part::ReadBack), Duration::from_millis(2));
        assert!(step.of(Part::Launch) >= Duration::from_millis(1));
        assert_eq!(step.of(Part::Compute), Duration::ZERO);
        clock.lap_of_model(Some(Duration::from_hours(1)));
        let step = clock.take_step();
        assert_eq!(step.of(Part::Launch), Duration::ZERO);
        assert!(step.whole() < Duration::from_hours(1));
    }
}
