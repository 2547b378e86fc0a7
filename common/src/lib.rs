//! What the API and the worker share: domain types, the store, the queue, configuration, telemetry, shutdown.
//!
//! Must never know HTTP handlers (axum) or tensors (burn). Start reading at [`domain`].

pub mod backoff;
pub mod batch;
pub mod catalog;
pub mod config;
pub mod deltas;
pub mod domain;
pub mod files;
pub mod pace;
pub mod policy;
pub mod queue;
pub mod redis;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod tokenizer;
pub mod validate;
pub mod view;
pub mod webhook;
