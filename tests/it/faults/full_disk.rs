//! Postgres without room (SQLSTATE 53100): on a disk of its own that is filled, and, to hit a certain moment, by a trigger that gives
//! the server's own answer for a while.

use std::time::{Duration, Instant};

use claimcheck_common::domain::JobId;
use claimcheck_tests::{Installation, Process, Servers, SmallDisk, TINY, World, in_world, in_world_on, promises};
use reqwest::StatusCode;
use reqwest::header::RETRY_AFTER;
use serde_json::{Value, json};

use super::{COMPLETED, Caller, LIMIT, assert_each_settled_once, count, hurry, job, until_count};

const JOBS: usize = 40;
/// Submits that a disk without room is to refuse.
const REFUSALS: usize = 20;

/// A job whose prompt takes up room.
fn large_job(number: usize) -> Value {
    json!({"model": TINY, "prompt": "once upon a time ".repeat(100), "max_tokens": 4, "seed": number})
}

/// From now on what needs room is refused, and the refusals are counted: a sequence is not rolled back.
async fn fill(world: &World) {
    fill_until(world, "false").await;
}

/// The same until a condition in SQL holds; `rescues` counts the rows that somebody tried to take from their workers, `cancels`
/// those that somebody tried to cancel.
async fn fill_until(world: &World, room: &str) {
    world
        .execute_as_owner(&format!(
            "CREATE SEQUENCE refusals;
             CREATE SEQUENCE rescues MINVALUE 0 START 0;
             CREATE SEQUENCE cancels MINVALUE 0 START 0;
             SELECT nextval('rescues'), nextval('cancels');
             GRANT USAGE, SELECT ON refusals, rescues, cancels TO PUBLIC;
             CREATE FUNCTION count_try() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 PERFORM nextval(TG_ARGV[0]);
                 RETURN NEW;
             END $$;
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF {room} THEN
                     RETURN NEW;
                 END IF;
                 PERFORM nextval('refusals');
                 RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
             END $$;
             CREATE TRIGGER count_rescue BEFORE UPDATE ON jobs FOR EACH ROW
                 WHEN (NEW.lapses > OLD.lapses) EXECUTE FUNCTION count_try('rescues');
             CREATE TRIGGER count_cancel BEFORE UPDATE ON jobs FOR EACH ROW
                 WHEN (NEW.status = 'cancelled') EXECUTE FUNCTION count_try('cancels');
             CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION refuse();
             CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON attended_jobs FOR EACH ROW EXECUTE FUNCTION refuse();
             CREATE TRIGGER full_disk BEFORE INSERT ON job_outputs FOR EACH ROW EXECUTE FUNCTION refuse();
             CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON workers FOR EACH ROW EXECUTE FUNCTION refuse()"
        ))
        .await;
}

async fn make_room(world: &World) {
    world.execute_as_owner("DROP FUNCTION refuse CASCADE").await;
}

/// A worker with `JOBS` jobs, some of them running.
async fn at_work(world: &World) -> (Process, Process, Caller) {
    let installation = Installation::of(world);
    let api = installation.api().await;
    let worker = installation.worker("worker", []).await;
    let caller = Caller::of(&api, "ada").await;
    for number in 0..JOBS {
        caller.submit(&format!("job-{number}"), &job(number, 1200)).await;
    }
    let running = "SELECT least(count(*), 1) FROM jobs WHERE status = 'in_progress'";
    until_count(world, 1, running).await;
    (api, worker, caller)
}

async fn assert_all_done_at_the_first_attempt(world: &World) {
    until_count(world, JOBS, COMPLETED).await;
    assert_each_settled_once(world, JOBS).await;
    let attempts = count(world, "SELECT max(attempt)::int8 FROM jobs").await;
    assert_eq!(attempts, 1, "no attempt was charged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_submits_keeps_results_and_costs_no_attempt() {
    in_world(async |world| {
        hurry(world);
        let (_api, _worker, caller) = at_work(world).await;
        fill(world).await;
        let refused = caller.post("/v1/jobs").json(&job(0, 1)).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.headers().contains_key(RETRY_AFTER));
        until_count(world, 1, "SELECT least(last_value, 1) FROM rescues").await;
        assert!(count(world, COMPLETED).await < JOBS as i64, "it came in the middle");
        make_room(world).await;
        assert_all_done_at_the_first_attempt(world).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn room_that_comes_back_just_as_lapsed_leases_are_looked_at_costs_no_attempt() {
    in_world(async |world| {
        hurry(world);
        let (_api, _worker, _caller) = at_work(world).await;
        // The first look at lapsed leases meets the full disk; the next one has room, before any worker could beat.
        fill_until(world, "(SELECT last_value FROM rescues) > 1").await;
        until_count(world, 2, "SELECT least(last_value, 2) FROM rescues").await;
        assert_all_done_at_the_first_attempt(world).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn room_that_comes_back_just_as_callers_seem_to_have_hung_up_cancels_no_job() {
    in_world(async |world| {
        hurry(world);
        world.delivery.hangup_grace = Duration::from_secs(3);
        let installation = Installation::of(world);
        let api = installation.api().await;
        drop(installation.generator("first", []).await);
        let _maintainer = installation.maintainer().await;
        let caller = Caller::of(&api, "ada").await;
        let asking = caller.post("/v1/completions").timeout(LIMIT).json(&job(0, 4)).send();
        let asking = tokio::spawn(asking);
        until_count(world, 1, "SELECT count(*) FROM attended_jobs").await;
        // The first look at lapsed attendances meets the full disk; the next one has room, before the API could say again that
        // its caller is there.
        fill_until(world, "(SELECT last_value FROM cancels) > 1").await;
        until_count(world, 2, "SELECT least(last_value, 2) FROM cancels").await;
        let _generator = installation.generator("second", []).await;
        let answer = asking.await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{}", answer.text().await.unwrap());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs user namespaces: tests/full-disk"]
async fn a_disk_filled_to_the_last_block_loses_nothing_that_was_accepted() {
    let mut disk = SmallDisk::mount();
    let servers = Servers {
        database: disk.database(),
        ..Servers::from_env()
    };
    in_world_on(servers, async |world| {
        hurry(world);
        let (_api, _worker, caller) = at_work(world).await;
        let (mut accepted, mut refused, mut number) = (Vec::new(), 0, JOBS);
        // What is left in the last blocks of tables and log takes some more, and Postgres makes itself room now and then.
        let began = Instant::now();
        while refused < REFUSALS {
            assert!(
                began.elapsed() < LIMIT,
                "{refused} refused, {} accepted",
                accepted.len()
            );
            disk.fill();
            number += 1;
            let request = caller.post("/v1/jobs").json(&large_job(number));
            let answer = request.send().await.expect("an answer");
            if answer.status() == StatusCode::ACCEPTED {
                let job: Value = answer.json().await.unwrap();
                let id: JobId = job["id"].as_str().unwrap().parse().unwrap();
                accepted.push(id.uuid());
            } else {
                assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
                assert!(answer.headers().contains_key(RETRY_AFTER));
                refused += 1;
            }
        }
        eprintln!("{} accepted on what was left, {refused} refused", accepted.len());
        disk.free();
        caller.submit("afterwards", &job(0, 4)).await;
        // One whose answer was lost with the server may be there as well.
        let recorded = count(world, "SELECT count(*) FROM jobs").await as usize;
        until_count(world, recorded, COMPLETED).await;
        assert_each_settled_once(world, recorded).await;
        let found: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE id = ANY($1)")
            .bind(&accepted)
            .fetch_one(&world.pool)
            .await
            .unwrap();
        assert_eq!(found as usize, accepted.len(), "what was accepted is there");
        assert!(
            (JOBS + accepted.len() + 1..=JOBS + number + 1).contains(&recorded),
            "{recorded}"
        );
        assert_eq!(promises::broken(&world.pool).await, [""; 0]);
    })
    .await;
}
