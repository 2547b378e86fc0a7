//! A batch's states and the only legal ways between them.
//!
//! ```text
//!  validating ──► in_progress ──► finalizing ──► completed
//!      │              │               ├────────► failed     (also from validating)
//!      │              ▼               └────────► expired
//!      └─────────► cancelling ──► cancelled
//! ```
//!
//! `finalizing` writes the files of what has ended, whatever the batch ends as; `cancelling` does so at its end. Terminal
//! states never change.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where a batch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchStatus {
    /// Its lines are being checked.
    Validating,
    /// Its lines are being done.
    InProgress,
    /// All lines have ended; the files are being written.
    Finalizing,
    /// Every line has ended by itself.
    Completed,
    /// Its input is not in order, or was lost on the way.
    Failed,
    /// Its window was over before every line had ended.
    Expired,
    /// A caller asked to stop it; what runs is being stopped.
    Cancelling,
    /// Ended because a caller asked; what was done until then is kept.
    Cancelled,
}

impl BatchStatus {
    /// All states, in the order of a batch's life.
    pub const ALL: [Self; 8] = [
        Self::Validating,
        Self::InProgress,
        Self::Finalizing,
        Self::Completed,
        Self::Failed,
        Self::Expired,
        Self::Cancelling,
        Self::Cancelled,
    ];

    /// The states from which this one can be reached.
    pub const fn sources(self) -> &'static [Self] {
        match self {
            Self::Validating => &[],
            Self::InProgress => &[Self::Validating],
            Self::Finalizing => &[Self::InProgress],
            Self::Completed | Self::Expired => &[Self::Finalizing],
            Self::Failed => &[Self::Validating, Self::Finalizing],
            Self::Cancelling => &[Self::Validating, Self::InProgress],
            Self::Cancelled => &[Self::Cancelling],
        }
    }

    /// Whether the batch has ended for good.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Expired | Self::Cancelled)
    }

    /// The stored and shown form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for BatchStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for BatchStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|status| status.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is no batch status"))
    }
}

/// How long a batch may take: hours or days, as the caller wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompletionWindow {
    text: String,
    length: Duration,
}

impl CompletionWindow {
    const LEAST: Duration = Duration::from_hours(1);
    const MOST: Duration = Duration::from_hours(7 * 24);

    /// Reads `24h`, `90m` or `7d`: from one hour to seven days.
    pub fn parse(text: &str) -> Option<Self> {
        let (number, seconds) = match text.split_at_checked(text.len().checked_sub(1)?)? {
            (number, "d") => (number, 86_400),
            (number, "h") => (number, 3_600),
            (number, "m") => (number, 60),
            _ => return None,
        };
        let digits = (1..=5).contains(&number.len()) && number.bytes().all(|digit| digit.is_ascii_digit());
        let length = Duration::from_secs(number.parse::<u64>().ok().filter(|_| digits)? * seconds);
        (Self::LEAST..=Self::MOST).contains(&length).then(|| Self {
            text: text.to_owned(),
            length,
        })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// From the batch's creation to its expiry.
    pub const fn length(&self) -> Duration {
        self.length
    }
}

/// What is wrong with a line of a batch's input, or with all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineProblem {
    /// A stable word for programs.
    pub code: String,
    /// The line's number, from 1.
    pub line: Option<u32>,
    /// One sentence: what to change.
    pub message: String,
    /// The field at fault, as a path (`body.max_tokens`).
    pub param: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_one_hour_to_seven_days() {
        for (text, hours) in [
            ("24h", 24),
            ("1h", 1),
            ("60m", 1),
            ("7d", 168),
            ("168h", 168),
            ("1d", 24),
        ] {
            let window = CompletionWindow::parse(text).unwrap();
            assert_eq!(window.length(), Duration::from_hours(hours), "{text}");
            assert_eq!(window.as_str(), text);
        }
        for bad in [
            "",
            "h",
            "24",
            "0h",
            "59m",
            "8d",
            "169h",
            "+5h",
            " 5h",
            "5 h",
            "24H",
            "1.5d",
            "99999999h",
            "äh",
            "5é",
        ] {
            assert_eq!(CompletionWindow::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_live_state_can_end_and_no_terminal_one_can_be_left() {
        for status in BatchStatus::ALL {
            let leaves = BatchStatus::ALL.into_iter().any(|to| to.sources().contains(&status));
            assert_eq!(leaves, !status.is_terminal(), "{status}");
            assert!(
                status == BatchStatus::Validating || !status.sources().is_empty(),
                "{status}"
            );
            assert_eq!(status.as_str().parse(), Ok(status));
        }
    }
}
