//! The service's vocabulary: ids, job states, generation parameters and results.
//!
//! Owns what a value *means* and which values are legal. Must never do I/O. Text becomes one of these types at the edge
//! (`api/src/validate.rs`, the store's row decoding), and nothing behind the edge takes the loose form.
//! Next: `store/` persists these types, `queue/` carries their ids.

mod access;
mod batch;
mod budget;
mod device;
mod dtype;
mod encoded;
mod event;
mod file;
mod generation;
mod id;
mod job;
mod model_source;
mod order;
mod rate;
mod receipt;
mod state;

pub use access::{ProjectRole, Role, Scope, Scopes};
pub use batch::{BatchStatus, CompletionWindow, LineProblem};
pub use budget::{Budget, BudgetStanding, Money, MoneyError, Price, Tokens};
pub use device::DeviceChoice;
pub use dtype::Dtype;
pub use encoded::{Encoded, TokenizerMark};
pub use event::{DeliveryStatus, EventType, PayloadKind};
pub use file::FilePurpose;
pub use generation::{Choice, Completion, FinishReason, GenerationParams, Logprobs, Prompt, Usage};
pub use id::{
    ApiKeyId, ApiKeyKind, BatchId, BatchItemId, BatchItemKind, BatchKind, EndpointId, EndpointKind, EventId, EventKind,
    FileId, FileKind, Id, IdKind, IdParseError, IdentityId, IdentityKind, JobId, JobKind, ProjectId, ProjectKind,
    ServiceAccountId, ServiceAccountKind, SessionId, SessionKind, TenantId, TenantKind, UserId, UserKind, WorkerId,
    WorkerKind,
};
pub use job::{Class, JobError, JobKey, ModelRef, QueueName, Share};
pub use model_source::ModelSource;
pub use order::Order;
pub use rate::{Allowance, Rate, RateParseError};
pub use receipt::{Runtime, Spent};
pub use state::{IllegalTransition, JobStatus};
