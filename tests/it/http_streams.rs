//! Following jobs over HTTP: events before, during and after the run, resumed anywhere, completed from what is stored.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use claimcheck_common::deltas::{Delta, DeltaPublisher};
use claimcheck_common::domain::{Choice, FinishReason, JobId, JobKey};
use claimcheck_common::redis::Redis;
use claimcheck_common::store::settle;
use claimcheck_common::store::settle::Settlement;
use claimcheck_tests::{World, eventually};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::http_completions::{choice, claim_all, finish};
use crate::http_face::{Api, answer, code, with_api};

const LIMIT: Duration = Duration::from_secs(20);

/// A server-sent event.
#[derive(Debug, Clone, Default)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) data: String,
}

impl Event {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

/// A stream of them.
pub(crate) struct Events {
    response: Response,
    /// A chunk may end within a character.
    received: Vec<u8>,
}

impl Events {
    pub(crate) async fn open(request: RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            response,
            received: Vec::new(),
        }
    }

    /// The next event; comments are passed over. `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.received.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.received.drain(..end + 2).collect();
                let mut event = Event::default();
                for line in std::str::from_utf8(&block).unwrap().lines() {
                    match line.split_once(": ") {
                        Some(("event", name)) => name.clone_into(&mut event.name),
                        Some(("id", id)) => id.clone_into(&mut event.id),
                        Some(("data", data)) => data.clone_into(&mut event.data),
                        _ => {}
                    }
                }
                if event.data.is_empty() {
                    continue;
                }
                return Some(event);
            }
            let chunk = tokio::time::timeout(LIMIT, self.response.chunk())
                .await
                .expect("something is sent");
            self.received.extend_from_slice(&chunk.unwrap()?);
        }
    }

    /// The next event of that name.
    pub(crate) async fn until(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().await.unwrap_or_else(|| panic!("ended without `{name}`"));
            if event.name == name {
                return event;
            }
        }
    }

    /// All that is still to come.
    pub(crate) async fn rest(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// A worker's end of the way that running texts take.
struct Teller(DeltaPublisher);

impl Teller {
    fn of(world: &World) -> Self {
        Self(DeltaPublisher::new(Redis::new(&world.redis).unwrap()))
    }

    async fn wish(&self, id: JobId) -> Option<BTreeMap<String, u64>> {
        self.0.followers(&[id]).await.ok()?.remove(&id)
    }

    /// Tells of a piece, once somebody follows.
    async fn tell(&self, key: JobKey, choice: u32, offset: usize, text: &str) {
        let followers = eventually("somebody follows the job", LIMIT, async || self.wish(key.id).await).await;
        let delta = Delta {
            key,
            choice,
            offset,
            text: text.to_owned(),
        };
        let news = followers.keys().map(|name| (name.as_str(), vec![&delta])).collect();
        self.0.publish(&news).await.unwrap();
    }
}

fn plain(index: u32, text: &str) -> Choice {
    Choice {
        logprobs: None,
        ..choice(index, text, 0.0)
    }
}

fn texts(events: &[Event]) -> HashMap<u64, String> {
    let mut texts = HashMap::<u64, String>::new();
    for event in events.iter().filter(|event| event.name == "delta") {
        let delta = event.json();
        let text = texts.entry(delta["index"].as_u64().unwrap()).or_default();
        text.push_str(delta["text"].as_str().unwrap());
    }
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_followed_from_its_queue_to_its_end() {
    with_api(async |world, api| {
        let (ada, teller) = (api.user("ada").await, Teller::of(world));
        let id = ada.submit(&json!({"prompt": "Once", "n": 2})).await;
        let path = format!("/v1/jobs/{id}/events");
        let mut events = Events::open(ada.get(&path)).await;
        let first = events.next().await.unwrap();
        assert_eq!(
            (first.name.as_str(), &first.json()["status"]),
            ("state", &json!("queued"))
        );
        assert_eq!(events.until("queue").await.json()["position"], 1);
        let key = claim_all(world, 1).await[0];
        assert_eq!(events.until("state").await.json()["status"], "in_progress");
        teller.tell(key, 0, 0, " upon").await;
        assert_eq!(
            events.until("delta").await.json(),
            json!({"index": 0, "text": " upon", "logprobs": null})
        );
        teller.tell(key, 1, 0, " the").await;
        assert_eq!(events.until("delta").await.json()["index"], 1);
        teller.tell(key, 0, 5, " a t").await;
        assert_eq!(events.until("delta").await.json()["text"], " a t");
        finish(world, key, vec![plain(0, " upon a time"), plain(1, " there was")]).await;
        let rest = events.rest().await;
        assert_eq!(texts(&rest), [(0, "ime".to_owned()), (1, "re was".to_owned())].into());
        let end = rest.last().unwrap();
        assert_eq!((end.name.as_str(), end.id.as_str()), ("end", "end"));
        let wanted = json!({"id": id, "object": "job.end", "status": "completed", "error": null,
            "choices": [{"index": 0, "finish_reason": "length"}, {"index": 1, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}});
        assert_eq!(end.json(), wanted);
        // Who comes after the end gets all of it.
        let after = Events::open(ada.get(&path)).await.rest().await;
        assert_eq!(
            texts(&after),
            [(0, " upon a time".to_owned()), (1, " there was".to_owned())].into()
        );
        let over = ada.get(&path).header("last-event-id", "end").send().await.unwrap();
        assert_eq!(over.status(), StatusCode::NO_CONTENT, "tells a browser to stop");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_at_another_process_from_the_last_event() {
    with_api(async |world, api| {
        let (ada, teller) = (api.user("ada").await, Teller::of(world));
        let id = ada.submit(&json!({"prompt": "Once"})).await;
        let path = format!("/v1/jobs/{id}/events");
        let second = Api::start(world).await;
        let mut first = Events::open(ada.at(&second).get(&path)).await;
        let key = claim_all(world, 1).await[0];
        teller.tell(key, 0, 0, "héllo").await;
        let last = first.until("delta").await;
        // The process is told to stop: it ends its streams.
        second.begin_stop();
        assert!(first.next().await.is_none());
        second.stop().await;
        let before = teller.wish(key.id).await.unwrap_or_default();
        let mut resumed = Events::open(ada.get(&path).header("last-event-id", &last.id)).await;
        eventually("the other process follows", LIMIT, async || {
            let now = teller.wish(key.id).await?;
            now.keys().any(|name| !before.contains_key(name)).then_some(())
        })
        .await;
        teller.tell(key, 0, 0, "héllo, w").await;
        let next = resumed.next().await.unwrap();
        assert_eq!(
            (next.name.as_str(), &next.json()["text"]),
            ("delta", &json!(", w")),
            "no state, no text twice"
        );
        finish(world, key, vec![plain(0, "héllo, world")]).await;
        assert_eq!(texts(&resumed.rest().await)[&0], "orld");
        // Long after.
        let late = Events::open(ada.get(&path).header("last-event-id", &last.id))
            .await
            .rest()
            .await;
        assert_eq!(texts(&late)[&0], ", world");
        for bad in ["17", "queued~1"] {
            let (status, body) = answer(ada.get(&path).header("last-event-id", bad)).await;
            assert_eq!(
                (status, &body["error"]["param"]),
                (StatusCode::BAD_REQUEST, &json!("last-event-id"))
            );
        }
        let bob = api.user("bob").await;
        assert_eq!(code(&answer(bob.get(&path)).await.1), "job_not_found");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_came_by_redis_comes_from_the_stored_output() {
    with_api(async |world, api| {
        let (ada, teller) = (api.user("ada").await, Teller::of(world));
        let id = ada.submit(&json!({"prompt": "Once", "logprobs": 0})).await;
        let mut events = Events::open(ada.get(&format!("/v1/jobs/{id}/events"))).await;
        let key = claim_all(world, 1).await[0];
        events.until("state").await;
        let before = eventually("it is followed", LIMIT, async || teller.wish(key.id).await).await;
        // A piece was lost: the follower asks for all of it again.
        eventually("all is asked for again", LIMIT, async || {
            teller.tell(key, 0, 3, "lost").await;
            let now = teller.wish(key.id).await?;
            (now != before).then_some(())
        })
        .await;
        finish(world, key, vec![choice(0, " upon", -0.5)]).await;
        let rest = events.rest().await;
        assert_eq!(texts(&rest)[&0], " upon");
        let delta = rest.iter().find(|event| event.name == "delta").unwrap().json();
        assert_eq!(delta["logprobs"]["token_logprobs"], json!([-0.5]));
        eventually("nobody follows it any more", LIMIT, async || {
            teller.wish(key.id).await.is_none().then_some(())
        })
        .await;
    })
    .await;
}

/// The attempt failed, and the next one begins.
async fn again(world: &World, key: JobKey) -> JobKey {
    let error = claimcheck_common::domain::JobError::server("broken", "It broke.");
    settle::settle_group(
        &world.pool,
        vec![Settlement::attempt_failed(key, error)],
        "test".to_owned(),
    )
    .await
    .unwrap();
    world
        .execute_as_owner("UPDATE jobs SET available_at = now() - interval '1 second'")
        .await;
    claim_all(world, 1).await[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_attempts_text_goes_on_where_the_last_ones_ended_or_begins_anew() {
    with_api(async |world, api| {
        let (ada, teller) = (api.user("ada").await, Teller::of(world));
        let id = ada.submit(&json!({"prompt": "Once"})).await;
        let mut events = Events::open(ada.get(&format!("/v1/jobs/{id}/events"))).await;
        let first = claim_all(world, 1).await[0];
        teller.tell(first, 0, 0, "one two").await;
        events.until("delta").await;
        // The same text, as it is promised: nothing is sent twice.
        let second = again(world, first).await;
        while events.until("state").await.json()["attempt"] != 2 {}
        teller.tell(second, 0, 0, "one").await;
        teller.tell(first, 0, 7, " of a worker that was given up").await;
        teller.tell(second, 0, 3, " two three").await;
        let next = events.next().await.unwrap();
        assert_eq!((next.name.as_str(), &next.json()["text"]), ("delta", &json!(" three")));
        // Another text, by weights of another kind, say.
        let third = again(world, second).await;
        teller.tell(third, 0, 0, "one too many, alas").await;
        events.until("reset").await;
        assert_eq!(events.next().await.unwrap().json()["text"], "one too many, alas");
        finish(world, third, vec![plain(0, "one too many, alas.")]).await;
        assert_eq!(texts(&events.rest().await)[&0], ".");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_text_shorter_than_what_was_sent_begins_anew_on_every_face() {
    with_api(async |world, api| {
        let (ada, teller) = (api.user("ada").await, Teller::of(world));
        let id = ada.submit(&json!({"prompt": "Once"})).await;
        let path = format!("/v1/jobs/{id}/events");
        let mut events = Events::open(ada.get(&path)).await;
        let first = claim_all(world, 1).await[0];
        teller.tell(first, 0, 0, "one two three four").await;
        let sent = events.until("delta").await;
        let second = again(world, first).await;
        finish(world, second, vec![plain(0, "uno")]).await;
        let late = Events::open(ada.get(&path).header("last-event-id", &sent.id)).await;
        for mut events in [events, late] {
            events.until("reset").await;
            let rest = events.rest().await;
            assert_eq!(texts(&rest)[&0], "uno");
            assert_eq!(rest.last().unwrap().name, "end");
        }
        // The others cannot take back what they sent, and say so.
        let body = json!({"prompt": "a", "input": "a", "stream": true});
        for (path, field) in [("/v1/completions", "input"), ("/v1/responses", "prompt")] {
            let mut body = body.clone();
            body.as_object_mut().unwrap().remove(field);
            let mut events = Events::open(ada.post(path).json(&body)).await;
            let key = claim_all(world, 1).await[0];
            teller.tell(key, 0, 0, "one two").await;
            while !events.next().await.unwrap().data.contains("one two") {}
            finish(world, key, vec![plain(0, "uno")]).await;
            let last = events.rest().await.pop().unwrap().json();
            let code = last.pointer("/error/code").unwrap_or(&last["code"]);
            assert_eq!(code, "text_changed", "{path}: {last}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_text_that_the_policy_rejects_nothing_more_comes_and_the_job_ends_as_usual() {
    with_api(async |world, api| {
        let (ada, teller) = (api.user("ada").await, Teller::of(world));
        let id = ada.submit(&json!({"prompt": "Once"})).await;
        let mut events = Events::open(ada.get(&format!("/v1/jobs/{id}/events"))).await;
        let key = claim_all(world, 1).await[0];
        teller.tell(key, 0, 0, "one").await;
        events.until("delta").await;
        let rejected = Choice {
            finish_reason: Some(FinishReason::ContentFilter),
            ..plain(0, "")
        };
        finish(world, key, vec![rejected]).await;
        let rest = events.rest().await;
        let names: Vec<_> = rest.iter().map(|event| event.name.as_str()).collect();
        assert_eq!(names, ["end"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn erased_texts_are_said_to_be_gone() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let id = ada.submit(&json!({"prompt": "Once"})).await;
        let key = claim_all(world, 1).await[0];
        finish(world, key, vec![plain(0, " upon")]).await;
        let path = format!("/v1/jobs/{id}/events");
        let seen = Events::open(ada.get(&path)).await.next().await.unwrap();
        assert_eq!(
            ada.request(reqwest::Method::DELETE, &format!("/v1/jobs/{id}"))
                .send()
                .await
                .unwrap()
                .status(),
            200
        );
        let mut events = Events::open(ada.get(&path).header("last-event-id", seen.id)).await;
        assert_eq!(events.next().await.unwrap().name, "gone");
        assert!(events.next().await.is_none());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_is_streamed_in_openais_chunks() {
    with_api(async |world, api| {
        let (ada, teller) = (api.user("ada").await, Teller::of(world));
        let body = json!({"prompt": ["a", "b"], "n": 2, "stream": true, "echo": true,
            "stream_options": {"include_usage": true}});
        let mut chunks = Events::open(ada.post("/v1/completions").json(&body)).await;
        let keys = claim_all(world, 2).await;
        teller.tell(keys[0], 1, 0, "x").await;
        let mut all = vec![chunks.next().await.unwrap()];
        while !all.last().unwrap().data.contains("\"text\":\"x\"") {
            all.push(chunks.next().await.unwrap());
        }
        for key in keys {
            finish(world, key, vec![plain(0, "y"), plain(1, "xz")]).await;
        }
        all.extend(chunks.rest().await);
        assert_eq!(all.pop().unwrap().data, "[DONE]");
        let usage = all.pop().unwrap().json();
        assert_eq!(
            (&usage["choices"], &usage["usage"]["total_tokens"]),
            (&json!([]), &json!(6))
        );
        let mut texts = BTreeMap::<u64, String>::new();
        let mut reasons = BTreeMap::new();
        for chunk in &all {
            let chunk = chunk.json();
            assert_eq!(
                (&chunk["object"], &chunk["usage"]),
                (&json!("text_completion"), &Value::Null)
            );
            assert!(chunk["id"].as_str().unwrap().starts_with("cmpl-"));
            let choice = &chunk["choices"][0];
            let index = choice["index"].as_u64().unwrap();
            texts
                .entry(index)
                .or_default()
                .push_str(choice["text"].as_str().unwrap());
            if let Some(reason) = choice["finish_reason"].as_str() {
                assert!(reasons.insert(index, reason.to_owned()).is_none());
            }
        }
        let wanted = ["ay", "axz", "by", "bxz"].map(ToOwned::to_owned);
        let (mine, theirs): (Vec<_>, Vec<_>) = (wanted.to_vec(), texts.values().cloned().collect());
        assert_eq!(theirs, mine);
        assert_eq!(reasons.len(), 4);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_completion_that_fails_says_so_and_one_that_is_left_is_cancelled() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let body = json!({"prompt": "a", "stream": true});
        let chunks = Events::open(ada.post("/v1/completions").json(&body)).await;
        let key = claim_all(world, 1).await[0];
        let error = claimcheck_common::domain::JobError::server("broken", "It broke.");
        settle::settle_group(&world.pool, vec![Settlement::failed(key, error)], "test".to_owned())
            .await
            .unwrap();
        let rest = chunks.rest().await;
        assert_eq!(rest.len(), 1, "{rest:?}");
        assert_eq!(rest[0].json()["error"]["message"], "It broke.");
        let left = Events::open(ada.post("/v1/completions").json(&body)).await;
        claim_all(world, 1).await;
        drop(left);
        eventually("the process says that nobody waits", LIMIT, async || {
            let sql = "SELECT count(*) FROM attended_jobs a JOIN jobs j ON j.id = a.job_id
                       WHERE j.finished_at IS NULL AND attended_until < now() + interval '15 seconds'";
            let count: i64 = sqlx::query_scalar(sql).fetch_one(&world.pool).await.unwrap();
            (count == 1).then_some(())
        })
        .await;
    })
    .await;
}
