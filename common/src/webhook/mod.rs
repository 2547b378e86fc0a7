//! What the API and the dispatcher must agree on about webhooks: where they may go, how they are signed, what they say.
//!
//! Must never do I/O. The API checks and stores (`store/webhooks/`), the dispatcher sends (`worker/src/webhooks/`).

pub mod address;
mod payload;
mod secret;
mod target;
mod vault;
mod verify;

pub use payload::{BODY_MAX, EventBody, body, data};
pub use secret::SigningSecret;
pub use target::{Reach, Target};
pub use vault::{Vault, VaultError};
pub use verify::ReceiverKey;
