//! Looking at a batch: once, or until it has ended.

use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use crate::client::{Client, chain};
use crate::failure::{Failure, Outcome};
use crate::jobs::pretty;
use crate::output::Output;
use crate::progress::{Phase, Unit};

const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Whether it has ended for good.
pub(super) fn has_ended(batch: &Value) -> bool {
    matches!(
        batch["status"].as_str(),
        Some("completed" | "failed" | "expired" | "cancelled")
    )
}

/// Lines that have ended, the one way or the other.
pub(super) fn ended_lines(batch: &Value) -> u64 {
    let counts = &batch["request_counts"];
    counts["completed"].as_u64().unwrap_or(0) + counts["failed"].as_u64().unwrap_or(0)
}

fn outcome(batch: &Value) -> Outcome {
    match batch["status"].as_str() {
        Some("failed") => Outcome::Failed,
        Some("cancelled" | "expired") => Outcome::Stopped,
        _ if batch["request_counts"]["failed"].as_u64().unwrap_or(0) > 0 => Outcome::Partial,
        _ => Outcome::Done,
    }
}

async fn get(client: &Client, id: &str) -> Result<Value, Failure> {
    client.get(&format!("/v1/batches/{id}"), &[]).await
}

/// Shows a batch, when it has ended if `watch`.
pub(super) async fn status(client: &Client, id: &str, watch: bool, output: Output) -> Result<Outcome, Failure> {
    let mut batch = get(client, id).await?;
    if watch && !has_ended(&batch) {
        let total = batch["request_counts"]["total"].as_u64().unwrap_or(0);
        let mut phase = Phase::begin("running", Unit::Lines, total, ended_lines(&batch));
        while !has_ended(&batch) {
            sleep(LOOK_AGAIN).await;
            batch = get(client, id).await?;
            phase.at(ended_lines(&batch));
        }
        phase.end();
    }
    output.print(&batch, pretty)?;
    Ok(if watch { outcome(&batch) } else { Outcome::Done })
}

/// Prints what came of a batch's lines, in the order in which they ended; until the batch has ended if `follow`.
pub(super) async fn results(client: &Client, id: &str, follow: bool) -> Result<Outcome, Failure> {
    let mut after = None;
    loop {
        // Asked first: what is printed after its end is all there is.
        let batch = get(client, id).await?;
        let mut printed = print_after(client, id, &mut after).await?;
        while printed > 0 {
            printed = print_after(client, id, &mut after).await?;
        }
        if has_ended(&batch) {
            return Ok(outcome(&batch));
        }
        if !follow {
            return Ok(Outcome::Done);
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Prints the results behind the last one; answers how many there were.
async fn print_after(client: &Client, id: &str, after: &mut Option<String>) -> Result<u64, Failure> {
    let query = after
        .as_ref()
        .map_or_else(String::new, |after| format!("?after={after}"));
    let mut answer = client.open(&format!("/v1/batches/{id}/results{query}"), &[]).await?;
    let (mut rest, mut printed) = (Vec::new(), 0);
    while let Some(piece) = answer.chunk().await.map_err(|error| Failure::Other(chain(&error)))? {
        rest.extend_from_slice(&piece);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let result: Value = serde_json::from_str(&line)?;
            crate::output::line(line.trim_end())?;
            *after = result["id"].as_str().map(str::to_owned);
            printed += 1;
        }
    }
    Ok(printed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_batch_that_ended_tells_how() {
        let batch = |status: &str, failed: u64| json!({"status": status, "request_counts": {"total": 3, "completed": 2, "failed": failed}});
        assert_eq!(outcome(&batch("completed", 0)), Outcome::Done);
        assert_eq!(outcome(&batch("completed", 1)), Outcome::Partial);
        assert_eq!(outcome(&batch("expired", 1)), Outcome::Stopped);
        assert_eq!(outcome(&batch("failed", 0)), Outcome::Failed);
        assert!(has_ended(&batch("cancelled", 0)) && !has_ended(&batch("cancelling", 0)));
        assert_eq!(ended_lines(&batch("in_progress", 1)), 3);
    }
}
