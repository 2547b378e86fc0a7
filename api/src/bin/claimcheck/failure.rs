//! What a command can end with, and the exit code that says so.

use std::process::ExitCode;

/// How a command ended, where it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything was done.
    Done,
    /// Some lines of a batch failed.
    Partial,
    /// The job or batch failed.
    Failed,
    /// The job or batch was cancelled, or its time was up.
    Stopped,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Done => 0,
            Outcome::Partial => 3,
            Outcome::Failed => 4,
            Outcome::Stopped => 5,
        })
    }
}

/// Why a command could not be carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The caller has to say it differently.
    #[error("{0}")]
    Usage(String),
    /// The service refused.
    #[error("{message}{}", shown_id(.request_id.as_deref()))]
    Refused {
        /// HTTP's status.
        status: u16,
        /// The service's word for it.
        code: String,
        /// What it says.
        message: String,
        /// What it calls the request.
        request_id: Option<String>,
    },
    /// The service was not reached for as long as was to be waited.
    #[error("{url} cannot be reached: {complaint}")]
    Unreachable {
        /// Where it should be.
        url: String,
        /// What went wrong last.
        complaint: String,
    },
    /// A file.
    #[error("{path}: {complaint}")]
    File {
        /// Which.
        path: String,
        /// What is wrong with it.
        complaint: String,
    },
    /// It was interrupted.
    #[error("{0}")]
    Interrupted(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

fn shown_id(id: Option<&str>) -> String {
    id.map_or_else(String::new, |id| format!(" [request {id}]"))
}

impl Failure {
    /// A file that cannot be read or written.
    pub(crate) fn file(path: &std::path::Path, complaint: impl std::fmt::Display) -> Self {
        Self::File {
            path: path.display().to_string(),
            complaint: complaint.to_string(),
        }
    }

    /// A stable word for programs.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Usage(_) => "usage",
            Self::Refused { code, .. } => code,
            Self::Unreachable { .. } => "unreachable",
            Self::File { .. } => "file",
            Self::Interrupted(_) => "interrupted",
            Self::Other(_) => "failed",
        }
    }

    const fn exit(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Interrupted(_) => 5,
            // Too many, or too much at once.
            Self::Refused {
                status: 402 | 413 | 429,
                ..
            } => 6,
            _ => 4,
        }
    }
}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> Self {
        Self::from(failure.exit())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Other(format!("the service's answer does not read: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_an_exit_code_of_their_own() {
        let refused = |status| Failure::Refused {
            status,
            code: String::new(),
            message: String::new(),
            request_id: None,
        };
        assert_eq!(
            [429, 413, 400, 404, 500].map(|status| refused(status).exit()),
            [6, 6, 4, 4, 4]
        );
        assert_eq!(Failure::Usage(String::new()).exit(), 2);
    }
}
