//! Acknowledging many deliveries by few frames.

use std::time::Duration;

use claimcheck_common::domain::JobId;
use claimcheck_common::queue::{Acker, JobMessage, Publisher, Subscription, acknowledge};
use claimcheck_tests::{World, in_world};
use futures::future::join_all;

use crate::store::{queue, receive};

const LEASE: Duration = Duration::from_secs(30);

pub(crate) async fn publish(world: &World, jobs: usize) -> Vec<JobId> {
    let ids: Vec<_> = (0..jobs).map(|_| JobId::new()).collect();
    let messages: Vec<_> = ids.iter().map(|id| JobMessage::new(*id, None)).collect();
    let mut publisher = Publisher::connect(world.broker()).await.unwrap();
    publisher.publish(&queue(), &messages).await.unwrap();
    ids
}

pub(crate) async fn subscribe(world: &World) -> Subscription {
    Subscription::open(&world.broker(), &[queue()], 200, LEASE)
        .await
        .unwrap()
}

pub(crate) async fn next(subscription: &mut Subscription) -> (JobId, Acker) {
    let delivery = receive(subscription).await;
    (delivery.message.unwrap().id(), delivery.acker)
}

/// A fixed disorder: each of the places below 101 once, since that is a prime.
fn shuffled(ackers: Vec<Acker>) -> Vec<Acker> {
    assert_eq!(ackers.len(), 100);
    let mut ackers: Vec<_> = ackers.into_iter().map(Some).collect();
    (1..=100).filter_map(|n| ackers[(n * 37) % 101 - 1].take()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_in_any_order_and_groups_is_gone_and_nothing_else() {
    in_world(async |world| {
        let ids = publish(world, 101).await;
        let mut subscription = subscribe(world).await;
        let mut ackers = Vec::new();
        for id in &ids {
            let (received, acker) = next(&mut subscription).await;
            assert_eq!(received, *id);
            ackers.push(acker);
        }
        // This one stays open while others before and behind it are acknowledged.
        let open = ackers.remove(70);
        let mut groups: Vec<Vec<Acker>> = Vec::new();
        for (place, acker) in shuffled(ackers).into_iter().enumerate() {
            match groups.last_mut() {
                Some(group) if place % 7 != 0 => group.push(acker),
                _ => groups.push(vec![acker]),
            }
        }
        let tasks = groups.into_iter().map(|group| tokio::spawn(acknowledge(group)));
        for done in join_all(tasks).await {
            done.unwrap().unwrap();
        }
        // A channel that was told of one delivery twice would be closed by now.
        let [more] = publish(world, 1).await[..] else {
            unreachable!()
        };
        let (received, acker) = next(&mut subscription).await;
        assert_eq!(received, more);
        acknowledge(vec![acker]).await.unwrap();
        drop((open, subscription));
        let mut subscription = subscribe(world).await;
        let (again, acker) = next(&mut subscription).await;
        assert_eq!(again, ids[70]);
        acknowledge(vec![acker]).await.unwrap();
        let [last] = publish(world, 1).await[..] else {
            unreachable!()
        };
        assert_eq!(next(&mut subscription).await.0, last, "nothing else came again");
    })
    .await;
}
