//! Whether a batch can be done within its window: an honest guess, made when it is submitted.
//!
//! Unfinished lines of other batches are the reservations: whoever submits stands in line for a moment, so that each guess
//! counts all that was accepted before it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::StoreResult;
use super::batches::unfinished;
use super::row::get;
use crate::domain::{CompletionWindow, TenantId};

/// The endings that the guess is taken from: the newest of them, at most this many and this old.
const SAMPLE_JOBS: i64 = 200;
const SAMPLE_SECONDS: f64 = 600.0;
const SECONDS_OF_AN_HOUR: f64 = 3600.0;

/// How long a batch may take, by two measures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// Lines of batches that take their turns before this one's last line.
    pub lines_ahead: u64,
    /// Seconds, if the lines run as fast as batch jobs lately ended. None ended lately: `None`. When little was asked for, little
    /// ended, so this may be far too long.
    pub at_present_pace: Option<f64>,
    /// Seconds, if every slot of every worker did nothing else and a job took as long as the latest did. Nothing to go by:
    /// `None`. This is the least.
    pub at_best: Option<f64>,
    /// Seconds of the window.
    pub window: f64,
}

/// Whether a window is long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feasibility {
    /// At the present pace it is.
    Feasible,
    /// Even with all slots it is not.
    Infeasible,
    /// In between, or nothing to go by.
    Unknown,
}

impl Forecast {
    /// The verdict.
    pub fn feasibility(&self) -> Feasibility {
        if self.at_best.is_some_and(|seconds| seconds > self.window) {
            Feasibility::Infeasible
        } else if self.at_present_pace.is_some_and(|seconds| seconds <= self.window) {
            Feasibility::Feasible
        } else {
            Feasibility::Unknown
        }
    }

    /// The shortest window, in whole hours, that is not known to be too short. `None` where there is nothing to go by, or where the
    /// longest one is too short.
    pub fn earliest_window(&self) -> Option<CompletionWindow> {
        let hours = (self.at_best? / SECONDS_OF_AN_HOUR).ceil().max(1.0);
        CompletionWindow::parse(&format!("{hours}h"))
    }
}

/// The guess for so many new lines of a tenant. The caller's transaction must write them down.
pub(super) async fn forecast(
    connection: &mut PgConnection,
    tenant: TenantId,
    lines: u64,
    window: Duration,
) -> StoreResult<Forecast> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('batches:forecast', 0))")
        .execute(&mut *connection)
        .await?;
    // A statement of its own, after the lock: it sees what those before have committed.
    let row = sqlx::query(concat!(
        "WITH open AS (
             SELECT tenant_id, sum(total - completed - failed) AS lines FROM batches
             WHERE status IN ",
        unfinished!(),
        " GROUP BY tenant_id
         ), own AS (
             SELECT coalesce((SELECT lines FROM open WHERE tenant_id = $1), 0) AS lines
         ), newest AS (
             SELECT class, started_at, finished_at FROM jobs
             WHERE finished_at > now() - make_interval(secs => $4) AND started_at IS NOT NULL
             ORDER BY finished_at DESC LIMIT $3
         )
         SELECT (own.lines + coalesce((
                     -- Tenants take turns: of another's lines no more are in front than there are of one's own.
                     SELECT sum(least(open.lines, own.lines + $2)) FROM open WHERE tenant_id <> $1), 0))::int8 AS ahead,
             (SELECT (count(*) / nullif(extract(epoch FROM now() - min(finished_at)), 0))::float8
              FROM newest WHERE class = 'batch') AS pace,
             (SELECT avg(extract(epoch FROM finished_at - started_at))::float8 FROM newest) AS seconds,
             (SELECT sum(prefetch)::float8 FROM workers
              WHERE ready_at IS NOT NULL AND NOT draining AND last_seen_at > now() - interval '30 seconds') AS slots
         FROM own",
    ))
    .bind(tenant.uuid())
    .bind(lines.cast_signed())
    .bind(SAMPLE_JOBS)
    .bind(SAMPLE_SECONDS)
    .fetch_one(connection)
    .await?;
    let ahead = get::<i64, _>(&row, "ahead")?.cast_unsigned();
    let all = (ahead + lines) as f64;
    let (pace, seconds, slots): (Option<f64>, Option<f64>, Option<f64>) =
        (get(&row, "pace")?, get(&row, "seconds")?, get(&row, "slots")?);
    Ok(Forecast {
        lines_ahead: ahead,
        at_present_pace: pace.filter(|pace| *pace > 0.0).map(|pace| all / pace),
        at_best: seconds
            .zip(slots.filter(|slots| *slots > 0.0))
            .map(|(seconds, slots)| all * seconds / slots),
        window: window.as_secs_f64(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_both_measures_allow_is_said_for_certain() {
        let verdict = |at_present_pace, at_best| {
            Forecast {
                lines_ahead: 0,
                at_present_pace,
                at_best,
                window: 3600.0,
            }
            .feasibility()
        };
        assert_eq!(verdict(Some(3000.0), Some(30.0)), Feasibility::Feasible);
        assert_eq!(
            verdict(Some(90_000.0), Some(30.0)),
            Feasibility::Unknown,
            "little was asked for lately, perhaps"
        );
        assert_eq!(verdict(Some(90_000.0), Some(4000.0)), Feasibility::Infeasible);
        assert_eq!(verdict(None, Some(4000.0)), Feasibility::Infeasible);
        assert_eq!(
            verdict(Some(3000.0), Some(4000.0)),
            Feasibility::Infeasible,
            "the pace of a few jobs misleads"
        );
        assert_eq!(verdict(None, None), Feasibility::Unknown);
    }

    #[test]
    fn the_earliest_window_is_one_that_would_not_be_called_infeasible() {
        let forecast = |at_best| Forecast {
            lines_ahead: 0,
            at_present_pace: None,
            at_best,
            window: 0.0,
        };
        let earliest = |at_best| forecast(at_best).earliest_window();
        for (at_best, window) in [(0.5, "1h"), (3600.0, "1h"), (3601.0, "2h"), (604_800.0, "168h")] {
            let found = earliest(Some(at_best)).unwrap();
            assert_eq!(found.as_str(), window);
            let kept = Forecast {
                window: found.length().as_secs_f64(),
                ..forecast(Some(at_best))
            };
            assert_ne!(kept.feasibility(), Feasibility::Infeasible);
        }
        assert_eq!(earliest(Some(604_801.0)), None, "a week is the longest");
        assert_eq!(earliest(None), None);
    }
}
