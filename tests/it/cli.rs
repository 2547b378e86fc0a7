//! The command line against the real service.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

use claimcheck_tests::{Installation, Process, TINY, World, in_world};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// A user of the command line, with a folder of their own.
pub(crate) struct Terminal {
    url: String,
    pub(crate) home: TempDir,
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Self {
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// Its output, if it did what it should.
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    pub(crate) fn json(self) -> Value {
        let out = self.good();
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("no JSON: {out}"))
    }
}

impl Terminal {
    pub(crate) fn at(api: &Process) -> Self {
        Self {
            url: api.url(""),
            home: tempfile::tempdir().unwrap(),
        }
    }

    /// A command that does not run yet.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(claimcheck_tests::binary("claimcheck"));
        command
            .args(arguments)
            .current_dir(self.home.path())
            .env_clear()
            .env("HOME", self.home.path())
            .env("CLAIMCHECK_API_URL", &self.url)
            .kill_on_drop(true)
            .stdin(Stdio::null());
        command
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.command(arguments).output().await.expect("the binary is built"))
    }

    pub(crate) async fn run_with(&self, arguments: &[&str], input: &str) -> Ended {
        let mut command = self.command(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary is built");
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        Ended::of(child.wait_with_output().await.unwrap())
    }

    /// Makes an account and keeps its credentials.
    pub(crate) async fn sign_up(&self, name: &str) {
        let email = format!("{name}@example.org");
        let arguments = ["login", "--username", name, "--register", &email, "--password-stdin"];
        self.run_with(&arguments, "correct horse\n").await.good();
    }

    /// A webhook endpoint of the signed-in user's.
    pub(crate) async fn endpoint(&self, url: &str) -> Value {
        let kept: Value = serde_json::from_str(&self.read(".config/claimcheck/credentials.json")).unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let made = client
            .post(format!("{}/v1/webhook_endpoints", self.url))
            .bearer_auth(kept["secret"].as_str().unwrap())
            .json(&json!({"url": url}));
        made.send().await.unwrap().json().await.unwrap()
    }

    pub(crate) fn read(&self, name: &str) -> String {
        let path = self.path(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }
}

/// Runs a test at a terminal, with a service that has a worker.
pub(crate) async fn with_a_terminal(test: impl AsyncFnOnce(&World, &Terminal)) {
    in_world(async |world| {
        let installation = Installation::of(world);
        let (api, _worker) = tokio::join!(installation.api(), installation.worker("worker", []));
        let terminal = Terminal::at(&api);
        terminal.sign_up("ada").await;
        test(world, &terminal).await;
    })
    .await;
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_run_and_looked_at_from_the_command_line() {
    with_a_terminal(async |_, ada| {
        let file = ada.path(".config/claimcheck/credentials.json");
        assert_eq!(mode(&file), 0o600);
        let text = ada
            .run(&["run", "Once", "--max-tokens", "5", "--seed", "7"])
            .await
            .good();
        assert!(!text.is_empty());
        let job = ada
            .run_with(&["--json", "run", "-", "--max-tokens", "5", "--seed", "7"], "Once")
            .await
            .json();
        assert_eq!(
            (&job["status"], &job["usage"]["completion_tokens"]),
            (&json!("completed"), &json!(5))
        );
        assert_eq!(
            format!("{}\n", job["output"]["choices"][0]["text"].as_str().unwrap()),
            text
        );
        let id = job["id"].as_str().unwrap();

        let list = ada.run(&["jobs", "list"]).await.good();
        assert!(list.lines().count() == 3 && list.contains(id), "{list}");
        assert_eq!(
            ada.run(&["--json", "jobs", "list", "--limit", "1"]).await.json()[0]["id"],
            id
        );
        assert_eq!(ada.run(&["jobs", "get", id, "--json"]).await.json()["id"], id);
        assert!(
            ada.run(&["jobs", "replay", id])
                .await
                .good()
                .contains("the same tokens")
        );
        let receipt = ada.run(&["--json", "jobs", "receipt", id]).await.json();
        let again = ada.run(&["jobs", "retry", id]).await.good();
        ada.run(&["jobs", "get", again.trim(), "--wait"]).await.good();
        let usage = ada.run(&["--json", "usage"]).await.json();
        let each = receipt["usage"]["total_tokens"].as_u64().unwrap();
        assert_eq!(
            usage["total"]["total_tokens"],
            4 * each,
            "two runs, a replay and a retry"
        );
        assert!(ada.run(&["usage"]).await.good().contains(TINY));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_what_happened() {
    with_a_terminal(async |_, ada| {
        let code = async |arguments: &[&str]| ada.run(arguments).await.code;
        assert_eq!(code(&["jobs"]).await, Some(2));
        assert_eq!(code(&["jobs", "get", "job_unknown"]).await, Some(4));
        assert_eq!(code(&["run", "x", "--temperature", "9"]).await, Some(4));
        let refused = ada.run(&["--json", "run", "x", "--temperature", "9"]).await;
        let said: Value = serde_json::from_str(refused.err.trim()).unwrap();
        assert_eq!(said["error"]["code"], "invalid_value", "{said}");

        let mut running = ada.command(&["run", "x", "--max-tokens", "4000"]);
        let child = running.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let id = claimcheck_tests::eventually("its job is there", std::time::Duration::from_secs(30), async || {
            let list = ada.run(&["--json", "jobs", "list", "--limit", "1"]).await.json();
            Some(list[0]["id"].as_str()?.to_owned())
        })
        .await;
        ada.run(&["jobs", "cancel", &id]).await.good();
        assert_eq!(Ended::of(child.wait_with_output().await.unwrap()).code, Some(5));

        let elsewhere = ada.run(&["--url", "http://127.0.0.1:9", "jobs", "list"]).await;
        assert_eq!(
            elsewhere.code,
            Some(2),
            "credentials go to no other service: {elsewhere:?}"
        );
        let away = ada
            .command(&["--url", "http://127.0.0.1:9", "--patience", "0", "jobs", "list"])
            .env("CLAIMCHECK_API_KEY", "cck_x")
            .output()
            .await
            .unwrap();
        assert_eq!(Ended::of(away).code, Some(4));
        ada.run(&["logout"]).await.good();
        assert_eq!(code(&["jobs", "list"]).await, Some(2));
    })
    .await;
}

#[tokio::test]
async fn what_needs_no_service_asks_for_none() {
    let nowhere = Terminal {
        url: "http://127.0.0.1:9".to_owned(),
        home: tempfile::tempdir().unwrap(),
    };
    assert!(
        nowhere
            .run(&["completions", "bash"])
            .await
            .good()
            .contains("_claimcheck")
    );
    assert!(nowhere.run(&["man"]).await.good().contains(".TH claimcheck"));
    std::fs::write(nowhere.path("prompts.txt"), "one\ntwo\n").unwrap();
    let said = nowhere
        .run(&["--json", "batch", "validate", "prompts.txt"])
        .await
        .json();
    assert_eq!((&said["valid"], &said["lines"]), (&json!(true), &json!(2)));
    let wrong = nowhere.run_with(&["batch", "validate", "-"], "{}\n").await;
    assert_eq!(wrong.code, Some(4));
    assert!(wrong.out.contains("line 1: `custom_id` is missing"), "{wrong:?}");
}
