//! One job as it goes on.

use std::collections::VecDeque;
use std::time::Duration;

use claimcheck_common::deltas::Follow;
use claimcheck_common::domain::{Choice, FinishReason, JobId, JobStatus, Logprobs, ProjectId};
use claimcheck_common::store::StoreError;
use claimcheck_common::store::jobs::{JobView, WaitingReason};
use claimcheck_common::store::notify::{JobWaiter, Of};
use claimcheck_common::store::place::{self, Place};
use futures::future::{Either, select};
use tokio::time::{Instant, sleep, sleep_until};

use super::Cursor;
use super::cursor::Diverged;
use crate::app::AppState;
use crate::waiting::{delivered, read_job};

/// A stream ends after this; whoever goes on following connects again, with a token that is still good.
const STREAM_MAX: Duration = Duration::from_hours(1);
/// A waiting job's place is looked up this often, and only while not too many look.
const PLACE_PERIOD: Duration = Duration::from_secs(5);
/// A job that could not be read is read again after this.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// A part of a choice's text.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Which choice.
    pub choice: u32,
    /// What came, never empty unless log probabilities come alone.
    pub text: String,
    /// Those of the tokens that came, if the job asked for them.
    pub logprobs: Option<Logprobs>,
}

impl Piece {
    fn pass(&self, cursor: &mut Cursor) {
        let tokens = self.logprobs.as_ref().map_or(0, |logprobs| logprobs.tokens.len());
        cursor.pass(self.choice as usize, &self.text, tokens);
    }
}

/// What happens to a job.
#[derive(Debug)]
pub enum Happening {
    /// This is its state when its caller comes; later: it has another one, or is tried again.
    State(Box<JobView>),
    /// It waits, and this is its place.
    Place(Place),
    /// Its text goes on.
    Piece(Piece),
    /// Its text is not the one that pieces were sent of: it begins anew.
    Reset,
    /// It has ended; nothing follows.
    Ended(Box<JobView>),
    /// It is gone, with its texts; nothing follows.
    Gone,
}

/// The state that was shown last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Where it stood.
    pub status: JobStatus,
    /// How often it had been taken up.
    pub attempt: u32,
}

/// Follows one job from where its caller has come to.
pub struct JobStream {
    state: AppState,
    project: ProjectId,
    id: JobId,
    waiter: JobWaiter,
    follow: Follow,
    /// How far the text was cut into pieces, and how far these were handed out.
    cut: Cursor,
    cursor: Cursor,
    shown: Option<Shown>,
    /// The newest attempt that the store told of.
    fence: i64,
    /// Waits, as the store told last.
    waits: bool,
    time_over: Instant,
    next_place: Instant,
    last_place: Option<(u64, Option<WaitingReason>)>,
    ready: VecDeque<Happening>,
    read: bool,
    over: bool,
}

impl JobStream {
    /// Registers for what happens from now on; the first call of [`Self::next`] reads the job.
    pub fn new(state: &AppState, project: ProjectId, id: JobId, cursor: Cursor, shown: Option<Shown>) -> Self {
        Self {
            waiter: state.changes.subscribe(id, Of::Changes),
            follow: state.following.follow(id),
            state: state.clone(),
            project,
            id,
            cut: cursor.clone(),
            cursor,
            shown,
            fence: 0,
            waits: false,
            time_over: Instant::now() + STREAM_MAX,
            next_place: Instant::now(),
            last_place: None,
            ready: VecDeque::new(),
            read: true,
            over: false,
        }
    }

    /// How far the caller has come with what it was given.
    pub const fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// The state that the caller was shown last.
    pub const fn shown(&self) -> Option<Shown> {
        self.shown
    }

    /// What happens next; `None` when the job has ended, an hour is over, or this process is to stop.
    pub async fn next(&mut self) -> Option<Happening> {
        loop {
            if let Some(happening) = self.ready.pop_front() {
                match &happening {
                    Happening::Piece(piece) => piece.pass(&mut self.cursor),
                    Happening::Reset => self.cursor = Cursor::default(),
                    _ => {}
                }
                return Some(happening);
            }
            if self.over || self.state.stopping.is_cancelled() || Instant::now() >= self.time_over {
                return None;
            }
            let (changed, told) = (self.waiter.changed(), self.follow.changed());
            if std::mem::take(&mut self.read) {
                self.read_job().await;
            }
            if !self.over {
                self.hear();
            }
            if !self.ready.is_empty() {
                continue;
            }
            let place_due = self.waits.then_some(self.next_place);
            tokio::select! {
                () = changed => self.read = true,
                () = told => {}
                () = until(place_due) => self.look_up_place().await,
                () = sleep_until(self.time_over) => return None,
                () = self.state.stopping.cancelled() => return None,
            }
        }
    }

    async fn read_job(&mut self) {
        match read_job(&self.state, self.project, self.id).await {
            Ok(Some(job)) => self.see(job).await,
            Ok(None) => {
                self.ready.push_back(Happening::Gone);
                self.over = true;
            }
            Err(error) => self.read_later(&error).await,
        }
    }

    async fn read_later(&mut self, error: &StoreError) {
        tracing::debug!(%error, job = %self.id, "a followed job could not be read");
        let stopping = std::pin::pin!(self.state.stopping.cancelled());
        match select(std::pin::pin!(sleep(READ_AGAIN)), stopping).await {
            Either::Left(_) | Either::Right(_) => self.read = true,
        }
    }

    async fn see(&mut self, job: JobView) {
        let now = Shown {
            status: job.status,
            attempt: job.attempt,
        };
        self.fence = job.key.fence;
        self.waits = job.waiting.is_some();
        let ended = job.status.is_terminal();
        self.state.promises.seen(self.id, job.started_at, ended);
        let first = self.shown.is_none();
        if self.shown.replace(now) != Some(now) && (first || !ended) {
            self.ready.push_back(Happening::State(Box::new(job.clone())));
        }
        if !ended {
            return;
        }
        self.over = true;
        if job.erased_at.is_some() {
            self.ready.push_back(Happening::Gone);
            return;
        }
        let choices = job.choices.as_deref().unwrap_or_default();
        let texts = choices
            .iter()
            .filter(|choice| !rejected(choice))
            .map(|choice| (choice.index, choice.text.as_str(), choice.logprobs.as_ref()));
        advance(&mut self.cut, &mut self.ready, Cursor::check_whole, texts);
        if let Err(error) = delivered(&self.state, &job).await {
            tracing::debug!(%error, job = %self.id, "a delivery could not be noted");
        }
        self.ready.push_back(Happening::Ended(Box::new(job)));
    }

    /// Takes what has come of the running attempt.
    fn hear(&mut self) {
        let Self {
            follow,
            cut,
            ready,
            fence,
            ..
        } = self;
        follow.look(|live| {
            // An older attempt's text may be one that nobody will finish.
            if live.fence >= *fence && *fence > 0 {
                let choices = (0..).zip(&live.choices);
                let texts = choices.map(|(index, choice)| (index, choice.text.as_str(), None));
                advance(cut, ready, Cursor::check, texts);
            }
        });
    }

    async fn look_up_place(&mut self) {
        self.next_place = Instant::now() + PLACE_PERIOD;
        let Ok(_room) = self.state.place_lookups.try_acquire() else {
            return;
        };
        match place::find(&self.state.pool, self.project, self.id).await {
            Ok(Some(Some(place))) => {
                let now = (place.ahead, place.reason);
                if self.last_place.replace(now) != Some(now) {
                    self.ready.push_back(Happening::Place(place));
                }
            }
            // It has begun, and the notification says so.
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, job = %self.id, "a followed job's place could not be read"),
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Taken away by the content policy: what was sent of it stays as it is.
fn rejected(choice: &Choice) -> bool {
    choice.text.is_empty() && choice.finish_reason == Some(FinishReason::ContentFilter)
}

/// Makes pieces of what texts have beyond the cursor. If one of them is not what was sent from, all begin anew.
fn advance<'t>(
    cursor: &mut Cursor,
    ready: &mut VecDeque<Happening>,
    check: impl Fn(&Cursor, usize, &str) -> Result<(), Diverged>,
    texts: impl Iterator<Item = (u32, &'t str, Option<&'t Logprobs>)> + Clone,
) {
    let mut all = texts.clone();
    if all.any(|(choice, text, _)| check(cursor, choice as usize, text).is_err()) {
        *cursor = Cursor::default();
        ready.push_back(Happening::Reset);
    }
    for (choice, text, logprobs) in texts {
        let tokens = cursor.place(choice as usize).tokens;
        let known = logprobs.map_or(0, |logprobs| logprobs.tokens.len());
        let new = cursor.advance(choice as usize, text, known);
        let logprobs = logprobs
            .filter(|_| known > tokens)
            .map(|logprobs| logprobs.after(tokens));
        if !new.is_empty() || logprobs.is_some() {
            let text = new.to_owned();
            ready.push_back(Happening::Piece(Piece { choice, text, logprobs }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_ends_by_itself_when_its_time_is_over() {
        let state = AppState::new(&crate::router::tests::config()).unwrap();
        let mut stream = JobStream::new(&state, ProjectId::new(), JobId::new(), Cursor::default(), None);
        assert!(stream.time_over > Instant::now() + Duration::from_mins(59));
        stream.time_over = Instant::now() + Duration::from_millis(50);
        let next = tokio::time::timeout(Duration::from_secs(30), stream.next()).await;
        assert!(next.expect("it waits no longer").is_none());
    }
}
