//! Who is calling: passwords become hashes ([`password`]), a proven password begins a session, whose access
//! tokens are signed ([`token`]) by keys that the database keeps ([`tokens`], [`seal`]) and renewed by refresh tokens; those
//! and API keys are secrets with a checksum ([`secret`]); and the [`doorkeeper`] makes a caller of what a request shows, by the database or by what
//! is still `known` of it.
//!
//! Must never log a password, a token or a key, and must never answer faster for a user that does not exist. What a caller
//! may do is decided in `access.rs`.

pub mod client;
pub mod doorkeeper;
pub mod key_uses;
mod known;
pub mod password;
pub mod seal;
pub mod secret;
pub mod token;
pub mod tokens;

pub use doorkeeper::Doorkeeper;
pub use key_uses::KeyUses;
pub use password::{PasswordError, Passwords};
pub use seal::Seal;
pub use secret::{Secret, SecretKind};
pub use token::{Claims, Key, Keyring, TokenError, TokenIssuer};
pub use tokens::{Tokens, TokensError};
