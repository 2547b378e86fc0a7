//! The harness of the integration tests: real servers, and for each test its own database and queue names.
//!
//! Tests never sleep: they wait for an answer, or with [`eventually`] for a condition.

mod eventually;
mod world;

pub use eventually::eventually;
pub use world::{World, in_world};
