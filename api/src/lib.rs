//! The HTTP face: from the socket to a committed row and a confirmed message.
//!
//! Start reading at [`router`] (every route and layer on one page), follow `routes/submit_job.rs` inwards, and then
//! [`relay`], which carries what was committed to the broker. Owns everything that knows HTTP. Must never contain SQL
//! (that is `common::store`), publish to the broker other than by the relay, or touch a tensor.

pub mod access;
pub mod app;
pub mod attendance;
pub mod auth;
pub mod catalog;
pub mod docs;
pub mod dry_run;
pub mod error;
pub mod extract;
pub mod groups;
pub mod health;
pub mod idempotent;
pub mod intake;
pub mod limits;
pub mod middleware;
pub mod outgoing;
pub mod parts;
pub mod prefer;
pub mod promises;
pub mod reads;
pub mod receipt_key;
pub mod refusal;
pub mod relay;
pub mod router;
pub mod routes;
pub mod screen;
pub mod serve;
pub mod sign_in;
pub mod streams;
pub mod throughput;
pub mod tls;
pub mod transport;
pub mod uploads;
pub mod validate;
pub mod view;
pub mod waiting;
pub mod webhooks;

pub use app::{App, AppState, Config};
