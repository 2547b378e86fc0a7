//! Turns loose requests into values that the rest of the house can trust.
//!
//! Two steps, each with its own kind of rule: the types in [`number`], [`text`] and [`job`]/[`account`] check one field at
//! a time *while it is read*, so that the reader knows the field's path; [`job::SubmitJob::into_valid`] then checks what
//! depends on several fields and on the model. Nothing behind this door takes the loose form.

pub mod account;
pub mod api_key;
pub mod batch;
pub mod budget;
pub mod completion;
pub mod idempotency;
pub mod jsonl;
pub mod response;
pub mod selection;
pub mod webhook;

pub use claimcheck_common::validate::{job, number, text};
