//! Messages that tell of several jobs: acknowledged with the last of these, and counted where the broker lost some.

use claimcheck_common::domain::{JobId, WorkerId};
use claimcheck_common::queue::{JobMessage, Publisher, Subscription, acknowledge};
use claimcheck_common::store::outbox::{self, Look};
use claimcheck_common::store::{claim, rescue};
use claimcheck_tests::in_world;
use futures::future::join_all;

use crate::queue_acks::{next, publish, subscribe};
use crate::store::{LEASE, accept, account, claim_one, count, new_job, queue, receive, relay_everything, submitted};

/// Jobs a second at which messages are as large as they may be.
const MANY: usize = 10_000;

#[tokio::test]
async fn what_the_broker_lost_is_counted_by_messages_though_they_tell_of_several_jobs() {
    in_world(async |world| {
        let pool = &world.pool;
        let account = account(pool).await;
        for _ in 0..64 {
            accept(pool, new_job(&account)).await;
        }
        let mut transaction = pool.begin().await.unwrap();
        let rows = outbox::take(&mut transaction, &queue(), Look::All, 100, 100)
            .await
            .unwrap()
            .rows;
        let messages = JobMessage::of_group(rows.iter().map(|row| (row.job_id, None)), MANY);
        let mut publisher = Publisher::connect(world.broker()).await.unwrap();
        publisher.publish(&queue(), &messages).await.unwrap();
        let sent: Vec<_> = rows
            .chunks(4)
            .flat_map(|few| few.iter().map(|row| (row, few[0].job_id)))
            .collect();
        outbox::confirm(&mut transaction, &sent).await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!(world.broker().ready(&queue()).await.unwrap(), 16);
        world
            .execute_as_owner("UPDATE released SET released_at = released_at - interval '1 min'")
            .await;
        let messages = async || rescue::overdue_queues(pool, LEASE).await.unwrap()[0].messages;
        assert_eq!(messages().await, 16, "none is missing");

        let mut subscription = Subscription::open(&world.broker(), &[queue()], 4, LEASE).await.unwrap();
        let taken = receive(&mut subscription).await.message.unwrap();
        assert_eq!(taken.jobs().len(), 4);
        claim_one(pool, taken.id()).await.expect("it waits");
        assert_eq!(messages().await, 16, "three of its jobs still wait");
        let claimed = claim::claim(pool, WorkerId::new(), taken.jobs().to_vec(), LEASE).await;
        assert_eq!((claimed.unwrap().len(), messages().await), (3, 15));

        assert_eq!(rescue::reemit(pool, queue(), 2, LEASE).await.unwrap(), 8);
        let of_messages = "SELECT count(DISTINCT coalesce(message, job_id)) FROM released";
        assert_eq!(count(pool, of_messages).await, 13, "whole messages were taken back");
    })
    .await;
}

#[tokio::test]
async fn a_job_that_came_back_before_its_message_was_recorded_is_released_once() {
    in_world(async |world| {
        submitted(&world.pool).await;
        world
            .execute_as_owner(
                "INSERT INTO outbox (job_id, model, class, tenant_id, priority) SELECT id, model, class, tenant_id, priority FROM jobs",
            )
            .await;
        relay_everything(world).await;
        assert_eq!(count(&world.pool, "SELECT count(*) FROM released").await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_several_jobs_is_acknowledged_with_the_last_of_them() {
    in_world(async |world| {
        let ids: Vec<_> = (0..32).map(|_| JobId::new()).collect();
        let messages = JobMessage::of_group(ids.iter().map(|id| (*id, None)), MANY);
        let mut publisher = Publisher::connect(world.broker()).await.unwrap();
        publisher.publish(&queue(), &messages[..2]).await.unwrap();

        let mut subscription = subscribe(world).await;
        let mut shares = async || {
            let delivery = receive(&mut subscription).await;
            let jobs = delivery.message.unwrap().jobs().to_vec();
            let shares = jobs.iter().map(|_| delivery.acker.clone()).collect::<Vec<_>>();
            (jobs, shares)
        };
        let ((first, ended), (second, mut open)) = (shares().await, shares().await);
        assert_eq!([first, second.clone()].concat(), ids[..2 * JobMessage::MOST_JOBS]);
        let last = open.pop();
        join_all(ended.into_iter().chain(open).map(|share| acknowledge(vec![share])))
            .await
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        drop((last, subscription));

        let mut subscription = subscribe(world).await;
        let again = receive(&mut subscription).await;
        assert_eq!(again.message.unwrap().jobs(), second, "one of them had not ended");
        acknowledge(vec![again.acker]).await.unwrap();
        let [last] = publish(world, 1).await[..] else {
            unreachable!()
        };
        assert_eq!(next(&mut subscription).await.0, last, "nothing else came again");
    })
    .await;
}
