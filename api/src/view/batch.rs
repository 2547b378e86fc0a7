//! How a batch looks to its owner: OpenAI's batch object, and what more there is to say.

use std::collections::BTreeMap;

use claimcheck_common::domain::{CompletionWindow, LineProblem};
use claimcheck_common::store::batch_window::{Feasibility, Forecast};
use claimcheck_common::store::batches::BatchView;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

/// A batch.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchBody {
    /// `batch_…`; ids sort by creation.
    pub id: String,
    /// Always `batch`.
    pub object: &'static str,
    /// What every line is for.
    pub endpoint: String,
    /// What is wrong with its input; null when nothing is.
    #[schema(required)]
    pub errors: Option<BatchErrors>,
    /// Where its lines stand.
    pub input_file_id: String,
    /// How long it may take.
    pub completion_window: String,
    /// `validating`, `in_progress`, `finalizing`, `completed`, `failed`, `expired`, `cancelling` or `cancelled`.
    pub status: &'static str,
    /// The lines that came to an output, once the batch has ended; null if there are none.
    #[schema(required)]
    pub output_file_id: Option<String>,
    /// The lines that came to none, once the batch has ended; null if there are none.
    #[schema(required)]
    pub error_file_id: Option<String>,
    /// When it was accepted.
    pub created_at: i64,
    /// When its lines were found in order.
    #[schema(required)]
    pub in_progress_at: Option<i64>,
    /// The end of its window.
    #[schema(required)]
    pub expires_at: Option<i64>,
    /// When all its lines had ended.
    #[schema(required)]
    pub finalizing_at: Option<i64>,
    /// When it ended as completed.
    #[schema(required)]
    pub completed_at: Option<i64>,
    /// When it ended as failed.
    #[schema(required)]
    pub failed_at: Option<i64>,
    /// When it ended as expired.
    #[schema(required)]
    pub expired_at: Option<i64>,
    /// When a caller asked to stop it.
    #[schema(required)]
    pub cancelling_at: Option<i64>,
    /// When it ended as cancelled.
    #[schema(required)]
    pub cancelled_at: Option<i64>,
    /// Lines, and those that have ended; they move while it runs.
    pub request_counts: RequestCounts,
    /// Tokens of the lines that have ended.
    pub usage: BatchUsage,
    /// The caller's own notes.
    #[schema(required)]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Since when no more of its lines are taken up.
    #[schema(required)]
    pub paused_at: Option<i64>,
    /// The batch whose failed lines it does again.
    #[schema(required)]
    pub retry_of: Option<String>,
    /// Whether the window is long enough, as far as that could be told at submit.
    #[schema(required)]
    pub feasibility: Option<FeasibilityBody>,
}

/// What is wrong with a batch's input: the first hundred of `count`.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchErrors {
    /// Always `list`.
    pub object: &'static str,
    /// By line.
    pub data: Vec<BatchLineError>,
    /// All that is wrong.
    pub count: u32,
}

/// What is wrong with one line, or with the whole.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchLineError {
    /// A stable word for programs.
    pub code: String,
    /// The line's number, from 1.
    #[schema(required)]
    pub line: Option<u32>,
    /// What to change.
    pub message: String,
    /// The field at fault.
    #[schema(required)]
    pub param: Option<String>,
}

/// How far a batch has come.
#[derive(Debug, Serialize, ToSchema)]
pub struct RequestCounts {
    /// Lines.
    pub total: u32,
    /// Lines that came to an output.
    pub completed: u32,
    /// Lines that came to none.
    pub failed: u32,
}

/// What a batch cost.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchUsage {
    /// Tokens of prompts.
    pub input_tokens: u64,
    /// Always 0.
    pub input_tokens_details: CachedTokens,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Always 0.
    pub output_tokens_details: ReasoningTokens,
    /// Both.
    pub total_tokens: u64,
}

/// Tokens that were not computed anew.
#[derive(Debug, Serialize, ToSchema)]
pub struct CachedTokens {
    /// Always 0.
    pub cached_tokens: u64,
}

/// Tokens that are not shown.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReasoningTokens {
    /// Always 0.
    pub reasoning_tokens: u64,
}

/// Whether a window is long enough.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeasibilityBody {
    /// `feasible`: at the pace of the last minutes. `infeasible`: not even if every slot of every worker did nothing else.
    /// `unknown`: in between, or nothing ran lately.
    pub window: &'static str,
    /// Lines of batches that take their turns before this one's last line.
    pub lines_ahead: u64,
    /// Seconds it would take at the pace of the last minutes.
    #[schema(required)]
    pub seconds_at_present_pace: Option<u64>,
    /// Seconds it would take if every slot of every worker did nothing else.
    #[schema(required)]
    pub seconds_at_best: Option<u64>,
    /// The shortest window in hours that would not be refused as `infeasible`; null where there is nothing to go by, or where no
    /// window is long enough.
    #[schema(required)]
    pub earliest_window: Option<String>,
    /// The same in a sentence.
    pub message: String,
}

impl From<&BatchView> for BatchBody {
    fn from(batch: &BatchView) -> Self {
        Self {
            id: batch.id.to_string(),
            object: "batch",
            endpoint: batch.endpoint.clone(),
            errors: (!batch.errors.is_empty()).then(|| errors(batch)),
            input_file_id: batch.input_file_id.to_string(),
            completion_window: batch.completion_window.clone(),
            status: batch.status.as_str(),
            output_file_id: batch.output_file_id.map(|id| id.to_string()),
            error_file_id: batch.error_file_id.map(|id| id.to_string()),
            created_at: batch.created_at.unix_timestamp(),
            in_progress_at: seconds(batch.in_progress_at),
            expires_at: Some(batch.expires_at.unix_timestamp()),
            finalizing_at: seconds(batch.finalizing_at),
            completed_at: seconds(batch.completed_at),
            failed_at: seconds(batch.failed_at),
            expired_at: seconds(batch.expired_at),
            cancelling_at: seconds(batch.cancelling_at),
            cancelled_at: seconds(batch.cancelled_at),
            request_counts: RequestCounts {
                total: batch.total,
                completed: batch.completed,
                failed: batch.failed,
            },
            usage: BatchUsage {
                input_tokens: batch.prompt_tokens,
                input_tokens_details: CachedTokens { cached_tokens: 0 },
                output_tokens: batch.completion_tokens,
                output_tokens_details: ReasoningTokens { reasoning_tokens: 0 },
                total_tokens: batch.prompt_tokens + batch.completion_tokens,
            },
            metadata: batch.metadata.clone(),
            paused_at: seconds(batch.paused_at),
            retry_of: batch.retry_of.map(|id| id.to_string()),
            feasibility: batch.forecast.as_ref().map(FeasibilityBody::from),
        }
    }
}

fn seconds(time: Option<OffsetDateTime>) -> Option<i64> {
    time.map(OffsetDateTime::unix_timestamp)
}

fn errors(batch: &BatchView) -> BatchErrors {
    let shown = |problem: &LineProblem| BatchLineError {
        code: problem.code.clone(),
        line: problem.line,
        message: problem.message.clone(),
        param: problem.param.clone(),
    };
    BatchErrors {
        object: "list",
        data: batch.errors.iter().map(shown).collect(),
        count: batch.errors_count,
    }
}

impl From<&Forecast> for FeasibilityBody {
    fn from(forecast: &Forecast) -> Self {
        let whole = |seconds: Option<f64>| seconds.map(|seconds| seconds.ceil() as u64);
        let (pace, best) = (whole(forecast.at_present_pace), whole(forecast.at_best));
        let earliest = forecast.earliest_window().map(|window| window.as_str().to_owned());
        let minutes =
            |seconds: Option<u64>| seconds.map_or_else(String::new, |seconds| format!("{} min", seconds.div_ceil(60)));
        let (window, message) = match forecast.feasibility() {
            Feasibility::Feasible => (
                "feasible",
                format!("At the pace of the last minutes it takes about {}.", minutes(pace)),
            ),
            Feasibility::Infeasible => (
                "infeasible",
                format!(
                    "Even if every slot did nothing else it would take {}, {} lines of others included: {}.",
                    minutes(best),
                    forecast.lines_ahead,
                    earliest.as_ref().map_or_else(
                        || "no window is long enough; make the batch smaller, or come back when there is less to do"
                            .to_owned(),
                        |earliest| format!("the shortest `completion_window` that may do is {earliest}"),
                    )
                ),
            ),
            Feasibility::Unknown if pace.is_some() => (
                "unknown",
                format!(
                    "At the pace of the last minutes it would take {}, which may only mean that little was asked for.",
                    minutes(pace)
                ),
            ),
            Feasibility::Unknown => (
                "unknown",
                "No batch job has ended in the last minutes to tell by.".to_owned(),
            ),
        };
        Self {
            window,
            lines_ahead: forecast.lines_ahead,
            seconds_at_present_pace: pace,
            seconds_at_best: best,
            earliest_window: earliest,
            message,
        }
    }
}

/// What a batch would come to.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchDryRunBody {
    /// Always `dry_run`.
    pub object: &'static str,
    /// Lines that would be done, as far as they are in order: they are checked once the batch is made.
    pub lines: u64,
    /// How long it might take.
    pub completion_window: String,
    /// Whether it would be accepted.
    pub feasible: bool,
    /// What stands in the way: `window_infeasible`.
    #[schema(required)]
    pub obstacle: Option<&'static str>,
    /// Whether the window is long enough, as far as that can be told.
    pub feasibility: FeasibilityBody,
}

impl BatchDryRunBody {
    /// By what was foreseen.
    pub fn new(lines: u64, window: &CompletionWindow, forecast: &Forecast) -> Self {
        let feasible = forecast.feasibility() != Feasibility::Infeasible;
        Self {
            object: "dry_run",
            lines,
            completion_window: window.as_str().to_owned(),
            feasible,
            obstacle: (!feasible).then_some("window_infeasible"),
            feasibility: FeasibilityBody::from(forecast),
        }
    }
}

/// A page of batches.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchList {
    /// Always `list`.
    pub object: &'static str,
    /// Newest first.
    pub data: Vec<BatchBody>,
    /// The first one's id.
    #[schema(required)]
    pub first_id: Option<String>,
    /// The last one's id: the next page's `after`.
    #[schema(required)]
    pub last_id: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}
