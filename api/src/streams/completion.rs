//! A completion as it is made: OpenAI's `data:` chunks and `[DONE]`.

use std::collections::VecDeque;

use axum::response::sse::Event;
use claimcheck_common::domain::{FinishReason, JobId};
use claimcheck_common::store::jobs::JobView;
use claimcheck_common::view::{LogprobsBody, UsageBody, completion_id};
use futures::stream::{BoxStream, SelectAll, unfold};
use futures::{Stream, StreamExt};
use serde::Serialize;
use serde_json::Value;

use super::sse::event;
use super::{Cursor, Happening, JobStream, Piece};
use crate::app::AppState;
use crate::error::{ApiError, Problem};
use crate::extract::Caller;
use crate::parts::Part;
use crate::routes::completions::completed;
use crate::validate::completion::{Delivery, Shape};
use crate::view;

/// A chunk; every one names the whole completion.
#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: Vec<ChunkChoice>,
    system_fingerprint: &'a str,
    /// Absent unless the caller asked for it, then null in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
}

#[derive(Serialize)]
struct ChunkChoice {
    text: String,
    index: u32,
    logprobs: Option<LogprobsBody>,
    finish_reason: Option<FinishReason>,
}

/// What all chunks say.
struct Head {
    id: String,
    created: i64,
    model: String,
    fingerprint: String,
}

struct Completing {
    shape: Shape,
    parts: SelectAll<BoxStream<'static, (usize, Happening)>>,
    first: JobId,
    head: Option<Head>,
    echoes: Vec<String>,
    ended: Vec<JobView>,
    wanted: usize,
    ready: VecDeque<Event>,
    over: bool,
}

/// The chunks of a request whose jobs are `parts`. Its callers leave with the stream.
pub fn chunks(
    state: &AppState,
    caller: &Caller,
    shape: Shape,
    parts: Vec<Part>,
    echoes: Vec<String>,
) -> Option<impl Stream<Item = Event> + Send + use<>> {
    let completing = Completing {
        shape,
        first: parts.first()?.id,
        head: None,
        echoes,
        ended: Vec::new(),
        wanted: parts.len(),
        ready: VecDeque::new(),
        over: false,
        parts: parts
            .into_iter()
            .enumerate()
            .map(|(number, part)| {
                let stream = JobStream::new(state, caller.project_id, part.id, Cursor::default(), None);
                unfold((stream, part), move |(mut stream, part)| async move {
                    let happening = stream.next().await?;
                    Some(((number, happening), (stream, part)))
                })
                .boxed()
            })
            .collect(),
    };
    Some(unfold(completing, |mut completing| async move {
        let event = completing.next().await?;
        Some((event, completing))
    }))
}

impl Completing {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            let outcome = match self.parts.next().await {
                Some((number, happening)) => self.take(number, happening),
                // A client that began to read does not send its request again by itself.
                None => Err(ApiError::busy(
                    "The stream was cut off: the service is restarting, or an hour is over. Send the request again.",
                    1,
                )),
            };
            if let Err(error) = outcome {
                self.ready.push_back(event(&error.into_body()));
                self.over = true;
            }
        }
    }

    fn take(&mut self, number: usize, happening: Happening) -> Result<(), ApiError> {
        match happening {
            Happening::State(job) => self.begin(number, &job),
            Happening::Place(_) => {}
            Happening::Piece(Piece { choice, text, logprobs }) => {
                let logprobs = logprobs
                    .as_ref()
                    .filter(|_| self.shape.logprobs)
                    .map(LogprobsBody::from);
                self.say(number, choice, text, logprobs, None);
            }
            Happening::Reset => {
                return Err(cut_off(
                    "text_changed",
                    "The text that was sent has changed; send the request again.",
                ));
            }
            Happening::Gone => return Err(cut_off("job_erased", "The output of this request has been erased.")),
            Happening::Ended(job) => {
                let job = completed(*job)?;
                self.begin(number, &job);
                for choice in job.choices.iter().flatten() {
                    self.say(number, choice.index, String::new(), None, choice.finish_reason);
                }
                self.ended.push(job);
                self.wanted -= 1;
                if self.wanted == 0 {
                    self.finish();
                }
            }
        }
        Ok(())
    }

    /// The first word of a part: what all chunks say is known, and its prompt is echoed.
    fn begin(&mut self, number: usize, job: &JobView) {
        self.head.get_or_insert_with(|| Head {
            id: completion_id(self.first),
            created: job.created_at.unix_timestamp(),
            model: job.model.name.clone(),
            fingerprint: job.model.revision.clone(),
        });
        if let Some(echo) = self
            .echoes
            .get_mut(number)
            .map(std::mem::take)
            .filter(|echo| !echo.is_empty())
        {
            for choice in 0..self.shape.n {
                self.say(number, choice, echo.clone(), None, None);
            }
        }
    }

    fn say(
        &mut self,
        number: usize,
        choice: u32,
        text: String,
        logprobs: Option<LogprobsBody>,
        finish_reason: Option<FinishReason>,
    ) {
        let index = number as u32 * self.shape.n + choice;
        let choice = ChunkChoice {
            text,
            index,
            logprobs,
            finish_reason,
        };
        self.chunk(vec![choice], None);
    }

    fn chunk(&mut self, choices: Vec<ChunkChoice>, usage: Option<UsageBody>) {
        let Some(head) = &self.head else { return };
        let tells = self.shape.delivery == Delivery::Streamed { usage: true };
        self.ready.push_back(event(&Chunk {
            id: &head.id,
            object: "text_completion",
            created: head.created,
            model: &head.model,
            choices,
            system_fingerprint: &head.fingerprint,
            // Null has a JSON form, and so has the usage.
            usage: tells.then(|| serde_json::to_value(usage).unwrap_or_default()),
        }));
    }

    fn finish(&mut self) {
        if self.shape.delivery == (Delivery::Streamed { usage: true }) {
            self.chunk(Vec::new(), Some(view::usage(&self.ended)));
        }
        self.ready.push_back(Event::default().data("[DONE]"));
        self.over = true;
    }
}

fn cut_off(code: &'static str, message: &'static str) -> ApiError {
    ApiError::JobFailed(Problem::new(code, message))
}
