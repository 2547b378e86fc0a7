//! The receiver of the README runs as it stands there, and tells what is genuine from what is not.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use claimcheck_tests::{Receiver, eventually};
use reqwest::StatusCode;
use serde_json::json;

use super::{Dispatching, LIMIT, completed, endpoint};
use crate::http_face::with_api;

const README: &str = include_str!("../../../README.md");

/// The README's first block of Python.
fn snippet() -> &'static str {
    let (_, rest) = README.split_once("```python\n").unwrap();
    rest.split_once("```").unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_s_receiver_prints_a_genuine_event_and_refuses_a_forged_one() {
    with_api(async |world, api| {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let url = format!("http://127.0.0.1:{port}/");
        let ada = api.user("ada").await;
        let made = endpoint(&ada, &url, json!({})).await;
        let mut python = Command::new("python3")
            .args(["-c", snippet()])
            .env("SECRET", made["secret"].as_str().unwrap())
            .env("PORT", port.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 is installed");
        let mut printed = BufReader::new(python.stdout.take().unwrap());
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(5))
            .build()
            .unwrap();
        let forged = eventually("it listens", LIMIT, async || {
            let forged = client.post(&url).header("webhook-signature", "v1,forged").body("{}");
            forged.send().await.ok()
        })
        .await;
        assert_eq!(forged.status(), StatusCode::UNAUTHORIZED);
        let dispatching = Dispatching::start(world);
        let id = completed(world, &ada).await;
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            printed.read_line(&mut line).map(|_| line)
        });
        let line = line.await.unwrap().unwrap();
        python.kill().unwrap();
        python.wait().unwrap();
        assert_eq!(line, format!("job.completed /v1/jobs/{id}\n"));
        dispatching.stop().await;
    })
    .await;
}

/// The standard's Python library verifies a delivery as well. Where it is not installed there is nothing to ask.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Python's package standardwebhooks"]
async fn the_python_library_verifies_a_delivery() {
    with_api(async |world, api| {
        let receiver = Receiver::start().await;
        let ada = api.user("ada").await;
        let made = endpoint(&ada, &receiver.url("/"), json!({})).await;
        let dispatching = Dispatching::start(world);
        completed(world, &ada).await;
        let came = &receiver.wait_for(1).await[0];
        dispatching.stop().await;
        let headers: serde_json::Map<_, _> = ["webhook-id", "webhook-timestamp", "webhook-signature"]
            .into_iter()
            .map(|name| (name.to_owned(), came.header(name).into()))
            .collect();
        let script = "import json, sys; from standardwebhooks import Webhook; \
                      print(Webhook(sys.argv[1]).verify(sys.argv[2], json.loads(sys.argv[3]))['type'])";
        let output = Command::new("python3")
            .args(["-c", script, made["secret"].as_str().unwrap()])
            .arg(std::str::from_utf8(&came.body).unwrap())
            .arg(serde_json::Value::Object(headers).to_string())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "job.completed\n", "{output:?}");
    })
    .await;
}
