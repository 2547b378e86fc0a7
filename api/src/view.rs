//! How answers look. What is shown of a job is in `common/src/view.rs`, since webhooks show it as well; here is what HTTP adds.

mod batch;
mod budget;
mod bulk;
mod completion;
mod file;
mod response;
mod validator;

pub use batch::{BatchBody, BatchDryRunBody, BatchList, FeasibilityBody};
pub use budget::BudgetBody;
pub use bulk::BulkBody;
pub use claimcheck_common::view::{ErrorInfo, JobBody, OutputBody, StatusSchema};
pub use completion::{completion, usage};
pub use file::{DeletedFile, FileBody, FileList};
pub use response::{ResponseBody, job_of_response, message, message_id, output_text, response_id};
pub use validator::{IfNoneMatch, Rendered};
