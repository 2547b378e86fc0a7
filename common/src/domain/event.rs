//! What callers may hear of, and how much of it.

use std::fmt;
use std::str::FromStr;

/// A kind of event. Whoever adds one adds it to [`EventType::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventType {
    /// A job's first attempt began to generate. Written down only where an endpoint or the job asks for it by name.
    JobStarted,
    /// A job ended with its output.
    JobCompleted,
    /// A job ended with an error.
    JobFailed,
    /// A job was stopped.
    JobCancelled,
    /// A job's time was up.
    JobExpired,
    /// All lines of a batch have ended.
    BatchCompleted,
    /// A batch's file could not be used.
    BatchFailed,
    /// A batch was stopped.
    BatchCancelled,
    /// A batch's window closed.
    BatchExpired,
    /// An endpoint gets no more deliveries, because it answered 410 or nothing but failures for days.
    EndpointDisabled,
}

impl EventType {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::JobStarted,
        Self::JobCompleted,
        Self::JobFailed,
        Self::JobCancelled,
        Self::JobExpired,
        Self::BatchCompleted,
        Self::BatchFailed,
        Self::BatchCancelled,
        Self::BatchExpired,
        Self::EndpointDisabled,
    ];

    /// The stored and shown form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JobStarted => "job.started",
            Self::JobCompleted => "job.completed",
            Self::JobFailed => "job.failed",
            Self::JobCancelled => "job.cancelled",
            Self::JobExpired => "job.expired",
            Self::BatchCompleted => "batch.completed",
            Self::BatchFailed => "batch.failed",
            Self::BatchCancelled => "batch.cancelled",
            Self::BatchExpired => "batch.expired",
            Self::EndpointDisabled => "webhook_endpoint.disabled",
        }
    }

    /// Whether it tells of a job.
    pub const fn is_of_a_job(self) -> bool {
        matches!(
            self,
            Self::JobStarted | Self::JobCompleted | Self::JobFailed | Self::JobCancelled | Self::JobExpired
        )
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EventType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| format!("must be one of {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

/// How much a webhook's body holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayloadKind {
    /// Ids, state and links.
    #[default]
    Thin,
    /// The job as `GET /v1/jobs/{id}` shows it as well, while that is not too large.
    Full,
}

impl PayloadKind {
    /// The stored and shown form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Thin => "thin",
            Self::Full => "full",
        }
    }
}

impl FromStr for PayloadKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "thin" => Ok(Self::Thin),
            "full" => Ok(Self::Full),
            other => Err(format!("`{other}` is no kind of payload; use thin or full")),
        }
    }
}

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryStatus {
    /// To be sent now.
    Ready,
    /// A dispatcher is at it.
    Sending,
    /// The last try failed, and the next one has its time.
    Waiting,
    /// The receiver took it.
    Delivered,
    /// Given up: all tries failed, the receiver is gone, or the endpoint is disabled.
    Failed,
}

impl DeliveryStatus {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Ready, Self::Sending, Self::Waiting, Self::Delivered, Self::Failed];

    /// The stored and shown form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Sending => "sending",
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

impl FromStr for DeliveryStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| format!("must be one of {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_form_reads_back() {
        for kind in EventType::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(kind.is_of_a_job(), kind.as_str().starts_with("job."), "{kind}");
        }
        for status in DeliveryStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        for payload in [PayloadKind::Thin, PayloadKind::Full] {
            assert_eq!(payload.as_str().parse(), Ok(payload));
        }
    }
}
