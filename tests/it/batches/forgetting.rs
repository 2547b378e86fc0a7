//! What retention takes of ended batches, and what it leaves to those that need it.

use claimcheck_common::store::retention;
use claimcheck_worker::maintenance;

use super::*;

const KEEP: Duration = Duration::from_hours(1);

/// Makes the ended batches older than `KEEP`.
async fn age(world: &World) {
    let ended = "status IN ('completed', 'failed', 'expired', 'cancelled')";
    world
        .execute_as_owner(&format!(
            "UPDATE batches SET completed_at = now() - interval '2 hours' WHERE {ended}"
        ))
        .await;
}

/// As the task does.
async fn forget(world: &World) {
    while retention::forget_batches(&world.pool, KEEP).await.unwrap() > 0 {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_stays_until_its_failed_lines_were_done_again() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let first = create(&ada, &upload(&ada, &lines(20)).await).await;
        let worker = Worker::start(world, 4);
        run_all(world, &ada, &first, |prompt| prompt.len() == 1).await;
        worker.stop().await;
        let (status, again) = answer(ada.post(&format!("/v1/batches/{first}/retry"))).await;
        assert_eq!(status, StatusCode::OK, "{again}");
        age(world).await;
        forget(world).await;
        let worker = Worker::start(world, 4);
        let batch = run_all(world, &ada, again["id"].as_str().unwrap(), |_| true).await;
        assert_eq!(
            (batch["status"].as_str(), counts(&batch)),
            (Some("completed"), [11, 11, 0]),
            "no line is lost"
        );
        worker.stop().await;
        forget(world).await;
        let (status, _) = answer(ada.get(&format!("/v1/batches/{first}"))).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "nobody needs it any more");
        assert_eq!(count(world, "SELECT count(*) FROM batch_items").await, 11);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_half_forgotten_is_not_done_again_by_half() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let id = create(&ada, &upload(&ada, &lines(20)).await).await;
        let worker = Worker::start(world, 20);
        run_all(world, &ada, &id, |prompt| prompt.len() == 1).await;
        worker.stop().await;
        world
            .execute_as_owner("DELETE FROM batch_items WHERE line BETWEEN 5 AND 15")
            .await;
        let (status, refused) = answer(ada.post(&format!("/v1/batches/{id}/retry"))).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{refused}");
        assert_eq!(count(world, "SELECT count(*) FROM batches").await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_turn_of_retention_takes_every_batch_that_is_old_enough() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let young = create(&ada, &upload(&ada, &lines(1)).await).await;
        world
            .execute_as_owner(
                "WITH old AS (
                     INSERT INTO batches (id, tenant_id, project_id, user_id, endpoint, input_file_id, input_bytes,
                                          completion_window, status, total, completed, request_sha256, expires_at, completed_at)
                     SELECT gen_random_uuid(), tenant_id, project_id, user_id, endpoint, input_file_id, input_bytes,
                         completion_window, 'completed', 1, 1, request_sha256, now(), now() - interval '2 hours'
                     FROM batches, generate_series(1, 30) RETURNING id
                 )
                 INSERT INTO batch_items (batch_id, line, id, seq, completed) SELECT id, 1, gen_random_uuid(), 1, true FROM old",
            )
            .await;
        let config = claimcheck_common::config::DeliveryConfig {
            retention: Some(KEEP),
            ..world.delivery.clone()
        };
        let stop = CancellationToken::new();
        let keeping = maintenance::run(world.pool.clone(), world.broker(), config, KEEP, stop.clone());
        let keeping = tokio::spawn(keeping);
        // The next turn is a minute away.
        eventually("they are forgotten", LIMIT, async || {
            (count(world, "SELECT count(*) FROM batches").await == 1).then_some(())
        })
        .await;
        assert_eq!(count(world, "SELECT count(*) FROM batch_items").await, 0);
        get(&ada, &young).await;
        stop.cancel();
        keeping.await.unwrap();
    })
    .await;
}
