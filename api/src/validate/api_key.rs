//! What an API key may be asked to be.

use claimcheck_common::domain::{Scope, Scopes};
use claimcheck_common::store::api_keys::Grant;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::budget::BudgetIn;
use super::number::Whole;
use super::text::Text;
use crate::error::ApiError;

/// Models that a key may be narrowed to.
const MODELS_MAX: usize = 32;
/// Longest life of a key that has an end.
const EXPIRES_AHEAD_DAYS: i64 = 3660;
/// Longest time for which two secrets of a key hold: 30 days.
const OVERLAP_MAX: i64 = 30 * 86_400;

/// The body of `POST /v1/api_keys`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(example = json!({"name": "nightly", "scopes": ["jobs:read", "jobs:write"]}))]
pub struct NewKey {
    /// What you call it.
    #[schema(value_type = String, min_length = 1, max_length = 64)]
    pub name: Text<1, 64>,
    /// What it may do: any of `jobs:read`, `jobs:write`, `batches`, `webhooks`, `admin`.
    #[schema(value_type = Vec<String>, min_items = 1, max_items = 5)]
    pub scopes: ScopesIn,
    /// Unix seconds at which it ends, at most ten years ahead. Without, it has no end.
    #[schema(value_type = Option<i64>)]
    pub expires_at: Option<Whole<0, { i64::MAX }>>,
    /// The models that it may use, up to 32. Without, any.
    #[schema(value_type = Option<Vec<String>>, min_items = 1, max_items = 32)]
    pub models: Option<ModelsIn>,
    /// Most `max_tokens` of one request.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 4096)]
    pub max_tokens: Option<Whole<1, 4096>>,
    /// What its jobs may use. Without, as much as its organization may.
    pub budget: Option<BudgetIn>,
}

impl NewKey {
    /// When it ends, checked against `now`.
    pub fn expiry(&self, now: OffsetDateTime) -> Result<Option<OffsetDateTime>, ApiError> {
        let Some(at) = self.expires_at else { return Ok(None) };
        let ahead = at.get().saturating_sub(now.unix_timestamp());
        if !(1..=EXPIRES_AHEAD_DAYS * 86_400).contains(&ahead) {
            let message = "`expires_at` must lie in the future, at most ten years ahead.";
            return Err(ApiError::invalid("expires_at", message));
        }
        OffsetDateTime::from_unix_timestamp(at.get())
            .map(Some)
            .map_err(ApiError::internal)
    }

    /// What it is good for.
    pub fn grant(self) -> Grant {
        Grant {
            scopes: self.scopes.0.into_iter().collect(),
            models: self.models.map(|models| models.0),
            max_tokens: self.max_tokens.map(|most| most.get() as u32),
        }
    }
}

/// The body of `POST /v1/projects/{id}/service_accounts`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(example = json!({"name": "nightly", "scopes": ["jobs:read", "jobs:write"]}))]
pub struct NewService {
    /// What you call it.
    #[schema(value_type = String, min_length = 1, max_length = 64)]
    pub name: Text<1, 64>,
    /// What it may do: any of `jobs:read`, `jobs:write`, `batches`, `webhooks`, `admin`.
    #[schema(value_type = Vec<String>, min_items = 1, max_items = 5)]
    pub scopes: ScopesIn,
}

impl NewService {
    /// What it may do.
    pub fn scopes(&self) -> Scopes {
        self.scopes.0.iter().copied().collect()
    }
}

/// One scope or more.
#[derive(Debug)]
pub struct ScopesIn(Vec<Scope>);

impl<'de> Deserialize<'de> for ScopesIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let scopes = Vec::<Text<1, 32>>::deserialize(deserializer)?;
        if scopes.is_empty() || scopes.len() > Scope::ALL.len() {
            return Err(D::Error::custom("must name 1 to 5 scopes"));
        }
        let scopes = scopes.iter().map(|scope| scope.as_str().parse());
        scopes
            .collect::<Result<_, String>>()
            .map(Self)
            .map_err(|what| D::Error::custom(format!("is not right: {what}")))
    }
}

/// One model or more.
#[derive(Debug)]
pub struct ModelsIn(Vec<String>);

impl<'de> Deserialize<'de> for ModelsIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let models = Vec::<Text<1, 256>>::deserialize(deserializer)?;
        if models.is_empty() || models.len() > MODELS_MAX {
            return Err(D::Error::custom(format!("must name 1 to {MODELS_MAX} models")));
        }
        Ok(Self(models.into_iter().map(Text::into_string).collect()))
    }
}

/// The body of `POST /v1/api_keys/{id}/rotate`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(example = json!({"overlap": 3600}))]
pub struct Rotate {
    /// Seconds for which the key in use still holds beside the new one, up to 30 days (0).
    #[schema(value_type = Option<u32>, minimum = 0, maximum = 2_592_000, default = 0)]
    pub overlap: Option<Whole<0, OVERLAP_MAX>>,
}

impl Rotate {
    /// Seconds.
    pub fn overlap(&self) -> u32 {
        self.overlap.map_or(0, |seconds| seconds.get() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<NewKey, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn scopes_are_read_by_name_and_unknown_ones_are_told_the_known() {
        let key = read(r#"{"name": "ci", "scopes": ["jobs:read", "batches"]}"#).unwrap();
        assert!(key.grant().scopes.contain(Scope::Batches));
        for bad in [r#"["everything"]"#, "[]", r#""jobs:read""#, "[null]"] {
            assert!(read(&format!(r#"{{"name": "ci", "scopes": {bad}}}"#)).is_err(), "{bad}");
        }
        let told = read(r#"{"name": "ci", "scopes": ["root"]}"#).unwrap_err();
        assert!(told.contains("jobs:read, jobs:write"), "{told}");
    }

    #[test]
    fn nothing_but_the_named_fields_can_be_set() {
        for field in ["user_id", "project_id", "usage_count", "revoked_at", "hint"] {
            let body = format!(r#"{{"name": "ci", "scopes": ["batches"], "{field}": 1}}"#);
            assert!(read(&body).unwrap_err().contains("unknown field"), "{field}");
        }
    }

    #[test]
    fn an_end_in_the_past_or_far_ahead_is_refused() {
        let now = OffsetDateTime::now_utc();
        for (ahead, holds) in [
            (-1, false),
            (0, false),
            (60, true),
            (400 * 86_400, true),
            (4000 * 86_400, false),
        ] {
            let at = now.unix_timestamp() + ahead;
            let key = read(&format!(
                r#"{{"name": "ci", "scopes": ["batches"], "expires_at": {at}}}"#
            ))
            .unwrap();
            assert_eq!(key.expiry(now).is_ok(), holds, "{ahead}");
        }
    }
}
