//! `GET /v1/usage`: what the caller's project used, by day, API key and model. The sum of its receipts, to the token.

use axum::Json;
use axum::extract::State;
use claimcheck_common::domain::ApiKeyId;
use claimcheck_common::store::budgets;
use claimcheck_common::store::receipts::{self, DayUsage, UsageFilter};
use serde::Serialize;
use time::format_description::well_known::Iso8601;
use time::{Date, Duration, OffsetDateTime};
use utoipa::ToSchema;

use crate::app::AppState;
use crate::docs::{NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody};
use crate::extract::{Caller, Query};
use crate::validate::text::check;
use crate::view::BudgetBody;

/// Days that one answer covers at most, and unless asked otherwise.
const DAYS_MAX: i64 = 92;
const DAYS_DEFAULT: i64 = 30;

/// What was used.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageList {
    /// Always `list`.
    pub object: &'static str,
    /// By day, API key and model, the oldest day first.
    pub data: Vec<DayUsageBody>,
    /// All of `data` together.
    pub total: UsageTotal,
    /// What the organization may use now, whatever is filtered; null for as much as comes.
    #[schema(required)]
    pub budget: Option<BudgetBody>,
}

/// What was used on one day by one API key of one model.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DayUsage)]
pub struct DayUsageBody {
    /// The day (UTC) on which the jobs ended, as `2026-11-25`.
    pub day: String,
    /// The API key that they came by; null with access tokens.
    #[schema(required)]
    pub api_key_id: Option<String>,
    /// The model's name.
    pub model: String,
    /// What they used.
    #[serde(flatten)]
    pub used: UsageTotal,
}

/// Jobs that ended, and what they cost.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct UsageTotal {
    /// Jobs that ended, however they did.
    pub jobs: u64,
    /// Tokens of the prompts of those with an output.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// Shares of the device's time.
    pub device_seconds: f64,
}

/// Get usage
///
/// Days are those of UTC on which jobs ended. Without `from` and `to`, the last 30 days.
#[utoipa::path(get, path = "/v1/usage", tag = "Jobs",
    params(
        ("from" = Option<String>, Query, description = "The first day, as `2026-11-01`"),
        ("to" = Option<String>, Query, description = "The last day (today), at most 91 after `from`"),
        ("model" = Option<String>, Query, description = "Only of this model"),
        ("api_key_id" = Option<String>, Query, description = "Only of this API key"),
    ),
    responses(
        (status = 200, body = UsageList, description = "By day, API key and model"),
        (status = 400, body = ErrorBody, description = "A parameter is unknown or does not read, or the days are too many"),
        NeedsToken, Trouble,
    ))]
pub async fn usage(State(state): State<AppState>, caller: Caller, query: Query) -> Result<Json<UsageList>, ApiError> {
    let query = query.only(&["from", "to", "model", "api_key_id"])?;
    let to = query
        .get("to", day)?
        .unwrap_or_else(|| OffsetDateTime::now_utc().date());
    let from = query.get("from", day)?;
    let from = from.map_or_else(|| earlier(to, DAYS_DEFAULT), Ok)?;
    if from > to || to - from >= Duration::days(DAYS_MAX) {
        let message = format!(
            "`from` must be a day before `to`, or the same, and at most {} days before.",
            DAYS_MAX - 1
        );
        return Err(ApiError::invalid("from", message));
    }
    let filter = UsageFilter {
        from,
        to,
        model: query.get("model", |text| check(text, 1, 256).map(|()| text.to_owned()))?,
        api_key_id: query.get("api_key_id", |text| {
            text.parse::<ApiKeyId>()
                .map_err(|_| "must be an API key's id (`key_…`)".to_owned())
        })?,
    };
    let days = receipts::usage(&state.pool, caller.project_id, &filter).await?;
    let budget = budgets::find(&state.pool, vec![caller.tenant_id.uuid()]).await?;
    let data = days.iter().map(DayUsageBody::try_from).collect::<Result<Vec<_>, _>>();
    let data = data.map_err(ApiError::internal)?;
    let total = data
        .iter()
        .fold(UsageTotal::default(), |total, one| total.and(one.used));
    Ok(Json(UsageList {
        object: "list",
        data,
        total,
        budget: budget.into_values().next().map(BudgetBody::from),
    }))
}

fn day(text: &str) -> Result<Date, String> {
    // The format also knows other ways of writing a day.
    let plain = text.len() == "2026-11-25".len() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    let read = Date::parse(text, &Iso8601::DATE).ok().filter(|_| plain);
    read.ok_or_else(|| "must be a day as `2026-11-25`".to_owned())
}

fn earlier(day: Date, days: i64) -> Result<Date, ApiError> {
    let first = day.checked_sub(Duration::days(days - 1));
    first.ok_or_else(|| ApiError::invalid("to", "`to` is too early a day."))
}

impl UsageTotal {
    fn and(self, other: Self) -> Self {
        Self {
            jobs: self.jobs + other.jobs,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            completion_tokens: self.completion_tokens + other.completion_tokens,
            total_tokens: self.total_tokens + other.total_tokens,
            device_seconds: self.device_seconds + other.device_seconds,
        }
    }
}

impl TryFrom<&DayUsage> for DayUsageBody {
    type Error = time::error::Format;

    fn try_from(usage: &DayUsage) -> Result<Self, Self::Error> {
        Ok(Self {
            day: usage.day.format(&Iso8601::DATE)?,
            api_key_id: usage.api_key_id.map(|id| id.to_string()),
            model: usage.model.clone(),
            used: UsageTotal {
                jobs: usage.jobs,
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: usage.completion_tokens,
                total_tokens: usage.prompt_tokens + usage.completion_tokens,
                device_seconds: usage.device_seconds,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_reads_in_one_form_only() {
        assert_eq!(day("2026-11-25").unwrap().to_string(), "2026-11-25");
        for bad in [
            "",
            "2026-11-31",
            "20261125",
            "2026-W48-3",
            "25.11.2026",
            "2026-11-25T00:00:00Z",
            "1764028800",
        ] {
            assert!(day(bad).is_err(), "{bad}");
        }
    }
}
