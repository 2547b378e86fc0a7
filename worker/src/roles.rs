//! What a worker process does: any set of three roles.
//!
//! Must never grow behaviour of its own; `app.rs` starts what is named here.

use std::fmt;

use clap::ValueEnum;

/// One of the jobs of a worker process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Role {
    /// Takes jobs from the queue and runs the model.
    Generate,
    /// Sends webhooks.
    Dispatch,
    /// Rescues, schedules, emits lost messages again, forgets.
    Maintain,
}

impl Role {
    /// All roles: what a process does unless told otherwise.
    pub const ALL: [Self; 3] = [Self::Generate, Self::Dispatch, Self::Maintain];

    /// The name on the command line and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Dispatch => "dispatch",
            Self::Maintain => "maintain",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
