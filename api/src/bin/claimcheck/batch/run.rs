//! `batch run`: cut the input into shards, upload each, make a batch of each, wait, collect, put together.
//!
//! No line is submitted twice, however often the run is cut off: the journal (`work.rs`) says what was done, and a batch whose
//! answer was lost is looked for by the key in its metadata before it is made under the same idempotency key.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use uuid::Uuid;

use super::input;
use super::transfer::{download, upload};
use super::work::{Shard, Step, Work};
use crate::args::BatchRun;
use crate::client::Client;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, cell};
use crate::progress::{Phase, Unit};

/// Where a batch carries the key that it was made under.
const KEY: &str = "claimcheck_run";
/// Between two looks at the batches.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Batches looked through for one whose answer was lost.
const PAGES: usize = 20;
/// Errors of a refused input that are told.
const ERRORS_SHOWN: usize = 20;

pub(super) async fn run(args: BatchRun, client: &Client, output: Output) -> Result<Outcome, Failure> {
    let folder = Work::folder_of(&args.output);
    if !args.resume && (folder.exists() || args.output.exists()) {
        let there = if folder.exists() { &folder } else { &args.output };
        let there = there.display();
        return Err(Failure::Usage(format!(
            "{there} is there: go on with --resume, or remove it"
        )));
    }
    if args.resume && args.output.exists() && !folder.exists() {
        let path = args.output.display().to_string();
        output.print(&json!({"output": path, "resumed": false}), |_| {
            format!("{path} is there: nothing is left to be done")
        })?;
        return Ok(Outcome::Done);
    }
    let mut work = begin(&args, folder)?;
    if work.shards.is_empty() && !prepare(&args, &mut work)? {
        work.remove()?;
        return Ok(Outcome::Failed);
    }
    submit(&args, client, &mut work).await?;
    let interrupted = tokio::select! {
        followed = follow(client, &mut work) => followed.map(|()| false)?,
        _ = tokio::signal::ctrl_c() => true,
    };
    if interrupted {
        let message = "the batches go on; --resume takes the run up again, `batch cancel` stops them";
        return Err(Failure::Interrupted(message.to_owned()));
    }
    work.assemble(&args.output)?;
    let outcome = report(&work, &args.output, output)?;
    work.remove()?;
    Ok(outcome)
}

/// Takes up the earlier run, if there was one and it was for the same.
fn begin(args: &BatchRun, folder: std::path::PathBuf) -> Result<Work, Failure> {
    let asked = asked(args)?;
    let mut work = Work::open(folder)?;
    match &work.asked {
        Some(before) if *before == asked => {}
        Some(_) => {
            let message =
                "the earlier run had another input or other arguments: repeat it as it was, or remove its folder";
            return Err(Failure::Usage(message.to_owned()));
        }
        None => {
            let key = Uuid::now_v7().to_string();
            work.note(Step::Begun { asked, key })?;
        }
    }
    Ok(work)
}

/// What decides which requests a run sends.
fn asked(args: &BatchRun) -> Result<Value, Failure> {
    let input = &args.input;
    let file = if input.file == "-" {
        Value::Null
    } else {
        let path = Path::new(&input.file);
        let metadata = fs::metadata(path).map_err(|error| Failure::file(path, error))?;
        let changed = metadata
            .modified()
            .ok()
            .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        json!({"bytes": metadata.len(), "changed": changed.map(|at| at.as_secs())})
    };
    let format = input.format.map(|format| format!("{format:?}"));
    Ok(json!({
        "input": input.file, "file": file, "format": format, "column": input.column, "window": args.window,
        "generation": crate::jobs::body(&input.generation), "shard_lines": args.shard_lines,
    }))
}

/// Cuts the input into shards. `false`: it is not in order, and that was said.
fn prepare(args: &BatchRun, work: &mut Work) -> Result<bool, Failure> {
    let size = fs::metadata(&args.input.file).map_or(0, |metadata| metadata.len());
    let mut phase = Phase::begin("checking", Unit::Bytes, size, 0);
    let mut cutter = work.cutter(args.shard_lines.into());
    let read = input::read(&args.input, &mut |request| {
        phase.add(request.len() as u64 + 1);
        cutter.add(request)
    })?;
    let shards = cutter.finish()?;
    phase.end();
    if read.wrong.count() > 0 {
        let mut error = std::io::stderr().lock();
        writeln!(error, "{}; nothing was sent", read.wrong)?;
        return Ok(false);
    }
    let endpoint = read.endpoint;
    work.note(Step::Prepared { endpoint, shards })?;
    Ok(true)
}

/// Brings every shard to the service that is not there yet.
async fn submit(args: &BatchRun, client: &Client, work: &mut Work) -> Result<(), Failure> {
    let there = |shard: &Shard| shard.file.is_some();
    let bytes = |shards: &[Shard]| shards.iter().map(|shard| shard.bytes).sum::<u64>();
    let (left, total) = (
        work.shards.iter().filter(|shard| !there(shard)).count(),
        bytes(&work.shards),
    );
    let before = work
        .shards
        .iter()
        .filter(|shard| there(shard))
        .map(|shard| shard.bytes)
        .sum();
    let mut phase = (left > 0).then(|| Phase::begin("uploading", Unit::Bytes, total, before));
    for shard in 0..work.shards.len() {
        if work.shards[shard].file.is_none() {
            let size = work.shards[shard].bytes;
            let file = upload(client, &work.requests(shard), size).await?;
            work.note(Step::Uploaded { shard, file })?;
            if let Some(phase) = &mut phase {
                phase.add(size);
            }
        }
        if work.shards[shard].batch.is_none() {
            let batch = create(args, client, work, shard).await?;
            work.note(Step::Created { shard, batch })?;
        }
    }
    if let Some(phase) = phase {
        phase.end();
    }
    Ok(())
}

/// Makes a shard's batch, unless it was made and the answer was lost.
async fn create(args: &BatchRun, client: &Client, work: &Work, shard: usize) -> Result<String, Failure> {
    let key = format!("{}-{}", work.key, shard + 1);
    if let Some(batch) = find(client, &key).await? {
        return Ok(batch);
    }
    let body = json!({
        "input_file_id": work.shards[shard].file, "endpoint": work.endpoint, "completion_window": args.window,
        "metadata": {KEY: key},
    });
    let batch: Value = client.create("/v1/batches", &key, &body).await?;
    let id = batch["id"].as_str();
    id.map(str::to_owned)
        .ok_or_else(|| Failure::Other("the service gave the batch no id".to_owned()))
}

/// The batch that was made under a key.
async fn find(client: &Client, key: &str) -> Result<Option<String>, Failure> {
    let mut after: Option<String> = None;
    for _ in 0..PAGES {
        let mut query = vec![("limit", "100")];
        query.extend(after.as_deref().map(|after| ("after", after)));
        let list: Value = client.get("/v1/batches", &query).await?;
        let batches = list["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        if let Some(batch) = batches.iter().find(|batch| batch["metadata"][KEY] == key) {
            return Ok(batch["id"].as_str().map(str::to_owned));
        }
        if list["has_more"] != true {
            break;
        }
        after = list["last_id"].as_str().map(str::to_owned);
    }
    Ok(None)
}

/// Waits for the batches, and collects what came of each as it ends.
async fn follow(client: &Client, work: &mut Work) -> Result<(), Failure> {
    let total = work.shards.iter().map(|shard| shard.lines).sum();
    let mut phase = Phase::begin("running", Unit::Lines, total, 0);
    loop {
        let (mut done, mut open) = (0, 0);
        for shard in 0..work.shards.len() {
            if work.shards[shard].ended.is_some() {
                done += work.shards[shard].lines;
                continue;
            }
            let id = work.shards[shard].batch.clone().unwrap_or_default();
            let batch: Value = client.get(&format!("/v1/batches/{id}"), &[]).await?;
            if super::watch::has_ended(&batch) {
                collect(client, work, shard, &batch).await?;
                done += work.shards[shard].lines;
            } else {
                done += super::watch::ended_lines(&batch);
                open += 1;
            }
        }
        phase.at(done);
        if open == 0 {
            phase.end();
            return Ok(());
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Fetches what came of a shard's lines: answers and errors are one file, there as a whole or not at all.
async fn collect(client: &Client, work: &mut Work, shard: usize, batch: &Value) -> Result<(), Failure> {
    let path = work.answers(shard);
    let new = path.with_extension("new");
    let failed = |error: std::io::Error| Failure::file(&new, error);
    let mut to = BufWriter::new(File::create(&new).map_err(failed)?);
    let mut lines = 0;
    for file in ["output_file_id", "error_file_id"] {
        if let Some(file) = batch[file].as_str() {
            lines += download(client, file, &mut to).await?;
        }
    }
    to.flush().and_then(|()| to.get_ref().sync_all()).map_err(failed)?;
    let wanted = work.shards[shard].lines;
    if lines != wanted && batch["status"] != "failed" {
        let id = cell(&batch["id"]);
        return Err(Failure::Other(format!(
            "{id} has {lines} results for {wanted} lines; --resume looks again"
        )));
    }
    fs::rename(&new, &path).map_err(failed)?;
    work.note(Step::Collected {
        shard,
        batch: batch.clone(),
    })
}

/// Says how it went.
fn report(work: &Work, path: &Path, output: Output) -> Result<Outcome, Failure> {
    let ended = || work.shards.iter().filter_map(|shard| shard.ended.as_ref());
    let count = |field: &str| -> u64 {
        let counts = ended().map(|batch| batch["request_counts"][field].as_u64().unwrap_or(0));
        counts.sum()
    };
    let lines: u64 = work.shards.iter().map(|shard| shard.lines).sum();
    let (completed, failed) = (count("completed"), count("failed"));
    let has =
        |wanted: &[&str]| ended().any(|batch| batch["status"].as_str().is_some_and(|status| wanted.contains(&status)));
    let (outcome, status) = if has(&["failed"]) {
        (Outcome::Failed, "failed")
    } else if has(&["cancelled", "expired"]) {
        (Outcome::Stopped, "stopped")
    } else if completed == lines {
        (Outcome::Done, "completed")
    } else if completed > 0 {
        (Outcome::Partial, "partial")
    } else {
        (Outcome::Failed, "failed")
    };
    for error in ended()
        .flat_map(|batch| batch["errors"]["data"].as_array().into_iter().flatten())
        .take(ERRORS_SHOWN)
    {
        output.note(&format!("line {}: {}", cell(&error["line"]), cell(&error["message"])));
    }
    let batches: Vec<_> = work.shards.iter().filter_map(|shard| shard.batch.as_deref()).collect();
    let path = path.display().to_string();
    let said = json!({"output": path, "status": status, "lines": lines, "completed": completed, "failed": failed, "batches": batches});
    output.print(&said, |_| {
        format!("{path}: {completed} of {lines} lines completed, {failed} failed ({status})")
    })?;
    Ok(outcome)
}
