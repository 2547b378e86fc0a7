//! One process that serves several models: each has its queues, its engine and its place in the list.

use claimcheck_common::store::{accounts, operators};
use claimcheck_tests::{Installation, TINY, eventually, in_world};
use serde_json::{Value, json};

use super::{Caller, LIMIT, job};

async fn text_by(caller: &Caller, model: &str, key: &str) -> String {
    let mut wanted = job(1, 12);
    wanted["model"] = json!(model);
    let id = caller.submit(key, &wanted).await;
    let ended = eventually("the job ends", LIMIT, async || {
        let job = caller.job(&id).await;
        (job["status"] == "completed").then_some(job)
    })
    .await;
    ended["output"]["choices"][0]["text"].as_str().unwrap().to_owned()
}

async fn listed(caller: &Caller) -> Vec<String> {
    let answer = caller
        .client
        .get(format!("{}/v1/models", caller.base))
        .bearer_auth(&caller.token);
    let list: Value = answer.send().await.unwrap().json().await.unwrap();
    let models = list["data"].as_array().unwrap();
    let mut names: Vec<_> = models
        .iter()
        .filter(|model| model["workers"] == 1)
        .map(|model| model["id"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_serves_several_models_and_goes_on_with_one_when_the_other_is_drained() {
    in_world(async |world| {
        let installation = Installation::of(world);
        let api = installation.api().await;
        let _worker = installation.worker("worker", installation.serving_also("second")).await;
        let caller = Caller::of(&api, "ada").await;
        assert_eq!(listed(&caller).await, ["second", TINY]);
        let (first, second) = (text_by(&caller, TINY, "a").await, text_by(&caller, "second", "b").await);
        assert_ne!(first, second, "the same prompt and seed by other weights");

        let workers = operators::workers(&world.pool).await.unwrap();
        let drained = workers.iter().find(|worker| worker.model == "second").unwrap().id;
        let ada = accounts::find_by_username(&world.pool, "ada").await.unwrap().unwrap();
        assert!(operators::drain(&world.pool, drained, ada.user_id).await.unwrap());
        eventually("the drained one has left", LIMIT, async || {
            (listed(&caller).await == [TINY]).then_some(())
        })
        .await;
        assert_eq!(text_by(&caller, TINY, "c").await, first);
    })
    .await;
}
