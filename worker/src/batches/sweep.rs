//! Clears away the objects of files that were deleted, whose time is over, or whose upload was given up.

use std::time::Duration;

use claimcheck_common::files::FileStore;
use claimcheck_common::store::Pool;
use claimcheck_common::store::files::{self, Swept};

use super::{BatchError, error_chain};

const PERIOD: Duration = Duration::from_mins(1);

pub(super) async fn repeat(pool: Pool, store: FileStore) {
    loop {
        if let Err(error) = sweep(&pool, &store).await {
            let error = error_chain(&error);
            tracing::warn!(error, "files could not be looked for and will be later");
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// The object goes before its row: what is left half-way is found again. What cannot be removed waits for the next time, and
/// holds up nothing behind it.
async fn sweep(pool: &Pool, store: &FileStore) -> Result<(), BatchError> {
    let mut after = None;
    loop {
        let due = files::sweep(pool, after).await?;
        if due.is_empty() {
            return Ok(());
        }
        after = due.iter().max().copied();
        let mut failed = 0;
        let mut last = None;
        for Swept { id, .. } in due {
            match store.discard(id).await {
                Ok(()) => files::forget(pool, id).await?,
                Err(error) => {
                    failed += 1;
                    last = Some((id, error));
                }
            }
        }
        if let Some((file, error)) = last {
            let error = error_chain(&error);
            tracing::warn!(failed, %file, error, "files could not be cleared away and will be later");
        }
    }
}
