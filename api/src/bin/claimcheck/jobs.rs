//! `run`, `jobs` and `usage`.

use std::io::Read;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::args::{Generation, Jobs, Run, Usage};
use crate::client::Client;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, cell, table, time};
use crate::stream;

/// Jobs on one page of a list, at most.
const PAGE: usize = 100;
/// The service holds an answer back for so long at most.
const WAIT: &str = "60";

/// One prompt, from submit to its text.
pub(crate) async fn run(args: Run, client: &Client, output: Output) -> Result<Outcome, Failure> {
    let mut body = body(&args.generation);
    body.insert("prompt".to_owned(), Value::String(prompt(&args.prompt)?));
    let job: Value = client
        .create("/v1/jobs", &Uuid::now_v7().to_string(), &Value::Object(body))
        .await?;
    let id = id_of(&job)?;
    let work = async {
        if args.stream {
            return stream::print(client, &id, output).await;
        }
        let job = ended(client, &id).await?;
        output.print(&job, text)?;
        Ok(outcome(&job))
    };
    tokio::select! {
        done = work => done,
        _ = tokio::signal::ctrl_c() => {
            let _: Value = client.act(&format!("/v1/jobs/{id}/cancel")).await?;
            Err(Failure::Interrupted(format!("{id} is cancelled")))
        }
    }
}

/// What a job's request says of how its text is generated.
pub(crate) fn body(generation: &Generation) -> Map<String, Value> {
    let stop = (!generation.stop.is_empty()).then(|| json!(generation.stop));
    let fields = [
        ("model", generation.model.as_ref().map(|model| json!(model))),
        ("max_tokens", generation.max_tokens.map(|most| json!(most))),
        ("temperature", generation.temperature.map(|value| json!(value))),
        ("top_p", generation.top_p.map(|value| json!(value))),
        ("seed", generation.seed.map(|seed| json!(seed))),
        ("stop", stop),
    ];
    let given = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    given.collect()
}

fn prompt(text: &str) -> Result<String, Failure> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    let mut read = String::new();
    std::io::stdin().lock().read_to_string(&mut read)?;
    // What `echo` adds is not part of the prompt.
    Ok(read.strip_suffix('\n').map_or(read.clone(), str::to_owned))
}

fn id_of(job: &Value) -> Result<String, Failure> {
    let id = job["id"].as_str();
    id.map(str::to_owned)
        .ok_or_else(|| Failure::Other("the service gave no id".to_owned()))
}

/// The job when it has ended.
pub(crate) async fn ended(client: &Client, id: &str) -> Result<Value, Failure> {
    loop {
        let job: Value = client.get(&format!("/v1/jobs/{id}"), &[("wait", WAIT)]).await?;
        if !job["finished_at"].is_null() {
            return Ok(job);
        }
    }
}

/// How an ended job lets a command end.
pub(crate) fn outcome(job: &Value) -> Outcome {
    match job["status"].as_str() {
        Some("cancelled" | "expired") => Outcome::Stopped,
        Some("failed") => Outcome::Failed,
        _ => Outcome::Done,
    }
}

/// A job's text, or why there is none.
fn text(job: &Value) -> String {
    let choices = job["output"]["choices"].as_array();
    let texts: Vec<_> = choices
        .into_iter()
        .flatten()
        .map(|choice| cell(&choice["text"]))
        .collect();
    if texts.is_empty() {
        let why = &job["error"]["message"];
        format!("{}: {}", cell(&job["status"]), cell(why))
    } else {
        texts.join("\n")
    }
}

/// Jobs.
pub(crate) async fn jobs(command: Jobs, client: &Client, output: Output) -> Result<Outcome, Failure> {
    match command {
        Jobs::List {
            status,
            model,
            limit,
            after,
        } => {
            let filter = [("status", status), ("model", model)];
            let jobs = list(client, &filter, limit, after).await?;
            output.print(&jobs, jobs_table)?;
        }
        Jobs::Get { id, wait } => {
            let job = if wait {
                ended(client, &id).await?
            } else {
                client.get(&format!("/v1/jobs/{id}"), &[]).await?
            };
            output.print(&job, pretty)?;
            return Ok(if wait { outcome(&job) } else { Outcome::Done });
        }
        Jobs::Cancel { ids } => {
            for id in ids {
                let job: Value = client.act(&format!("/v1/jobs/{id}/cancel")).await?;
                output.print(&job, |job| format!("{id} is {}", cell(&job["status"])))?;
            }
        }
        Jobs::Retry { id } => {
            let key = Uuid::now_v7().to_string();
            let job: Value = client.create_empty(&format!("/v1/jobs/{id}/retry"), &key).await?;
            output.print(&job, |job| cell(&job["id"]))?;
        }
        Jobs::Receipt { id } => {
            let receipt: Value = client.get(&format!("/v1/jobs/{id}/receipt"), &[]).await?;
            output.print(&receipt, pretty)?;
        }
        Jobs::Replay { id } => return replay(client, &id, output).await,
    }
    Ok(Outcome::Done)
}

async fn list(
    client: &Client,
    filter: &[(&str, Option<String>)],
    limit: usize,
    mut after: Option<String>,
) -> Result<Value, Failure> {
    let mut jobs: Vec<Value> = Vec::new();
    while jobs.len() < limit {
        let page = (limit - jobs.len()).min(PAGE).to_string();
        let mut query: Vec<(&str, &str)> = vec![("limit", &page)];
        query.extend(
            filter
                .iter()
                .filter_map(|(name, value)| Some((*name, value.as_deref()?))),
        );
        query.extend(after.as_deref().map(|after| ("after", after)));
        let mut found: Value = client.get("/v1/jobs", &query).await?;
        let more = found["has_more"] == true;
        let last = found["last_id"].as_str().map(str::to_owned);
        if let Value::Array(data) = found["data"].take() {
            jobs.extend(data);
        }
        if !more {
            break;
        }
        after = last;
    }
    Ok(Value::Array(jobs))
}

fn jobs_table(jobs: &Value) -> String {
    let empty = Vec::new();
    let row = |job: &Value| {
        let status = match job["waiting_reason"].as_str() {
            Some(reason) => format!("{} ({reason})", cell(&job["status"])),
            None => cell(&job["status"]),
        };
        vec![
            cell(&job["id"]),
            status,
            cell(&job["model"]),
            time(&job["created_at"]),
            cell(&job["usage"]["total_tokens"]),
        ]
    };
    let rows: Vec<_> = jobs.as_array().unwrap_or(&empty).iter().map(row).collect();
    table(&["id", "status", "model", "accepted", "tokens"], &rows)
}

async fn replay(client: &Client, id: &str, output: Output) -> Result<Outcome, Failure> {
    let key = Uuid::now_v7().to_string();
    let made: Value = client.create_empty(&format!("/v1/jobs/{id}/replay"), &key).await?;
    let new = id_of(&made)?;
    ended(client, &new).await?;
    let replay: Value = client.get(&format!("/v1/jobs/{new}/replay"), &[]).await?;
    output.print(&replay, |replay| match replay["matches"].as_bool() {
        Some(true) => format!("{new} drew the same tokens."),
        Some(false) => {
            let difference = &replay["first_difference"];
            format!(
                "{new} differs first at token {} of choice {}: {} then, {} now.",
                difference["position"],
                difference["choice"],
                cell(&difference["original"]),
                cell(&difference["replayed"])
            )
        }
        None => format!("{new} is {}: there is nothing to compare.", cell(&replay["status"])),
    })?;
    Ok(if replay["matches"] == true {
        Outcome::Done
    } else {
        Outcome::Failed
    })
}

pub(crate) fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// What was used.
pub(crate) async fn usage(args: Usage, client: &Client, output: Output) -> Result<Outcome, Failure> {
    let given = [
        ("from", &args.from),
        ("to", &args.to),
        ("model", &args.model),
        ("api_key_id", &args.key),
    ];
    let query: Vec<_> = given
        .iter()
        .filter_map(|(name, value)| Some((*name, value.as_deref()?)))
        .collect();
    let usage: Value = client.get("/v1/usage", &query).await?;
    output.print(&usage, |usage| {
        let empty = Vec::new();
        let row = |first: Vec<String>, used: &Value| {
            let figures = ["jobs", "prompt_tokens", "completion_tokens", "total_tokens"];
            let seconds = format!("{:.2}", used["device_seconds"].as_f64().unwrap_or(0.0));
            let figures = figures.iter().map(|field| cell(&used[*field])).chain([seconds]);
            first.into_iter().chain(figures).collect::<Vec<_>>()
        };
        let days = usage["data"].as_array().unwrap_or(&empty).iter();
        let keys = |one: &Value| ["day", "model", "api_key_id"].map(|field| cell(&one[field])).to_vec();
        let mut rows: Vec<_> = days.map(|one| row(keys(one), one)).collect();
        let all = ["all", "", ""].map(str::to_owned).to_vec();
        rows.push(row(all, &usage["total"]));
        let names = [
            "day",
            "model",
            "key",
            "jobs",
            "prompt",
            "completion",
            "tokens",
            "device s",
        ];
        table(&names, &rows)
    })?;
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_given_is_sent() {
        assert!(body(&Generation::default()).is_empty());
        let given = Generation {
            seed: Some(-1),
            stop: vec!["\n".to_owned()],
            ..Generation::default()
        };
        assert_eq!(Value::Object(body(&given)), json!({"seed": -1, "stop": ["\n"]}));
    }

    #[test]
    fn a_job_without_output_says_why() {
        let job = json!({"status": "failed", "output": null, "error": {"message": "It broke."}});
        assert_eq!(
            (text(&job).as_str(), outcome(&job)),
            ("failed: It broke.", Outcome::Failed)
        );
        let job = json!({"status": "completed", "output": {"choices": [{"text": " a"}, {"text": " b"}]}});
        assert_eq!((text(&job).as_str(), outcome(&job)), (" a\n b", Outcome::Done));
    }
}
