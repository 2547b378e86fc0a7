//! How much callers may ask for, and whom the API believes about where they are.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use super::{ConfigError, from_env};
use crate::domain::Allowance;

/// The plan that knows no rate limits. It is always there.
pub const UNLIMITED_PLAN: &str = "unlimited";

/// Rate limits.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct LimitsConfig {
    /// `CLAIMCHECK_PLANS`: `name=user rate:key rate`, separated by commas; the rates are those of requests that generate, with
    /// an access token and with an API key (`standard=10/min:100/min`). `unlimited` is there besides.
    pub plans: Plans,
    /// `CLAIMCHECK_PLAN`: the plan of tenants that have none of their own (`standard`).
    pub plan: String,
    /// `CLAIMCHECK_ADDRESS_RATE`: requests that generate from one address (1000/min). Those by the plan `unlimited` do not count.
    pub address_rate: Allowance,
    /// `CLAIMCHECK_LOGIN_RATE`: sign-ins to one account (10/min).
    pub login_rate: Allowance,
    /// `CLAIMCHECK_LOGIN_ADDRESS_RATE`: sign-ins and registrations from one address (60/min).
    pub login_address_rate: Allowance,
    /// `CLAIMCHECK_OVERLOAD_AGE`: when interactive jobs wait for longer than this, rates shrink (30 s).
    #[serde(with = "humantime_serde")]
    pub overload_age: Duration,
    /// `CLAIMCHECK_TRUSTED_PROXIES`: networks (`127.0.0.0/8,10.0.0.0/8`) of proxies whose `X-Forwarded-For` is believed. Unset
    /// believes none.
    pub trusted_proxies: Vec<IpNet>,
}

/// The rates of each plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plans(BTreeMap<String, Plan>);

/// What a plan allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Requests that generate, with an access token.
    pub user: Allowance,
    /// The same with an API key.
    pub key: Allowance,
}

impl Plan {
    /// As many as come.
    pub const UNLIMITED: Self = Self {
        user: Allowance::UNLIMITED,
        key: Allowance::UNLIMITED,
    };
}

impl Plans {
    /// The plan of that name.
    pub fn find(&self, name: &str) -> Option<Plan> {
        self.0.get(name).copied()
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut plans = BTreeMap::from([(UNLIMITED_PLAN.to_owned(), Plan::UNLIMITED)]);
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let read = || {
                let (name, rates) = part.split_once('=')?;
                let (user, key) = rates.split_once(':')?;
                let plan = Plan {
                    user: user.parse().ok()?,
                    key: key.parse().ok()?,
                };
                (!name.is_empty()).then(|| (name.to_owned(), plan))
            };
            let (name, plan) = read().ok_or_else(|| format!("`{part}` is no plan: write `standard=10/min:100/min`"))?;
            plans.insert(name, plan);
        }
        Ok(Self(plans))
    }
}

impl<'de> Deserialize<'de> for Plans {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Default for Plans {
    fn default() -> Self {
        let standard = Plan {
            user: Allowance::per_minute(10),
            key: Allowance::per_minute(100),
        };
        let plans = [("standard", standard), (UNLIMITED_PLAN, Plan::UNLIMITED)];
        Self(plans.map(|(name, plan)| (name.to_owned(), plan)).into())
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            plans: Plans::default(),
            plan: "standard".to_owned(),
            address_rate: Allowance::per_minute(1000),
            login_rate: Allowance::per_minute(10),
            login_address_rate: Allowance::per_minute(60),
            overload_age: Duration::from_secs(30),
            trusted_proxies: Vec::new(),
        }
    }
}

impl LimitsConfig {
    /// Reads `CLAIMCHECK_*`.
    pub fn from_env() -> Result<Self, ConfigError> {
        from_env::<Self>("CLAIMCHECK_")?.checked()
    }

    /// No limits at all: for demonstrations and tests.
    pub fn unlimited() -> Self {
        Self {
            plan: UNLIMITED_PLAN.to_owned(),
            login_rate: Allowance::UNLIMITED,
            login_address_rate: Allowance::UNLIMITED,
            ..Self::default()
        }
    }

    fn checked(self) -> Result<Self, ConfigError> {
        if self.plans.find(&self.plan).is_none() {
            let known: Vec<_> = self.plans.names().collect();
            let (plan, known) = (&self.plan, known.join(", "));
            return Err(ConfigError::Invalid(format!(
                "CLAIMCHECK_PLAN is `{plan}`, which is none of CLAIMCHECK_PLANS: {known}"
            )));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_read_by_name_and_unlimited_is_always_there() {
        let plans = Plans::parse("standard=20/min:200/min, pro=unlimited:1000/s").unwrap();
        assert_eq!(plans.find("standard").unwrap().user, Allowance::per_minute(20));
        assert_eq!(plans.find("pro").unwrap().user, Allowance::UNLIMITED);
        assert_eq!(plans.find(UNLIMITED_PLAN), Some(Plan::UNLIMITED));
        for bad in ["standard", "standard=10/min", "=1/s:1/s", "a=1/s:x"] {
            assert!(Plans::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_default_plan_that_is_not_there_is_refused_by_name() {
        let config = LimitsConfig {
            plan: "gold".to_owned(),
            ..LimitsConfig::default()
        };
        let error = config.checked().unwrap_err().to_string();
        assert!(error.contains("gold") && error.contains("standard"), "{error}");
    }
}
