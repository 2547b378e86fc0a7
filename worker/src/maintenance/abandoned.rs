//! Jobs whose callers waited at an open connection and hung up are cancelled (`common/src/store/attend.rs`).

use claimcheck_common::store::{Pool, StoreResult, attend};

/// Cancels one chunk.
pub(super) async fn cancel_abandoned(pool: &Pool) -> StoreResult<u64> {
    let abandoned = attend::cancel_abandoned(pool).await?;
    metrics::counter!("claimcheck_jobs_abandoned_total").increment(abandoned.cancelled);
    Ok(abandoned.lapsed)
}
