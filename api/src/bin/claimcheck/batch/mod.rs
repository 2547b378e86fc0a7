//! `batch`: many prompts in a file. `run` takes a file all the way and survives being cut off; the rest are single calls.
//!
//! `input.rs` reads what the caller has, `work.rs` keeps what was done so far, `run.rs` does it.

mod input;
mod run;
mod transfer;
mod watch;
mod work;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::args::{Batch, Input};
use crate::client::Client;
use crate::failure::{Failure, Outcome};
use crate::jobs::pretty;
use crate::output::{Output, cell, table, time};

/// What a shard's lines are posted to, where the caller's file does not say.
const ENDPOINT: &str = "/v1/completions";

pub(crate) async fn batch(command: Batch, client: &Client, output: Output) -> Result<Outcome, Failure> {
    match command {
        Batch::Run(args) => return run::run(args, client, output).await,
        Batch::Validate(args) => return validate(&args, output),
        Batch::Status { id, watch } => return watch::status(client, &id, watch, output).await,
        Batch::Results { id, follow } => return watch::results(client, &id, follow).await,
        Batch::Cancel { id } => {
            let batch: Value = client.act(&format!("/v1/batches/{id}/cancel")).await?;
            output.print(&batch, |batch| format!("{id} is {}", cell(&batch["status"])))?;
        }
        Batch::RetryFailed { id } => {
            let (path, key) = (format!("/v1/batches/{id}/retry"), Uuid::now_v7().to_string());
            let batch: Value = client.create_empty(&path, &key).await?;
            output.print(&batch, |batch| cell(&batch["id"]))?;
        }
        Batch::List { limit } => {
            let limit = limit.clamp(1, 100).to_string();
            let list: Value = client.get("/v1/batches", &[("limit", limit.as_str())]).await?;
            output.print(&list, list_table)?;
        }
    }
    Ok(Outcome::Done)
}

fn list_table(list: &Value) -> String {
    let empty = Vec::new();
    let row = |batch: &Value| {
        let counts = &batch["request_counts"];
        vec![
            cell(&batch["id"]),
            cell(&batch["status"]),
            format!("{} of {}", counts["completed"], counts["total"]),
            cell(&counts["failed"]),
            time(&batch["created_at"]),
        ]
    };
    let batches = list["data"].as_array().unwrap_or(&empty);
    let rows: Vec<_> = batches.iter().map(row).collect();
    table(&["id", "status", "completed", "failed", "accepted"], &rows)
}

/// Checks an input as `run` would, and sends nothing.
pub(crate) fn validate(args: &Input, output: Output) -> Result<Outcome, Failure> {
    let mut bytes = 0;
    let read = input::read(args, &mut |request| {
        bytes += request.len() as u64 + 1;
        Ok(())
    })?;
    let wrong = read.wrong.listed();
    let said = json!({"valid": wrong.is_empty(), "lines": read.lines, "bytes": bytes, "errors_count": read.wrong.count(),
        "errors": wrong});
    output.print(&said, |said| {
        if wrong.is_empty() {
            format!("{} lines, all in order.", read.lines)
        } else if output.is_json() {
            pretty(said)
        } else {
            read.wrong.to_string()
        }
    })?;
    Ok(if wrong.is_empty() {
        Outcome::Done
    } else {
        Outcome::Failed
    })
}
