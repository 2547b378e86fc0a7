//! The push of cancels: a worker hears within milliseconds which running jobs it is to stop.
//!
//! A hint, like every notification: what is lost while nobody listens comes with the next heartbeat.

use sqlx::PgConnection;
use sqlx::postgres::PgListener;
use tokio_util::sync::CancellationToken;

use super::{Pool, StoreResult, notify};
use crate::backoff::Backoff;
use crate::domain::JobId;

const CHANNEL: &str = "claimcheck_cancels";

/// Tells all workers that these running jobs are to be stopped, at the commit of the caller's transaction.
pub(super) async fn requested(connection: &mut PgConnection, ids: &[JobId]) -> StoreResult<()> {
    notify::tell(connection, CHANNEL, ids).await
}

/// Calls `heard` for every job that is to be stopped, anybody's, until `stop` and through every failure of the database.
pub async fn listen(pool: Pool, heard: impl Fn(JobId) + Send, stop: CancellationToken) {
    let mut backoff = Backoff::default();
    let listening = async {
        loop {
            if let Err(error) = listen_once(&pool, &heard, &mut backoff).await {
                tracing::warn!(%error, "lost the connection that cancels are pushed on");
            }
            backoff.wait().await;
        }
    };
    let _stopped: Option<()> = stop.run_until_cancelled(listening).await;
}

async fn listen_once(pool: &Pool, heard: &(impl Fn(JobId) + Send), backoff: &mut Backoff) -> StoreResult<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        // `None`: the connection was made anew, and what came in between is left to the heartbeat.
        if let Some(notification) = listener.try_recv().await? {
            notify::told(notification.payload()).for_each(heard);
        }
        backoff.reset();
    }
}
