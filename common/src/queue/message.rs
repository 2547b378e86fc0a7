//! What travels: `{"v":1,"job_id":"job_…"}` as the body, `traceparent` (W3C Trace Context) as a header.

use serde::{Deserialize, Serialize};

use crate::domain::JobId;

const VERSION: u32 = 1;

/// "There is work": the job's id and where its trace began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobMessage {
    /// The job.
    pub job_id: JobId,
    /// W3C trace context, carried in the AMQP headers.
    pub traceparent: Option<String>,
}

/// A body that this version does not understand.
#[derive(Debug, thiserror::Error)]
#[error("not a job message of version {VERSION}: {0}")]
pub struct MalformedMessage(String);

#[derive(Serialize, Deserialize)]
struct Body {
    v: u32,
    job_id: JobId,
}

impl JobMessage {
    pub(super) fn encode(&self) -> Vec<u8> {
        format!(r#"{{"v":{VERSION},"job_id":"{}"}}"#, self.job_id).into_bytes()
    }

    pub(super) fn decode(body: &[u8], traceparent: Option<String>) -> Result<Self, MalformedMessage> {
        let body: Body = serde_json::from_slice(body).map_err(|error| MalformedMessage(error.to_string()))?;
        if body.v != VERSION {
            return Err(MalformedMessage(format!("its version is {}", body.v)));
        }
        Ok(Self {
            job_id: body.job_id,
            traceparent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_reads_back_and_holds_nothing_but_the_id() {
        let message = JobMessage {
            job_id: JobId::new(),
            traceparent: None,
        };
        assert_eq!(JobMessage::decode(&message.encode(), None).unwrap(), message);
        assert!(message.encode().len() < 64);
    }

    #[test]
    fn another_version_is_refused() {
        let body = format!(r#"{{"v":2,"job_id":"{}"}}"#, JobId::new());
        assert!(JobMessage::decode(body.as_bytes(), None).is_err());
    }

    proptest! {
        #[test]
        fn no_body_makes_the_decoder_panic(body: Vec<u8>) {
            let _ = JobMessage::decode(&body, None);
        }
    }
}
