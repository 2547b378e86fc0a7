//! OpenAI's client libraries, unmodified, against the real binaries: the last Python release of each major version, and the
//! npm package. `tests/sdk/prepare` brings them; the scripts beside it check every answer by its exact shape.

use std::path::PathBuf;
use std::process::Command;

use claimcheck_tests::{Installation, Process, TINY, in_world};
use reqwest::StatusCode;
use serde_json::{Value, json};

pub(crate) const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sdk");
pub(crate) const PYTHON_VERSIONS: [&str; 3] = ["1.109.1", "2.54.0", "3.57.0"];

pub(crate) fn libraries() -> PathBuf {
    let prepared = Command::new(format!("{FOLDER}/prepare")).output().unwrap();
    assert!(
        prepared.status.success(),
        "{}",
        String::from_utf8_lossy(&prepared.stderr)
    );
    String::from_utf8(prepared.stdout).unwrap().trim().into()
}

/// A new user's access token.
pub(crate) async fn token(api: &Process) -> String {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({"username": "ada", "email": "ada@example.org", "password": "correct horse"});
    let registered = client
        .post(api.url("/v1/auth/register"))
        .json(&body)
        .send()
        .await
        .unwrap();
    assert_eq!(registered.status(), StatusCode::CREATED);
    let form = client
        .post(api.url("/v1/auth/token"))
        .header("content-type", "application/x-www-form-urlencoded")
        .body("grant_type=password&username=ada&password=correct+horse");
    let answer: Value = form.send().await.unwrap().json().await.unwrap();
    answer["access_token"].as_str().unwrap().to_owned()
}

/// Runs a command that must succeed.
async fn succeeds(mut command: Command) {
    // A proxy of the environment is not for this machine.
    command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}{}",
        said(&output.stdout),
        said(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn openais_own_libraries_work_unmodified() {
    let libraries = tokio::task::spawn_blocking(libraries).await.unwrap();
    in_world(async |world| {
        let installation = Installation::of(world);
        let api = installation.api().await;
        let _worker = installation.worker("worker", []).await;
        let (base, token) = (api.url("/v1"), token(&api).await);
        for version in PYTHON_VERSIONS {
            let mut command = Command::new(libraries.join(format!("python-{version}/bin/python")));
            command
                .arg(format!("{FOLDER}/conformance.py"))
                .args([&base, &token, TINY]);
            succeeds(command).await;
        }
        let mut command = Command::new("node");
        command
            .arg(format!("{FOLDER}/conformance.mjs"))
            .arg(libraries.join("npm"))
            .args([&base, &token, TINY]);
        succeeds(command).await;
    })
    .await;
}
