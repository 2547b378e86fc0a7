//! What texts are held against, and how strictly requests are read.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, from_env};

/// The content policy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PolicyConfig {
    /// `CLAIMCHECK_POLICY_FILE`: rules in TOML, read again whenever the file changes. Unset takes those that come with the service.
    pub policy_file: Option<PathBuf>,
    /// `CLAIMCHECK_STRICT_SAMPLING`: `true` refuses requests with both `temperature` and `top_p` below 1 (`false`).
    pub strict_sampling: bool,
}

impl PolicyConfig {
    /// Reads `CLAIMCHECK_*`.
    pub fn from_env() -> Result<Self, ConfigError> {
        from_env("CLAIMCHECK_")
    }
}
