//! `/v1/responses` with plain text.

use std::time::Duration;

use claimcheck_common::domain::{Choice, FinishReason};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::http_completions::{choice, claim_all, finish};
use crate::http_face::{Api, MODEL, answer, code, with_api};
use crate::http_streams::Events;

fn said(text: &str, finish_reason: FinishReason) -> Vec<Choice> {
    vec![Choice {
        logprobs: None,
        finish_reason: Some(finish_reason),
        ..choice(0, text, 0.0)
    }]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_is_made_in_the_background_fetched_and_deleted() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let body = json!({"model": MODEL, "input": "hi", "background": true, "metadata": {"a": "1"}});
        let (status, created) = answer(ada.post("/v1/responses").json(&body)).await;
        assert_eq!((status, &created["status"]), (StatusCode::OK, &json!("queued")));
        let id = created["id"].as_str().unwrap().to_owned();
        let path = format!("/v1/responses/{id}");
        let key = claim_all(world, 1).await[0];
        assert_eq!(answer(ada.get(&path)).await.1["status"], "in_progress");
        let refused = answer(ada.request(Method::DELETE, &path)).await;
        assert_eq!((refused.0, code(&refused.1)), (StatusCode::CONFLICT, "response_not_ended"));
        finish(world, key, said(" there", FinishReason::Stop)).await;
        let response = answer(ada.get(&path)).await.1;
        let message = json!({"id": id.replacen("resp_", "msg_", 1), "type": "message", "status": "completed", "role": "assistant",
            "content": [{"type": "output_text", "text": " there", "annotations": [], "logprobs": []}]});
        assert_eq!((&response["status"], &response["output"]), (&json!("completed"), &json!([message])));
        assert_eq!(response["usage"]["total_tokens"], 3);
        assert_eq!((&response["metadata"], &response["max_output_tokens"]), (&json!({"a": "1"}), &json!(256)));
        let deleted = answer(ada.request(Method::DELETE, &path)).await;
        assert_eq!(deleted, (StatusCode::OK, json!({"id": id, "object": "response", "deleted": true})));
        for gone in [answer(ada.get(&path)).await, answer(ada.post(&format!("{path}/cancel"))).await] {
            assert_eq!((gone.0, code(&gone.1)), (StatusCode::NOT_FOUND, "response_not_found"));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_is_waited_for_or_cancelled() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let waiting = tokio::spawn(answer(ada.post("/v1/responses").json(&json!({"input": "hi"}))));
        let key = claim_all(world, 1).await[0];
        finish(world, key, said(" there", FinishReason::Length)).await;
        let (status, response) = waiting.await.unwrap();
        assert_eq!((status, &response["status"]), (StatusCode::OK, &json!("incomplete")));
        assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
        let body = json!({"input": "hi", "background": true});
        let id = answer(ada.post("/v1/responses").json(&body)).await.1["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let cancelled = answer(ada.post(&format!("/v1/responses/{id}/cancel"))).await;
        assert_eq!(
            (cancelled.0, &cancelled.1["status"]),
            (StatusCode::OK, &json!("cancelled"))
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_responses_events_go_on_after_any_number() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let body = json!({"input": "hi", "background": true, "stream": true});
        let mut events = Events::open(ada.post("/v1/responses").json(&body)).await;
        let created: Value = serde_json::from_str(&events.next().await.unwrap().data).unwrap();
        assert_eq!(
            (&created["type"], &created["sequence_number"]),
            (&json!("response.created"), &json!(0))
        );
        let id = created["response"]["id"].as_str().unwrap().to_owned();
        let key = claim_all(world, 1).await[0];
        finish(world, key, said("héllo", FinishReason::Stop)).await;
        let rest = tokio::time::timeout(Duration::from_secs(20), events.rest())
            .await
            .unwrap();
        let names: Vec<_> = rest.iter().map(|event| event.name.as_str()).collect();
        let wanted = [
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]
        .map(|name| format!("response.{name}"));
        let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
        assert!(names.ends_with(&wanted), "{names:?}");
        let get = |after: u64| ada.get(&format!("/v1/responses/{id}?stream=true&starting_after={after}"));
        // After the second character of the text.
        let resumed = Events::open(get(6)).await.rest().await;
        let first: Value = serde_json::from_str(&resumed[0].data).unwrap();
        assert_eq!((&first["delta"], &first["sequence_number"]), (&json!("llo"), &json!(9)));
        let last = Events::open(get(12)).await.rest().await;
        assert_eq!(last.len(), 1);
        assert_eq!(last[0].name, "response.completed");
        let bad = answer(ada.get(&format!("/v1/responses/{id}?starting_after=1"))).await;
        assert_eq!(
            (bad.0, &bad.1["error"]["param"]),
            (StatusCode::BAD_REQUEST, &json!("starting_after"))
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_shown_an_ended_job_that_is_not_to_be_stored_has_minutes_to_see_it_again() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let soon = async || -> i64 {
            let sql = "SELECT count(*) FROM jobs WHERE erase_at < now() + interval '6 minutes'";
            sqlx::query_scalar(sql).fetch_one(&world.pool).await.unwrap()
        };
        let body = json!({"input": "hi", "store": false});
        let waiting = tokio::spawn(answer(ada.post("/v1/responses").json(&body)));
        let key = claim_all(world, 1).await[0];
        finish(world, key, said(" there", FinishReason::Stop)).await;
        assert_eq!(waiting.await.unwrap().0, StatusCode::OK);
        assert_eq!(soon().await, 1);
        // A job that is sent again, and one that cannot be cancelled any more.
        let body = json!({"prompt": "hi", "store": false});
        for (shown, cancels) in [(1, false), (2, true)] {
            let place = format!("/v1/jobs/mine{shown}");
            let (_, job) = answer(ada.put(&place).json(&body)).await;
            let key = claim_all(world, 1).await[0];
            finish(world, key, said(" there", FinishReason::Stop)).await;
            assert_eq!(soon().await, shown);
            let again = if cancels {
                ada.post(&format!("/v1/jobs/{}/cancel", job["id"].as_str().unwrap()))
            } else {
                ada.put(&place).json(&body)
            };
            let (status, again) = answer(again).await;
            assert_eq!((status, &again["status"]), (StatusCode::OK, &json!("completed")));
            assert_eq!(soon().await, shown + 1, "cancels: {cancels}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stops_says_so_to_who_follows_a_response_and_another_goes_on() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let second = Api::start(world).await;
        let stream = |body: Value| ada.at(&second).post("/v1/responses").json(&body);
        let mut left = Events::open(stream(json!({"input": "hi", "stream": true}))).await;
        let mut events = Events::open(stream(json!({"input": "hi", "background": true, "stream": true}))).await;
        let created = events.until("response.created").await.json();
        events.until("response.queued").await;
        left.until("response.queued").await;
        second.begin_stop();
        let last = left.rest().await.pop().expect("it says why it ends");
        let message = last.json()["message"].to_string();
        assert!(message.contains("Send the request again"), "{message}");
        let last = events.rest().await.pop().expect("it says why it ends");
        let error = last.json();
        assert_eq!(
            (last.name.as_str(), &error["code"]),
            ("error", &json!("stream_cut_off"))
        );
        second.stop().await;
        for key in claim_all(world, 2).await {
            finish(world, key, said("héllo", FinishReason::Stop)).await;
        }
        let id = created["response"]["id"].as_str().unwrap();
        let path = format!(
            "/v1/responses/{id}?stream=true&starting_after={}",
            error["sequence_number"]
        );
        let rest = Events::open(ada.get(&path)).await.rest().await;
        assert_eq!(rest[0].name, "response.in_progress", "nothing is passed over");
        let delta = rest.iter().find(|event| event.name == "response.output_text.delta");
        assert_eq!(delta.unwrap().json()["delta"], "héllo");
    })
    .await;
}
