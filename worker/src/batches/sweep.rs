//! Clears away the objects of files that were deleted, whose time is over, or whose upload was given up.

use std::time::Duration;

use claimcheck_common::files::FileStore;
use claimcheck_common::store::{Pool, files};

use super::{BatchError, error_chain};

const PERIOD: Duration = Duration::from_mins(1);

pub(super) async fn repeat(pool: Pool, store: FileStore) {
    loop {
        if let Err(error) = sweep(&pool, &store).await {
            let error = error_chain(&error);
            tracing::warn!(error, "files could not be cleared away and will be later");
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// The object goes before its row: what is left half-way is found again.
async fn sweep(pool: &Pool, store: &FileStore) -> Result<(), BatchError> {
    loop {
        let due = files::sweep(pool).await?;
        if due.is_empty() {
            return Ok(());
        }
        for id in due {
            store.discard(id).await?;
            files::forget(pool, id).await?;
        }
    }
}
