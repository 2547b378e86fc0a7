//! The feed passes over nothing, whatever the order in which ids are drawn and transactions commit.

use std::collections::BTreeSet;
use std::time::Duration;

use claimcheck_common::domain::{EventId, EventType, ProjectId};
use claimcheck_common::store;
use claimcheck_common::store::events::{self, NewEvent};
use claimcheck_tests::eventually;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{LIMIT, completed};
use crate::http_face::{Session, answer, code, with_api};

async fn page(session: &Session, query: &str) -> Value {
    let (status, page) = answer(session.get(&format!("/v1/events{query}"))).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    page
}

/// The page, once it shows so many: a write that is at work anywhere on the server holds newer events back.
async fn page_of(session: &Session, query: &str, events: usize) -> Value {
    eventually(&format!("{events} events are shown"), LIMIT, async || {
        Some(page(session, query).await).filter(|page| ids(page).len() == events)
    })
    .await
}

fn ids(page: &Value) -> Vec<String> {
    let data = page["data"].as_array().unwrap();
    data.iter()
        .map(|event| event["id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_begins_at_a_time_without_newer_events_is_not_shown_all_the_old_ones() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        completed(world, &ada).await;
        page_of(&ada, "", 1).await;
        let later = (time::OffsetDateTime::now_utc() + Duration::from_mins(3)).unix_timestamp();
        let later = uuid::Timestamp::from_unix(uuid::NoContext, later.unsigned_abs(), 0);
        let later = EventId::from_uuid(uuid::Uuid::new_v7(later));
        assert_eq!(page(&ada, &format!("?after={later}")).await["data"], json!([]));
        // Its own time has events of the last minute.
        let now = EventId::new();
        assert_eq!(ids(&page(&ada, &format!("?after={now}")).await).len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_meets_each_event_once_page_by_page() {
    with_api(async |world, api| {
        let (ada, eve) = (api.user("ada").await, api.user("eve").await);
        let mut jobs = Vec::new();
        for _ in 0..5 {
            jobs.push(completed(world, &ada).await);
        }
        completed(world, &eve).await;
        page_of(&ada, "", 5).await;
        let first = page(&ada, "?limit=3").await;
        assert_eq!((ids(&first).len(), first["has_more"].as_bool()), (3, Some(true)));
        assert_eq!(first["data"][0]["data"]["id"], jobs[0]);
        let last = first["last_id"].as_str().unwrap();
        let second = page(&ada, &format!("?limit=3&after={last}")).await;
        assert_eq!((ids(&second).len(), second["has_more"].as_bool()), (2, Some(false)));
        let told: Vec<_> = [&first, &second]
            .into_iter()
            .flat_map(|page| page["data"].as_array().unwrap())
            .map(|event| event["data"]["id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(told, jobs);
        let last = second["last_id"].as_str().unwrap();
        assert_eq!(page(&ada, &format!("?after={last}")).await["data"], json!([]));
        assert_eq!(page(&ada, "?type=job.failed").await["data"], json!([]));
        for bad in ["?after=job_1", "?type=job.done", "?limit=0", "?before=x"] {
            let (status, body) = answer(ada.get(&format!("/v1/events{bad}"))).await;
            assert_eq!(
                (status, code(&body).is_empty()),
                (StatusCode::BAD_REQUEST, false),
                "{bad}"
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_late_is_waited_for_and_not_passed_over() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let project: uuid::Uuid = sqlx::query_scalar("SELECT project_id FROM users")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        let event = |number: usize| NewEvent {
            project: ProjectId::from_uuid(project),
            kind: EventType::BatchCompleted,
            data: json!({"id": format!("batch_{number}"), "object": "batch"}),
        };
        // Drawn and written first, committed last.
        let mut late = world.pool.begin().await.unwrap();
        events::record(&mut late, &[event(0)]).await.unwrap();
        let mut early = world.pool.begin().await.unwrap();
        events::record(&mut early, &[event(1)]).await.unwrap();
        early.commit().await.unwrap();
        assert_eq!(page(&ada, "").await["data"], json!([]), "one before it may still come");
        late.commit().await.unwrap();
        let shown = page_of(&ada, "", 2).await;
        let names: Vec<_> = shown["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["data"]["id"].clone())
            .collect();
        assert_eq!(names, ["batch_0", "batch_1"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_beside_many_writers_meets_every_event_once() {
    const WRITERS: usize = 8;
    const EACH: usize = 25;
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let project: uuid::Uuid = sqlx::query_scalar("SELECT project_id FROM users")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        let writers = (0..WRITERS).map(|writer| {
            let pool = world.pool.clone();
            tokio::spawn(async move {
                for number in 0..EACH {
                    let mut transaction = pool.begin().await.unwrap();
                    let event = NewEvent {
                        project: ProjectId::from_uuid(project),
                        kind: EventType::BatchCompleted,
                        data: json!({"id": format!("batch_{writer}_{number}")}),
                    };
                    events::record(&mut transaction, &[event]).await.unwrap();
                    // Some take longer than those that begin after them.
                    let pause = if (writer + number) % 3 == 0 { "0.02" } else { "0" };
                    let sleep = format!("SELECT pg_sleep({pause})");
                    sqlx::query(sqlx::AssertSqlSafe(sleep))
                        .execute(&mut *transaction)
                        .await
                        .unwrap();
                    transaction.commit().await.unwrap();
                }
            })
        });
        let writers: Vec<_> = writers.collect();
        let (mut seen, mut after) = (Vec::new(), String::new());
        eventually("all were met", LIMIT, async || {
            let page = page(&ada, &format!("?limit=7{after}")).await;
            seen.extend(ids(&page));
            if let Some(last) = page["last_id"].as_str() {
                after = format!("&after={last}");
            }
            (seen.len() >= WRITERS * EACH).then_some(())
        })
        .await;
        let distinct: BTreeSet<_> = seen.iter().collect();
        assert_eq!((seen.len(), distinct.len()), (WRITERS * EACH, WRITERS * EACH));
        for writer in writers {
            writer.await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_on_from_an_event_that_was_forgotten_passes_over_nothing() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        for _ in 0..2 {
            completed(world, &ada).await;
        }
        let first = page_of(&ada, "", 2).await;
        let (kept, gone) = (&ids(&first)[1], &ids(&first)[0]);
        let job = completed(world, &ada).await;
        let gone_uuid = gone.parse::<claimcheck_common::domain::EventId>().unwrap().uuid();
        sqlx::query("DELETE FROM events WHERE id = $1")
            .bind(gone_uuid)
            .execute(&world.pool)
            .await
            .unwrap();
        let on = page_of(&ada, &format!("?after={gone}"), 2).await;
        assert_eq!(ids(&on)[0], *kept);
        assert_eq!(on["data"][1]["data"]["id"], job);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_a_database_that_was_restored_from_a_dump_hears_what_is_new() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        completed(world, &ada).await;
        let old = ids(&page_of(&ada, "", 1).await).remove(0);
        // As a cluster wrote it that had come further than this one.
        let elsewhere = "UPDATE events SET xid = (pg_current_xact_id()::text::bigint + 1000000)::text::xid8";
        world.execute_as_owner(elsewhere).await;
        assert_eq!(page(&ada, "").await["data"], json!([]));
        store::migrate(world.database.owner_url()).await.unwrap();
        let job = completed(world, &ada).await;
        let all = page_of(&ada, "", 2).await;
        assert_eq!(ids(&all)[0], old);
        let on = page_of(&ada, &format!("?after={old}"), 1).await;
        assert_eq!(on["data"][0]["data"]["id"], job);
    })
    .await;
}
