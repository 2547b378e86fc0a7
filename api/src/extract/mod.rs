//! From a raw request to typed input, with every refusal in the error envelope.
//!
//! axum's own extractors answer in plain text and with statuses of their own, hence these. Must never echo a body back.

pub mod body;
pub mod caller;
pub mod form;
pub mod json;
pub mod metered;
pub mod origin;
pub mod path;
pub mod query;
pub mod trace;

pub use caller::Caller;
pub use form::Form;
pub use json::{Json, RawJson};
pub use metered::Metered;
pub use origin::Origin;
pub use path::{IdPath, JobIdPath};
pub use query::Query;
