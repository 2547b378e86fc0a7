//! What a worker keeps a model's weight matrices in.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// What weight matrices are kept in. Everything else is `f32`, and so are sums, but for those of `int8`, which are exact
/// integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// 32-bit floats.
    #[default]
    F32,
    /// The upper half of 32-bit floats: half the memory, eight bits of precision.
    Bf16,
    /// Integers of −127…127 with a scale for each output; inputs are rounded to such integers, too, with a scale for each row.
    Int8,
}

impl Dtype {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// Bytes of a weight; the scales of `int8` are not counted.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    /// The name in configuration, in the database and in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|dtype| dtype.as_str() == text);
        found.ok_or_else(|| "known are f32, bf16 and int8".to_owned())
    }
}
