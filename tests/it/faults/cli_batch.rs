//! A file of many prompts, all the way through by the command line, while everything under it is killed.

use std::collections::HashSet;
use std::process::Stdio;

use claimcheck_tests::{Installation, World, eventually, in_world};
use serde_json::Value;
use tokio::process::Child;

use super::{LIMIT, count, hurry, until_count};
use crate::cli::Terminal;

const LINES: usize = 10_000;
const SHARD: &str = "4000";
const SHARDS: i64 = 3;

/// The same command each time: a first run and one that goes on are asked for alike.
fn run(terminal: &Terminal) -> Child {
    let arguments = [
        "--patience",
        "120",
        "batch",
        "run",
        "prompts.txt",
        "-o",
        "out.jsonl",
        "--resume",
        "--shard-lines",
        SHARD,
        "--max-tokens",
        "2",
        "--seed",
        "7",
    ];
    let mut command = terminal.command(&arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the binary is built")
}

async fn kill(mut child: Child) {
    child.kill().await.expect("it is our child");
}

/// Waits until the journal has so many of these steps.
async fn until_noted(terminal: &Terminal, step: &str, times: usize) {
    let path = terminal.path("out.jsonl.claimcheck/journal.jsonl");
    eventually(&format!("{times} times {step}"), LIMIT, async || {
        let journal = std::fs::read_to_string(&path).ok()?;
        (journal.matches(&format!(r#""step":"{step}""#)).count() >= times).then_some(())
    })
    .await;
}

/// Waits until the journal says that a shard is collected, or is gone, since all are.
async fn until_collected(terminal: &Terminal) {
    let journal = terminal.path("out.jsonl.claimcheck/journal.jsonl");
    let done = terminal.path("out.jsonl");
    eventually("a shard is collected", LIMIT, async || {
        let collected = match std::fs::read_to_string(&journal) {
            Ok(journal) => journal.contains(r#""step":"collected""#),
            Err(_) => done.exists(),
        };
        collected.then_some(())
    })
    .await;
}

async fn until_ended(world: &World, jobs: i64) {
    eventually(&format!("{jobs} jobs have ended"), LIMIT, async || {
        let now: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL")
            .fetch_one(&world.pool)
            .await
            .ok()?;
        (now >= jobs).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_run_survives_kills_of_the_api_the_worker_and_itself_and_its_output_is_complete() {
    in_world(async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let (mut api, mut worker) = tokio::join!(installation.api(), installation.worker("worker", []));
        let ada = Terminal::at(&api);
        ada.sign_up("ada").await;
        let prompts: Vec<_> = (0..LINES).map(|number| format!("Story {number}")).collect();
        std::fs::write(ada.path("prompts.txt"), prompts.join("\n")).unwrap();

        // Itself, with its shards cut, uploaded, and the first batches made.
        for (step, times) in [("prepared", 1), ("uploaded", 1), ("created", 2)] {
            let child = run(&ada);
            until_noted(&ada, step, times).await;
            kill(child).await;
        }
        // The API, while it is asked, and the worker, in the middle of the lines.
        let child = run(&ada);
        until_noted(&ada, "created", 3).await;
        until_ended(world, LINES as i64 / 10).await;
        api.kill();
        worker.kill();
        worker.start();
        api.start();
        until_ended(world, LINES as i64 / 3).await;
        kill(child).await;
        worker.kill();
        worker.start();
        let mut child = run(&ada);
        until_collected(&ada).await;
        // It may have ended meanwhile: where the batches end together, it collects them all at once.
        child.start_kill().ok();
        let mut last = child.wait_with_output().await.unwrap();
        if !last.status.success() {
            last = run(&ada).wait_with_output().await.unwrap();
        }
        let (said, told) = (
            String::from_utf8_lossy(&last.stdout),
            String::from_utf8_lossy(&last.stderr),
        );
        assert_eq!(last.status.code(), Some(0), "{said}{told}");
        let output = ada.read("out.jsonl");
        let lines: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let ids: HashSet<_> = lines.iter().map(|line| line["custom_id"].as_str().unwrap()).collect();
        assert_eq!((lines.len(), ids.len()), (LINES, LINES), "each line once");
        assert!(lines.iter().all(|line| line["response"]["status_code"] == 200));
        assert!(!ada.path("out.jsonl.claimcheck").exists(), "nothing is left behind");
        assert_eq!(
            count(world, "SELECT count(*) FROM batches").await,
            SHARDS,
            "no batch was made twice"
        );
        until_count(world, LINES, "SELECT count(*) FROM jobs WHERE status = 'completed'").await;
        assert_eq!(
            count(world, "SELECT count(*) FROM jobs").await,
            LINES as i64,
            "no line was submitted twice"
        );
    })
    .await;
}
