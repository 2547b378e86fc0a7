//! The bodies of requests that speak of many jobs at once.

use claimcheck_common::domain::{JobId, JobStatus, TenantId};
use claimcheck_common::store::dead_letters::RedriveFilter;
use claimcheck_common::store::selection::Selection;
use serde::Deserialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::job::Metadata;
use super::number::UnixTime;
use super::text::Text;
use crate::error::ApiError;
use crate::extract::Caller;
use crate::view::StatusSchema;

/// Which jobs. Fields that are null or absent do not narrow; `{}` is all of the project's.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(example = json!({"status": "queued", "metadata": {"order": "17"}}))]
pub struct SelectJobs {
    /// Jobs in this state.
    #[schema(value_type = Option<StatusSchema>)]
    pub status: Option<JobStatus>,
    /// Jobs of this model.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 256)]
    pub model: Option<Text<1, 256>>,
    /// Jobs that carry all these notes.
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub metadata: Option<Metadata>,
    /// Jobs accepted at this Unix time or later.
    #[schema(value_type = Option<i64>)]
    pub created_after: Option<UnixTime>,
    /// Jobs accepted before this Unix time.
    #[schema(value_type = Option<i64>)]
    pub created_before: Option<UnixTime>,
    /// Jobs of this tenant; for admins.
    #[schema(value_type = Option<String>)]
    pub tenant: Option<TenantId>,
    /// The `last_id` of the answer before: goes on from there.
    #[schema(value_type = Option<String>)]
    pub after: Option<JobId>,
}

/// Which dead letters. Fields that are null or absent do not narrow.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(example = json!({"reason": "attempts_exhausted"}))]
pub struct SelectDeadLetters {
    /// Of this model.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 256)]
    pub model: Option<Text<1, 256>>,
    /// For this reason.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 64)]
    pub reason: Option<Text<1, 64>>,
    /// Of this tenant.
    #[schema(value_type = Option<String>)]
    pub tenant: Option<TenantId>,
    /// Failed at this Unix time or later.
    #[schema(value_type = Option<i64>)]
    pub created_after: Option<UnixTime>,
    /// Failed before this Unix time.
    #[schema(value_type = Option<i64>)]
    pub created_before: Option<UnixTime>,
    /// The `last_id` of the answer before: goes on from there.
    #[schema(value_type = Option<String>)]
    pub after: Option<JobId>,
}

impl SelectJobs {
    /// Narrows to what `caller` may touch: the own project, or for admins the tenant that they name.
    pub fn into_selection(self, caller: &Caller) -> Result<Selection, ApiError> {
        if self.tenant.is_some() {
            caller.must_be_admin()?;
        }
        Ok(Selection {
            project: self.tenant.is_none().then_some(caller.project_id),
            tenant: Some(self.tenant.unwrap_or(caller.tenant_id)),
            status: self.status,
            model: self.model.map(Text::into_string),
            metadata: self.metadata.map(|metadata| metadata.0),
            created_after: time(self.created_after)?,
            created_before: time(self.created_before)?,
            after: self.after,
        })
    }
}

impl SelectDeadLetters {
    /// The checked filter.
    pub fn into_filter(self) -> Result<RedriveFilter, ApiError> {
        Ok(RedriveFilter {
            tenant: self.tenant,
            model: self.model.map(Text::into_string),
            reason: self.reason.map(Text::into_string),
            created_after: time(self.created_after)?,
            created_before: time(self.created_before)?,
            after: self.after,
        })
    }
}

fn time(seconds: Option<UnixTime>) -> Result<Option<OffsetDateTime>, ApiError> {
    seconds
        .map(|seconds| OffsetDateTime::from_unix_timestamp(seconds.get()))
        .transpose()
        .map_err(ApiError::internal)
}
