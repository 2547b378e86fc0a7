//! Streams through the death of what they come by: what was sent adds up to the text, always.

use claimcheck_tests::{Installation, Server, Stack, eventually, in_world_on};
use serde_json::json;

use super::{Caller, LIMIT, LONG, RUNNING, hurry, job, until_count};
use crate::http_streams::{Event, Events};

const NEIGHBOURS: usize = 3;

fn text(events: &[Event]) -> String {
    assert!(
        events.iter().all(|event| event.name != "reset"),
        "the next attempt makes the same text"
    );
    let deltas = events.iter().filter(|event| event.name == "delta").map(Event::json);
    deltas.map(|delta| delta["text"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_survives_redis_its_worker_and_its_api() {
    let stack = Stack::up().await;
    in_world_on(stack.servers(), async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let mut api = installation.api().await;
        let mut worker = installation.generator("worker", []).await;
        let _maintainer = installation.maintainer().await;
        let caller = Caller::of(&api, "ada").await;
        // In company, so that no attempt ends before what is to happen in it has happened.
        for number in 0..NEIGHBOURS {
            caller.submit(&format!("beside-{number}"), &job(number, LONG)).await;
        }
        let body = json!({"prompt": "Once", "max_tokens": LONG, "seed": 5, "stop": ["never seen"]});
        let id = caller.submit("k", &body).await;
        let open = |last: Option<String>| {
            let request = caller
                .client
                .get(format!("{}/v1/jobs/{id}/events", caller.base))
                .bearer_auth(&caller.token);
            let request = request.timeout(LIMIT);
            Events::open(match last {
                Some(last) => request.header("last-event-id", last),
                None => request,
            })
        };
        until_count(world, NEIGHBOURS + 1, RUNNING).await;
        let mut events = open(None).await;
        let mut all = vec![events.until("delta").await];

        stack.kill(Server::Redis).await;
        stack.start(Server::Redis).await;
        all.push(events.until("delta").await);

        worker.kill();
        let _next = installation.generator("next", []).await;
        eventually("the job runs again", LIMIT, async || {
            let event = events.next().await?;
            let again = event.name == "state" && event.json()["attempt"] == 2;
            if event.name == "delta" {
                all.push(event);
            }
            again.then_some(())
        })
        .await;

        api.kill();
        api.start();
        api.answers("/readyz").await;
        let last = all.last().unwrap().id.clone();
        all.extend(open(Some(last)).await.rest().await);
        assert_eq!(all.last().unwrap().name, "end");
        let job = caller.job(&id).await;
        assert_eq!(job["attempt"], 2);
        assert_eq!(text(&all), job["output"]["choices"][0]["text"].as_str().unwrap());
    })
    .await;
}
