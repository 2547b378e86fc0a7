//! How a change of many jobs answers.

use claimcheck_common::store::selection::Chunk;
use serde::Serialize;
use utoipa::ToSchema;

use crate::refusal;

/// How far it has come. While `has_more`, send the same request again with `after` set to `last_id`.
#[derive(Debug, Serialize, ToSchema)]
pub struct BulkBody {
    /// Always `bulk`.
    pub object: &'static str,
    /// Jobs that it was done to, in this call.
    pub count: u64,
    /// Where the next call goes on.
    #[schema(required)]
    pub last_id: Option<String>,
    /// Whether there may be more.
    pub has_more: bool,
    /// `quota_exceeded`: the next job would have been one more than may wait; go on when some have run. `budget_exceeded`: a budget
    /// has too little left for it.
    #[schema(required)]
    pub stopped_by: Option<&'static str>,
}

impl From<Chunk> for BulkBody {
    fn from(chunk: Chunk) -> Self {
        Self {
            object: "bulk",
            count: chunk.count,
            last_id: chunk.last.map(|id| id.to_string()),
            has_more: chunk.has_more,
            stopped_by: chunk.refused.as_ref().map(refusal::code),
        }
    }
}
