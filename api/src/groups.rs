//! Doing together what comes together: whoever arrives while others are served is served next, all at once.
//!
//! Nobody waits for company: an arrival at an idle door is served at once. Under load a group holds whatever has come
//! meanwhile. Must never know what is done.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

/// How a door is kept.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Arrivals that may wait; a full door holds its callers back.
    pub waiting: usize,
    /// Most arrivals in one group.
    pub group: usize,
    /// Groups that are served at the same time.
    pub lanes: usize,
}

/// Opens a door and answers where to arrive. It closes with the last sender. Must be called within a runtime.
///
/// `serve` runs in a task of its own for each group, so that a panic costs that group alone. Its end lets the next group in.
pub fn open<T, S, F>(limits: Limits, serve: S) -> mpsc::Sender<T>
where
    T: Send + 'static,
    S: Fn(Vec<T>) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (door, mut arrivals) = mpsc::channel(limits.waiting);
    let lanes = Arc::new(Semaphore::new(limits.lanes));
    tokio::spawn(async move {
        // First a free lane, then whoever has come by then: that is what makes groups.
        while let Ok(lane) = lanes.clone().acquire_owned().await {
            let mut group = Vec::new();
            if arrivals.recv_many(&mut group, limits.group).await == 0 {
                return;
            }
            let serving = serve(group);
            tokio::spawn(async move {
                serving.await;
                drop(lane);
            });
        }
    });
    door
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    const LIMITS: Limits = Limits {
        waiting: 16,
        group: 4,
        lanes: 1,
    };

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
