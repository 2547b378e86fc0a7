//! How far a long command has come: a bar with rate and remaining time where somebody watches, else a line now and then.

use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::watched;

/// Lines come this far apart, unless a phase begins or ends.
const LINES_APART: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Lines,
    Bytes,
}

/// One phase of a command, on standard error.
pub(crate) struct Phase {
    name: &'static str,
    unit: Unit,
    total: u64,
    done: u64,
    began: Instant,
    /// What was done before this run.
    before: u64,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    Lines(Instant),
}

impl Phase {
    /// A phase of `total` things, of which `before` were done in an earlier run.
    pub(crate) fn begin(name: &'static str, unit: Unit, total: u64, before: u64) -> Self {
        let shown = if watched() {
            Shown::Bar(bar(name, unit, total, before))
        } else {
            Shown::Lines(Instant::now())
        };
        let phase = Self {
            name,
            unit,
            total,
            done: before,
            began: Instant::now(),
            before,
            shown,
        };
        phase.say(&format!("{name}: {}", phase.of_total()));
        phase
    }

    /// So much is done by now.
    pub(crate) fn at(&mut self, done: u64) {
        self.done = done;
        match &mut self.shown {
            Shown::Bar(bar) => bar.set_position(done),
            Shown::Lines(last) if last.elapsed() >= LINES_APART => {
                *last = Instant::now();
                let line = self.line(self.began.elapsed());
                self.say(&line);
            }
            Shown::Lines(_) => {}
        }
    }

    /// So much more is done.
    pub(crate) fn add(&mut self, more: u64) {
        self.at(self.done + more);
    }

    /// The phase is over.
    pub(crate) fn end(self) {
        let took = self.began.elapsed();
        match &self.shown {
            Shown::Bar(bar) => bar.finish(),
            Shown::Lines(_) => self.say(&format!(
                "{}: {} in {:.1} s",
                self.name,
                self.of_total(),
                took.as_secs_f64()
            )),
        }
    }

    fn say(&self, line: &str) {
        if matches!(self.shown, Shown::Lines(_)) {
            let _nobody_reads = writeln!(std::io::stderr().lock(), "{line}");
        }
    }

    fn of_total(&self) -> String {
        let unit = match self.unit {
            Unit::Lines => "lines",
            Unit::Bytes => "bytes",
        };
        if self.total == 0 {
            format!("{} {unit}", self.done)
        } else {
            format!("{} of {} {unit}", self.done, self.total)
        }
    }

    /// With rate and remaining time, as far as they are known.
    fn line(&self, took: Duration) -> String {
        let rate = (self.done - self.before.min(self.done)) as f64 / took.as_secs_f64();
        let left = self.total.saturating_sub(self.done) as f64 / rate;
        let remaining = if left.is_finite() && self.total > 0 {
            format!(", {left:.0} s to go")
        } else {
            String::new()
        };
        format!("{}: {} ({rate:.1} a second{remaining})", self.name, self.of_total())
    }
}

fn bar(name: &'static str, unit: Unit, total: u64, before: u64) -> ProgressBar {
    let template = match (unit, total) {
        (Unit::Lines, 0) => "{msg:>12} {spinner} {pos} lines {per_sec}",
        (Unit::Lines, _) => "{msg:>12} [{bar:30}] {pos}/{len} {per_sec} {eta} left",
        (Unit::Bytes, 0) => "{msg:>12} {spinner} {bytes} {bytes_per_sec}",
        (Unit::Bytes, _) => "{msg:>12} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
    };
    let bar = ProgressBar::new(total).with_message(name).with_position(before);
    // The templates are constants, and a bar that cannot be styled is still a bar.
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(done: u64, before: u64, total: u64) -> Phase {
        Phase {
            name: "running",
            unit: Unit::Lines,
            total,
            done,
            began: Instant::now(),
            before,
            shown: Shown::Lines(Instant::now()),
        }
    }

    #[test]
    fn a_line_tells_rate_and_remaining_time_of_this_run() {
        let line = phase(60, 20, 100).line(Duration::from_secs(10));
        assert_eq!(line, "running: 60 of 100 lines (4.0 a second, 10 s to go)");
        let stalled = phase(20, 20, 100).line(Duration::from_secs(10));
        assert_eq!(stalled, "running: 20 of 100 lines (0.0 a second)");
        assert_eq!(
            phase(5, 0, 0).line(Duration::from_secs(1)),
            "running: 5 lines (5.0 a second)"
        );
    }
}
