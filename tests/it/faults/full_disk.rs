//! Postgres without room (SQLSTATE 53100). A trigger gives the server's own answer for a while: the disk of a shared machine is
//! not ours to fill.

use claimcheck_tests::{Installation, World, eventually, in_world};
use reqwest::StatusCode;
use reqwest::header::RETRY_AFTER;

use super::{COMPLETED, Caller, LIMIT, assert_each_settled_once, count, hurry, job, until_count};

const JOBS: usize = 40;

/// From now on what needs room is refused, and the refusals are counted: a sequence is not rolled back.
async fn fill(world: &World) {
    world
        .execute_as_owner(
            "CREATE SEQUENCE refusals;
             GRANT USAGE, SELECT ON refusals TO PUBLIC;
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 PERFORM nextval('refusals');
                 RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
             END $$;
             CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION refuse();
             CREATE TRIGGER full_disk BEFORE INSERT ON job_outputs FOR EACH ROW EXECUTE FUNCTION refuse();
             CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON workers FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await;
}

async fn make_room(world: &World) {
    world.execute_as_owner("DROP FUNCTION refuse CASCADE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_submits_keeps_results_and_costs_no_attempt() {
    in_world(async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let api = installation.api().await;
        let _worker = installation.worker("worker", []).await;
        let caller = Caller::of(&api, "ada").await;
        for number in 0..JOBS {
            caller.submit(&format!("job-{number}"), &job(number, 1200)).await;
        }
        until_count(
            world,
            1,
            "SELECT least(count(*), 1) FROM jobs WHERE status = 'in_progress'",
        )
        .await;
        fill(world).await;
        let refused = caller.post("/v1/jobs").json(&job(0, 1)).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.headers().contains_key(RETRY_AFTER));
        // All leases have lapsed then, and whoever rescues has met the full disk, too: it looks again a lease after that.
        let lapsed = world.delivery.lease * 3 / 2;
        let filled = std::time::Instant::now();
        eventually("a lease and some tries go by", LIMIT, async || {
            let tries = count(world, "SELECT last_value FROM refusals").await;
            (tries > 10 && filled.elapsed() > lapsed).then_some(())
        })
        .await;
        assert!(count(world, COMPLETED).await < JOBS as i64, "it came in the middle");
        make_room(world).await;
        until_count(world, JOBS, COMPLETED).await;
        assert_each_settled_once(world, JOBS).await;
        assert_eq!(
            count(world, "SELECT max(attempt)::int8 FROM jobs").await,
            1,
            "no attempt was charged"
        );
    })
    .await;
}
