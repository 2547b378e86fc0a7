//! The content policy and strict sampling, over HTTP and in the audit log.

use std::time::Duration;

use claimcheck_api::Config;
use claimcheck_common::config::PolicyConfig;
use claimcheck_tests::{Installation, World, eventually, in_world};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::http_face::{Api, MODEL, Session, announce, answer, code, config};
use crate::http_streams::{Event, Events};
use crate::sdk::token;

const LIMIT: Duration = Duration::from_secs(30);
pub(crate) const RULES: &str = r#"
[[rules]]
name = "poison"
category = "abuse"
action = "reject"
words = ["poison"]

[[rules]]
name = "names"
category = "privacy"
action = "redact"
words = ["john doe"]

[[rules]]
name = "odd"
category = "curious"
action = "flag"
patterns = ['od{2,}']
"#;

async fn with_policy(change: impl FnOnce(&mut Config), test: impl AsyncFnOnce(&mut World, &Api)) {
    in_world(async |world| {
        announce(world, MODEL).await;
        let mut config = config(world);
        change(&mut config);
        let api = Api::start_with(config).await;
        test(world, &api).await;
        api.stop().await;
    })
    .await;
}

fn rules_of(file: &tempfile::NamedTempFile) -> PolicyConfig {
    PolicyConfig {
        policy_file: Some(file.path().to_owned()),
        ..PolicyConfig::default()
    }
}

fn written(rules: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rules).unwrap();
    file
}

async fn submit(session: &Session, prompt: Value) -> (StatusCode, Value) {
    answer(session.post("/v1/jobs").json(&json!({"prompt": prompt}))).await
}

async fn audited(session: &Session) -> Vec<Value> {
    let (status, body) = answer(session.get("/v1/audit?action=policy.")).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body["data"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_are_rejected_redacted_or_flagged_and_each_hit_is_audited() {
    let file = written(RULES);
    with_policy(
        |config| config.policy = rules_of(&file),
        async |world, api| {
            let ada = api.user("ada").await;
            let (status, body) = submit(&ada, json!("a cup of Poison, please")).await;
            assert_eq!(
                (status, code(&body)),
                (StatusCode::BAD_REQUEST, "content_policy_violation")
            );
            assert_eq!(body["error"]["param"], "prompt");
            // "poison" in this model's tokens, which are bytes.
            let (status, body) = submit(&ada, json!([79, 78, 72, 82, 78, 77])).await;
            assert_eq!(
                (status, code(&body)),
                (StatusCode::BAD_REQUEST, "content_policy_violation")
            );
            let (status, redacted) = submit(&ada, json!("The story of John  Doe")).await;
            assert_eq!(status, StatusCode::ACCEPTED, "{redacted}");
            let stored: Value = sqlx::query_scalar("SELECT prompt FROM job_inputs ORDER BY job_id DESC LIMIT 1")
                .fetch_one(&world.pool)
                .await
                .unwrap();
            assert!(stored.to_string().contains("The story of [redacted]"), "{stored}");
            let (status, flagged) = submit(&ada, json!("how oddd")).await;
            assert_eq!(status, StatusCode::ACCEPTED);
            let rows = audited(&ada).await;
            let told: Vec<_> = rows
                .iter()
                .map(|row| (row["action"].as_str().unwrap(), row["outcome"].as_str().unwrap()))
                .collect();
            assert_eq!(
                told,
                [
                    ("policy.flagged", "ok"),
                    ("policy.redacted", "ok"),
                    ("policy.rejected", "refused"),
                    ("policy.rejected", "refused")
                ]
            );
            assert_eq!(rows[0]["details"]["rule"], "odd");
            assert_eq!(rows[0]["details"]["side"], "prompt");
            assert!(
                rows.iter()
                    .all(|row| row["request_id"].is_string() && row["credential"] == "token")
            );
            assert!(flagged["id"].is_string() && rows[0]["subject"].is_string());
            let log = serde_json::to_string(&rows).unwrap();
            assert!(
                !log.to_lowercase().contains("doe") && !log.contains("cup of"),
                "no text in the log"
            );
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_is_followed_while_it_runs_never_shows_what_is_taken_out_of_it() {
    in_world(async |world| {
        let installation = Installation::of(world);
        let api = installation.api().await;
        let file = written("");
        let policy = || [("CLAIMCHECK_POLICY_FILE", file.path().display().to_string())];
        let mut worker = installation.worker("open", policy()).await;
        let token = token(&api).await;
        let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        let get = |path: &str| client.get(api.url(path)).bearer_auth(&token);
        let submit = async || {
            let body = json!({"prompt": "Once", "max_tokens": 3000, "seed": 7});
            let (_, job) = answer(client.post(api.url("/v1/jobs")).bearer_auth(&token).json(&body)).await;
            job["id"].as_str().unwrap().to_owned()
        };
        let ended = async |id: &str| {
            let (_, job) = answer(get(&format!("/v1/jobs/{id}?wait=25"))).await;
            job["output"]["choices"][0].clone()
        };
        let open = ended(&submit().await).await;
        let word: String = open["text"].as_str().unwrap().chars().skip(1500).take(6).collect();
        let letters: Vec<_> = word
            .chars()
            .map(|letter| format!("\\x{{{:x}}}", u32::from(letter)))
            .collect();
        let pattern = letters.concat();
        let rule = "[[rules]]\nname = \"word\"\ncategory = \"test\"\naction = \"redact\"\n";
        std::fs::write(file.path(), format!("{rule}patterns = ['{pattern}']\n")).unwrap();
        worker.kill();
        let _worker = installation.worker("strict", policy()).await;

        let id = submit().await;
        let events = Events::open(get(&format!("/v1/jobs/{id}/events"))).await.rest().await;
        let choice = ended(&id).await;
        let text = choice["text"].as_str().unwrap();
        assert_eq!(choice["finish_reason"], "content_filter");
        assert!(text.contains("[redacted]") && !text.contains(&word));
        assert!(
            events.iter().all(|event| event.name != "reset"),
            "nothing is taken back"
        );
        let deltas: Vec<_> = events
            .iter()
            .filter(|event| event.name == "delta")
            .map(Event::json)
            .collect();
        assert!(deltas.len() > 1, "it was told while it ran");
        let told: String = deltas.iter().map(|delta| delta["text"].as_str().unwrap()).collect();
        assert_eq!(told, text);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_out_of_a_text_is_not_kept_as_tokens_and_nothing_is_held_against_it() {
    in_world(async |world| {
        let installation = Installation::of(world);
        let api = installation.api().await;
        let file = written("");
        let policy = || [("CLAIMCHECK_POLICY_FILE", file.path().display().to_string())];
        let mut worker = installation.worker("open", policy()).await;
        let token = token(&api).await;
        let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        let get = async |path: &str| answer(client.get(api.url(path)).bearer_auth(&token)).await.1;
        let post = async |path: &str, body: Value| {
            let (status, body) = answer(client.post(api.url(path)).bearer_auth(&token).json(&body)).await;
            (status, body["id"].as_str().unwrap_or_else(|| code(&body)).to_owned())
        };
        let ended = async || {
            let body = json!({"prompt": "Once", "max_tokens": 20, "seed": 7});
            let (_, id) = post("/v1/jobs", body).await;
            let job = get(&format!("/v1/jobs/{id}?wait=25")).await;
            assert_eq!(job["status"], "completed", "{job}");
            (id, job["output"]["choices"][0]["finish_reason"] == "content_filter")
        };
        let (shown, withheld) = ended().await;
        assert!(!withheld);
        let rule = "[[rules]]\nname = \"letters\"\ncategory = \"test\"\naction = \"redact\"\npatterns = ['[a-z]+']\n";
        std::fs::write(file.path(), rule).unwrap();
        worker.kill();
        let _worker = installation.worker("strict", policy()).await;

        let (changed, withheld) = ended().await;
        assert!(withheld);
        let replay = async |id: &str| post(&format!("/v1/jobs/{id}/replay"), json!({})).await;
        let refused = (StatusCode::CONFLICT, "job_without_tokens".to_owned());
        assert_eq!(replay(&changed).await, refused);
        let (status, again) = replay(&shown).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{again}");
        let verdict = get(&format!("/v1/jobs/{again}/replay?wait=25")).await;
        assert_eq!(
            (&verdict["status"], &verdict["matches"]),
            (&json!("completed"), &Value::Null),
            "{verdict}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_read_anew_and_a_broken_one_changes_nothing() {
    let file = written(RULES);
    with_policy(
        |config| config.policy = rules_of(&file),
        async |_, api| {
            let ada = api.user("ada").await;
            let rejected = async |prompt: &str| submit(&ada, json!(prompt)).await.0 == StatusCode::BAD_REQUEST;
            assert!(rejected("poison").await && !rejected("garlic").await);
            std::fs::write(file.path(), RULES.replace("poison", "garlic")).unwrap();
            eventually("the new rules hold", LIMIT, async || {
                rejected("garlic").await.then_some(())
            })
            .await;
            assert!(!rejected("poison").await);
            std::fs::write(file.path(), "rules = nonsense").unwrap();
            // Read after the broken one, so that its turn has come.
            std::fs::write(file.path(), RULES.replace("poison", "onions")).unwrap();
            eventually("and newer ones", LIMIT, async || rejected("onions").await.then_some(())).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_sampling_takes_one_of_temperature_and_top_p_and_is_off_by_default() {
    for strict in [false, true] {
        with_policy(
            |config| config.policy.strict_sampling = strict,
            async |_, api| {
                let ada = api.user("ada").await;
                let status = async |temperature: f64, top_p: f64| {
                    let body = json!({"prompt": "Once", "temperature": temperature, "top_p": top_p});
                    answer(ada.post("/v1/jobs").json(&body)).await.0
                };
                let both = if strict {
                    StatusCode::BAD_REQUEST
                } else {
                    StatusCode::ACCEPTED
                };
                assert_eq!(status(0.7, 0.9).await, both);
                assert_eq!(status(1.0, 0.9).await, StatusCode::ACCEPTED);
                assert_eq!(status(0.7, 1.0).await, StatusCode::ACCEPTED);
            },
        )
        .await;
    }
}
