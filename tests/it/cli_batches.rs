//! Files of prompts by the command line, against the real service.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use claimcheck_tests::{TINY, eventually};
use serde_json::{Value, json};

use crate::cli::{Ended, with_a_terminal};

/// The lines of a file, by their names.
fn by_name(output: &str) -> BTreeMap<String, Value> {
    let lines = output.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        (line["custom_id"].as_str().unwrap().to_owned(), line)
    });
    lines.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_prompts_are_run_and_looked_at_from_the_command_line() {
    with_a_terminal(async |_, ada| {
        let table = "id,prompt\n1,Once\n2,\"Twice, or so\"\n3,Thrice\n";
        std::fs::write(ada.path("prompts.csv"), table).unwrap();
        let arguments = [
            "batch",
            "run",
            "prompts.csv",
            "--column",
            "prompt",
            "--max-tokens",
            "3",
            "--seed",
            "7",
            "-o",
            "out.jsonl",
        ];
        let sharded = [&["--json"], &arguments[..], &["--shard-lines", "2"]].concat();
        let said = ada.run(&sharded).await.json();
        assert_eq!(
            (&said["status"], &said["completed"], &said["lines"]),
            (&json!("completed"), &json!(3), &json!(3))
        );
        assert_eq!(said["batches"].as_array().unwrap().len(), 2);
        let lines = by_name(&ada.read("out.jsonl"));
        assert_eq!(lines.keys().collect::<Vec<_>>(), ["row-1", "row-2", "row-3"]);
        assert_eq!(lines["row-2"]["response"]["body"]["usage"]["completion_tokens"], 3);
        assert!(!ada.path("out.jsonl.claimcheck").exists());
        assert_eq!(
            ada.run(&arguments).await.code,
            Some(2),
            "what is there is not overwritten"
        );
        let again = [&arguments[..], &["--resume"]].concat();
        assert_eq!(ada.run(&again).await.code, Some(0), "there is nothing left to be done");

        let id = said["batches"][0].as_str().unwrap();
        let batch = ada.run(&["batch", "status", id, "--watch"]).await.good();
        assert!(batch.contains("\"completed\": 2"), "{batch}");
        let results = ada.run(&["batch", "results", id, "--follow"]).await.good();
        assert_eq!(by_name(&results).len(), 2);
        assert!(ada.run(&["batch", "list"]).await.good().contains(id));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_lines_that_fail_is_partial_and_one_that_is_cancelled_is_stopped() {
    with_a_terminal(async |_, ada| {
        let line = |id: &str, body: Value| {
            json!({"custom_id": id, "method": "POST", "url": "/v1/completions", "body": body}).to_string()
        };
        let long = "x".repeat(9000);
        let lines = [
            line("good", json!({"model": TINY, "prompt": "Once", "max_tokens": 2})),
            line("too-long", json!({"model": TINY, "prompt": long, "max_tokens": 2})),
        ];
        std::fs::write(ada.path("lines.jsonl"), lines.join("\n")).unwrap();
        let ended = ada
            .run(&["--json", "batch", "run", "lines.jsonl", "-o", "out.jsonl"])
            .await;
        // The service says of each line what it is; it either refuses the file or fails the line.
        assert!([Some(3), Some(4)].contains(&ended.code), "{ended:?}");

        let slow: Vec<_> = (0..40)
            .map(|number| {
                line(
                    &number.to_string(),
                    json!({"model": TINY, "prompt": "x", "max_tokens": 4000}),
                )
            })
            .collect();
        std::fs::write(ada.path("slow.jsonl"), slow.join("\n")).unwrap();
        let child = ada
            .command(&["batch", "run", "slow.jsonl", "-o", "slow.out.jsonl"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let id = eventually("the batch runs", Duration::from_mins(1), async || {
            let list = ada.run(&["--json", "batch", "list", "--limit", "1"]).await.json();
            let batch = &list["data"][0];
            (batch["status"] == "in_progress").then(|| batch["id"].as_str().unwrap().to_owned())
        })
        .await;
        ada.run(&["batch", "cancel", &id]).await.good();
        let ended = Ended::of(child.wait_with_output().await.unwrap());
        assert_eq!(ended.code, Some(5), "{ended:?}");
        assert_eq!(
            by_name(&ada.read("slow.out.jsonl")).len(),
            40,
            "output and errors are all lines"
        );
    })
    .await;
}
