//! The windows of what is done to jobs that no worker has: a maintainer is killed before a commit or in it, and the
//! next one goes on from what is in the tables.

use claimcheck_tests::{Gate, Installation, Moment, World, in_world, promises};
use lapin::options::QueuePurgeOptions;
use time::OffsetDateTime;

use super::{
    ATTEMPTS, COMPLETED, KEY, LONG, RUNNING, SHORT, begin, completes_once, count, job, queue, until_count,
    until_messages, until_refused,
};

const QUEUES: &str = "OLD.status = 'scheduled' AND NEW.status = 'queued'";
const SENDS_AGAIN: &str = "OLD.dispatches < NEW.dispatches";
const EXPIRES: &str = "NEW.status = 'expired'";
const REQUEUES: &str = "OLD.status = 'in_progress' AND NEW.status = 'queued'";

const QUEUED: &str = "SELECT count(*) FROM jobs WHERE status = 'queued'";
const EXPIRED: &str = "SELECT count(*) FROM jobs WHERE status = 'expired'";
const FAILED: &str = "SELECT count(*) FROM jobs WHERE status = 'failed'";
const SENT_AGAIN: &str = "SELECT dispatches::int8 FROM jobs";
const RELEASED: &str = "SELECT count(*) FROM released";
/// The relay takes a message from the one to the other in one commit.
const OWED_OR_SENT: &str = "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM released)";

/// Where a maintainer is killed.
#[derive(Clone, Copy)]
struct Window {
    moment: Moment,
    event: &'static str,
    condition: &'static str,
    /// How many jobs it has changed all the same.
    changed: i64,
}

impl Window {
    /// In a statement. What stands before it in the transaction is written.
    const fn before_the_commit(event: &'static str, condition: &'static str) -> Self {
        Self {
            moment: Moment::Statement,
            event,
            condition,
            changed: 0,
        }
    }

    /// In the commit of what changes a job so.
    const fn in_the_commit(condition: &'static str) -> Self {
        Self {
            moment: Moment::Commit,
            event: "UPDATE ON jobs",
            condition,
            changed: 1,
        }
    }
}

/// Kills a maintainer in its window; `due` gives it something to do.
async fn kill_in(world: &World, installation: &Installation, window: Window, due: &str) {
    let mut gate = Gate::shut(world, window.moment, window.event, window.condition).await;
    world.execute_as_owner(due).await;
    let mut maintainer = installation.maintainer().await;
    gate.reached().await;
    maintainer.kill();
    gate.open_for_the_dead().await;
}

fn in_an_hour() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp() + 3600
}

async fn killed_while_queueing(world: &mut World, window: Window) {
    let (installation, _api, caller) = begin(world).await;
    let mut later = job(1, SHORT);
    later["scheduled_at"] = in_an_hour().into();
    caller.submit(KEY, &later).await;
    kill_in(world, &installation, window, "UPDATE jobs SET available_at = now()").await;
    assert_eq!(count(world, QUEUED).await, window.changed);
    assert_eq!(count(world, OWED_OR_SENT).await, window.changed, "state and message");
    let _second = installation.worker("second", []).await;
    completes_once(world, 1).await;
    let queued = "SELECT count(*) FROM job_history WHERE became = 'queued'";
    assert_eq!(count(world, queued).await, 1, "queued once");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_a_scheduled_jobs_state_and_its_message_neither_counts_and_the_next_maintainer_does_both() {
    let window = Window::before_the_commit("INSERT ON outbox", "true");
    in_world(async |world| killed_while_queueing(world, window).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_commit_that_queues_a_scheduled_job_its_message_is_sent_all_the_same() {
    let window = Window::in_the_commit(QUEUES);
    in_world(async |world| killed_while_queueing(world, window).await).await;
}

/// The broker loses the one message.
async fn lose_the_message(world: &World) {
    let connection = world.broker().connect("test").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let purged = channel
        .queue_purge(queue(world).into(), QueuePurgeOptions::default())
        .await;
    assert_eq!(purged.unwrap(), 1);
    until_messages(world, 0).await;
}

async fn killed_while_sending_again(world: &mut World, window: Window) {
    let (installation, _api, caller) = begin(world).await;
    caller.submit(KEY, &job(1, SHORT)).await;
    until_count(world, 1, RELEASED).await;
    lose_the_message(world).await;
    let overdue = "UPDATE released SET released_at = released_at - interval '1 hour'";
    kill_in(world, &installation, window, overdue).await;
    assert_eq!(count(world, SENT_AGAIN).await, window.changed);
    assert_eq!(count(world, OWED_OR_SENT).await, 1, "noted once, as owed or as sent");
    assert_eq!(promises::broken(&world.pool).await, [""; 0]);
    until_messages(world, window.changed as u32).await;
    let _second = installation.worker("second", []).await;
    completes_once(world, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_the_commit_that_sends_a_lost_message_again_the_next_maintainer_does_it() {
    let window = Window::before_the_commit("INSERT ON outbox", "true");
    in_world(async |world| killed_while_sending_again(world, window).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_commit_that_sends_a_lost_message_again_it_is_sent_all_the_same() {
    let window = Window::in_the_commit(SENDS_AGAIN);
    in_world(async |world| killed_while_sending_again(world, window).await).await;
}

async fn killed_while_expiring(world: &mut World, window: Window) {
    let (installation, _api, caller) = begin(world).await;
    let mut late = job(1, SHORT);
    late["deadline_at"] = in_an_hour().into();
    caller.submit(KEY, &late).await;
    until_count(world, 1, RELEASED).await;
    kill_in(world, &installation, window, "UPDATE jobs SET deadline_at = now()").await;
    assert_eq!(count(world, EXPIRED).await, window.changed);
    assert_eq!(promises::broken(&world.pool).await, [""; 0]);
    let _second = installation.maintainer().await;
    until_count(world, 1, EXPIRED).await;
    let worker = installation.generator("worker", []).await;
    until_refused(&worker).await;
    assert_eq!(count(world, ATTEMPTS).await, 0, "attempts");
    let events = "SELECT count(*) FROM events WHERE type = 'job.expired'";
    assert_eq!(count(world, events).await, 1, "events");
    assert_eq!(promises::broken(&world.pool).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_an_expired_jobs_state_and_its_event_neither_counts_and_the_next_maintainer_does_both() {
    let window = Window::before_the_commit("INSERT ON events", "NEW.type = 'job.expired'");
    in_world(async |world| killed_while_expiring(world, window).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_an_expirys_commit_the_job_expires_once() {
    let window = Window::in_the_commit(EXPIRES);
    in_world(async |world| killed_while_expiring(world, window).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_a_rescues_last_word_and_its_requeue_neither_counts_and_the_next_rescuer_does_both() {
    in_world(async |world| {
        let (installation, _api, caller) = begin(world).await;
        let mut worker = installation.generator("worker", []).await;
        let mut last = job(1, LONG);
        last["max_attempts"] = 1.into();
        caller.submit("last", &last).await;
        caller.submit("other", &job(2, LONG)).await;
        until_count(world, 2, RUNNING).await;
        worker.kill();
        // Both lapse together, and of a chunk the rescuer ends what is at its end before it requeues the rest.
        let window = Window::before_the_commit("UPDATE ON jobs", REQUEUES);
        kill_in(world, &installation, window, "UPDATE jobs SET lease_expires_at = now()").await;
        assert_eq!(count(world, RUNNING).await, 2);
        assert_eq!(count(world, "SELECT sum(lapses)::int8 FROM jobs").await, 0, "lapses");
        assert_eq!(promises::broken(&world.pool).await, [""; 0]);
        let _second = installation.worker("second", []).await;
        until_count(world, 1, FAILED).await;
        until_count(world, 1, COMPLETED).await;
        let lapses = "SELECT lapses::int8 FROM jobs WHERE status = 'completed'";
        assert_eq!(count(world, lapses).await, 1, "rescued once");
        assert_eq!(promises::broken(&world.pool).await, [""; 0]);
    })
    .await;
}
