//! Deadlines, failed attempts, dead letters, erasing and doing again: what time and misfortune do to a job.

use std::sync::Arc;
use std::time::{Duration, Instant};

use claimcheck_common::domain::{JobError, JobId, JobKey, JobStatus, ProjectId, WorkerId};
use claimcheck_common::store::erase::{self, Erased};
use claimcheck_common::store::idempotency::Answer;
use claimcheck_common::store::jobs::{Page, WaitingReason};
use claimcheck_common::store::once::Once;
use claimcheck_common::store::retry::{self, Asker, Retried};
use claimcheck_common::store::settle::{self, Settlement};
use claimcheck_common::store::submit::JobOptions;
use claimcheck_common::store::{Pool, cancels, claim, dead_letters, expire, lease, models, rescue};
use claimcheck_tests::{World, eventually, in_world};
use sqlx::AssertSqlSafe;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::store::{
    ATTEMPT, LEASE, accept, account, cancel, claim_one, claimed, completion, count, new_job, settle_completed,
    submitted, view,
};

const ACTOR: &str = "worker:test";

async fn accepted_with(pool: &Pool, options: JobOptions) -> JobId {
    let account = account(pool).await;
    let job = claimcheck_common::store::submit::NewJob {
        options,
        ..new_job(&account)
    };
    accept(pool, job).await.key.id
}

fn in_an_hour() -> OffsetDateTime {
    OffsetDateTime::now_utc() + Duration::from_hours(1)
}

/// Turns a time of all jobs back, as if it had passed meanwhile.
async fn turn_back(pool: &Pool, columns: &[&str]) {
    for column in columns {
        let sql = format!("UPDATE jobs SET {column} = {column} - interval '1 day'");
        sqlx::query(AssertSqlSafe(sql)).execute(pool).await.unwrap();
    }
}

/// Sets the database's clock so many hours before everybody else's, for connections that are made from now on.
async fn set_clock_ahead(world: &World, hours: u8) {
    let sql = format!(
        "CREATE OR REPLACE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql STABLE AS
             'SELECT pg_catalog.now() + interval ''{hours} hours''';
         DO $$ BEGIN
             EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database()); END $$"
    );
    world.execute_as_owner(&sql).await;
}

async fn fail_attempt(pool: &Pool, key: JobKey) -> JobStatus {
    let failure = Settlement::attempt_failed(key, JobError::server("engine_error", "It broke."));
    let settled = settle::settle_group(pool, vec![failure], ACTOR.to_owned())
        .await
        .unwrap();
    settled[0].status
}

#[tokio::test]
async fn a_waiting_job_whose_deadline_has_passed_expires_without_costing_a_step() {
    in_world(async |world| {
        let pool = &world.pool;
        let options = JobOptions {
            deadline_at: Some(in_an_hour()),
            ..JobOptions::default()
        };
        let (late, other) = (accepted_with(pool, options).await, submitted(pool).await.key.id);
        assert_eq!(expire::expire_waiting(pool).await.unwrap(), 0);
        turn_back(pool, &["deadline_at"]).await;
        assert_eq!(claim_one(pool, late).await, None);
        assert_eq!(expire::expire_waiting(pool).await.unwrap(), 1);
        let expired = view(pool, late).await;
        assert_eq!(
            (expired.status, expired.attempt, expired.error.unwrap().code.as_str()),
            (JobStatus::Expired, 0, "deadline_exceeded")
        );
        assert_eq!(
            count(pool, "SELECT count(*) FROM events WHERE type = 'job.expired'").await,
            1
        );
        assert_eq!(view(pool, other).await.status, JobStatus::Queued);
    })
    .await;
}

#[tokio::test]
async fn start_by_counts_until_the_first_attempt_and_no_longer() {
    in_world(async |world| {
        let pool = &world.pool;
        let options = JobOptions {
            start_by: Some(in_an_hour()),
            ..JobOptions::default()
        };
        let (never, once) = (
            accepted_with(pool, options.clone()).await,
            accepted_with(pool, options).await,
        );
        let key = claim_one(pool, once).await.unwrap();
        lease::release(pool, vec![key]).await.unwrap();
        turn_back(pool, &["start_by"]).await;
        assert_eq!(claim_one(pool, never).await, None);
        assert_eq!(expire::expire_waiting(pool).await.unwrap(), 1);
        assert_eq!(view(pool, never).await.error.unwrap().code, "not_started_in_time");
        assert!(claim_one(pool, once).await.is_some(), "it had begun in time");
    })
    .await;
}

#[tokio::test]
async fn a_result_that_comes_after_the_deadline_is_kept_and_the_job_says_expired() {
    in_world(async |world| {
        let pool = &world.pool;
        let options = JobOptions {
            deadline_at: Some(in_an_hour()),
            ..JobOptions::default()
        };
        let id = accepted_with(pool, options).await;
        let key = claim_one(pool, id).await.unwrap();
        turn_back(pool, &["deadline_at"]).await;
        let beat = lease::heartbeat(pool, &[key], LEASE, ATTEMPT).await.unwrap();
        assert_eq!(beat.expired, [key]);
        assert_eq!(settle_completed(pool, key, "too late").await, [key]);
        let expired = view(pool, id).await;
        assert_eq!(expired.status, JobStatus::Expired);
        assert_eq!(expired.choices.unwrap()[0].text, "too late");
    })
    .await;
}

#[tokio::test]
async fn an_overdue_attempt_is_reported_and_its_lease_ends_if_it_is_not_stopped() {
    in_world(async |world| {
        let pool = &world.pool;
        let key = claimed(pool).await;
        sqlx::query("UPDATE jobs SET claimed_at = now() - interval '10 minutes 5 seconds'")
            .execute(pool)
            .await
            .unwrap();
        let left = "SELECT extract(epoch FROM min(lease_expires_at) - now())::int8 FROM jobs";
        let long = Duration::from_hours(1);
        let beat = lease::heartbeat(pool, &[key], long, ATTEMPT).await.unwrap();
        assert_eq!(beat.overdue, [key]);
        assert!(count(pool, left).await > 3000, "there is still time to stop it");
        sqlx::query("UPDATE jobs SET claimed_at = now() - interval '1 day', lease_expires_at = now()")
            .execute(pool)
            .await
            .unwrap();
        lease::heartbeat(pool, &[key], long, ATTEMPT).await.unwrap();
        assert!(count(pool, left).await <= 0, "a worker that cannot stop it loses it");
    })
    .await;
}

#[tokio::test]
async fn a_lease_ends_by_the_databases_clock_whatever_the_time_of_the_processes() {
    in_world(async |world| {
        set_clock_ahead(world, 1).await;
        let pool = &world.pool;
        let long = Duration::from_mins(30);
        let id = submitted(pool).await.key.id;
        let key = claim::claim(pool, WorkerId::new(), vec![id], long).await.unwrap()[0].key;
        let rescued = async || rescue::rescue_lapsed(pool).await.unwrap().requeued;
        assert_eq!(rescued().await, 0, "a lease from this process's time on is over there");
        let beat = lease::heartbeat(pool, &[key], long, ATTEMPT).await.unwrap();
        assert_eq!(beat, lease::Beat::default());
        assert_eq!(rescued().await, 0, "it was extended by the same clock");
        turn_back(pool, &["claimed_at"]).await;
        assert_eq!(rescued().await, 0, "it does not matter when it was claimed");
        set_clock_ahead(world, 2).await;
        assert_eq!(rescued().await, 1, "an hour there is a moment here");
    })
    .await;
}

/// How many seconds each of twenty jobs has to wait that fail together in their attempt of this number.
async fn pauses_after(pool: &Pool, attempt: i32) -> Vec<f64> {
    let account = account(pool).await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(accept(pool, new_job(&account)).await.key.id);
    }
    let claimed = claim::claim(pool, WorkerId::new(), ids, LEASE).await.unwrap();
    sqlx::query("UPDATE jobs SET attempt = $1::int, max_attempts = $1::int + 1 WHERE status = 'in_progress'")
        .bind(attempt)
        .execute(pool)
        .await
        .unwrap();
    let error = JobError::server("engine_error", "It broke.");
    let failures = claimed
        .iter()
        .map(|job| Settlement::attempt_failed(job.key, error.clone()))
        .collect();
    settle::settle_group(pool, failures, ACTOR.to_owned()).await.unwrap();
    // The audit row has the time of the transaction, which is what the pause is counted from.
    sqlx::query_scalar(
        "SELECT extract(epoch FROM j.available_at - a.occurred_at)::float8 FROM jobs j JOIN audit_log a ON a.subject = j.id
         WHERE j.status = 'queued' AND j.attempt = $1::int AND a.action = 'job.attempt_failed'",
    )
    .bind(attempt)
    .fetch_all(pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn the_pause_before_another_attempt_doubles_up_to_five_minutes_and_differs_from_job_to_job() {
    in_world(async |world| {
        for (attempt, seconds) in [(1, 1.0), (3, 4.0), (19, 300.0)] {
            let pauses = pauses_after(&world.pool, attempt).await;
            assert_eq!(pauses.len(), 20, "after attempt {attempt}");
            let within = 0.5 * seconds..=1.5 * seconds;
            assert!(
                pauses.iter().all(|pause| within.contains(pause)),
                "after attempt {attempt}: {pauses:?}"
            );
            let shortest = pauses.iter().copied().fold(f64::INFINITY, f64::min);
            let longest = pauses.iter().copied().fold(0.0, f64::max);
            assert!(
                longest - shortest > seconds / 10.0,
                "they come back together after attempt {attempt}: {pauses:?}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_failed_attempt_waits_and_is_tried_again_and_the_last_one_leaves_a_dead_letter() {
    in_world(async |world| {
        let pool = &world.pool;
        let options = JobOptions {
            max_attempts: 2,
            ..JobOptions::default()
        };
        let id = accepted_with(pool, options).await;
        let first = claim_one(pool, id).await.unwrap();
        assert_eq!(fail_attempt(pool, first).await, JobStatus::Queued);
        let waiting = view(pool, id).await;
        assert_eq!(
            (
                waiting.status,
                waiting.waiting,
                waiting.last_error.unwrap().code.as_str()
            ),
            (JobStatus::Queued, Some(WaitingReason::Backoff), "engine_error")
        );
        assert_eq!(claim_one(pool, id).await, None, "not before its pause is over");
        assert_eq!(
            count(pool, "SELECT count(*) FROM outbox WHERE available_at > now()").await,
            1
        );
        turn_back(pool, &["available_at"]).await;
        let second = claim_one(pool, id).await.unwrap();
        assert_eq!(fail_attempt(pool, second).await, JobStatus::Failed);
        let (reason, attempts, code): (String, i32, String) =
            sqlx::query_as("SELECT reason, attempts, last_error ->> 'code' FROM dead_letters WHERE job_id = $1")
                .bind(id.uuid())
                .fetch_one(pool)
                .await
                .unwrap();
        assert_eq!(
            (reason.as_str(), attempts, code.as_str()),
            ("attempts_exhausted", 2, "engine_error")
        );
        assert_eq!(
            count(pool, "SELECT count(*) FROM events WHERE type = 'job.failed'").await,
            1
        );
    })
    .await;
}

#[tokio::test]
async fn a_dead_letter_says_which_worker_had_the_job_last_and_the_last_error_that_any_told() {
    in_world(async |world| {
        let pool = &world.pool;
        let options = JobOptions {
            max_attempts: 2,
            ..JobOptions::default()
        };
        let (told, silent) = (
            accepted_with(pool, options.clone()).await,
            accepted_with(pool, options).await,
        );
        let (first, last) = (WorkerId::new(), WorkerId::new());
        let claim_by = async |worker: WorkerId, id: JobId| {
            let claimed = claim::claim(pool, worker, vec![id], LEASE).await.unwrap();
            claimed[0].key
        };
        for id in [told, silent] {
            let key = claim_by(first, id).await;
            assert_eq!(fail_attempt(pool, key).await, JobStatus::Queued);
        }
        turn_back(pool, &["available_at"]).await;
        let key = claim_by(last, told).await;
        let failure = Settlement::attempt_failed(key, JobError::server("out_of_memory", "It was too much."));
        settle::settle_group(pool, vec![failure], ACTOR.to_owned())
            .await
            .unwrap();
        // Of the other job nothing more is heard.
        claim_by(last, silent).await;
        turn_back(pool, &["lease_expires_at"]).await;
        assert_eq!(rescue::rescue_lapsed(pool).await.unwrap().ended, 1);
        let page = Page { after: None, limit: 10 };
        let letters = dead_letters::list(pool, None, page).await.unwrap();
        let said: Vec<_> = letters
            .iter()
            .map(|letter| {
                let error = letter.last_error.as_ref().unwrap();
                (letter.job_id, letter.worker_id, error.code.as_str(), letter.lapses)
            })
            .collect();
        let last = Some(last.uuid());
        let expected = [(silent, last, "engine_error", 1), (told, last, "out_of_memory", 0)];
        assert_eq!(said, expected, "the lapse that ended the one counts as well");
    })
    .await;
}

#[tokio::test]
async fn a_cancel_wins_over_another_attempt() {
    in_world(async |world| {
        let pool = &world.pool;
        let key = claimed(pool).await;
        cancel(pool, key.id).await;
        assert_eq!(fail_attempt(pool, key).await, JobStatus::Cancelled);
        assert_eq!(view(pool, key.id).await.status, JobStatus::Cancelled);
    })
    .await;
}

#[tokio::test]
async fn a_paused_job_keeps_its_place_in_the_outbox_and_says_so() {
    in_world(async |world| {
        let pool = &world.pool;
        let id = submitted(pool).await.key.id;
        sqlx::query("DELETE FROM outbox").execute(pool).await.unwrap();
        sqlx::query("INSERT INTO pauses (scope, value, created_by) VALUES ('class', 'interactive', gen_random_uuid())")
            .execute(pool)
            .await
            .unwrap();
        assert_eq!(claim_one(pool, id).await, None);
        assert_eq!(count(pool, "SELECT count(*) FROM outbox").await, 1);
        assert_eq!(view(pool, id).await.waiting, Some(WaitingReason::Paused));
        sqlx::query("DELETE FROM pauses").execute(pool).await.unwrap();
        assert_eq!(view(pool, id).await.waiting, Some(WaitingReason::WorkerUnhealthy));
        models::starting(pool, WorkerId::new(), "m").await.unwrap();
        assert_eq!(
            view(pool, id).await.waiting,
            Some(WaitingReason::WorkerUnhealthy),
            "one that never got ready does not work"
        );
        assert!(claim_one(pool, id).await.is_some());
    })
    .await;
}

#[tokio::test]
async fn an_erased_job_keeps_its_facts_and_nothing_that_was_written() {
    in_world(async |world| {
        let pool = &world.pool;
        let key = claimed(pool).await;
        let project = project_of(pool, key.id).await;
        let erased = async |id| erase::erase(pool, project, id, ACTOR.to_owned()).await.unwrap();
        assert_eq!(erased(key.id).await, Erased::Running);
        settle_completed(pool, key, "a text").await;
        assert_eq!(erased(key.id).await, Erased::Done);
        assert_eq!(erased(key.id).await, Erased::Done, "safe to repeat");
        assert_eq!(erased(JobId::new()).await, Erased::Unknown);
        let left = view(pool, key.id).await;
        assert!(left.input.is_none() && left.choices.is_none() && left.erased_at.is_some());
        assert_eq!((left.status, left.usage.completion_tokens), (JobStatus::Completed, 3));
        assert_eq!(
            count(pool, "SELECT count(*) FROM audit_log WHERE action = 'job.erased'").await,
            1
        );
        let again = do_again(pool, project, key.id).await;
        assert!(matches!(again, Retried::Erased));
    })
    .await;
}

#[tokio::test]
async fn texts_go_at_their_time_and_unstored_ones_soon_after_they_were_fetched() {
    in_world(async |world| {
        let pool = &world.pool;
        let short = JobOptions {
            ttl: Some(Duration::from_mins(1)),
            ..JobOptions::default()
        };
        let unstored = JobOptions {
            store: false,
            ..JobOptions::default()
        };
        let (short, unstored) = (accepted_with(pool, short).await, accepted_with(pool, unstored).await);
        let kept = submitted(pool).await.key.id;
        for id in [short, unstored, kept] {
            let key = claim_one(pool, id).await.unwrap();
            settle_completed(pool, key, "a text").await;
        }
        let minutes = async |id: JobId| -> Option<f64> {
            sqlx::query_scalar("SELECT extract(epoch FROM erase_at - now())::float8 / 60 FROM jobs WHERE id = $1")
                .bind(id.uuid())
                .fetch_one(pool)
                .await
                .unwrap()
        };
        assert!(minutes(short).await.unwrap() < 1.0 && minutes(unstored).await.unwrap() > 60.0);
        assert_eq!(minutes(kept).await, None);
        erase::delivered(pool, unstored).await.unwrap();
        assert!(minutes(unstored).await.unwrap() < 5.0);
        assert_eq!(erase::erase_due(pool).await.unwrap(), 0, "not yet");
        turn_back(pool, &["erase_at"]).await;
        assert_eq!(erase::erase_due(pool).await.unwrap(), 2);
        assert!(view(pool, short).await.choices.is_none() && view(pool, kept).await.choices.is_some());
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_was_given_up_ends_nothing_while_its_job_waits_not_even_after_the_deadline() {
    in_world(async |world| {
        let pool = &world.pool;
        let options = JobOptions {
            deadline_at: Some(in_an_hour()),
            ..JobOptions::default()
        };
        let id = accepted_with(pool, options).await;
        let given_up = claim_one(pool, id).await.unwrap();
        turn_back(pool, &["lease_expires_at"]).await;
        assert_eq!(rescue::rescue_lapsed(pool).await.unwrap().requeued, 1);
        let settled = async |ending: Settlement| {
            let group = settle::settle_group(pool, vec![ending], ACTOR.to_owned()).await;
            group.unwrap().len()
        };
        assert_eq!(
            settled(Settlement::cancelled_with(given_up, completion("half"))).await,
            0
        );
        assert_eq!(settled(Settlement::expired_with(given_up, completion("half"))).await, 0);
        turn_back(pool, &["deadline_at"]).await;
        assert_eq!(settled(Settlement::completed(given_up, completion("whole"))).await, 0);
        assert_eq!(
            settled(Settlement::failed(given_up, JobError::invalid("bad", "Bad."))).await,
            0
        );
        assert_eq!(view(pool, id).await.status, JobStatus::Queued);
        assert_eq!(expire::expire_waiting(pool).await.unwrap(), 1, "its own time ends it");
    })
    .await;
}

#[tokio::test]
async fn an_ending_brings_the_start_that_nobody_wrote_down_and_changes_no_other() {
    in_world(async |world| {
        let pool = &world.pool;
        let began = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();
        let starts = async |key: JobKey| {
            let ending = Settlement {
                started: Some(began),
                ..Settlement::completed(key, completion("a text"))
            };
            settle::settle_group(pool, vec![ending], ACTOR.to_owned())
                .await
                .unwrap();
            view(pool, key.id).await.started_at.unwrap()
        };
        let (early, late) = (claimed(pool).await, claimed(pool).await);
        let known = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        sqlx::query("UPDATE jobs SET started_at = $2 WHERE id = $1")
            .bind(early.id.uuid())
            .bind(known)
            .execute(pool)
            .await
            .unwrap();
        assert_eq!(starts(early).await, known);
        let ended = OffsetDateTime::now_utc();
        let age = (ended - starts(late).await).as_seconds_f64();
        assert!((4.9..began.elapsed().as_secs_f64() + 0.1).contains(&age), "{age}");
    })
    .await;
}

async fn project_of(pool: &Pool, id: JobId) -> ProjectId {
    let project: uuid::Uuid = sqlx::query_scalar("SELECT project_id FROM jobs WHERE id = $1")
        .bind(id.uuid())
        .fetch_one(pool)
        .await
        .unwrap();
    ProjectId::from_uuid(project)
}

async fn do_again(pool: &Pool, project: ProjectId, id: JobId) -> Retried {
    let asker = Asker {
        by: ACTOR.into(),
        queue_limit: None,
        prices: claimcheck_common::config::Prices::default(),
        api_key_id: None,
        claim: None,
    };
    match retry::retry(pool, project, id, retry::Purpose::Retry, asker, |_| Answer::default())
        .await
        .unwrap()
    {
        Once::Done(retried) => retried,
        Once::Before(before) => panic!("there is no key that it could come again with: {before:?}"),
    }
}

#[tokio::test]
async fn an_ended_job_is_done_again_as_a_new_one() {
    in_world(async |world| {
        let pool = &world.pool;
        let key = claimed(pool).await;
        let project = project_of(pool, key.id).await;
        let again = async || do_again(pool, project, key.id).await;
        assert!(matches!(again().await, Retried::Running));
        settle_completed(pool, key, "a text").await;
        let Retried::Accepted(new) = again().await else {
            panic!("it has ended");
        };
        assert_eq!(
            (new.retry_of, new.status, new.attempt),
            (Some(key.id), JobStatus::Queued, 0)
        );
        let (old, made) = (view(pool, key.id).await, view(pool, new.key.id).await);
        assert_eq!(old.input.unwrap().params, made.input.unwrap().params);
        assert_eq!(old.status, JobStatus::Completed, "terminal states never change");
        assert!(claim_one(pool, new.key.id).await.is_some());
        let unknown = do_again(pool, project, JobId::new()).await;
        assert!(matches!(unknown, Retried::Unknown));
    })
    .await;
}

#[tokio::test]
async fn a_cancel_of_a_running_job_is_pushed() {
    in_world(async |world| {
        let pool = &world.pool;
        let key = claimed(pool).await;
        let (heard, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let push = {
            let heard = heard.clone();
            move |id| {
                if id == key.id {
                    heard.notify_one();
                }
            }
        };
        let listening = tokio::spawn(cancels::listen(pool.clone(), push, stop.clone()));
        eventually("somebody listens", Duration::from_secs(20), async || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                       AND query LIKE 'LISTEN%claimcheck_cancels%'";
            (count(pool, sql).await == 1).then_some(())
        })
        .await;
        cancel(pool, key.id).await;
        tokio::time::timeout(Duration::from_secs(20), heard.notified())
            .await
            .expect("the push arrives");
        stop.cancel();
        listening.await.unwrap();
    })
    .await;
}
