//! What travels: the ids of a few jobs as the body, `traceparent` (W3C Trace Context) as a header.
//!
//! Of one job `{"v":1,"job_id":"job_…"}`, of several `{"v":2,"job_ids":["job_…","job_…"]}`: a message costs the broker the same
//! whatever it says, and under load that is a good part of what a job costs.

use serde::Deserialize;

use crate::domain::JobId;

/// A group of jobs becomes at least so many messages, if it is as large: several workers are to get some of it.
const FEWEST_MESSAGES: usize = 8;
/// So many jobs a second of a queue are worth one job more in each message.
const WORTH_ONE_MORE: usize = 500;

/// "There is work": jobs of one queue, in the order in which they are to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobMessage {
    /// At least one.
    jobs: Vec<JobId>,
    /// Where the trace of its only job began (W3C Trace Context), carried in the AMQP headers.
    traceparent: Option<String>,
}

/// A body that this version does not understand.
#[derive(Debug, thiserror::Error)]
#[error("not a job message of version 1 or 2: {0}")]
pub struct MalformedMessage(String);

#[derive(Deserialize)]
struct Body {
    v: u32,
    job_id: Option<JobId>,
    #[serde(default)]
    job_ids: Vec<JobId>,
}

impl JobMessage {
    /// Most jobs in one message: a worker that takes it has them all.
    pub const MOST_JOBS: usize = 4;

    /// The message of one job.
    pub fn new(job: JobId, traceparent: Option<String>) -> Self {
        Self {
            jobs: vec![job],
            traceparent,
        }
    }

    /// The messages of a group of jobs in its order, where so many go a second: the larger the group and the more there go, the more
    /// jobs in each. One with a trace has a message of its own.
    pub fn of_group(group: impl ExactSizeIterator<Item = (JobId, Option<String>)>, a_second: usize) -> Vec<Self> {
        let most = (a_second / WORTH_ONE_MORE).min(group.len() / FEWEST_MESSAGES);
        let most = most.clamp(1, Self::MOST_JOBS);
        let mut messages: Vec<Self> = Vec::new();
        for (job, traceparent) in group {
            match messages.last_mut() {
                Some(last) if last.jobs.len() < most && last.traceparent.is_none() && traceparent.is_none() => {
                    last.jobs.push(job);
                }
                _ => messages.push(Self::new(job, traceparent)),
            }
        }
        messages
    }

    /// What it is called in the broker, and in what the store keeps of it: its first job.
    pub fn id(&self) -> JobId {
        self.jobs[0]
    }

    /// Its jobs, at least one.
    pub fn jobs(&self) -> &[JobId] {
        &self.jobs
    }

    /// Where its only job's trace began.
    pub fn traceparent(&self) -> Option<&str> {
        self.traceparent.as_deref()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let body = match &self.jobs[..] {
            [job] => serde_json::json!({ "v": 1, "job_id": job }),
            jobs => serde_json::json!({ "v": 2, "job_ids": jobs }),
        };
        body.to_string().into_bytes()
    }

    pub(super) fn decode(body: &[u8], traceparent: Option<String>) -> Result<Self, MalformedMessage> {
        let body: Body = serde_json::from_slice(body).map_err(|error| MalformedMessage(error.to_string()))?;
        let jobs = match body.v {
            1 => body.job_id.into_iter().collect(),
            2 => body.job_ids,
            other => return Err(MalformedMessage(format!("its version is {other}"))),
        };
        if jobs.is_empty() {
            return Err(MalformedMessage("it names no job".to_owned()));
        }
        Ok(Self { jobs, traceparent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MANY: usize = 10_000;

    fn group(jobs: usize) -> Vec<(JobId, Option<String>)> {
        (0..jobs).map(|_| (JobId::new(), None)).collect()
    }

    fn sizes(group: Vec<(JobId, Option<String>)>) -> Vec<usize> {
        let messages = JobMessage::of_group(group.into_iter(), MANY);
        messages.iter().map(|message| message.jobs.len()).collect()
    }

    #[test]
    fn a_message_reads_back_and_holds_nothing_but_ids() {
        for jobs in [1, 4 * FEWEST_MESSAGES] {
            let message = JobMessage::of_group(group(jobs).into_iter(), MANY).remove(0);
            let body = message.encode();
            assert!(body.len() < 32 + 32 * message.jobs.len());
            assert_eq!(JobMessage::decode(&body, None).unwrap(), message);
        }
    }

    #[test]
    fn few_jobs_go_alone_and_many_go_by_the_handful() {
        assert_eq!(sizes(group(0)), [0; 0]);
        assert_eq!(sizes(group(15)), [1; 15]);
        assert_eq!(sizes(group(17)), [2, 2, 2, 2, 2, 2, 2, 2, 1]);
        assert_eq!(sizes(group(512)), [JobMessage::MOST_JOBS; 128]);
    }

    #[test]
    fn a_slow_queue_has_a_message_for_each_job() {
        for (a_second, most) in [(0, 1), (999, 1), (1000, 2), (1999, 3), (2000, 4), (9999, 4)] {
            let messages = JobMessage::of_group(group(256).into_iter(), a_second);
            assert_eq!(messages[0].jobs.len(), most, "{a_second}");
        }
    }

    #[test]
    fn the_order_stays_and_a_trace_goes_alone() {
        let mut group = group(16);
        group[1].1 = Some("trace".to_owned());
        let messages = JobMessage::of_group(group.clone().into_iter(), MANY);
        let jobs: Vec<_> = messages.iter().flat_map(|message| message.jobs.clone()).collect();
        assert_eq!(jobs, group.iter().map(|(job, _)| *job).collect::<Vec<_>>());
        let traced: Vec<_> = messages
            .iter()
            .filter(|message| message.traceparent.is_some())
            .collect();
        assert_eq!(traced, [&JobMessage::new(group[1].0, group[1].1.clone())]);
        assert_eq!(sizes(group), [1, 1, 2, 2, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn another_version_and_a_message_of_no_job_are_refused() {
        let job = JobId::new();
        for body in [
            format!(r#"{{"v":3,"job_id":"{job}","job_ids":["{job}"]}}"#),
            format!(r#"{{"v":1,"job_ids":["{job}"]}}"#),
            r#"{"v":2,"job_ids":[]}"#.to_owned(),
        ] {
            assert!(JobMessage::decode(body.as_bytes(), None).is_err(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_body_makes_the_decoder_panic(body: Vec<u8>) {
            let _ = JobMessage::decode(&body, None);
        }
    }
}
