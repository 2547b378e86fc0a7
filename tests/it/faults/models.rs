//! One process that serves several models: each has its queues, its engine and its place in the list.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use claimcheck_common::domain::Role;
use claimcheck_common::store::{accounts, operators};
use claimcheck_tests::{Installation, TINY, eventually, in_world};
use reqwest::StatusCode;
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

/// Waits until a job ends, which it does well and at its first attempt.
async fn completed(caller: &Caller, id: &str) -> Value {
    let ended = eventually("it ends", LIMIT, async || {
        let job = caller.job(id).await;
        (!job["finished_at"].is_null()).then_some(job)
    })
    .await;
    assert_eq!(
        (&ended["status"], &ended["attempt"]),
        (&json!("completed"), &json!(1)),
        "{ended}"
    );
    ended
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

#[tokio::test(flavor = "multi_thread")]
async fn models_that_do_not_fit_together_take_turns_and_all_jobs_end() {
    in_world(async |world| {
        let installation = Installation::of(world);
        let api = installation.api().await;
        let [models, names] = installation.serving_also("second");
        // A model takes some 200 MiB, nearly all of it for keys and values.
        let memory = ("CLAIMCHECK_MODEL_MEMORY_MIB", "300".to_owned());
        let worker = installation.worker("worker", [models, names, memory]).await;
        let caller = Caller::of(&api, "ada").await;
        let mut ids = Vec::new();
        for number in 0..JOBS / 2 {
            let mut wanted = job(number, 12);
            wanted["model"] = json!([TINY, "second"][number % 2]);
            ids.push(caller.submit(&number.to_string(), &wanted).await);
        }
        for id in ids {
            completed(&caller, &id).await;
        }
        let loads = worker.metric("claimcheck_model_loads_total").await;
        assert!(loads > 2.0, "{loads} loads: there was room for both");
    })
    .await;
}

async fn lead(caller: &Caller, alias: &str, model: &str) {
    let path = format!("{}/v1/admin/aliases/{alias}", caller.base);
    let body = json!({"targets": [{"model": model}]});
    let set = caller.client.put(path).bearer_auth(&caller.token).json(&body);
    assert_eq!(set.send().await.unwrap().status(), StatusCode::OK);
}

/// Sends jobs by the alias, one after the other, until all senders have sent enough; answers for each whether it was sent after the switch had been
/// answered, and its id.
async fn submitting(
    caller: Caller,
    name: usize,
    switched: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
) -> Vec<(bool, String)> {
    let mut jobs = Vec::new();
    while sent.fetch_add(1, Ordering::SeqCst) < JOBS {
        let after = switched.load(Ordering::SeqCst);
        let mut wanted = job(jobs.len(), 4);
        wanted["model"] = json!("prod");
        // Once each: a refusal is a failure of the test, not a reason to come again.
        let answer = caller.post("/v1/jobs").json(&wanted).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED, "job {} of {name}", jobs.len());
        let accepted: Value = answer.json().await.unwrap();
        jobs.push((after, accepted["id"].as_str().unwrap().to_owned()));
    }
    jobs
}

const JOBS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_is_switched_under_load_without_a_lost_or_failed_request() {
    in_world(async |world| {
        let installation = Installation::of(world);
        let api = installation.api().await;
        let _worker = installation.worker("worker", installation.serving_also("second")).await;
        let caller = Caller::of(&api, "ada").await;
        assert!(accounts::set_role(&world.pool, "ada", Role::Admin).await.unwrap());
        lead(&caller, "prod", TINY).await;
        let (switched, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let senders: Vec<_> = (0..4)
            .map(|name| tokio::spawn(submitting(caller.clone(), name, switched.clone(), sent.clone())))
            .collect();
        eventually("half of them are sent", LIMIT, async || {
            (sent.load(Ordering::SeqCst) > JOBS / 2).then_some(())
        })
        .await;
        lead(&caller, "prod", "second").await;
        switched.store(true, Ordering::SeqCst);
        let mut jobs = Vec::new();
        for sender in senders {
            jobs.extend(sender.await.unwrap());
        }
        assert_eq!(jobs.len(), JOBS);
        let mut by_model = [0; 2];
        for (after, id) in jobs {
            let ended = completed(&caller, &id).await;
            assert_eq!(ended["requested_model"], "prod");
            let second = ended["model"] == "second";
            assert!(second || !after, "sent after the switch was answered");
            by_model[usize::from(second)] += 1;
        }
        assert!(by_model.iter().all(|jobs| *jobs > 0), "{by_model:?}: it was under load");
    })
    .await;
}
