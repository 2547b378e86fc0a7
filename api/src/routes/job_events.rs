//! `GET /v1/jobs/{id}/events`: a job as it goes on, as server-sent events. Each event's id says how far the caller has come, so
//! that any process can go on from there.

use std::str::FromStr;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use claimcheck_common::domain::{FinishReason, JobId, JobStatus, Logprobs};
use claimcheck_common::store::jobs::{self, JobView, WaitingReason};
use claimcheck_common::view::{ErrorInfo, LogprobsBody, UsageBody};
use futures::stream::unfold;
use serde::Serialize;
use utoipa::ToSchema;

use super::get_place::PlaceBody;
use crate::app::AppState;
use crate::docs::Trouble;
use crate::error::{ApiError, ErrorBody};
use crate::extract::path::job_not_found;
use crate::extract::{Caller, JobIdPath, Query};
use crate::streams::sse::{Room, answer, event};
use crate::streams::{Cursor, Happening, JobStream, Piece, Shown};

const LAST_EVENT_ID: &str = "last-event-id";
/// The id of the event behind which there is nothing.
const END: &str = "end";

/// A server-sent event.
#[derive(Debug, ToSchema)]
#[schema(as = JobEvent)]
#[expect(dead_code, reason = "it describes, nothing makes one")]
struct SentEvent {
    /// Which kind.
    event: String,
    /// Where the reader has come: what `Last-Event-ID` takes.
    id: String,
    /// JSON, by its kind.
    data: String,
}

/// Follow a job
///
/// Server-sent events: `state` whenever it has another one or is tried again, `queue` with its place while it waits, `delta` for
/// each piece of text, `end` with the usage. The deltas of a choice add up to its text in the job's output. `reset`: the text that was sent is
/// not the one that comes now; forget it. `gone`: the texts are erased, there is nothing to send. With `Last-Event-ID` the events after that one
/// follow; after `end` there is nothing, which is 204.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", tag = "Jobs",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that came"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = SentEvent, description = "Events, each with these fields"),
        (status = 204, description = "The last event was the end"),
        (status = 400, body = ErrorBody, description = "`Last-Event-ID` is none that came from here"),
        (status = 404, body = ErrorBody, description = "No such job, or not yours"),
        Trouble,
    ))]
pub async fn job_events(
    State(state): State<AppState>,
    caller: Caller,
    JobIdPath(id): JobIdPath,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let from = last_event_id(&headers)?;
    let job = jobs::get(&state.pool, caller.project_id, id).await?;
    job.ok_or_else(job_not_found)?;
    let Some(from) = from else {
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    let room = Room::take(&state)?;
    let stream = JobStream::new(&state, caller.project_id, id, from.cursor, from.shown);
    let events = unfold(stream, move |mut stream| async move {
        let happening = stream.next().await?;
        let shown = render(id, &happening);
        let last = matches!(happening, Happening::Ended(_) | Happening::Gone);
        let id = if last {
            END.to_owned()
        } else {
            At::of(&stream).to_string()
        };
        Some((shown.id(id), stream))
    });
    Ok(answer(room, events))
}

/// Where a caller is, as an event's id says it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct At {
    shown: Option<Shown>,
    cursor: Cursor,
}

impl At {
    fn of(stream: &JobStream) -> Self {
        Self {
            shown: stream.shown(),
            cursor: stream.cursor().clone(),
        }
    }
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(Shown { status, attempt }) = self.shown {
            write!(f, "{status}.{attempt}")?;
        }
        write!(f, "~{}", self.cursor)
    }
}

impl FromStr for At {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (shown, cursor) = text.split_once('~').ok_or(())?;
        let shown = match shown.split_once('.') {
            None if shown.is_empty() => None,
            None => return Err(()),
            Some((status, attempt)) => Some(Shown {
                status: status.parse::<JobStatus>().map_err(|_| ())?,
                attempt: attempt.parse().map_err(|_| ())?,
            }),
        };
        Ok(Self {
            shown,
            cursor: cursor.parse()?,
        })
    }
}

/// `None`: the caller has seen the end.
fn last_event_id(headers: &HeaderMap) -> Result<Option<At>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID) else {
        return Ok(Some(At::default()));
    };
    let text = value.to_str().unwrap_or("?");
    match text {
        "" => Ok(Some(At::default())),
        END => Ok(None),
        text => text.parse().map(Some).map_err(|()| {
            let message = "This Last-Event-ID came from no event here; leave it out to begin at the beginning.";
            ApiError::invalid(LAST_EVENT_ID, message)
        }),
    }
}

#[derive(Serialize)]
struct StateBody {
    id: String,
    object: &'static str,
    status: JobStatus,
    attempt: u32,
    waiting_reason: Option<&'static str>,
    available_at: i64,
    started_at: Option<i64>,
}

#[derive(Serialize)]
struct DeltaBody<'a> {
    index: u32,
    text: &'a str,
    logprobs: Option<LogprobsBody>,
}

#[derive(Serialize)]
struct EndBody {
    id: String,
    object: &'static str,
    status: JobStatus,
    choices: Vec<EndOfChoice>,
    usage: UsageBody,
    error: Option<ErrorInfo>,
}

#[derive(Serialize)]
struct EndOfChoice {
    index: u32,
    finish_reason: Option<FinishReason>,
}

#[derive(Serialize)]
struct ReasonBody {
    reason: &'static str,
}

fn render(id: JobId, happening: &Happening) -> Event {
    match happening {
        Happening::State(job) => event(&state_body(job)).event("state"),
        Happening::Place(place) => event(&PlaceBody::of(id, Some(place))).event("queue"),
        Happening::Piece(Piece { choice, text, logprobs }) => event(&DeltaBody {
            index: *choice,
            text,
            logprobs: logprobs
                .as_ref()
                .map(|logprobs: &Logprobs| LogprobsBody::from(logprobs)),
        })
        .event("delta"),
        Happening::Reset => event(&ReasonBody { reason: "text_changed" }).event("reset"),
        Happening::Ended(job) => event(&end_body(job)).event("end"),
        Happening::Gone => event(&ReasonBody { reason: "erased" }).event("gone"),
    }
}

fn state_body(job: &JobView) -> StateBody {
    StateBody {
        id: job.key.id.to_string(),
        object: "job.state",
        status: job.status,
        attempt: job.attempt,
        waiting_reason: job.waiting.map(WaitingReason::as_str),
        available_at: job.available_at.unix_timestamp(),
        started_at: job.started_at.map(time::OffsetDateTime::unix_timestamp),
    }
}

fn end_body(job: &JobView) -> EndBody {
    let choices = job.choices.as_deref().unwrap_or_default();
    EndBody {
        id: job.key.id.to_string(),
        object: "job.end",
        status: job.status,
        choices: choices
            .iter()
            .map(|choice| EndOfChoice {
                index: choice.index,
                finish_reason: choice.finish_reason,
            })
            .collect(),
        usage: job.usage.into(),
        error: job.error.as_ref().map(ErrorInfo::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn read(value: &'static str) -> Result<Option<At>, ApiError> {
        last_event_id(&HeaderMap::from_iter([(
            LAST_EVENT_ID.parse().unwrap(),
            HeaderValue::from_static(value),
        )]))
    }

    #[test]
    fn an_events_id_reads_back_and_others_are_refused() {
        let mut at = At {
            shown: Some(Shown {
                status: JobStatus::InProgress,
                attempt: 2,
            }),
            cursor: Cursor::default(),
        };
        at.cursor.pass(1, "héllo", 3);
        assert_eq!(at.to_string().parse(), Ok(at));
        assert_eq!(read("~").unwrap(), Some(At::default()));
        assert_eq!(read("end").unwrap(), None);
        for bad in ["17", "queued~", "queued.x~", "~1.2", "~1.2.zz", "nothing.1~", "~,"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
