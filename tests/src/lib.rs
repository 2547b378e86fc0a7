//! The harness of the integration tests: real servers, and for each test its own database and queue names.
//!
//! Tests never sleep: they wait for an answer, or with [`eventually`] for a condition.

mod demo;
mod eventually;
mod gate;
mod model;
mod openid;
mod processes;
pub mod promises;
mod receiver;
mod small_disk;
mod stack;
mod wire;
mod world;

pub use demo::Demo;
pub use eventually::eventually;
pub use gate::{Gate, Moment};
pub use model::{TINY_CONTEXT, save_tiny_model};
pub use openid::OpenIdProvider;
pub use processes::{Installation, Process, TINY, binary, setting};
pub use receiver::{Received, Receiver};
pub use small_disk::SmallDisk;
pub use stack::{Server, Stack};
pub use wire::Wire;
pub use world::{Servers, World, in_world, in_world_on};
