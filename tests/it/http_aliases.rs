//! Names that operators give to models: what requests make of them, and who may change them.

use std::time::Duration;

use claimcheck_common::domain::{ModelRef, WorkerId};
use claimcheck_common::store::models::{self, NewModel};
use claimcheck_tests::{World, eventually};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::http_completions::{choice, claim_all, finish};
use crate::http_face::{MODEL, Session, announce, answer, code, with_api};
use crate::http_operators::{admin, complete};
use crate::identity_revoked::{get_known, with_two};

const LIMIT: Duration = Duration::from_secs(20);

/// A second model, once it is announced.
pub(crate) const NEXT: &str = "bytes-next";

async fn set(session: &Session, name: &str, targets: Value) -> (StatusCode, Value) {
    let path = format!("/v1/admin/aliases/{name}");
    answer(session.put(&path).json(&json!({"targets": targets}))).await
}

/// Lets a name lead to one model alone.
pub(crate) async fn lead(session: &Session, name: &str, model: &str) {
    let (status, body) = set(session, name, json!([{"model": model}])).await;
    assert_eq!(status, StatusCode::OK, "{body}");
}

fn asking(model: &str) -> Value {
    json!({"prompt": "Once upon a time", "model": model})
}

/// Under which name a job runs and by which it was asked for.
async fn names(session: &Session, id: &str) -> (String, Value) {
    let job = session.job(id).await;
    (
        job["model"].as_str().unwrap().to_owned(),
        job["requested_model"].clone(),
    )
}

async fn audited(world: &World, action: &str) -> Vec<Value> {
    let rows = sqlx::query_scalar("SELECT details FROM audit_log WHERE action = $1 ORDER BY id").bind(action);
    rows.fetch_all(&world.pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_leads_to_its_model_and_every_job_says_by_which_name_it_was_asked_for() {
    with_api(async |world, api| {
        announce(world, NEXT).await;
        let root = admin(world, api.user("root").await).await;
        let ada = api.user("ada").await;
        let (status, body) = set(&root, "prod", json!([{"model": NEXT, "weight": 2}])).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(
            (&body["id"], &body["targets"]),
            (&json!("prod"), &json!([{"model": NEXT, "weight": 2}]))
        );
        let (_, list) = answer(root.get("/v1/admin/aliases")).await;
        assert_eq!(list["data"], json!([body]));

        let id = ada.submit(&asking("prod")).await;
        assert_eq!(names(&ada, &id).await, (NEXT.to_owned(), json!("prod")));
        let own = ada.submit(&asking(NEXT)).await;
        assert_eq!(names(&ada, &own).await, (NEXT.to_owned(), Value::Null));
        complete(&world.pool, &id).await;
        let (_, again) = answer(ada.post(&format!("/v1/jobs/{id}/retry"))).await;
        assert_eq!(
            (&again["model"], &again["requested_model"]),
            (&json!(NEXT), &json!("prod"))
        );

        let (_, listed) = answer(ada.get("/v1/models")).await;
        let ids: Vec<_> = listed["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|model| &model["id"])
            .collect();
        assert_eq!(ids, [MODEL, NEXT, "prod"]);
        let (_, shown) = answer(ada.get("/v1/models/prod")).await;
        assert_eq!(
            shown["targets"],
            json!([{"model": NEXT, "revision": "r1", "weight": 2, "workers": 1}])
        );
        assert_eq!((&shown["workers"], &shown["revision"]), (&json!(1), &json!("r1")));
        assert!(listed["data"][0]["targets"].is_null());

        let removed = root
            .request(Method::DELETE, "/v1/admin/aliases/prod")
            .send()
            .await
            .unwrap();
        assert_eq!(removed.status(), StatusCode::NO_CONTENT);
        let (status, body) = answer(ada.post("/v1/jobs").json(&asking("prod"))).await;
        assert_eq!((status, code(&body)), (StatusCode::NOT_FOUND, "model_not_found"));
        let target = json!([{"model": NEXT, "weight": 2}]);
        assert_eq!(
            audited(world, "alias.set").await,
            [json!({"alias": "prod", "before": [], "after": target})]
        );
        assert_eq!(
            audited(world, "alias.removed").await,
            [json!({"alias": "prod", "before": target})]
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_holds_for_what_comes_after_it_and_a_repeated_request_keeps_its_job() {
    with_api(async |world, api| {
        announce(world, NEXT).await;
        let root = admin(world, api.user("root").await).await;
        let ada = api.user("ada").await;
        lead(&root, "prod", MODEL).await;
        let keyed = || {
            ada.post("/v1/jobs")
                .header("idempotency-key", "k")
                .json(&asking("prod"))
        };
        let (_, first) = answer(keyed()).await;
        lead(&root, "prod", NEXT).await;
        let (status, again) = answer(keyed()).await;
        assert_eq!(
            (status, &again["id"], &again["model"]),
            (StatusCode::ACCEPTED, &first["id"], &json!(MODEL))
        );
        let after = ada.submit(&asking("prod")).await;
        assert_eq!(names(&ada, &after).await.0, NEXT);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_goes_by_names_that_it_knows_until_any_process_changes_one() {
    with_two(async |world, here, there| {
        announce(world, NEXT).await;
        let root = admin(world, here.user("root").await).await;
        let ada = here.user("ada").await;
        let ada_there = Session {
            base: there.base.clone(),
            ..ada.clone()
        };
        let asked = async |session: &Session| {
            let id = session.submit(&asking("prod")).await;
            names(session, &id).await.0
        };
        lead(&root, "prod", MODEL).await;
        for session in [&ada, &ada_there] {
            get_known(session).await;
        }
        // A change that nobody tells of is not seen at once, unless what was known is a second old by then.
        eventually("names that are known", LIMIT, async || {
            lead(&root, "prod", MODEL).await;
            // The first of these learns of the caller anew, under the new mark.
            for _ in 0..3 {
                assert_eq!(asked(&ada_there).await, MODEL);
            }
            let sql = format!("UPDATE alias_targets SET model = '{NEXT}'");
            world.execute_as_owner(&sql).await;
            (asked(&ada_there).await == MODEL).then_some(())
        })
        .await;
        for model in [NEXT, MODEL, NEXT, MODEL, NEXT] {
            lead(&root, "prod", model).await;
            for session in [&ada_there, &ada] {
                assert_eq!(asked(session).await, model);
            }
        }
        // Nobody tells of a model that a worker announces either: a name that is not known is looked for.
        announce(world, "newest").await;
        assert_eq!(
            answer(ada_there.post("/v1/jobs").json(&asking("newest"))).await.0,
            StatusCode::ACCEPTED
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_share_the_jobs_out_and_a_name_goes_before_a_model_that_is_called_the_same() {
    with_api(async |world, api| {
        announce(world, NEXT).await;
        let root = admin(world, api.user("root").await).await;
        let ada = api.user("ada").await;
        let both = json!([{"model": MODEL, "weight": 1}, {"model": NEXT, "weight": 1}]);
        assert_eq!(set(&root, MODEL, both).await.0, StatusCode::OK);
        let mut seen = [0; 2];
        // That one of them gets none of 60 happens once in 10^18 times.
        for _ in 0..60 {
            let id = ada.submit(&asking(MODEL)).await;
            let (model, requested) = names(&ada, &id).await;
            assert_eq!(requested, MODEL);
            seen[usize::from(model == NEXT)] += 1;
        }
        assert!(seen.iter().all(|jobs| *jobs > 0), "{seen:?}");

        let heavy = json!([{"model": NEXT, "weight": 1000}, {"model": MODEL}]);
        assert_eq!(set(&root, MODEL, heavy).await.0, StatusCode::OK);
        let (_, shown) = answer(ada.get(&format!("/v1/models/{MODEL}"))).await;
        assert_eq!(shown["targets"][0]["model"], NEXT, "the heaviest first");
        let path = format!("/v1/admin/aliases/{MODEL}");
        root.request(Method::DELETE, &path).send().await.unwrap();
        let id = ada.submit(&asking(MODEL)).await;
        assert_eq!(
            names(&ada, &id).await,
            (MODEL.to_owned(), Value::Null),
            "its own name again"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_names_no_model_or_one_that_counts_otherwise_is_refused_and_only_admins_may_change_names() {
    with_api(async |world, api| {
        announce(world, NEXT).await;
        let other = NewModel {
            model: ModelRef {
                name: "words".to_owned(),
                revision: "r1".to_owned(),
            },
            context_length: 8,
            vocabulary_size: 8,
            dtype: "f32".to_owned(),
            weights_sha256: "0".repeat(64),
            tokenizer: b"{}".to_vec(),
            tokenizer_sha256: "words".to_owned(),
        };
        models::announce(&world.pool, WorkerId::new(), 1, other).await.unwrap();
        let ada = api.user("ada").await;
        assert_eq!(
            set(&ada, "prod", json!([{"model": MODEL}])).await.0,
            StatusCode::FORBIDDEN
        );
        let root = admin(world, ada).await;
        let twice = json!([{"model": MODEL}, {"model": MODEL}]);
        let many: Vec<_> = (0..17).map(|number| json!({"model": format!("m{number}")})).collect();
        for (targets, status, param) in [
            (
                json!([{"model": MODEL}, {"model": "nothing"}]),
                StatusCode::NOT_FOUND,
                "targets[1].model",
            ),
            (
                json!([{"model": MODEL}, {"model": "words"}]),
                StatusCode::BAD_REQUEST,
                "targets[1].model",
            ),
            (twice, StatusCode::BAD_REQUEST, "targets[1].model"),
            (json!([]), StatusCode::BAD_REQUEST, "targets"),
            (json!(many), StatusCode::BAD_REQUEST, "targets"),
            (
                json!([{"model": MODEL, "weight": 0}]),
                StatusCode::BAD_REQUEST,
                "targets[0].weight",
            ),
            (json!([{"model": MODEL, "share": 1}]), StatusCode::BAD_REQUEST, "share"),
        ] {
            let (answered, body) = set(&root, "prod", targets).await;
            assert_eq!((answered, &body["error"]["param"]), (status, &json!(param)), "{body}");
        }
        let (_, list) = answer(root.get("/v1/admin/aliases")).await;
        assert_eq!(list["data"], json!([]), "nothing of it was done");
        let (status, body) = answer(root.request(Method::DELETE, "/v1/admin/aliases/prod")).await;
        assert_eq!((status, code(&body)), (StatusCode::NOT_FOUND, "alias_not_found"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_for_some_models_may_use_them_by_any_name_and_what_its_own_names_lead_to() {
    with_api(async |world, api| {
        announce(world, NEXT).await;
        let root = admin(world, api.user("root").await).await;
        let ada = api.user("ada").await;
        lead(&root, "prod", NEXT).await;
        let key = async |models: Value| {
            let body = json!({"name": "k", "scopes": ["jobs:write", "jobs:read"], "models": models});
            let (status, made) = answer(ada.post("/v1/api_keys").json(&body)).await;
            assert_eq!(status, StatusCode::CREATED, "{made}");
            ada.with_token(made["key"].as_str().unwrap())
        };
        for (models, allowed) in [(json!(["prod"]), true), (json!([NEXT]), true), (json!([MODEL]), false)] {
            let (status, body) = answer(key(models).await.post("/v1/jobs").json(&asking("prod"))).await;
            let wanted = if allowed {
                StatusCode::ACCEPTED
            } else {
                StatusCode::FORBIDDEN
            };
            assert_eq!(status, wanted, "{body}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_is_asked_for_by_an_alias_and_answers_with_its_model() {
    with_api(async |world, api| {
        announce(world, NEXT).await;
        let root = admin(world, api.user("root").await).await;
        let ada = api.user("ada").await;
        lead(&root, "prod", NEXT).await;
        let request = ada.post("/v1/completions").json(&asking("prod"));
        let asked = tokio::spawn(answer(request));
        let key = claim_all(world, 1).await[0];
        assert_eq!(names(&ada, &key.id.to_string()).await, (NEXT.to_owned(), json!("prod")));
        finish(world, key, vec![choice(0, " there", -1.0)]).await;
        let (status, completion) = asked.await.unwrap();
        assert_eq!(
            (status, &completion["model"]),
            (StatusCode::OK, &json!(NEXT)),
            "{completion}"
        );
    })
    .await;
}
