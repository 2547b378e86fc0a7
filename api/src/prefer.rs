//! `Prefer: wait=N` (RFC 7240, section 4.3) on a submit: the answer is the ended job, if it ends soon enough.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use claimcheck_common::store::jobs::JobView;
use tokio::time::Instant;

use crate::app::AppState;
use crate::error::ApiError;
use crate::extract::Caller;
use crate::idempotent::answered;
use crate::routes::submit_job::render;
use crate::view::JobBody;
use crate::waiting::until_ended;

/// A submit keeps its place among the open requests for so long at most; `GET /v1/jobs/{id}?wait=` goes on from there.
const WAIT_MAX: u32 = 25;
const PREFER: &str = "prefer";
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// Seconds that the caller would rather wait than be told where to look. What does not read is no preference.
pub fn wait(headers: &HeaderMap) -> Option<u32> {
    let values = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    let preferences = values.flat_map(|value| value.split([',', ';']));
    let seconds = preferences
        .filter_map(|preference| preference.split_once('='))
        .find_map(|(name, value)| {
            let value = value.trim().trim_matches('"');
            name.trim()
                .eq_ignore_ascii_case("wait")
                .then(|| value.parse::<u32>().ok())
        });
    seconds.flatten().map(|seconds| seconds.min(WAIT_MAX))
}

/// 200 with the job if it ends within so many seconds, else the 202 of a submit.
pub async fn ended_within(state: &AppState, caller: &Caller, job: JobView, wait: u32) -> Result<Response, ApiError> {
    let deadline = Instant::now() + Duration::from_secs(wait.into());
    let now = until_ended(state, caller.project_id, job.key.id, deadline).await?;
    let mut response = if now.status.is_terminal() {
        axum::Json(JobBody::from(&now)).into_response()
    } else {
        answered(render(&now))?
    };
    let applied = HeaderValue::from_str(&format!("wait={wait}")).map_err(ApiError::internal)?;
    response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preference_is_found_among_others_and_bounded() {
        let read = |value: &'static str| {
            wait(&HeaderMap::from_iter([(
                HeaderName::from_static(PREFER),
                HeaderValue::from_static(value),
            )]))
        };
        assert_eq!(read("wait=10"), Some(10));
        assert_eq!(read("respond-async, Wait = \"7\""), Some(7));
        assert_eq!(read("wait=9999"), Some(WAIT_MAX));
        for nothing in ["", "wait", "wait=soon", "return=minimal", "wait=-1"] {
            assert_eq!(read(nothing), None, "{nothing}");
        }
    }
}
