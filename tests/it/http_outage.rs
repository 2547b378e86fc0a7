//! The API while a server behind it is away, and while its clients behave badly.

use std::time::Duration;

use claimcheck_tests::{World, eventually};
use reqwest::StatusCode;
use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use crate::http_face::{Api, answer, config, with_api};

const LIMIT: Duration = Duration::from_secs(30);

/// A port on which nothing listens.
async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn with_port(url: &str, port: u16) -> String {
    let mut url = Url::parse(url).unwrap();
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(port)).unwrap();
    url.to_string()
}

/// Lets Postgres be reached on `port` as well, until the handle is aborted.
async fn open_port(world: &World, port: u16) -> tokio::task::JoinHandle<()> {
    let server = Url::parse(&world.database.url).unwrap();
    let there = (server.host_str().unwrap().to_owned(), server.port().unwrap_or(5432));
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        while let Ok((mut here, _)) = listener.accept().await {
            let there = there.clone();
            open.spawn(async move {
                let mut postgres = TcpStream::connect(there).await?;
                copy_bidirectional(&mut here, &mut postgres).await
            });
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_starts_without_postgres_answers_503_and_recovers_by_itself_each_time() {
    with_api(async |world, _| {
        let port = closed_port().await;
        let mut config = config(world);
        config.database.url = with_port(&config.database.url, port);
        let api = Api::start_with(config).await;
        for _ in 0..2 {
            assert_eq!(api.get("/healthz").send().await.unwrap().status(), StatusCode::OK);
            eventually("not ready", LIMIT, async || {
                let status = api.get("/readyz").send().await.ok()?.status();
                (status == StatusCode::SERVICE_UNAVAILABLE).then_some(())
            })
            .await;
            let refused = api.token("ada", "whatever").send().await.unwrap();
            assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert!(refused.headers().contains_key("retry-after"));
            let postgres = open_port(world, port).await;
            eventually("ready again", LIMIT, async || {
                (api.get("/readyz").send().await.ok()?.status() == StatusCode::OK).then_some(())
            })
            .await;
            assert_eq!(api.get("/startupz").send().await.unwrap().status(), StatusCode::OK);
            assert_eq!(
                api.token("ada", "whatever").send().await.unwrap().status(),
                StatusCode::UNAUTHORIZED
            );
            postgres.abort();
            let _aborted = postgres.await;
        }
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_accepted_while_the_broker_and_redis_are_away() {
    with_api(async |world, _| {
        let mut config = config(world);
        config.broker.url = format!("amqp://127.0.0.1:{}", closed_port().await);
        config.redis.url = format!("redis://127.0.0.1:{}", closed_port().await);
        let api = Api::start_with(config).await;
        let ada = api.user("ada").await;
        let id = ada.submit(&json!({"prompt": "hi"})).await;
        assert_eq!(ada.job(&id).await["status"], "queued");
        let (status, ready) = answer(api.get("/readyz")).await;
        assert_eq!(status, StatusCode::OK, "only Postgres decides");
        assert_eq!(
            ready["checks"],
            json!({"postgres": "up", "rabbitmq": "down", "redis": "down"})
        );
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_hang_up_half_way_leave_no_open_transaction_behind() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        for delay in 0..200_u64 {
            let submit = ada.post("/v1/jobs").json(&json!({"prompt": "hi"})).send();
            // Cut at every moment of a submit's life, from before its first byte to after its answer.
            let _cut = tokio::time::timeout(Duration::from_micros(delay * 50), submit).await;
        }
        eventually("no transaction is left open", LIMIT, async || {
            let open: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND state LIKE 'idle in transaction%'",
            )
            .fetch_one(&world.pool)
            .await
            .ok()?;
            (open == 0).then_some(())
        })
        .await;
        let id = ada.submit(&json!({"prompt": "after"})).await;
        assert_eq!(ada.job(&id).await["id"], id.as_str());
        let whole: bool = sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM jobs) = (SELECT count(*) FROM job_inputs)
                AND (SELECT count(*) FROM jobs) = (SELECT count(*) FROM audit_log WHERE action = 'job.submitted')",
        )
        .fetch_one(&world.pool)
        .await
        .unwrap();
        assert!(whole, "a job is there with all its rows or not at all");
    })
    .await;
}
