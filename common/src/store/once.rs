//! Carrying a request out once: what it does and the answer that its repetition gets are one transaction. Submits do the
//! same for a whole group (`submit.rs`).

use std::sync::Arc;

use futures::future::BoxFuture;
use sqlx::PgConnection;

use super::idempotency::{self, Answer, Before, Claim, Kept};
use super::{Pool, StoreResult, transaction};
use crate::domain::JobId;

/// What became of a request that is carried out once.
#[derive(Debug)]
pub enum Once<T> {
    /// It was carried out now, or refused.
    Done(T),
    /// It came before.
    Before(Before),
}

/// What is kept of a request that was carried out: the job that it made, if it made a single one, and its answer.
pub type Carried = (Option<JobId>, Answer);

/// Carries `work` out under `claim`; without one, each request stands for itself. `answer` says what a repetition gets: `None`
/// for a refusal, which is decided anew each time.
pub(super) async fn once<T, W, A>(pool: &Pool, claim: Option<Claim>, answer: A, work: W) -> StoreResult<Once<T>>
where
    T: Send + Sync + 'static,
    W: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, StoreResult<T>> + Send + Sync + 'static,
    A: Fn(&T) -> Option<Carried> + Send + Sync + 'static,
{
    let shared = Arc::new((claim, answer, work));
    transaction(pool, move |connection| {
        let shared = shared.clone();
        Box::pin(async move {
            let (claim, answer, work) = &*shared;
            if let Some(claim) = claim
                && let Some(before) = idempotency::take_one(connection, claim).await?
            {
                return Ok(Once::Before(before));
            }
            let done = work(connection).await?;
            if let (Some(claim), Some((job_id, answer))) = (claim, answer(&done)) {
                let kept = Kept { claim, job_id, answer };
                idempotency::keep_answers(connection, &[kept]).await?;
            }
            Ok(Once::Done(done))
        })
    })
    .await
}

/// As [`once`], for what is made, or refused with `None`: a repetition is answered with what `render` shows of it.
pub(super) async fn make_once<T, R, W>(
    pool: &Pool,
    claim: Option<Claim>,
    render: R,
    work: W,
) -> StoreResult<Once<Option<T>>>
where
    T: Send + Sync + 'static,
    R: Fn(&T) -> Answer + Send + Sync + 'static,
    W: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, StoreResult<Option<T>>> + Send + Sync + 'static,
{
    let answer = move |made: &Option<T>| made.as_ref().map(|made| (None, render(made)));
    once(pool, claim, answer, work).await
}
