//! What tokens cost, as `CLAIMCHECK_PRICES` says it: what spending caps are counted in.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::domain::Price;

/// Any model that has no price of its own.
const ANY: &str = "*";

/// The price of each model. A model without one costs nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prices(BTreeMap<String, Price>);

impl Prices {
    /// What a model's tokens cost.
    pub fn of(&self, model: &str) -> Price {
        self.0
            .get(model)
            .or_else(|| self.0.get(ANY))
            .copied()
            .unwrap_or_default()
    }

    /// Whether nothing has a price.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let prices = parts.map(|part| {
            let read = || {
                // A model's name may hold anything but a comma.
                let (model, price) = part.rsplit_once('=')?;
                let (prompt, completion) = price.split_once(':')?;
                let price = Price::per_million(prompt.parse().ok()?, completion.parse().ok()?)?;
                (!model.is_empty()).then(|| (model.to_owned(), price))
            };
            read().ok_or_else(|| {
                format!("`{part}` is no price: write `gpt2=0.15:0.60`, for a million tokens, with at most 3 decimals")
            })
        });
        prices.collect::<Result<_, _>>().map(Self)
    }
}

impl<'de> Deserialize<'de> for Prices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_read_by_model_and_a_star_stands_for_the_rest() {
        let prices = Prices::parse("gpt2=0.15:0.60, *=0.1:0.4").unwrap();
        assert_eq!((prices.of("gpt2").prompt, prices.of("gpt2").completion), (150, 600));
        assert_eq!((prices.of("other").prompt, prices.of("other").completion), (100, 400));
        assert_eq!(Prices::parse("gpt2=1:2").unwrap().of("other"), Price::default());
        assert!(Prices::parse(" ").unwrap().is_empty());
        for bad in ["gpt2", "gpt2=1", "=1:1", "gpt2=1:x", "gpt2=-1:1", "gpt2=0.0001:1"] {
            assert!(Prices::parse(bad).is_err(), "{bad}");
        }
    }
}
