//! Jobs whose lease ran out go back to the outbox or to their end (`common/src/store/rescue.rs` decides which).

use claimcheck_common::store::rescue;
use claimcheck_common::store::{Pool, StoreResult};

/// Takes one chunk from silent workers.
pub(super) async fn rescue_lapsed(pool: &Pool) -> StoreResult<u64> {
    let rescued = rescue::rescue_lapsed(pool).await?;
    let all = rescued.requeued + rescued.ended;
    if all > 0 {
        tracing::warn!(
            requeued = rescued.requeued,
            ended = rescued.ended,
            "rescued jobs of silent workers"
        );
        metrics::counter!("claimcheck_rescued_total", "to" => "queued").increment(rescued.requeued);
        metrics::counter!("claimcheck_rescued_total", "to" => "ended").increment(rescued.ended);
    }
    Ok(all)
}
