//! All SQL of the service. Postgres is the truth; every promise about jobs is kept by a statement in here.
//!
//! Free functions over a connection or pool; the caller chooses the transaction. Must never talk to the broker or hold
//! a transaction open across inference or HTTP. Statements on many rows lock in id order.
//!
//! A job's life in this folder: [`submit`] → [`outbox`] → [`claim`] → [`lease`] → [`settle`], with [`rescue`] and
//! [`schedule`] leading back to the outbox, [`jobs`] for reading, [`cancels`] for stopping, [`attend`] for stopping what
//! nobody waits for any more, [`retry`] for doing again, [`replay`] for comparing, [`receipts`] for what it cost,
//! [`budgets`] for what may be used and [`notify`] for waking who waits. What happened to it is an event ([`events`]), and goes to whoever wants to hear of it
//! ([`webhooks`]).
//! Batches: [`files`] → [`batches`] → [`batch_work`] → [`batch_results`].

pub mod access;
pub mod accounts;
pub mod aliases;
pub mod api_keys;
pub mod attend;
pub mod audit;
pub mod batch_results;
pub mod batch_window;
pub mod batch_work;
pub mod batches;
pub mod budgets;
pub mod cancels;
pub mod claim;
pub mod dead_letters;
pub mod erase;
mod error;
pub mod events;
pub mod expire;
pub mod files;
pub mod idempotency;
pub mod identities;
pub mod jobs;
mod lane;
pub mod lease;
pub mod limits;
pub mod models;
pub mod notify;
pub mod once;
pub mod operators;
pub mod outbox;
pub mod outlook;
pub mod place;
mod pool;
pub mod project_limits;
pub mod projects;
pub mod quota;
pub mod receipts;
pub mod replay;
pub mod rescue;
pub mod retention;
pub mod retry;
mod row;
pub mod schedule;
pub mod seal;
pub mod selection;
pub mod service_accounts;
pub mod sessions;
pub mod settle;
pub mod sign_ins;
pub mod signing_keys;
pub mod submit;
pub mod webhooks;

pub use error::{StoreError, StoreResult};
pub use lane::{Held, Lane};
pub use pool::{Pool, connect, connect_leased, migrate, ping, transaction, within};
