//! Redis, away and back.

use std::time::{Duration, Instant};

use claimcheck_common::config::RedisConfig;
use claimcheck_common::redis::{Redis, RedisError, Script, cmd, pipe};
use claimcheck_tests::{Wire, eventually, in_world};
use futures::StreamExt;
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(30);

fn reach(redis: &RedisConfig, url: String) -> Redis {
    let config = RedisConfig { url, ..redis.clone() };
    Redis::new(&config).unwrap()
}

async fn until_it_answers(redis: &Redis) {
    eventually("Redis answers", LIMIT, async || {
        redis.run::<String>(&cmd("PING")).await.ok().map(drop)
    })
    .await;
}

/// How long a thousand calls one after the other take, none of which may succeed.
async fn a_thousand_refusals(redis: &Redis) -> Duration {
    let began = Instant::now();
    for _ in 0..1000 {
        let refused = redis.run::<String>(&cmd("PING")).await;
        assert!(matches!(refused, Err(RedisError::Away(_))), "{refused:?}");
    }
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_port_costs_next_to_nothing_and_redis_is_found_once_it_is_back() {
    in_world(async |world| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let redis = reach(&world.redis, format!("redis://127.0.0.1:{port}/0"));
        let took = a_thousand_refusals(&redis).await;
        assert!(took < Duration::from_secs(2), "{took:?} for a thousand calls");
        let mut server = tokio::process::Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .stdout(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("redis-server is installed");
        until_it_answers(&redis).await;
        server.kill().await.unwrap();
        eventually("its end is noticed", LIMIT, async || {
            redis.run::<String>(&cmd("PING")).await.err().map(drop)
        })
        .await;
        assert!(a_thousand_refusals(&redis).await < Duration::from_secs(2));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_falls_silent_is_given_up_and_another_one_is_made() {
    in_world(async |world| {
        let wire = Wire::to(&world.redis.url).await;
        let redis = reach(&world.redis, wire.by(&world.redis.url));
        until_it_answers(&redis).await;
        wire.silence();
        let began = Instant::now();
        let refused = redis.run::<String>(&cmd("PING")).await;
        assert!(matches!(refused, Err(RedisError::Away(_))), "{refused:?}");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        until_it_answers(&redis).await;
        wire.cut();
        until_it_answers(&redis).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_refuses_is_told_from_its_being_away() {
    in_world(async |world| {
        let redis = Redis::new(&world.redis).unwrap();
        until_it_answers(&redis).await;
        let key = redis.key("text");
        assert!(key.starts_with(&world.redis.prefix), "{key}");
        let mut commands = pipe();
        commands.cmd("SET").arg(&key).arg("x").arg("PX").arg(60_000).ignore();
        commands.cmd("GET").arg(&key);
        let (text,): (String,) = redis.run_all(&commands).await.unwrap();
        assert_eq!(text, "x");
        let refused = redis.run::<i64>(cmd("INCR").arg(&key)).await;
        assert!(matches!(refused, Err(RedisError::Refused(_))), "{refused:?}");
        let script = Script::new("return redis.call('STRLEN', KEYS[1])");
        let length: i64 = redis.call(&script.key(&key)).await.unwrap();
        assert_eq!(length, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_heard() {
    in_world(async |world| {
        let redis = Redis::new(&world.redis).unwrap();
        let channel = redis.key("news");
        let mut listener = redis.listener().await.unwrap();
        listener.subscribe(&channel).await.unwrap();
        let heard: i64 = redis.run(cmd("PUBLISH").arg(&channel).arg("hello")).await.unwrap();
        assert_eq!(heard, 1);
        let message = listener.on_message().next().await.unwrap();
        assert_eq!(message.get_payload::<String>().unwrap(), "hello");
    })
    .await;
}
