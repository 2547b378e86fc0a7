//! What a file is for.

use std::str::FromStr;

/// What a file is for, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilePurpose {
    /// The input of a batch.
    Batch,
    /// What a batch came to.
    BatchOutput,
}

impl FilePurpose {
    /// The stored and shown form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::BatchOutput => "batch_output",
        }
    }
}

impl FromStr for FilePurpose {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = [Self::Batch, Self::BatchOutput]
            .into_iter()
            .find(|purpose| purpose.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is no purpose of a file"))
    }
}
