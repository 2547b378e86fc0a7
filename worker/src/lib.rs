//! The worker process: from a delivery to a committed result.
//!
//! `app.rs` wires it; a job's way is `consumer.rs` → `feeder.rs` → `engine/` → `results.rs`, with `heartbeat.rs` beside
//! it and `maintenance/` behind it.

pub mod acks;
pub mod announce;
pub mod engine;
pub mod gpt2;
pub mod health;
pub mod http;
pub mod in_flight;
pub mod maintenance;
pub mod roles;
