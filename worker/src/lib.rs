//! The worker process: from a delivery to a committed result.
//!
//! `app.rs` wires it and `generate.rs` runs its main role; a job's way is `consumer.rs` → `feeder.rs` → `engine/` →
//! `results.rs`, with `heartbeat.rs` and `cancels.rs` beside it and `maintenance/` behind it.

pub mod acks;
pub mod announce;
pub mod app;
pub mod batches;
pub mod cancels;
pub mod cli;
pub mod consumer;
mod curtain;
pub mod engine;
pub mod feeder;
pub mod followers;
mod gauge_share;
pub mod generate;
pub mod gpt2;
pub mod health;
pub mod heartbeat;
pub mod http;
pub mod in_flight;
pub mod maintenance;
pub mod model_memory;
pub mod results;
pub mod roles;
pub mod served_model;
pub mod unloadable;
pub mod webhooks;
