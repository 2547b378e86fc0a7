//! A process is killed in each window of the delivery protocol, between two steps that cannot be one.
//!
//! A gate in the database holds the window open ([`Gate`]): the process is killed while it stands there, so that each test
//! meets its window every time. What had been asked to commit then commits, what had not is undone.

mod maintenance;

use claimcheck_common::domain::{Class, JobId, QueueName};
use claimcheck_tests::{Gate, Installation, Moment, Process, TINY, World, eventually, in_world, promises};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{
    ATTEMPTS, CLAIMS, COMPLETED, Caller, LIMIT, LONG, RUNNING, assert_each_settled_once, count, hurry, job, until_count,
};

const KEY: &str = "once";
const SHORT: usize = 8;

const SETTLES: &str = "OLD.finished_at IS NULL AND NEW.finished_at IS NOT NULL";
const RESCUES: &str = "OLD.lapses < NEW.lapses";

const LAPSES: &str = "SELECT lapses::int8 FROM jobs";
const OUTBOX: &str = "SELECT count(*) FROM outbox";
const STARTED: &str = "SELECT count(*) FROM jobs WHERE started_at IS NOT NULL";
const JOBS: &str = "SELECT count(*) FROM jobs";

/// An API and a caller of it, and a model that is announced: no worker is there.
async fn begin(world: &mut World) -> (Installation, Process, Caller) {
    hurry(world);
    promises::watch(world).await;
    let installation = Installation::of(world);
    let api = installation.api().await;
    drop(installation.generator("first", []).await);
    let caller = Caller::of(&api, "ada").await;
    (installation, api, caller)
}

async fn restarted(api: &mut Process) {
    api.start();
    api.answers("/readyz").await;
}

/// The one job completes, after so many attempts, and every promise holds.
async fn completes_once(world: &World, attempts: i64) {
    until_count(world, 1, COMPLETED).await;
    assert_eq!(count(world, ATTEMPTS).await, attempts, "attempts");
    assert_each_settled_once(world, 1).await;
    assert_eq!(promises::broken(&world.pool).await, [""; 0]);
}

/// The broker's name of the queue.
fn queue(world: &World) -> String {
    world.broker().queue(&QueueName {
        model: TINY.to_owned(),
        class: Class::Interactive,
    })
}

/// Messages that are ready in the queue.
async fn messages(world: &World) -> u32 {
    let broker = world.broker();
    let channel = broker.connect("test").await.unwrap().create_channel().await.unwrap();
    let look = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel
        .queue_declare(queue(world).into(), look, FieldTable::default())
        .await;
    declared.unwrap().message_count()
}

async fn until_messages(world: &World, wanted: u32) {
    let what = format!("{wanted} messages in the queue");
    eventually(&what, LIMIT, async || (messages(world).await == wanted).then_some(())).await;
}

/// Waits until this worker was given a message of a job that it could not claim.
async fn until_refused(worker: &Process) {
    eventually("a second message finds nothing to claim", LIMIT, async || {
        (worker.metric("claimcheck_claims_refused_total").await >= 1.0).then_some(())
    })
    .await;
}

/// An API is killed in a window of a submit, of which so many jobs are left. Without a key it is not sent again.
async fn killed_in_a_submit(world: &mut World, moment: Moment, key: Option<&str>, left: i64) {
    let (installation, mut api, caller) = begin(world).await;
    let mut gate = Gate::shut(world, moment, "INSERT ON jobs", "true").await;
    let mut request = caller.post("/v1/jobs").json(&job(1, SHORT));
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let unanswered = tokio::spawn(request.send());
    gate.reached().await;
    api.kill();
    gate.open_for_the_dead().await;
    assert!(unanswered.await.unwrap().is_err());
    assert_eq!((count(world, JOBS).await, count(world, OUTBOX).await), (left, left));
    restarted(&mut api).await;
    if let Some(key) = key {
        caller.submit(key, &job(1, SHORT)).await;
    }
    let _worker = installation.generator("worker", []).await;
    completes_once(world, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_a_submits_commit_there_is_no_job_and_the_repeated_request_makes_it() {
    in_world(async |world| killed_in_a_submit(world, Moment::Statement, Some(KEY), 0).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_a_plain_submits_statement_that_goes_on_the_job_runs_though_nobody_was_answered() {
    in_world(async |world| killed_in_a_submit(world, Moment::Statement, None, 1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_a_submits_commit_before_its_answer_the_repeated_request_finds_the_job() {
    in_world(async |world| killed_in_a_submit(world, Moment::Commit, Some(KEY), 1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_the_commit_before_the_publish_the_next_relay_publishes() {
    in_world(async |world| {
        let (installation, mut api, caller) = begin(world).await;
        // A relay has the queue as long as it holds this lock: here none gets it.
        let mut relay = PgConnection::connect(&world.database.url).await.unwrap();
        let lock = format!("SELECT pg_advisory_lock(hashtextextended('relay:{TINY}:interactive', 0))");
        sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut relay).await.unwrap();
        caller.submit(KEY, &job(1, SHORT)).await;
        api.kill();
        assert_eq!((count(world, OUTBOX).await, messages(world).await), (1, 0));
        relay.close().await.unwrap();
        restarted(&mut api).await;
        let _worker = installation.generator("worker", []).await;
        completes_once(world, 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_the_publish_before_the_confirm_is_recorded_the_second_message_finds_nothing() {
    in_world(async |world| {
        let (installation, mut api, caller) = begin(world).await;
        let mut gate = Gate::shut(world, Moment::Statement, "DELETE ON outbox", "true").await;
        caller.submit(KEY, &job(1, SHORT)).await;
        gate.reached().await;
        until_messages(world, 1).await;
        api.kill();
        gate.open_for_the_dead().await;
        assert_eq!(count(world, OUTBOX).await, 1, "the row stays");
        restarted(&mut api).await;
        until_messages(world, 2).await;
        let worker = installation.generator("worker", []).await;
        until_refused(&worker).await;
        completes_once(world, 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_the_delivery_before_the_claim_the_message_goes_to_the_next_worker() {
    in_world(async |world| {
        let (installation, _api, caller) = begin(world).await;
        let mut gate = Gate::shut(world, Moment::Statement, "UPDATE ON jobs", CLAIMS).await;
        let mut worker = installation.generator("worker", []).await;
        caller.submit(KEY, &job(1, SHORT)).await;
        gate.reached().await;
        worker.kill();
        gate.open_for_the_dead().await;
        let _second = installation.generator("second", []).await;
        completes_once(world, 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_the_claim_before_the_first_step_the_job_runs_after_its_lease() {
    in_world(async |world| {
        let (installation, _api, caller) = begin(world).await;
        let mut gate = Gate::shut(world, Moment::Commit, "UPDATE ON jobs", CLAIMS).await;
        let mut worker = installation.generator("worker", []).await;
        caller.submit(KEY, &job(1, SHORT)).await;
        gate.reached().await;
        worker.kill();
        gate.open_for_the_dead().await;
        assert_eq!((count(world, RUNNING).await, count(world, STARTED).await), (1, 0));
        let _second = installation.worker("second", []).await;
        completes_once(world, 2).await;
        assert_eq!(count(world, LAPSES).await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_the_job_runs_it_runs_again_after_its_lease() {
    in_world(async |world| {
        let (installation, _api, caller) = begin(world).await;
        let mut worker = installation.generator("worker", []).await;
        caller.submit(KEY, &job(1, LONG)).await;
        until_count(world, 1, RUNNING).await;
        worker.kill();
        assert_eq!(count(world, RUNNING).await, 1, "the kill came in the middle");
        let _second = installation.worker("second", []).await;
        completes_once(world, 2).await;
        assert_eq!(count(world, LAPSES).await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_the_settles_commit_nothing_of_the_result_counts() {
    in_world(async |world| {
        let (installation, _api, caller) = begin(world).await;
        let mut gate = Gate::shut(world, Moment::Statement, "UPDATE ON jobs", SETTLES).await;
        let mut worker = installation.generator("worker", []).await;
        caller.submit(KEY, &job(1, SHORT)).await;
        gate.reached().await;
        worker.kill();
        gate.end_the_dead(world).await;
        assert_eq!(count(world, RUNNING).await, 1);
        let _second = installation.worker("second", []).await;
        completes_once(world, 2).await;
    })
    .await;
}

/// The worker is killed when it has asked for the settle, which is done without it.
async fn killed_before_the_ack(world: &mut World, moment: Moment) {
    let (installation, _api, caller) = begin(world).await;
    let mut gate = Gate::shut(world, moment, "UPDATE ON jobs", SETTLES).await;
    let mut worker = installation.generator("worker", []).await;
    caller.submit(KEY, &job(1, SHORT)).await;
    gate.reached().await;
    worker.kill();
    gate.open_for_the_dead().await;
    completes_once(world, 1).await;
    let second = installation.worker("second", []).await;
    until_refused(&second).await;
    until_messages(world, 0).await;
    completes_once(world, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_settles_statement_that_goes_on_the_message_comes_again_and_finds_nothing() {
    in_world(async |world| killed_before_the_ack(world, Moment::Statement).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_the_settles_commit_before_the_ack_the_message_comes_again_and_finds_nothing() {
    in_world(async |world| killed_before_the_ack(world, Moment::Commit).await).await;
}

/// The rescuer is killed at the gate, and another one and a worker come after it.
async fn killed_while_rescuing(world: &mut World, moment: Moment, lapses: i64) {
    let (installation, _api, caller) = begin(world).await;
    let mut worker = installation.generator("worker", []).await;
    caller.submit(KEY, &job(1, LONG)).await;
    until_count(world, 1, RUNNING).await;
    worker.kill();
    let mut gate = Gate::shut(world, moment, "UPDATE ON jobs", RESCUES).await;
    let mut rescuer = installation.maintainer().await;
    gate.reached().await;
    rescuer.kill();
    gate.open_for_the_dead().await;
    assert_eq!(count(world, LAPSES).await, lapses);
    assert_eq!(promises::broken(&world.pool).await, [""; 0]);
    let _second = installation.worker("second", []).await;
    completes_once(world, 2).await;
    assert_eq!(count(world, LAPSES).await, 1, "rescued once");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_the_rescues_commit_the_next_rescuer_does_it() {
    in_world(async |world| killed_while_rescuing(world, Moment::Statement, 0).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_rescues_commit_the_job_is_rescued_once() {
    in_world(async |world| killed_while_rescuing(world, Moment::Commit, 1).await).await;
}

/// Submits jobs of equal length, which then end in the same step. Answers the last one's id.
async fn submit_group(caller: &Caller, jobs: usize) -> JobId {
    let mut last = String::new();
    for number in 0..jobs {
        last = caller.submit(&format!("job-{number}"), &job(number, SHORT)).await;
    }
    last.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_settling_a_group_all_of_it_runs_again_and_each_settles_once() {
    const GROUP: usize = 8;
    in_world(async |world| {
        let (installation, _api, caller) = begin(world).await;
        let last = submit_group(&caller, GROUP).await;
        until_messages(world, GROUP as u32).await;
        // Whichever come before it in the group are written by then.
        let condition = format!("{SETTLES} AND NEW.id = '{}'", last.uuid());
        let mut gate = Gate::shut(world, Moment::Statement, "UPDATE ON jobs", &condition).await;
        let mut worker = installation.generator("worker", []).await;
        gate.reached().await;
        worker.kill();
        let before = count(world, COMPLETED).await;
        gate.end_the_dead(world).await;
        assert_eq!(count(world, COMPLETED).await, before, "nothing of the group counts");
        assert_eq!(count(world, RUNNING).await, GROUP as i64 - before);
        assert_eq!(promises::broken(&world.pool).await, [""; 0]);
        let _second = installation.worker("second", []).await;
        until_count(world, GROUP, COMPLETED).await;
        assert_each_settled_once(world, GROUP).await;
        assert_eq!(promises::broken(&world.pool).await, [""; 0]);
        let again = count(world, "SELECT count(*) FROM jobs WHERE attempt = 2").await;
        assert_eq!(again, GROUP as i64 - before);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_erasing_nothing_is_half_erased_and_the_next_one_erases_all() {
    const GROUP: usize = 3;
    const ERASED: &str = "SELECT count(*) FROM jobs WHERE erased_at IS NOT NULL";
    in_world(async |world| {
        let (installation, _api, caller) = begin(world).await;
        let last = submit_group(&caller, GROUP).await;
        until_ended(world, &installation, GROUP).await;
        let condition = format!("NEW.erased_at IS NOT NULL AND NEW.id = '{}'", last.uuid());
        let mut gate = Gate::shut(world, Moment::Statement, "UPDATE ON jobs", &condition).await;
        world.execute_as_owner("UPDATE jobs SET erase_at = now()").await;
        let mut eraser = installation.maintainer().await;
        gate.reached().await;
        eraser.kill();
        gate.open_for_the_dead().await;
        assert_eq!(count(world, ERASED).await, 0);
        assert_eq!(promises::broken(&world.pool).await, [""; 0], "all texts are there");
        let _second = installation.maintainer().await;
        until_count(world, GROUP, ERASED).await;
        assert_eq!(promises::broken(&world.pool).await, [""; 0], "no text is there");
        let audit = "SELECT count(*) FROM audit_log WHERE action = 'job.erased'";
        assert_eq!(count(world, audit).await, GROUP as i64);
    })
    .await;
}

/// Waits until so many have completed, by a worker that lives as long.
async fn until_ended(world: &World, installation: &Installation, jobs: usize) {
    let _worker = installation.generator("until they end", []).await;
    until_count(world, jobs, COMPLETED).await;
}
