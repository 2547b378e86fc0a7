//! From loose text to values that the rest of the house can trust: the checks that the API and the worker share, since a
//! batch's lines are checked as a submit is.
//!
//! The types in [`number`], [`text`] and [`job`] check one field at a time *while it is read*, so that the reader ([`json`])
//! knows the field's path; [`job::SubmitJob::into_valid`] then checks what depends on several fields and on the model.
//! Must never know HTTP: a [`Problem`] has no status.

pub mod job;
pub mod json;
pub mod number;
mod problem;
pub mod text;
pub mod webhook;

pub use problem::Problem;
