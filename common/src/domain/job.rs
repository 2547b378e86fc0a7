//! What names a job, its queue and its failure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use time::OffsetDateTime;

use super::{JobId, TenantId};

/// One claim of a job. Everything a worker does is keyed by both: a newer claim has a greater fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobKey {
    /// The job.
    pub id: JobId,
    /// Grows by one with every claim and never shrinks.
    pub fence: i64,
}

impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.fence)
    }
}

/// How urgently a caller waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// A person or a program waits for the answer.
    Interactive,
    /// Part of an upload, to be done when there is room.
    Batch,
}

impl Class {
    /// All classes, the most urgent first.
    pub const ALL: [Self; 2] = [Self::Interactive, Self::Batch];

    /// The stored and shown form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Batch => "batch",
        }
    }
}

impl FromStr for Class {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| format!("`{text}` is no class"))
    }
}

/// What decides whose turn it is where jobs wait for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Interactive goes first, batch is never left out.
    pub class: Class,
    /// Who has the fewest running goes first.
    pub tenant: TenantId,
    /// Greater goes first, within a tenant.
    pub priority: i16,
    /// Earlier goes first, within a priority; none is last.
    pub deadline: Option<OffsetDateTime>,
}

impl Default for Share {
    /// Interactive and nobody's: where there is no queue.
    fn default() -> Self {
        Self {
            class: Class::Interactive,
            tenant: TenantId::from_uuid(uuid::Uuid::nil()),
            priority: 0,
            deadline: None,
        }
    }
}

/// A model as workers serve it: the weights of one revision.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModelRef {
    /// The name that requests use (`claimcheck-tiny`, `openai-community/gpt2`).
    pub name: String,
    /// Which weights: a hub commit, or a digest of the files.
    pub revision: String,
}

/// Where a released job waits: one queue for each model and class.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueName {
    /// The model's name.
    pub model: String,
    /// The job's class.
    pub class: Class,
}

impl QueueName {
    /// The name on the broker: `{prefix}.{model}.{class}`.
    pub fn on_broker(&self, prefix: &str) -> String {
        format!("{prefix}.{}.{}", self.model, self.class.as_str())
    }
}

/// Why a job failed, as its owner reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// The family (`server_error`, `invalid_request_error`).
    #[serde(rename = "type")]
    pub kind: String,
    /// A stable word for programs.
    pub code: String,
    /// One sentence for people; never internals.
    pub message: String,
}

impl JobError {
    /// The family of failures that another attempt cannot mend.
    pub const INVALID_REQUEST: &'static str = "invalid_request_error";

    /// A failure that the caller's request led to.
    pub fn invalid(code: &str, message: impl Into<String>) -> Self {
        Self {
            kind: Self::INVALID_REQUEST.to_owned(),
            code: code.to_owned(),
            message: message.into(),
        }
    }

    /// A failure that the caller did not cause.
    pub fn server(code: &str, message: impl Into<String>) -> Self {
        Self {
            kind: "server_error".to_owned(),
            code: code.to_owned(),
            message: message.into(),
        }
    }
}
