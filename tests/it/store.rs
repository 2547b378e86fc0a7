//! The delivery protocol, statement by statement, against the real Postgres and RabbitMQ.

use std::time::{Duration, Instant};

use claimcheck_api::outgoing::Outgoing;
use claimcheck_api::relay::Relay;
use claimcheck_common::domain::{
    Choice, Class, Completion, FinishReason, GenerationParams, JobError, JobId, JobKey, JobStatus, ModelRef, Price,
    ProjectId, Prompt, QueueName, Usage, UserId, WorkerId,
};
use claimcheck_common::queue::{Delivery, Subscription, acknowledge};
use claimcheck_common::store::accounts::{Account, NewUser};
use claimcheck_common::store::audit::Origin;
use claimcheck_common::store::idempotency::{Answer, Before, Claim, ClaimedBy};
use claimcheck_common::store::jobs::{JobFilter, JobView, Page};
use claimcheck_common::store::notify::{JobChanges, Of};
use claimcheck_common::store::outbox::OutboxRow;
use claimcheck_common::store::settle::{Settled, Settlement};
use claimcheck_common::store::submit::{JobOptions, NewJob, Submitted};
use claimcheck_common::store::{
    Pool, StoreError, accounts, cancels, claim, jobs, lease, outbox, rescue, retention, schedule, settle, submit,
};
use claimcheck_tests::{World, eventually, in_world};
use futures::FutureExt;
use sqlx::AssertSqlSafe;
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::http_face::announce;

pub(crate) const LEASE: Duration = Duration::from_secs(10);
pub(crate) const ATTEMPT: Duration = Duration::from_mins(10);
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn queue() -> QueueName {
    QueueName {
        model: "m".to_owned(),
        class: Class::Interactive,
    }
}

pub(crate) async fn account(pool: &Pool) -> Account {
    let username = format!("u{}", uuid::Uuid::now_v7().simple());
    let email = format!("{username}@example.org");
    accounts::register(
        pool,
        NewUser {
            username,
            email,
            password_hash: "hash".to_owned(),
        },
        Origin::default(),
    )
    .await
    .unwrap()
}

pub(crate) fn new_job(account: &Account) -> NewJob {
    NewJob {
        id: JobId::new(),
        tenant_id: account.tenant_id,
        project_id: account.project_id,
        user_id: account.user_id,
        api_key_id: None,
        model: ModelRef {
            name: "m".to_owned(),
            revision: "r".to_owned(),
        },
        requested_model: None,
        class: Class::Interactive,
        prompt: Prompt::Text("Once upon a time".to_owned()),
        prompt_tokens: 4,
        encoded: None,
        params: GenerationParams {
            max_tokens: 8,
            temperature: 0.7,
            top_p: 1.0,
            top_k: None,
            n: 1,
            stop: vec!["\n".to_owned()],
            seed: -7,
            ..GenerationParams::default()
        },
        metadata: Some([("k".to_owned(), "v".to_owned())].into()),
        scheduled_at: None,
        options: JobOptions::default(),
        queue_limit: None,
        price: Price::default(),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        webhook: None,
        origin: Origin::default(),
        hits: Vec::new(),
    }
}

pub(crate) async fn accept(pool: &Pool, job: NewJob) -> JobView {
    match submit::submit(pool, job, None, |_| Answer::default()).await.unwrap() {
        Submitted::Accepted(view, _) => *view,
        other => panic!("not accepted: {other:?}"),
    }
}

pub(crate) async fn submitted(pool: &Pool) -> JobView {
    let account = account(pool).await;
    accept(pool, new_job(&account)).await
}

pub(crate) async fn claimed(pool: &Pool) -> JobKey {
    let id = submitted(pool).await.key.id;
    claim_one(pool, id).await.expect("a queued job can be claimed")
}

pub(crate) async fn claim_one(pool: &Pool, id: JobId) -> Option<JobKey> {
    claim::claim(pool, WorkerId::new(), vec![id], LEASE)
        .await
        .unwrap()
        .first()
        .map(|job| job.key)
}

pub(crate) fn completion(text: &str) -> Completion {
    let choice = Choice {
        text: text.to_owned(),
        index: 0,
        finish_reason: Some(FinishReason::Stop),
        logprobs: None,
        tokens: Vec::new(),
    };
    Completion {
        choices: vec![choice],
        usage: Usage::new(4, 3),
    }
}

pub(crate) async fn settle_completed(pool: &Pool, key: JobKey, text: &str) -> Vec<JobKey> {
    settle::settle_group(
        pool,
        vec![Settlement::completed(key, completion(text))],
        "worker:test".to_owned(),
    )
    .await
    .unwrap()
    .iter()
    .map(|settled| settled.key)
    .collect()
}

pub(crate) async fn view(pool: &Pool, id: JobId) -> JobView {
    let project: uuid::Uuid = sqlx::query_scalar("SELECT project_id FROM jobs WHERE id = $1")
        .bind(id.uuid())
        .fetch_one(pool)
        .await
        .unwrap();
    jobs::get(pool, ProjectId::from_uuid(project), id)
        .await
        .unwrap()
        .expect("the job is there")
}

pub(crate) async fn count(pool: &Pool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

async fn lapse_all_leases(world: &World) {
    world
        .execute_as_owner(
            "UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE lease_expires_at IS NOT NULL",
        )
        .await;
}

/// Runs the relay until `world`'s outbox is empty.
pub(crate) async fn relay_everything(world: &World) {
    with_relay(world, Outgoing::default(), async || {
        eventually("the outbox is empty", LIMIT, async || {
            (outbox::depth(&world.pool).await.unwrap() == 0).then_some(())
        })
        .await;
    })
    .await;
}

async fn with_relay(world: &World, outgoing: Outgoing, work: impl AsyncFnOnce()) {
    with_relay_that_hears(world, JobChanges::default(), outgoing, work).await;
}

async fn with_relay_that_hears(world: &World, changes: JobChanges, outgoing: Outgoing, work: impl AsyncFnOnce()) {
    let stop = CancellationToken::new();
    let relay = Relay::new(
        world.pool.clone(),
        world.broker(),
        world.delivery.clone(),
        changes,
        outgoing,
    );
    let running = tokio::spawn(relay.run(stop.clone()));
    work().await;
    stop.cancel();
    running.await.unwrap();
}

/// Each row as if its job's message told of nothing else.
pub(crate) fn alone(rows: &[OutboxRow]) -> Vec<(&OutboxRow, JobId)> {
    rows.iter().map(|row| (row, row.job_id)).collect()
}

pub(crate) async fn receive(subscription: &mut Subscription) -> Delivery {
    tokio::time::timeout(LIMIT, subscription.next())
        .await
        .expect("a delivery in time")
        .unwrap()
}

#[tokio::test]
async fn a_job_goes_from_submit_through_the_broker_to_its_settled_output() {
    in_world(async |world| {
        let pool = &world.pool;
        let job = submitted(pool).await;
        assert_eq!((job.status, job.attempt), (JobStatus::Queued, 0));
        relay_everything(world).await;

        let mut subscription = Subscription::open(&world.broker(), &[queue()], 4, LEASE).await.unwrap();
        let delivery = receive(&mut subscription).await;
        let message = delivery.message.unwrap();
        assert_eq!(message.jobs(), [job.key.id]);
        assert_eq!(
            message.traceparent(),
            Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        );

        let claimed = claim::claim(pool, WorkerId::new(), message.jobs().to_vec(), LEASE)
            .await
            .unwrap()
            .remove(0);
        assert_eq!(claimed.prompt, Prompt::Text("Once upon a time".to_owned()));
        assert_eq!(claimed.params, new_job(&account(pool).await).params);
        assert_eq!(claimed.key.fence, 1);
        lease::mark_started(pool, vec![(claimed.key, Instant::now())])
            .await
            .unwrap();
        assert_eq!(settle_completed(pool, claimed.key, "there was").await, [claimed.key]);
        acknowledge(vec![delivery.acker]).await.unwrap();

        let ended = view(pool, job.key.id).await;
        assert_eq!(ended.status, JobStatus::Completed);
        assert_eq!(ended.choices.unwrap()[0].text, "there was");
        assert_eq!(ended.usage, Usage::new(4, 3));
        assert!(ended.started_at.is_some() && ended.finished_at.is_some());
        assert_eq!(
            count(pool, "SELECT count(*) FROM events WHERE type = 'job.completed'").await,
            1
        );
        assert_eq!(
            count(pool, "SELECT count(*) FROM audit_log WHERE action = 'job.completed'").await,
            1
        );
    })
    .await;
}

#[tokio::test]
async fn a_job_is_claimed_once_however_many_workers_try_together() {
    in_world(async |world| {
        let id = submitted(&world.pool).await.key.id;
        let tries = (0..16).map(|_| claim_one(&world.pool, id));
        let won = futures::future::join_all(tries).await.into_iter().flatten().count();
        assert_eq!(won, 1);
    })
    .await;
}

#[tokio::test]
async fn a_claim_whose_answer_did_not_come_is_taken_up_by_its_worker_alone() {
    in_world(async |world| {
        let pool = &world.pool;
        let (worker, other) = (WorkerId::new(), WorkerId::new());
        let ids = [submitted(pool).await.key.id, submitted(pool).await.key.id].to_vec();
        let unheard = claim::claim(pool, worker, vec![ids[0]], LEASE).await.unwrap()[0].key;
        for (who, ids) in [(worker, Vec::new()), (other, ids.clone())] {
            let none = claim::claim_again(pool, who, vec![unheard.id], ids, LEASE)
                .await
                .unwrap();
            assert!(none.is_empty(), "in flight, or another's: {none:?}");
        }
        let again = claim::claim_again(pool, worker, ids.clone(), ids, LEASE).await.unwrap();
        assert_eq!(again.iter().map(|job| job.key.fence).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(settle_completed(pool, unheard, "nobody runs this one").await, []);
        for job in again {
            let ended = settle_completed(pool, job.key, "a text").await;
            assert_eq!(ended.len(), 1);
            assert_eq!(view(pool, job.key.id).await.attempt, 1, "no attempt is lost");
        }
    })
    .await;
}

#[tokio::test]
async fn a_stale_worker_cannot_settle_a_job_that_was_claimed_again() {
    in_world(async |world| {
        let pool = &world.pool;
        let stale = claimed(pool).await;
        lapse_all_leases(world).await;
        assert_eq!(rescue::rescue_lapsed(pool).await.unwrap().requeued, 1);
        assert_eq!(
            settle_completed(pool, stale, "late, while it waits").await,
            [],
            "a queued job is nobody's"
        );
        let fresh = claim_one(pool, stale.id).await.unwrap();
        assert!(fresh.fence > stale.fence);
        assert_eq!(settle_completed(pool, stale, "late, while it runs").await, []);
        assert_eq!(
            lease::heartbeat(pool, &[stale], LEASE, ATTEMPT).await.unwrap().lost,
            [stale]
        );
        assert_eq!(settle_completed(pool, fresh, "in time").await, [fresh]);
        assert_eq!(settle_completed(pool, fresh, "twice").await, []);
        assert_eq!(view(pool, fresh.id).await.choices.unwrap()[0].text, "in time");
        assert_eq!(
            count(pool, "SELECT count(*) FROM events WHERE type = 'job.completed'").await,
            1
        );
    })
    .await;
}

#[tokio::test]
async fn the_endings_of_an_old_and_a_new_claim_may_come_in_one_group() {
    in_world(async |world| {
        let pool = &world.pool;
        let old = claimed(pool).await;
        lapse_all_leases(world).await;
        rescue::rescue_lapsed(pool).await.unwrap();
        let new = claim_one(pool, old.id).await.unwrap();
        let group = vec![
            Settlement::completed(old, completion("of the old claim")),
            Settlement::completed(new, completion("of the new claim")),
        ];
        let settled = settle::settle_group(pool, group, "worker:test".to_owned())
            .await
            .unwrap();
        let status = JobStatus::Completed;
        assert_eq!(
            settled,
            [Settled {
                key: new,
                status,
                cancel_latency: None
            }]
        );
        assert_eq!(view(pool, new.id).await.choices.unwrap()[0].text, "of the new claim");
    })
    .await;
}

#[tokio::test]
async fn a_lapsed_job_is_tried_again_and_fails_after_its_last_attempt() {
    in_world(async |world| {
        let pool = &world.pool;
        let id = claimed(pool).await.id;
        for attempt in 1..5 {
            lapse_all_leases(world).await;
            rescue::rescue_lapsed(pool).await.unwrap();
            assert_eq!(
                view(pool, id).await.status,
                JobStatus::Queued,
                "after attempt {attempt}"
            );
            claim_one(pool, id).await.unwrap();
        }
        lapse_all_leases(world).await;
        assert_eq!(rescue::rescue_lapsed(pool).await.unwrap().ended, 1);
        let ended = view(pool, id).await;
        assert_eq!((ended.status, ended.attempt), (JobStatus::Failed, 5));
        assert_eq!(ended.error.unwrap().code, "attempts_exhausted");
    })
    .await;
}

#[tokio::test]
async fn a_job_that_lapsed_twice_says_so_at_its_next_claim() {
    in_world(async |world| {
        let pool = &world.pool;
        let id = claimed(pool).await.id;
        for _ in 0..2 {
            lapse_all_leases(world).await;
            rescue::rescue_lapsed(pool).await.unwrap();
            claim_one(pool, id).await.unwrap();
        }
        lapse_all_leases(world).await;
        rescue::rescue_lapsed(pool).await.unwrap();
        let claimed = claim::claim(pool, WorkerId::new(), vec![id], LEASE)
            .await
            .unwrap()
            .remove(0);
        assert_eq!(claimed.lapses, 3);
    })
    .await;
}

#[tokio::test]
async fn a_heartbeat_keeps_the_lease_and_brings_back_a_cancel() {
    in_world(async |world| {
        let pool = &world.pool;
        let (kept, stopped) = (claimed(pool).await, claimed(pool).await);
        assert_eq!(
            lease::heartbeat(pool, &[kept, stopped], LEASE, ATTEMPT).await.unwrap(),
            lease::Beat::default()
        );
        let owner = view(pool, stopped.id).await;
        assert_eq!(owner.status, JobStatus::InProgress);
        assert_eq!(cancel(pool, stopped.id).await.status, JobStatus::Cancelling);
        assert_eq!(
            cancel(pool, stopped.id).await.status,
            JobStatus::Cancelling,
            "asking twice changes nothing"
        );
        let beat = lease::heartbeat(pool, &[kept, stopped], LEASE, ATTEMPT).await.unwrap();
        assert_eq!(
            beat,
            lease::Beat {
                cancelled: vec![stopped],
                ..lease::Beat::default()
            }
        );
        lapse_all_leases(world).await;
        lease::heartbeat(pool, &[kept], LEASE, ATTEMPT).await.unwrap();
        let rescued = rescue::rescue_lapsed(pool).await.unwrap();
        assert_eq!(
            rescued,
            rescue::Rescued { requeued: 0, ended: 1 },
            "the beaten one stays, the cancelled one ends"
        );
        assert_eq!(view(pool, stopped.id).await.status, JobStatus::Cancelled);
    })
    .await;
}

pub(crate) async fn cancel(pool: &Pool, id: JobId) -> JobView {
    let project: uuid::Uuid = sqlx::query_scalar("SELECT project_id FROM jobs WHERE id = $1")
        .bind(id.uuid())
        .fetch_one(pool)
        .await
        .unwrap();
    cancels::request_cancel(pool, ProjectId::from_uuid(project), id, "service")
        .await
        .unwrap()
        .expect("the job is there")
}

#[tokio::test]
async fn once_cancelling_a_job_ends_as_cancelled_and_keeps_what_was_generated() {
    in_world(async |world| {
        let pool = &world.pool;
        let key = claimed(pool).await;
        cancel(pool, key.id).await;
        let group = vec![Settlement::completed(key, completion("finished all the same"))];
        let settled = settle::settle_group(pool, group, "worker:test".to_owned())
            .await
            .unwrap();
        let [one] = &settled[..] else {
            panic!("one job: {settled:?}");
        };
        assert_eq!(
            (one.key, one.status),
            (key, JobStatus::Cancelled),
            "the worker counts it by its true ending"
        );
        assert!(one.cancel_latency.is_some_and(|latency| latency < LIMIT));
        let ended = view(pool, key.id).await;
        assert_eq!(ended.status, JobStatus::Cancelled);
        assert_eq!(ended.choices.unwrap()[0].text, "finished all the same");
        assert_eq!(cancel(pool, key.id).await.status, JobStatus::Cancelled);
        assert_eq!(count(pool, "SELECT count(*) FROM events").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_at_once_and_its_message_finds_nothing() {
    in_world(async |world| {
        let pool = &world.pool;
        let id = submitted(pool).await.key.id;
        assert_eq!(cancel(pool, id).await.status, JobStatus::Cancelled);
        assert_eq!(claim_one(pool, id).await, None);
        assert_eq!(cancel(pool, id).await.status, JobStatus::Cancelled);
        assert_eq!(
            count(pool, "SELECT count(*) FROM events WHERE type = 'job.cancelled'").await,
            1
        );
    })
    .await;
}

#[tokio::test]
async fn a_thousand_races_of_cancel_against_settle_leave_one_ending_each() {
    in_world(async |world| {
        let pool = world.pool.clone();
        let account = account(&pool).await;
        for _ in 0..50 {
            let mut keys = Vec::new();
            for _ in 0..20 {
                let id = accept(&pool, new_job(&account)).await.key.id;
                keys.push(claim_one(&pool, id).await.unwrap());
            }
            let races = keys.iter().map(|key| async {
                tokio::join!(
                    cancels::request_cancel(&pool, account.project_id, key.id, "service"),
                    settle_completed(&pool, *key, "done"),
                    lease::heartbeat(&pool, std::slice::from_ref(key), LEASE, ATTEMPT),
                )
            });
            for (cancelled, settled, _) in futures::future::join_all(races).await {
                assert_eq!(settled.len(), 1);
                let told = cancelled.unwrap().unwrap();
                let ended = view(&pool, told.key.id).await.status;
                assert_eq!(
                    ended,
                    if told.status == JobStatus::Completed {
                        told.status
                    } else {
                        JobStatus::Cancelled
                    }
                );
            }
        }
        assert_eq!(count(&pool, "SELECT count(*) FROM events").await, 1000);
        assert_eq!(count(&pool, "SELECT count(DISTINCT job_id) FROM events").await, 1000);
    })
    .await;
}

#[tokio::test]
async fn a_job_that_is_given_up_has_lapsed_at_once_and_the_old_claim_gives_up_nothing() {
    in_world(async |world| {
        let pool = &world.pool;
        let key = claimed(pool).await;
        assert_eq!(lease::give_up(pool, vec![key]).await.unwrap(), 1);
        assert_eq!(rescue::rescue_lapsed(pool).await.unwrap().requeued, 1);
        let again = claim::claim(pool, WorkerId::new(), vec![key.id], LEASE)
            .await
            .unwrap()
            .remove(0);
        assert_eq!(again.lapses, 1);
        assert_eq!(lease::give_up(pool, vec![key]).await.unwrap(), 0);
        assert_eq!(rescue::rescue_lapsed(pool).await.unwrap().requeued, 0);
    })
    .await;
}

#[tokio::test]
async fn a_released_job_is_free_at_once_and_has_lost_no_attempt() {
    in_world(async |world| {
        let pool = &world.pool;
        let key = claimed(pool).await;
        assert_eq!(lease::release(pool, vec![key]).await.unwrap(), 1);
        let released = view(pool, key.id).await;
        assert_eq!((released.status, released.attempt), (JobStatus::Queued, 0));
        let again = claim_one(pool, key.id).await.unwrap();
        assert!(again.fence > key.fence);
        assert_eq!(
            lease::release(pool, vec![key]).await.unwrap(),
            0,
            "the old claim releases nothing"
        );
    })
    .await;
}

#[tokio::test]
async fn an_output_that_cannot_be_stored_fails_its_job_and_spoils_no_other() {
    in_world(async |world| {
        let pool = &world.pool;
        let (good, bad) = (claimed(pool).await, claimed(pool).await);
        let group = vec![
            Settlement::completed(bad, completion("a NUL: \0")),
            Settlement::completed(good, completion("fine")),
        ];
        let settled = settle::settle_group(pool, group, "worker:test".to_owned())
            .await
            .unwrap();
        assert_eq!(settled.len(), 2);
        assert_eq!(view(pool, good.id).await.status, JobStatus::Completed);
        let failed = view(pool, bad.id).await;
        assert_eq!(
            (failed.status, failed.error.unwrap().code.as_str()),
            (JobStatus::Failed, "output_not_storable")
        );
    })
    .await;
}

#[tokio::test]
async fn results_that_are_settled_together_share_one_commit() {
    in_world(async |world| {
        let pool = &world.pool;
        let mut group = Vec::new();
        for _ in 0..5 {
            group.push(Settlement::completed(claimed(pool).await, completion("a text")));
        }
        // Rows, and transactions that wrote them.
        let written = async |table: &str| -> (i64, i64) {
            let sql = format!("SELECT count(*), count(DISTINCT xmin::text) FROM {table}");
            sqlx::query_as(AssertSqlSafe(sql)).fetch_one(pool).await.unwrap()
        };
        assert_eq!(written("job_inputs").await, (5, 5), "they were submitted one by one");
        assert_eq!(written("jobs").await, (5, 5), "and claimed so");
        let settled = settle::settle_group(pool, group, "worker:test".to_owned())
            .await
            .unwrap();
        assert_eq!(settled.len(), 5);
        for table in ["jobs", "job_outputs", "receipts", "events"] {
            assert_eq!(written(table).await, (5, 1), "{table}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_failed_job_keeps_its_reason() {
    in_world(async |world| {
        let key = claimed(&world.pool).await;
        let error = JobError::server("numerical_error", "The model's output was not a number.");
        settle::settle_group(
            &world.pool,
            vec![Settlement::failed(key, error.clone())],
            "worker:test".to_owned(),
        )
        .await
        .unwrap();
        assert_eq!(view(&world.pool, key.id).await.error, Some(error));
    })
    .await;
}

#[tokio::test]
async fn the_release_window_keeps_the_brokers_queue_short_and_claims_make_room() {
    in_world(async |world| {
        world.delivery.release_window = 10;
        let pool = world.pool.clone();
        let account = account(&pool).await;
        let mut submitted = Vec::new();
        for _ in 0..25 {
            submitted.push(accept(&pool, new_job(&account)).await.key.id);
        }
        let mut received = Vec::new();
        let world = &*world;
        with_relay(world, Outgoing::default(), async || {
            eventually("the window is full", LIMIT, async || {
                (outbox::depth(&pool).await.unwrap() == 15).then_some(())
            })
            .await;
            let mut subscription = Subscription::open(&world.broker(), &[queue()], 50, LEASE)
                .await
                .unwrap();
            for _ in 0..25 {
                let delivery = receive(&mut subscription).await;
                let id = delivery.message.unwrap().id();
                claim_one(&pool, id).await.expect("released jobs can be claimed");
                received.push(id);
                acknowledge(vec![delivery.acker]).await.unwrap();
            }
        })
        .await;
        assert_eq!(received, submitted, "first in, first out");
    })
    .await;
}

#[tokio::test]
async fn two_relays_neither_lose_nor_overfill_anything() {
    in_world(async |world| {
        world.delivery.release_window = 30;
        let world = &*world;
        let account = account(&world.pool).await;
        for _ in 0..60 {
            accept(&world.pool, new_job(&account)).await;
        }
        with_relay(world, Outgoing::default(), async || {
            with_relay(world, Outgoing::default(), async || {
                eventually("the window is full", LIMIT, async || {
                    (outbox::depth(&world.pool).await.unwrap() == 30).then_some(())
                })
                .await;
            })
            .await;
        })
        .await;
        assert_eq!(world.broker().ready(&queue()).await.unwrap(), 30);
    })
    .await;
}

#[tokio::test]
async fn what_nobody_tells_of_is_relayed_though_the_relay_is_told_of_other_queues_all_the_time() {
    in_world(async |world| {
        let world = &*world;
        let outgoing = Outgoing::default();
        let telling = tokio::spawn({
            let outgoing = outgoing.clone();
            let mut often = tokio::time::interval(Duration::from_millis(1));
            async move {
                loop {
                    often.tick().await;
                    outgoing.to(QueueName {
                        model: "another".to_owned(),
                        class: Class::Interactive,
                    });
                }
            }
        });
        with_relay(world, outgoing, async || {
            // The first may be found as the relay starts.
            for _ in 0..2 {
                submitted(&world.pool).await;
                eventually("the outbox is empty", LIMIT, async || {
                    (outbox::depth(&world.pool).await.unwrap() == 0).then_some(())
                })
                .await;
            }
        })
        .await;
        telling.abort();
    })
    .await;
}

#[tokio::test]
async fn what_is_new_is_relayed_at_once_though_another_queue_has_rows_and_jobs_change_all_the_time() {
    in_world(async |world| {
        world.delivery.relay_interval = Duration::from_hours(1);
        let world = &*world;
        let pool = &world.pool;
        submitted(pool).await;
        world
            .execute_as_owner("UPDATE outbox SET available_at = available_at + interval '1 hour'")
            .await;
        let (changes, outgoing) = (JobChanges::default(), Outgoing::default());
        let changing = tokio::spawn({
            let changes = changes.clone();
            async move {
                loop {
                    changes.poke();
                    tokio::task::yield_now().await;
                }
            }
        });
        with_relay_that_hears(world, changes, outgoing.clone(), async || {
            // The first may be found as the relay starts.
            for name in ["first", "second"] {
                let mut job = new_job(&account(pool).await);
                name.clone_into(&mut job.model.name);
                accept(pool, job).await;
                outgoing.to(QueueName {
                    model: name.to_owned(),
                    class: Class::Interactive,
                });
                eventually("its row is gone", LIMIT, async || {
                    (outbox::depth(pool).await.unwrap() == 1).then_some(())
                })
                .await;
            }
        })
        .await;
        changing.abort();
    })
    .await;
}

#[tokio::test]
async fn messages_that_the_broker_lost_are_emitted_again_and_no_more_than_are_missing() {
    in_world(async |world| {
        let world = &*world;
        let pool = &world.pool;
        let account = account(pool).await;
        for _ in 0..20 {
            accept(pool, new_job(&account)).await;
        }
        relay_everything(world).await;
        assert_eq!(
            rescue::overdue_queues(pool, LEASE).await.unwrap(),
            [],
            "nothing is overdue yet"
        );
        world
            .execute_as_owner("UPDATE released SET released_at = released_at - interval '1 min'")
            .await;
        let overdue = rescue::overdue_queues(pool, LEASE).await.unwrap();
        assert_eq!(
            overdue,
            [rescue::ReleasedQueue {
                queue: queue(),
                messages: 20
            }]
        );
        assert_eq!(rescue::reemit(pool, queue(), 15, LEASE).await.unwrap(), 15);
        assert_eq!(
            rescue::reemit(pool, queue(), 20, LEASE).await.unwrap(),
            5,
            "those with an outbox row are not lost"
        );
        relay_everything(world).await;
        world
            .execute_as_owner("UPDATE released SET released_at = released_at - interval '15 s'")
            .await;
        assert_eq!(
            rescue::reemit(pool, queue(), 20, LEASE).await.unwrap(),
            0,
            "the interval doubled to 20 s"
        );
    })
    .await;
}

#[tokio::test]
async fn what_processes_of_the_release_before_release_and_claim_is_known_to_all() {
    in_world(async |world| {
        let pool = &world.pool;
        let released = "SELECT count(*) FROM released";
        for (theirs, known) in [
            ("dispatched_at = now(), dispatches = dispatches + 1", 1),
            (
                "status = 'in_progress', dispatched_at = NULL, lease_expires_at = now()",
                0,
            ),
            ("status = 'queued', dispatched_at = NULL, lease_expires_at = NULL", 0),
            ("dispatched_at = now()", 1),
            ("dispatched_at = NULL", 0),
        ] {
            if known == 1 {
                submitted(pool).await;
            }
            world.execute_as_owner(&format!("UPDATE jobs SET {theirs}")).await;
            assert_eq!(count(pool, released).await > 0, known == 1, "{theirs}");
        }
        // One that was released by a process of today, and claimed by one of theirs.
        relay_everything(world).await;
        assert_eq!(count(pool, released).await, 2);
        let claimed = "UPDATE jobs SET status = 'in_progress', dispatched_at = NULL, lease_expires_at = now()";
        world.execute_as_owner(claimed).await;
        assert_eq!(count(pool, released).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_job_that_must_not_run_yet_gets_its_outbox_row_back() {
    in_world(async |world| {
        let world = &*world;
        let id = submitted(&world.pool).await.key.id;
        relay_everything(world).await;
        world
            .execute_as_owner("UPDATE jobs SET available_at = now() + interval '1 h'")
            .await;
        for _ in 0..2 {
            assert_eq!(claim_one(&world.pool, id).await, None);
        }
        assert_eq!(
            count(&world.pool, "SELECT count(*) FROM outbox WHERE available_at > now()").await,
            1
        );
    })
    .await;
}

#[tokio::test]
async fn a_scheduled_job_gets_its_message_when_its_time_has_come() {
    in_world(async |world| {
        let pool = &world.pool;
        let account = account(pool).await;
        let tomorrow = OffsetDateTime::now_utc() + Duration::from_hours(24);
        let job = accept(
            pool,
            NewJob {
                scheduled_at: Some(tomorrow),
                ..new_job(&account)
            },
        )
        .await;
        assert_eq!(job.status, JobStatus::Scheduled);
        assert_eq!(schedule::promote_due(pool).await.unwrap(), 0);
        assert_eq!(outbox::depth(pool).await.unwrap(), 0);
        world.execute_as_owner("UPDATE jobs SET available_at = now()").await;
        assert_eq!(schedule::promote_due(pool).await.unwrap(), 1);
        assert_eq!(view(pool, job.key.id).await.status, JobStatus::Queued);
        assert_eq!(outbox::depth(pool).await.unwrap(), 1);
    })
    .await;
}

#[tokio::test]
async fn equal_idempotency_keys_make_one_job() {
    in_world(async |world| {
        let pool = &world.pool;
        let account = account(pool).await;
        let key = |body: u8| Claim {
            user_id: account.user_id,
            project_id: account.project_id,
            request_sha256: [body; 32],
            by: ClaimedBy::Key("k".to_owned(), LIMIT),
        };
        let render = |job: &JobView| Answer {
            status: 202,
            body: serde_json::json!(job.key.id).to_string(),
            ..Answer::default()
        };
        let send = |body| submit::submit(pool, new_job(&account), Some(key(body)), render);
        let outcomes = futures::future::join_all((0..20).map(|_| send(1))).await;
        let mut accepted = 0;
        for outcome in outcomes {
            match outcome.unwrap() {
                Submitted::Accepted(..) => accepted += 1,
                Submitted::Before(Before::Replayed(_) | Before::InFlight) => {}
                other => panic!("the body was the same: {other:?}"),
            }
        }
        assert_eq!(accepted, 1);
        assert_eq!(count(pool, "SELECT count(*) FROM jobs").await, 1);
        assert_eq!(count(pool, "SELECT count(*) FROM outbox").await, 1);
        assert!(matches!(
            send(1).await.unwrap(),
            Submitted::Before(Before::Replayed(Answer { status: 202, .. }))
        ));
        assert!(matches!(send(2).await.unwrap(), Submitted::Before(Before::Reused)));
    })
    .await;
}

#[tokio::test]
async fn lists_page_newest_first_and_foreign_jobs_do_not_exist() {
    in_world(async |world| {
        let pool = &world.pool;
        let (mine, other) = (account(pool).await, account(pool).await);
        let mut ids = Vec::new();
        for name in ["m", "n", "m", "n", "m"] {
            announce(world, name).await;
            let mut job = new_job(&mine);
            job.model.name = name.to_owned();
            ids.push(accept(pool, job).await.key.id);
        }
        ids.reverse();
        let foreign = accept(pool, new_job(&other)).await.key.id;
        assert!(jobs::get(pool, mine.project_id, foreign).await.unwrap().is_none());
        assert!(
            cancels::request_cancel(pool, mine.project_id, foreign, "service")
                .await
                .unwrap()
                .is_none()
        );
        let list = async |filter: JobFilter, after| {
            let page = jobs::list(pool, mine.project_id, &filter, Page { after, limit: 3 })
                .await
                .unwrap();
            page.jobs.into_iter().map(|job| job.key.id).collect::<Vec<_>>()
        };
        assert_eq!(list(JobFilter::default(), None).await, ids[..3]);
        assert_eq!(list(JobFilter::default(), Some(ids[2])).await, ids[3..]);
        cancel(pool, ids[4]).await;
        let cancelled = JobFilter {
            status: Some(JobStatus::Cancelled),
            model: Some("m".to_owned()),
        };
        assert_eq!(list(cancelled, None).await, ids[4..]);
        let of_model = |name: &str| JobFilter {
            status: None,
            model: Some(name.to_owned()),
        };
        assert_eq!(list(of_model("n"), None).await, [ids[1], ids[3]]);
        assert_eq!(list(of_model("m"), None).await, [ids[0], ids[2], ids[4]]);
        assert_eq!(list(of_model("x"), None).await, []);
    })
    .await;
}

#[tokio::test]
async fn a_name_or_address_is_taken_whatever_its_case() {
    in_world(async |world| {
        let register = |username: &str, email: &str| {
            let (username, email) = (username.to_owned(), email.to_owned());
            accounts::register(
                &world.pool,
                NewUser {
                    username,
                    email,
                    password_hash: String::new(),
                },
                Origin::default(),
            )
        };
        register("Ada", "ada@example.org").await.unwrap();
        let taken = |outcome| match outcome {
            Err(StoreError::Conflict { constraint }) => constraint,
            other => panic!("not refused: {other:?}"),
        };
        assert_eq!(taken(register("aDA", "other@example.org").await), "users_username_key");
        assert_eq!(taken(register("grace", "ADA@example.org").await), "users_email_key");
        assert_eq!(
            accounts::find_by_username(&world.pool, "ADA")
                .await
                .unwrap()
                .unwrap()
                .username,
            "Ada"
        );
        assert!(accounts::find(&world.pool, UserId::new()).await.unwrap().is_none());
    })
    .await;
}

/// Has `changes` hear of those in the database until `stop`.
fn listen(changes: &JobChanges, pool: &Pool, stop: &CancellationToken) -> JoinHandle<()> {
    let (changes, pool, stop) = (changes.clone(), pool.clone(), stop.clone());
    tokio::spawn(async move { changes.listen(pool, stop).await })
}

#[tokio::test]
async fn a_waiter_hears_of_a_change_and_a_lost_notification_costs_only_time() {
    in_world(async |world| {
        let pool = world.pool.clone();
        let changes = JobChanges::default();
        let stop = CancellationToken::new();
        let id = submitted(&pool).await.key.id;
        let waiter = changes.subscribe(id, Of::Changes);
        let listening = listen(&changes, &pool, &stop);
        // The first look of the hub says that it listens.
        tokio::time::timeout(LIMIT, waiter.changed()).await.unwrap();
        let change = waiter.changed();
        cancel(&pool, id).await;
        tokio::time::timeout(LIMIT, change).await.expect("a notification");
        // A change that nobody notified of is found by looking.
        let change = waiter.changed();
        world.execute_as_owner("UPDATE jobs SET fence = fence + 1").await;
        tokio::time::timeout(LIMIT, change).await.expect("found by looking");
        stop.cancel();
        listening.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn who_waits_for_the_end_of_a_job_is_not_woken_by_its_claim() {
    in_world(async |world| {
        let pool = world.pool.clone();
        let changes = JobChanges::default();
        let stop = CancellationToken::new();
        let id = submitted(&pool).await.key.id;
        let (all, end) = (changes.subscribe(id, Of::Changes), changes.subscribe(id, Of::TheEnd));
        let listening = listen(&changes, &pool, &stop);
        tokio::time::timeout(LIMIT, all.changed()).await.unwrap();
        // The hub looks again every few seconds, and may do so between the two changes: then it is tried once more.
        eventually("a claim that wakes one of the two", LIMIT, async || {
            let (change, ended) = (all.changed(), end.changed());
            let key = claim_one(&pool, id).await.expect("it waits");
            tokio::time::timeout(LIMIT, change).await.expect("a notification");
            let quiet = ended.now_or_never().is_none();
            lease::release(&pool, vec![key]).await.unwrap();
            quiet.then_some(())
        })
        .await;
        let ended = end.changed();
        cancel(&pool, id).await;
        tokio::time::timeout(LIMIT, ended).await.expect("a notification");
        stop.cancel();
        listening.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn retention_forgets_old_jobs_and_keeps_the_audit_log() {
    in_world(async |world| {
        let pool = &world.pool;
        settle_completed(pool, claimed(pool).await, "there was").await;
        let live = submitted(pool).await.key.id;
        assert_eq!(retention::forget_jobs(pool, LEASE).await.unwrap(), 0);
        world
            .execute_as_owner(
                "UPDATE jobs SET finished_at = finished_at - interval '1 d' WHERE finished_at IS NOT NULL",
            )
            .await;
        assert_eq!(retention::forget_jobs(pool, LEASE).await.unwrap(), 1);
        assert_eq!(count(pool, "SELECT count(*) FROM job_inputs").await, 1);
        assert_eq!(count(pool, "SELECT count(*) FROM job_outputs").await, 0);
        assert_eq!(view(pool, live).await.status, JobStatus::Queued);
        assert_eq!(
            count(pool, "SELECT count(*) FROM audit_log WHERE action = 'job.completed'").await,
            1
        );
        retention::prepare_audit_partitions(pool).await.unwrap();
        assert_eq!(
            count(
                pool,
                "SELECT count(*) FROM audit_log WHERE tableoid::regclass::text = 'audit_log_default'"
            )
            .await,
            0
        );
        let rewritten = sqlx::query("UPDATE audit_log SET actor = 'nobody'").execute(pool).await;
        assert!(
            rewritten.is_err(),
            "the services may add to the audit log and never change it"
        );
    })
    .await;
}
