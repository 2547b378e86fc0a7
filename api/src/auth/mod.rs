//! Who is calling: passwords become hashes ([`password`]), a proven password becomes a token ([`token`]), and a token
//! becomes a caller (`extract/caller.rs`).
//!
//! Must never log a password or a token, and must never answer faster for a user that does not exist.

pub mod password;
pub mod token;

pub use password::{PasswordError, Passwords};
pub use token::{Claims, Keyring, TokenError, TokenIssuer};
