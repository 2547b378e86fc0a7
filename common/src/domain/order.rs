//! In which order a worker may add up a row's products.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// Whether a row's result may depend on how many rows are computed beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// One order of each sum, whatever the number of rows: a job's output does not depend on its company.
    #[default]
    Fixed,
    /// The faster kernel for the number of rows: a job's output may depend on its company.
    Fast,
}

impl Order {
    /// The name in configuration and figures.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Fast => "fast",
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = [Self::Fixed, Self::Fast]
            .into_iter()
            .find(|order| order.as_str() == text);
        found.ok_or_else(|| "known are fixed and fast".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_by_its_name_alone_and_fixed_where_nothing_is_said() {
        for order in [Order::Fixed, Order::Fast] {
            assert_eq!(order.to_string().parse(), Ok(order));
            assert_eq!(serde_json::from_str::<Order>(&format!("\"{order}\"")).unwrap(), order);
        }
        assert_eq!(Order::default(), Order::Fixed);
        for text in ["", "Fast", "fastest", "1"] {
            assert!(text.parse::<Order>().unwrap_err().contains("fixed and fast"), "{text}");
        }
    }
}
