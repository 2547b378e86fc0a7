//! Doing together what comes together: whoever arrives while others are served is served next, all at once.
//!
//! An arrival at an idle door is served at once. Under load a group holds whatever has come meanwhile, and then the door rests
//! a moment (`common/src/pace.rs`). Must never know what is done.

use std::mem::take;
use std::panic::AssertUnwindSafe;

use claimcheck_common::pace::Pace;
use futures::FutureExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How a door is kept.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Arrivals that may wait; a full door holds its callers back.
    pub waiting: usize,
    /// Most arrivals in one group.
    pub group: usize,
}

/// Opens a door and answers where to arrive. It closes with the last sender. Must be called within a runtime.
///
/// `serve` has one group at a time, so that more come together in the next. A panic costs its group alone.
pub fn open<T, S, F>(limits: Limits, serve: S) -> mpsc::Sender<T>
where
    T: Send + 'static,
    S: Fn(Vec<T>) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (door, mut arrivals) = mpsc::channel(limits.waiting);
    tokio::spawn(async move {
        let (mut group, mut pace) = (Vec::new(), Pace::default());
        while arrivals.recv_many(&mut group, limits.group).await > 0 {
            pace.turned(Instant::now(), group.len());
            let served = async { serve(take(&mut group)).await };
            if AssertUnwindSafe(served).catch_unwind().await.is_err() {
                tracing::error!("a group was dropped by a panic");
            }
            pace.rest().await;
        }
    });
    door
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    const LIMITS: Limits = Limits { waiting: 16, group: 4 };

    #[tokio::test]
    async fn the_first_goes_at_once_and_those_behind_it_go_together() {
        let (seen, mut groups) = mpsc::channel(16);
        let door = open(LIMITS, move |group: Vec<oneshot::Receiver<()>>| {
            let seen = seen.clone();
            async move {
                seen.send(group.len()).await.unwrap();
                for arrival in group {
                    let _ = arrival.await;
                }
            }
        });
        let (go, first) = oneshot::channel();
        door.send(first).await.unwrap();
        assert_eq!(groups.recv().await, Some(1));
        for _ in 0..6 {
            let (_, gone) = oneshot::channel();
            door.send(gone).await.unwrap();
        }
        go.send(()).unwrap();
        assert_eq!((groups.recv().await, groups.recv().await), (Some(4), Some(2)));
    }

    #[tokio::test]
    async fn a_group_that_panics_takes_nobody_else_along() {
        let door = open(LIMITS, |group: Vec<(bool, oneshot::Sender<()>)>| async move {
            for (bad, answer) in group {
                assert!(!bad, "doctored");
                answer.send(()).unwrap();
            }
        });
        let (answer, dropped) = oneshot::channel();
        door.send((true, answer)).await.unwrap();
        assert!(dropped.await.is_err());
        let (answer, served) = oneshot::channel();
        door.send((false, answer)).await.unwrap();
        served.await.unwrap();
    }
}
