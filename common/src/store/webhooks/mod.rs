//! Webhooks: where a project wants its events, and what became of each on its way there.
//!
//! An event becomes deliveries in the transaction that writes it, by the trigger `hand_on_events` of the migration. From there:
//! [`dispatch`] claims, and records what came of each attempt; [`endpoints`] is what callers set up; [`log`] is what they see
//! and may ask to be sent again. Next: `worker/src/webhooks/`.

pub mod dispatch;
pub mod endpoints;
pub mod log;

/// Where dispatchers hear that there is something to send. A hint, like every notification.
pub const CHANNEL: &str = "claimcheck_webhooks";
