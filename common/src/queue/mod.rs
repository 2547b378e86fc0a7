//! `RabbitMQ` says "there is work". Messages carry a version, a job id and the trace context, never a prompt.
//!
//! Queues are durable quorum queues, one for each model and class. Publishing and consuming use separate connections,
//! since a broker alarm stops every write on a connection that publishes, acks included. Nothing here recovers by itself: on any
//! error drop the object and build it anew (the callers do, with back-off). Must never touch Postgres.

mod connection;
mod consumer;
mod message;
mod publisher;

pub use connection::{Broker, QueueError};
pub use consumer::{Acker, Delivery, Subscription, acknowledge};
pub use message::{JobMessage, MalformedMessage};
pub use publisher::Publisher;
