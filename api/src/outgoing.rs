//! What commits of this process wrote to the outbox: wakes the relay and tells it where to look. A hint and no more: the relay
//! finds every row by itself within its interval.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use claimcheck_common::domain::QueueName;
use tokio::sync::Notify;

/// Written by whoever commits, taken by the relay.
#[derive(Clone, Default)]
pub struct Outgoing {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    fresh: Mutex<Fresh>,
    wake: Notify,
}

#[derive(Default)]
struct Fresh {
    queues: BTreeSet<QueueName>,
    anywhere: bool,
}

/// Where rows are that may go.
#[derive(Debug, PartialEq, Eq)]
pub enum Where {
    /// In these queues.
    Queues(BTreeSet<QueueName>),
    /// Nobody knows.
    Anywhere,
}

impl Outgoing {
    /// This queue has a new row.
    pub fn to(&self, queue: QueueName) {
        self.tell(|fresh| {
            fresh.queues.insert(queue);
        });
    }

    /// Some queue may have new rows, or rows that wait may go now.
    pub fn anywhere(&self) {
        self.tell(|fresh| fresh.anywhere = true);
    }

    /// Waits until there is something to look at. What comes while the relay looks is for its next turn.
    pub async fn next(&self) -> Where {
        loop {
            if let Some(found) = self.take() {
                return found;
            }
            self.shared.wake.notified().await;
        }
    }

    /// As [`Self::next`], without waiting.
    pub fn take(&self) -> Option<Where> {
        let fresh = std::mem::take(&mut *self.shared.fresh.lock().unwrap_or_else(PoisonError::into_inner));
        if fresh.anywhere {
            return Some(Where::Anywhere);
        }
        (!fresh.queues.is_empty()).then_some(Where::Queues(fresh.queues))
    }

    fn tell(&self, how: impl FnOnce(&mut Fresh)) {
        how(&mut self.shared.fresh.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use claimcheck_common::domain::Class;

    use super::*;

    fn queue(class: Class) -> QueueName {
        QueueName {
            model: "gpt2".to_owned(),
            class,
        }
    }

    #[tokio::test]
    async fn each_queue_is_told_once_and_whoever_knows_none_sends_the_relay_everywhere() {
        let outgoing = Outgoing::default();
        for class in [Class::Batch, Class::Interactive, Class::Batch] {
            outgoing.to(queue(class));
        }
        let both = Class::ALL.map(queue).into();
        assert_eq!(outgoing.next().await, Where::Queues(both));
        assert_eq!(outgoing.take(), None);
        outgoing.to(queue(Class::Batch));
        outgoing.anywhere();
        assert_eq!(outgoing.next().await, Where::Anywhere);
        assert_eq!(outgoing.take(), None, "everywhere is also there");
    }

    #[tokio::test]
    async fn the_relay_that_waits_is_woken() {
        let outgoing = Outgoing::default();
        let waiting = tokio::spawn({
            let outgoing = outgoing.clone();
            async move { outgoing.next().await }
        });
        tokio::task::yield_now().await;
        outgoing.to(queue(Class::Batch));
        assert_eq!(waiting.await.unwrap(), Where::Queues([queue(Class::Batch)].into()));
    }
}
