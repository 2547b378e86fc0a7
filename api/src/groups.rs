//! Doing together what comes together: whoever arrives while others are served is served next, all at once.
//!
//! An arrival at an idle door is served at once. Under load a group holds whatever has come meanwhile, and then the door rests
//! a moment (`common/src/pace.rs`), unless so many are waiting already that a rest would gain nothing. Must never know what is done.

use std::panic::AssertUnwindSafe;

use claimcheck_common::pace::Pace;
use futures::FutureExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A group of so many costs each of them hardly less if it grows: what serving costs by itself is shared out by then.
const ENOUGH: usize = 48;

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
        let mut pace = Pace::default();
        while let Some(group) = next(&mut arrivals, &pace, limits.group).await {
            pace.turned(Instant::now(), group.len());
            let served = async { serve(group).await };
            if AssertUnwindSafe(served).catch_unwind().await.is_err() {
                tracing::error!("a group was dropped by a panic");
            }
        }
    });
    door
}

/// Rests, unless enough come meanwhile, and takes what is there then. `None`: the door is closed.
async fn next<T>(arrivals: &mut mpsc::Receiver<T>, pace: &Pace, most: usize) -> Option<Vec<T>> {
    let mut group = Vec::new();
    tokio::select! {
        () = pace.rest() => {}
        () = fill(&mut group, arrivals, most.min(ENOUGH)) => {}
    }
    if group.is_empty() {
        group.push(arrivals.recv().await?);
    }
    while group.len() < most
        && let Ok(arrival) = arrivals.try_recv()
    {
        group.push(arrival);
    }
    Some(group)
}

/// Waits until a group has so many. What has come when it is dropped stays in the group.
async fn fill<T>(group: &mut Vec<T>, arrivals: &mut mpsc::Receiver<T>, enough: usize) {
    while group.len() < enough && arrivals.recv_many(group, enough - group.len()).await > 0 {}
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

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
    async fn a_rest_ends_when_enough_have_come() {
        let (door, mut arrivals) = mpsc::channel(64);
        let mut pace = Pace::default();
        pace.turned(Instant::now() + Duration::from_hours(1), 2);
        let most = ENOUGH + 8;
        for (waiting, served) in [(ENOUGH - 1, None), (ENOUGH, Some(ENOUGH)), (most + 1, Some(most))] {
            for _ in 0..waiting {
                door.try_send(()).unwrap();
            }
            let group = next(&mut arrivals, &pace, most).now_or_never().flatten();
            assert_eq!(group.map(|group| group.len()), served);
        }
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
