//! What an attempt cost, and on what it ran.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What an attempt took of the engine, as the engine measured it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// When its first prefill began; `None` if it never came so far.
    pub began: Option<Instant>,
    /// From there to its first token.
    pub prefill: Duration,
    /// From its first token to its last.
    pub decode: Duration,
    /// Its share of the device: of each step's time the part that its tokens were of the step's.
    pub device: Duration,
    /// The part of that share which went into positions that held no token.
    pub padding: Duration,
}

/// What equal output is promised for, besides prompt, parameters and seed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// SHA-256 of the weight file, in hexadecimal.
    pub weights_sha256: String,
    /// What weights are kept in.
    pub dtype: String,
    /// The worker's version, and the commit it was built from where the build told.
    pub build: String,
}

impl Runtime {
    /// Weights as this build serves them.
    pub fn of_this_build(weights_sha256: String, dtype: String) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let build = option_env!("CLAIMCHECK_COMMIT").map_or(version.to_owned(), |commit| format!("{version}+{commit}"));
        Self {
            weights_sha256,
            dtype,
            build,
        }
    }
}
