//! A response as it is made, in OpenAI's events. Their numbers follow from the text alone (a delta's is that of its last
//! character), so that a caller can go on after any number, at any process.

use std::collections::VecDeque;

use axum::response::sse::Event;
use claimcheck_common::domain::JobStatus;
use claimcheck_common::store::jobs::JobView;
use futures::Stream;
use futures::stream::unfold;
use serde_json::{Value, json};

use super::sse::event;
use super::{Happening, JobStream, Piece};
use crate::parts::Part;
use crate::view::{ResponseBody, message, message_id, output_text};

const CREATED: u64 = 0;
const QUEUED: u64 = 1;
const IN_PROGRESS: u64 = 2;
const ITEM_ADDED: u64 = 3;
const PART_ADDED: u64 = 4;

struct Responding {
    stream: JobStream,
    part: Part,
    background: bool,
    /// The caller has all events up to this number.
    after: Option<u64>,
    /// The number of the last event, sent or passed over.
    number: Option<u64>,
    text: String,
    ready: VecDeque<Event>,
    over: bool,
}

/// The events of a response that come after number `after`.
pub fn events(stream: JobStream, part: Part, background: bool, after: Option<u64>) -> impl Stream<Item = Event> + Send {
    let responding = Responding {
        stream,
        part,
        background,
        after,
        number: None,
        text: String::new(),
        ready: VecDeque::new(),
        over: false,
    };
    unfold(responding, |mut responding| async move {
        let event = responding.next().await?;
        Some((event, responding))
    })
}

impl Responding {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            let Some(happening) = self.stream.next().await else {
                self.cut_off();
                continue;
            };
            match happening {
                Happening::State(job) => self.begin(&job),
                Happening::Piece(piece) if piece.choice == 0 => self.go_on(&piece),
                Happening::Piece(_) | Happening::Place(_) => {}
                Happening::Ended(job) => self.end(&job),
                Happening::Reset => self.fail(
                    "text_changed",
                    "The text that was sent has changed; fetch the response.",
                ),
                Happening::Gone => self.fail("response_erased", "The response has been erased."),
            }
        }
    }

    /// What comes before the text, as far as the job has come.
    fn begin(&mut self, job: &JobView) {
        let response = ResponseBody::new(job, self.background);
        let response = serde_json::to_value(response).unwrap_or_default();
        self.say_once(CREATED, "response.created", json!({"response": response}));
        match job.status {
            JobStatus::Scheduled | JobStatus::Queued => {
                self.say_once(QUEUED, "response.queued", json!({"response": response}));
            }
            _ => self.say_once(IN_PROGRESS, "response.in_progress", json!({"response": response})),
        }
    }

    fn begin_text(&mut self) {
        let item = message(self.part.id, "in_progress", &[]);
        self.say_once(
            ITEM_ADDED,
            "response.output_item.added",
            json!({"output_index": 0, "item": item}),
        );
        let part = self.content(json!({"part": output_text("")}));
        self.say_once(PART_ADDED, "response.content_part.added", part);
    }

    fn go_on(&mut self, piece: &Piece) {
        self.begin_text();
        let before = PART_ADDED + self.text.chars().count() as u64;
        let after = before + piece.text.chars().count() as u64;
        self.text.push_str(&piece.text);
        let known = self.after.map_or(0, |after| after.saturating_sub(before)) as usize;
        let new: String = piece.text.chars().skip(known).collect();
        let delta = self.content(json!({"delta": new, "logprobs": []}));
        self.say(after, "response.output_text.delta", delta);
    }

    fn end(&mut self, job: &JobView) {
        self.begin(job);
        let response = ResponseBody::new(job, self.background);
        let mut number = PART_ADDED + self.text.chars().count() as u64;
        if let Some(item) = response.output.first().cloned() {
            self.begin_text();
            let (text, part) = (self.text.clone(), output_text(&self.text));
            for (name, more) in [
                (
                    "response.output_text.done",
                    self.content(json!({"text": text, "logprobs": []})),
                ),
                ("response.content_part.done", self.content(json!({"part": part}))),
                ("response.output_item.done", json!({"output_index": 0, "item": item})),
            ] {
                number += 1;
                self.say(number, name, more);
            }
        }
        let name = match response.status {
            "completed" => "response.completed",
            "failed" => "response.failed",
            _ => "response.incomplete",
        };
        self.say(number + 1, name, json!({"response": response}));
        self.over = true;
    }

    fn cut_off(&mut self) {
        let reason = "The stream was cut off: the service is restarting, or an hour is over.";
        let advice = match self.last() {
            Some(number) if self.background => format!("Go on with `starting_after` {number}."),
            _ => "Send the request again.".to_owned(),
        };
        self.fail("stream_cut_off", &format!("{reason} {advice}"));
    }

    /// The last event. It has the number of the one before, so that whoever goes on after it misses nothing.
    fn fail(&mut self, code: &str, message: &str) {
        let body = json!({"type": "error", "sequence_number": self.last().unwrap_or_default(),
            "code": code, "message": message, "param": null});
        self.ready.push_back(event(&body).event("error"));
        self.over = true;
    }

    /// The number of the last event that the caller has.
    fn last(&self) -> Option<u64> {
        self.number.max(self.after)
    }

    fn content(&self, mut more: Value) -> Value {
        more["item_id"] = message_id(self.part.id).into();
        more["output_index"] = 0.into();
        more["content_index"] = 0.into();
        more
    }

    /// Says what comes once, at its place before the text.
    fn say_once(&mut self, number: u64, name: &'static str, more: Value) {
        if self.number.is_none_or(|last| last < number) {
            self.say(number, name, more);
        }
    }

    fn say(&mut self, number: u64, name: &'static str, mut more: Value) {
        self.number = Some(number);
        if self.after.is_some_and(|after| number <= after) {
            return;
        }
        more["type"] = name.into();
        more["sequence_number"] = number.into();
        self.ready.push_back(event(&more).event(name));
    }
}
