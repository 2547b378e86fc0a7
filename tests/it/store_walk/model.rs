//! What the store is meant to do, said again without a database: a list of jobs, a broker, and a clock that counts hours.
//!
//! Written from the design, not from the SQL. Whatever comes due does so half an hour before a full hour, so that the seconds
//! a test takes never decide.

use std::collections::{BTreeMap, BTreeSet};

use claimcheck_common::domain::{Class, JobStatus};

use super::steps::{Ending, Order, Pause, Pick, Step, TENANTS};

/// Hours after a claim or a beat at which the lease has run out.
const LEASE: i32 = 2;
/// Hours after which an attempt is overdue, and after which beating for it no longer helps.
const OVERDUE: i32 = 3;
const HOPELESS: i32 = 5;
/// Hours for which a key is known.
const KEEP_KEY: i32 = 3;
/// Hours after the end at which texts go: by `ttl`, and if nobody fetched what is not to be stored.
const TTL: i32 = 2;
const UNFETCHED: i32 = 24;

/// One job as the model knows it.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub tenant: usize,
    pub class: Class,
    pub status: JobStatus,
    pub attempt: u32,
    pub max_attempts: u32,
    pub fence: i64,
    pub lapses: u32,
    pub claimed_at: i32,
    pub leased_until: i32,
    pub available_at: i32,
    pub deadline: Option<i32>,
    pub start_by: Option<i32>,
    /// When each of its outbox rows is due.
    pub outbox: Vec<i32>,
    pub released_at: Option<i32>,
    pub dispatches: i32,
    pub store: bool,
    pub ttl: bool,
    pub erase_at: Option<i32>,
    pub erased: bool,
    pub error: Option<String>,
    pub last_error: Option<String>,
    pub output: Option<String>,
    pub retry_of: Option<usize>,
    /// Why it became a dead letter.
    pub reason: Option<String>,
    pub redriven_as: Option<usize>,
}

/// A kept answer.
#[derive(Debug, Clone)]
struct Kept {
    body: bool,
    job: usize,
    until: i32,
}

/// What became of a submit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sent {
    Accepted,
    Replayed(usize),
    Reused,
    OverQuota(u32),
}

/// What a heartbeat says of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Kept,
    Cancelled,
    Expired,
    Overdue,
    Lost,
}

/// What a step answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There was nothing to draw from, or there is nothing to say.
    Nothing,
    Sent(Sent),
    /// The jobs whose messages were published.
    Relayed(Vec<usize>),
    /// The fence, if the job was claimed.
    Claimed(Option<i64>),
    Beat(Verdict),
    Settled(Vec<(usize, i64, JobStatus)>),
    /// What the caller sees of the job.
    Now(JobStatus),
    /// How many jobs it was done to.
    Count(u64),
    /// Rescued jobs: back in the outbox, and ended.
    Rescued(u64, u64),
    /// The new jobs, by those that they do again.
    Made(Vec<usize>),
    Refused(&'static str),
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub jobs: Vec<Job>,
    /// Messages that the broker holds, by job.
    pub broker: Vec<usize>,
    /// Every claim there ever was.
    pub claims: Vec<(usize, i64)>,
    keys: BTreeMap<(usize, u8), Kept>,
    paused: Vec<Pause>,
    limits: [Option<u32>; TENANTS],
    now: i32,
}

/// One of `length`, if there is any.
fn one_of(pick: Pick, length: usize) -> Option<usize> {
    (length > 0).then(|| usize::from(pick) % length)
}

impl Model {
    pub(crate) fn job(&self, pick: Pick) -> Option<usize> {
        one_of(pick, self.jobs.len())
    }

    pub(crate) fn message(&self, pick: Pick) -> Option<usize> {
        one_of(pick, self.broker.len())
    }

    pub(crate) fn claim(&self, pick: Pick) -> Option<(usize, i64)> {
        one_of(pick, self.claims.len()).map(|place| self.claims[place])
    }

    /// The endings of a group: a worker says once how a claim ended.
    pub(crate) fn group(&self, picks: &[(Pick, Ending)]) -> Vec<(usize, i64, Ending)> {
        let mut seen = BTreeSet::new();
        picks
            .iter()
            .filter_map(|(pick, ending)| {
                let (job, fence) = self.claim(*pick)?;
                seen.insert((job, fence)).then_some((job, fence, *ending))
            })
            .collect()
    }

    /// The ended jobs of a tenant that can be done again.
    pub(crate) fn ended(&self, tenant: usize) -> Vec<usize> {
        self.all(|job| job.tenant == tenant && job.status.is_terminal() && !job.erased)
    }

    pub(crate) fn apply(&mut self, step: &Step) -> Outcome {
        match step {
            Step::Submit(order) => Outcome::Sent(self.submit(order)),
            Step::Relay { recorded } => Outcome::Relayed(self.relay(*recorded)),
            Step::Deliver { message, acked } => self.deliver(*message, *acked),
            Step::Purge => {
                self.broker.clear();
                Outcome::Nothing
            }
            Step::Beat(pick) => self.claim(*pick).map_or(Outcome::Nothing, |claim| self.beat(claim)),
            Step::Settle(picks) => {
                let group = self.group(picks);
                let mut settled: Vec<_> = group
                    .into_iter()
                    .filter_map(|(job, fence, ending)| Some((job, fence, self.settle(job, fence, ending)?)))
                    .collect();
                settled.sort_by_key(|(job, fence, _)| (*job, *fence));
                Outcome::Settled(settled)
            }
            Step::Release(pick) => self.claim(*pick).map_or(Outcome::Nothing, |claim| self.release(claim)),
            Step::Cancel(pick) => self.job(*pick).map_or(Outcome::Nothing, |job| {
                self.cancel(job);
                Outcome::Now(self.jobs[job].status)
            }),
            Step::CancelAll(tenant) => {
                let chosen = self.all(|job| job.tenant == *tenant);
                Outcome::Count(chosen.into_iter().filter(|job| self.cancel(*job)).count() as u64)
            }
            Step::Retry(pick) => self.job(*pick).map_or(Outcome::Nothing, |job| self.retry(job)),
            Step::RetryAll(tenant) => Outcome::Made(self.again(self.ended(*tenant))),
            Step::Redrive => {
                let letters = self.all(|job| job.reason.is_some() && job.redriven_as.is_none() && !job.erased);
                let first = self.jobs.len();
                let made = self.again(letters);
                for (place, job) in made.iter().enumerate() {
                    self.jobs[*job].redriven_as = Some(first + place);
                }
                Outcome::Made(made)
            }
            Step::Erase(pick) => self.job(*pick).map_or(Outcome::Nothing, |job| {
                if !self.jobs[job].status.is_terminal() {
                    return Outcome::Refused("running");
                }
                self.jobs[job].erase();
                Outcome::Refused("done")
            }),
            Step::Fetch(pick) => {
                if let Some(job) = self.job(*pick) {
                    let soon = self.now + 1;
                    let job = &mut self.jobs[job];
                    if !job.store && job.status.is_terminal() && !job.erased {
                        job.erase_at = job.erase_at.map(|at| at.min(soon));
                    }
                }
                Outcome::Nothing
            }
            Step::Pause(what, on) => {
                self.paused.retain(|paused| paused != what);
                if *on {
                    self.paused.push(*what);
                }
                Outcome::Nothing
            }
            Step::Limit(tenant, most) => {
                self.limits[*tenant] = *most;
                Outcome::Nothing
            }
            Step::Hours(hours) => {
                self.now += hours;
                Outcome::Nothing
            }
            Step::Promote => Outcome::Count(self.promote()),
            Step::Expire => Outcome::Count(self.expire()),
            Step::Rescue => self.rescue(),
            Step::Reemit => Outcome::Count(self.reemit()),
            Step::EraseDue => {
                let now = self.now;
                let due = self.all(|job| !job.erased && job.erase_at.is_some_and(|at| at <= now));
                for job in &due {
                    self.jobs[*job].erase();
                }
                Outcome::Count(due.len() as u64)
            }
        }
    }

    fn all(&self, chosen: impl Fn(&Job) -> bool) -> Vec<usize> {
        let jobs = self.jobs.iter().enumerate();
        jobs.filter(|(_, job)| chosen(job)).map(|(place, _)| place).collect()
    }

    fn waiting(&self, tenant: usize) -> u32 {
        self.all(|job| job.tenant == tenant && job.waits()).len() as u32
    }

    fn is_paused(&self, job: &Job) -> bool {
        self.paused.iter().any(|what| match what {
            Pause::Tenant(tenant) => *tenant == job.tenant,
            Pause::Class(class) => *class == job.class,
            Pause::Model => true,
        })
    }

    fn submit(&mut self, order: &Order) -> Sent {
        if let Some((key, body)) = order.key
            && let Some(kept) = self.keys.get(&(order.tenant, key)).filter(|kept| kept.until > self.now)
        {
            return if kept.body == body {
                Sent::Replayed(kept.job)
            } else {
                Sent::Reused
            };
        }
        if let Some(limit) = self.limits[order.tenant].filter(|limit| self.waiting(order.tenant) >= *limit) {
            return Sent::OverQuota(limit);
        }
        if let Some((key, body)) = order.key {
            let kept = Kept {
                body,
                job: self.jobs.len(),
                until: self.now + KEEP_KEY,
            };
            self.keys.insert((order.tenant, key), kept);
        }
        self.jobs.push(Job::of(order, self.now));
        Sent::Accepted
    }

    fn relay(&mut self, recorded: bool) -> Vec<usize> {
        let now = self.now;
        let mut taken = Vec::new();
        for place in 0..self.jobs.len() {
            let due = self.jobs[place].outbox.iter().filter(|at| **at <= now).count();
            if due == 0 || self.is_paused(&self.jobs[place]) {
                continue;
            }
            taken.extend(vec![place; due]);
            let job = &mut self.jobs[place];
            if recorded {
                job.outbox.retain(|at| *at > now);
                if job.status == JobStatus::Queued {
                    job.released_at = Some(now);
                }
            }
        }
        self.broker.extend(&taken);
        taken
    }

    fn deliver(&mut self, pick: Pick, acked: bool) -> Outcome {
        let Some(message) = self.message(pick) else {
            return Outcome::Nothing;
        };
        let place = self.broker[message];
        if acked {
            self.broker.remove(message);
        }
        let (now, paused) = (self.now, self.is_paused(&self.jobs[place]));
        let job = &mut self.jobs[place];
        if job.status != JobStatus::Queued {
            return Outcome::Claimed(None);
        }
        if paused || job.available_at > now {
            job.released_at = None;
            if job.outbox.is_empty() {
                job.outbox.push(job.available_at);
            }
            return Outcome::Claimed(None);
        }
        if job.is_late(now) || job.never_began(now) {
            return Outcome::Claimed(None);
        }
        job.status = JobStatus::InProgress;
        job.attempt += 1;
        job.fence += 1;
        job.claimed_at = now;
        job.leased_until = now + LEASE;
        job.released_at = None;
        self.claims.push((place, job.fence));
        Outcome::Claimed(Some(job.fence))
    }

    fn beat(&mut self, (place, fence): (usize, i64)) -> Outcome {
        let now = self.now;
        let job = &mut self.jobs[place];
        if job.fence != fence || !job.runs() {
            return Outcome::Beat(Verdict::Lost);
        }
        let age = now - job.claimed_at;
        if age < HOPELESS {
            job.leased_until = now + LEASE;
        }
        Outcome::Beat(if job.status == JobStatus::Cancelling {
            Verdict::Cancelled
        } else if job.is_late(now) {
            Verdict::Expired
        } else if age >= OVERDUE {
            Verdict::Overdue
        } else {
            Verdict::Kept
        })
    }

    fn settle(&mut self, place: usize, fence: i64, ending: Ending) -> Option<JobStatus> {
        let now = self.now;
        let job = &mut self.jobs[place];
        // The one rule that everything hangs on: only the newest claim, and only while it has the job.
        if job.fence != fence || !job.runs() {
            return None;
        }
        let text = matches!(ending, Ending::Completed | Ending::Cancelled | Ending::Expired);
        let output = text.then(|| output(fence));
        if job.status == JobStatus::Cancelling {
            job.end(JobStatus::Cancelled, None, output, now);
        } else if ending == Ending::AttemptFailed && job.attempt < job.max_attempts && !job.is_late(now) {
            job.last_error = Some("engine_error".to_owned());
            job.wait_again(now + 1);
        } else if ending == Ending::Cancelled {
            return None;
        } else if job.is_late(now) || ending == Ending::Expired {
            job.end(JobStatus::Expired, Some("deadline_exceeded"), output, now);
        } else {
            match ending {
                Ending::Failed => job.end(JobStatus::Failed, Some("bad_prompt"), output, now),
                Ending::AttemptFailed => job.end(JobStatus::Failed, Some("engine_error"), output, now),
                _ => job.end(JobStatus::Completed, None, output, now),
            }
        }
        Some(job.status)
    }

    fn release(&mut self, (place, fence): (usize, i64)) -> Outcome {
        let job = &mut self.jobs[place];
        if job.fence != fence || job.status != JobStatus::InProgress {
            return Outcome::Count(0);
        }
        job.attempt -= 1;
        job.wait_again(self.now);
        Outcome::Count(1)
    }

    /// Whether it changed anything.
    fn cancel(&mut self, place: usize) -> bool {
        let job = &mut self.jobs[place];
        if job.waits() {
            job.end(JobStatus::Cancelled, None, None, self.now);
        } else if job.status == JobStatus::InProgress {
            job.status = JobStatus::Cancelling;
        } else {
            return false;
        }
        true
    }

    fn retry(&mut self, place: usize) -> Outcome {
        let job = &self.jobs[place];
        if !job.status.is_terminal() {
            return Outcome::Refused("running");
        }
        if job.erased {
            return Outcome::Refused("erased");
        }
        match &self.again(vec![place])[..] {
            [] => Outcome::Refused("over quota"),
            made => Outcome::Made(made.to_vec()),
        }
    }

    /// Up to the first job that would be one too many for its tenant.
    fn again(&mut self, old: Vec<usize>) -> Vec<usize> {
        let mut made = Vec::new();
        for place in old {
            let tenant = self.jobs[place].tenant;
            if self.limits[tenant].is_some_and(|limit| self.waiting(tenant) >= limit) {
                break;
            }
            let new = self.jobs[place].again(place, self.now);
            self.jobs.push(new);
            made.push(place);
        }
        made
    }

    fn promote(&mut self) -> u64 {
        let now = self.now;
        let due = self.all(|job| job.status == JobStatus::Scheduled && job.available_at <= now);
        for place in &due {
            let job = &mut self.jobs[*place];
            job.status = JobStatus::Queued;
            job.outbox.push(now);
        }
        due.len() as u64
    }

    fn expire(&mut self) -> u64 {
        let now = self.now;
        let due = self.all(|job| job.waits() && (job.is_late(now) || job.never_began(now)));
        for place in &due {
            let job = &mut self.jobs[*place];
            let why = if job.is_late(now) {
                "deadline_exceeded"
            } else {
                "not_started_in_time"
            };
            job.end(JobStatus::Expired, Some(why), None, now);
        }
        due.len() as u64
    }

    fn rescue(&mut self) -> Outcome {
        let now = self.now;
        let (mut requeued, mut ended) = (0, 0);
        for job in self.jobs.iter_mut().filter(|job| job.runs() && job.leased_until <= now) {
            job.lapses += 1;
            if job.status == JobStatus::Cancelling {
                job.end(JobStatus::Cancelled, None, None, now);
            } else if job.attempt < job.max_attempts {
                job.wait_again(now);
                requeued += 1;
                continue;
            } else if job.is_late(now) {
                job.end(JobStatus::Expired, Some("deadline_exceeded"), None, now);
            } else {
                job.end(JobStatus::Failed, Some("attempts_exhausted"), None, now);
            }
            ended += 1;
        }
        Outcome::Rescued(requeued, ended)
    }

    fn reemit(&mut self) -> u64 {
        let now = self.now;
        let lost = self.all(|job| {
            let waited = job.released_at.map_or(0, |at| now - at);
            // 40 minutes, doubled each time; of what was rescued not one.
            let overdue = waited * 60 > 40 << job.dispatches.min(7) || waited > 0 && job.lapses > 0;
            job.status == JobStatus::Queued && job.outbox.is_empty() && overdue
        });
        for place in &lost {
            let job = &mut self.jobs[*place];
            job.released_at = None;
            job.dispatches += 1;
            job.outbox.push(now);
        }
        lost.len() as u64
    }
}

/// The text that the attempt of this fence makes.
pub(crate) fn output(fence: i64) -> String {
    format!("made by claim {fence}")
}

impl Job {
    fn of(order: &Order, now: i32) -> Self {
        let at = |hours: Option<i32>| hours.map(|hours| now + hours);
        let available_at = at(order.scheduled_in).unwrap_or(now);
        let scheduled = order.scheduled_in.is_some();
        Self {
            tenant: order.tenant,
            class: order.class,
            status: if scheduled {
                JobStatus::Scheduled
            } else {
                JobStatus::Queued
            },
            attempt: 0,
            max_attempts: order.max_attempts,
            fence: 0,
            lapses: 0,
            claimed_at: now,
            leased_until: now,
            available_at,
            deadline: at(order.deadline_in),
            start_by: at(order.start_in),
            outbox: if scheduled { Vec::new() } else { vec![now] },
            released_at: None,
            dispatches: 0,
            store: order.store,
            ttl: order.ttl,
            erase_at: None,
            erased: false,
            error: None,
            last_error: None,
            output: None,
            retry_of: None,
            reason: None,
            redriven_as: None,
        }
    }

    /// The job that does this one again.
    fn again(&self, place: usize, now: i32) -> Self {
        let order = Order {
            tenant: self.tenant,
            class: self.class,
            priority: 0,
            max_attempts: self.max_attempts,
            key: None,
            scheduled_in: None,
            deadline_in: None,
            start_in: None,
            store: self.store,
            ttl: self.ttl,
        };
        Self {
            retry_of: Some(place),
            ..Self::of(&order, now)
        }
    }

    fn waits(&self) -> bool {
        matches!(self.status, JobStatus::Scheduled | JobStatus::Queued)
    }

    pub(crate) fn runs(&self) -> bool {
        matches!(self.status, JobStatus::InProgress | JobStatus::Cancelling)
    }

    fn is_late(&self, now: i32) -> bool {
        self.deadline.is_some_and(|at| at <= now)
    }

    fn never_began(&self, now: i32) -> bool {
        self.fence == 0 && self.start_by.is_some_and(|at| at <= now)
    }

    fn wait_again(&mut self, due: i32) {
        self.status = JobStatus::Queued;
        self.available_at = due;
        self.outbox.push(due);
        self.released_at = None;
        self.dispatches = 0;
    }

    fn end(&mut self, status: JobStatus, error: Option<&str>, output: Option<String>, now: i32) {
        assert!(!self.status.is_terminal(), "the model ends a job twice");
        self.status = status;
        self.error = error.map(str::to_owned);
        self.output = output;
        self.released_at = None;
        self.erase_at = if self.ttl {
            Some(now + TTL)
        } else {
            (!self.store).then_some(now + UNFETCHED)
        };
        if status == JobStatus::Failed {
            let exhausted = self.attempt >= self.max_attempts;
            self.reason = if exhausted {
                Some("attempts_exhausted".to_owned())
            } else {
                self.error.clone()
            };
        }
    }

    fn erase(&mut self) {
        self.erased = true;
        self.output = None;
    }
}
