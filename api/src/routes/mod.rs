//! One file per verb. A handler documents its answers, authenticates, finds, makes one change and replies.
//!
//! Must never hold a database transaction of its own: the store's functions do, in tasks that a client's hanging up
//! cannot cut short.

pub mod aliases;
pub mod api_keys;
pub mod audit;
pub mod batch_results;
pub mod batches;
pub mod bulk_jobs;
pub mod cancel_job;
pub mod completions;
pub mod create_batch;
pub mod dead_letters;
pub mod delete_job;
pub mod files;
pub mod get_job;
pub mod get_model;
pub mod get_place;
pub mod health;
pub mod identities;
pub mod job_events;
pub mod jwks;
pub mod list_events;
pub mod list_jobs;
pub mod list_models;
pub mod logout;
pub mod members;
pub mod metrics;
pub mod openapi;
pub mod operators;
mod paging;
pub mod project_limits;
pub mod projects;
pub mod put_job;
pub mod receipt;
pub mod register;
pub mod replay_job;
pub mod responses;
pub mod retry_job;
pub mod root;
pub mod service_accounts;
pub mod sign_in;
pub mod submit_job;
pub mod token;
pub mod tokenize;
pub mod upload_file;
pub mod usage;
pub mod users;
pub mod webhook_endpoints;
pub mod webhook_log;
pub mod webhook_secrets;
