//! The service's vocabulary: ids, job states, generation parameters and results.
//!
//! Owns what a value *means* and which values are legal. Must never do I/O. Text becomes one of these types at the edge
//! (`api/src/validate.rs`, the store's row decoding), and nothing behind the edge takes the loose form.
//! Next: `store/` persists these types, `queue/` carries their ids.

mod access;
mod dtype;
mod event;
mod generation;
mod id;
mod job;
mod receipt;
mod state;

pub use access::{Role, Scope, Scopes};
pub use dtype::Dtype;
pub use event::{DeliveryStatus, EventType, PayloadKind};
pub use generation::{Choice, Completion, FinishReason, GenerationParams, Logprobs, Prompt, Usage};
pub use id::{
    ApiKeyId, ApiKeyKind, EndpointId, EndpointKind, EventId, EventKind, Id, IdKind, IdParseError, JobId, JobKind,
    ProjectId, ProjectKind, SessionId, SessionKind, TenantId, TenantKind, UserId, UserKind, WorkerId, WorkerKind,
};
pub use job::{Class, JobError, JobKey, ModelRef, QueueName, Share};
pub use receipt::{Runtime, Spent};
pub use state::{IllegalTransition, JobStatus};
