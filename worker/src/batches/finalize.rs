//! Writes what a batch's lines came to into its files, in the order of the input, and ends it.
//!
//! Each try writes files of its own: they are noted before they are written and belong to the batch only by its end, so what a
//! killed process leaves is swept like an upload that was given up.

use std::time::{Duration, Instant};

use bytes::Bytes;
use claimcheck_common::batch::output;
use claimcheck_common::domain::{FileId, FilePurpose};
use claimcheck_common::files::FileWriter;
use claimcheck_common::store::batch_work::{self, Held, Progress, Written};
use claimcheck_common::store::{batch_results, files};

use super::{BatchError, Batches};

/// Lines that are read at a time: an output may be as large as a megabyte.
const PAGE: u32 = 50;
/// Gathered before it is handed on.
const PIECE: usize = 64 << 10;

/// A file on its way.
struct Target {
    id: FileId,
    writer: FileWriter,
    gathered: Vec<u8>,
    lines: u32,
}

pub(super) async fn write(work: &Batches, held: &Held) -> Result<Progress<Duration>, BatchError> {
    let (mut outputs, mut errors) = (None, None);
    let mut line = 0;
    let mut kept = Instant::now();
    loop {
        let page = batch_results::behind_line(&work.pool, held.view.id, line, PAGE).await?;
        let Some(last) = page.last() else { break };
        line = last.line;
        for result in &page {
            let text = output::render(result, held.view.ending)?;
            let (target, name) = if output::is_output(result) {
                (&mut outputs, "output")
            } else {
                (&mut errors, "error")
            };
            if target.is_none() {
                *target = Some(Target::begin(work, held, name).await?);
            }
            if let Some(target) = target {
                target.add(&text).await?;
            }
        }
        if kept.elapsed() > held.keep_every() {
            kept = Instant::now();
            if batch_work::keep(&work.pool, held).await? == Progress::Lost {
                return Ok(Progress::Lost);
            }
        }
    }
    let (outputs, errors) = (finish(outputs).await?, finish(errors).await?);
    if batch_work::finish(&work.pool, held, outputs, errors).await? == Progress::Lost {
        for file in [outputs, errors].into_iter().flatten() {
            work.files.discard(file.id).await?;
            files::forget(&work.pool, file.id).await?;
        }
        return Ok(Progress::Lost);
    }
    let (completed, failed) = (
        outputs.map_or(0, |file| file.lines),
        errors.map_or(0, |file| file.lines),
    );
    tracing::info!(completed, failed, "a batch has ended");
    Ok(Progress::Done(Duration::ZERO))
}

impl Target {
    async fn begin(work: &Batches, held: &Held, name: &str) -> Result<Self, BatchError> {
        let id = FileId::new();
        let file = files::NewFile {
            id,
            tenant_id: held.tenant_id,
            project_id: held.project_id,
            purpose: FilePurpose::BatchOutput,
            filename: format!("{}_{name}.jsonl", held.view.id),
            ttl: held.output_ttl,
        };
        files::begin(&work.pool, &file).await?;
        Ok(Self {
            id,
            writer: work.files.writer(id),
            gathered: Vec::new(),
            lines: 0,
        })
    }

    async fn add(&mut self, text: &[u8]) -> Result<(), BatchError> {
        self.lines += 1;
        self.gathered.extend_from_slice(text);
        if self.gathered.len() >= PIECE {
            let piece = std::mem::take(&mut self.gathered);
            self.writer.write(Bytes::from(piece)).await?;
        }
        Ok(())
    }
}

async fn finish(target: Option<Target>) -> Result<Option<Written>, BatchError> {
    let Some(mut target) = target else { return Ok(None) };
    target.writer.write(Bytes::from(target.gathered)).await?;
    Ok(Some(Written {
        id: target.id,
        bytes: target.writer.finish().await?,
        lines: target.lines,
    }))
}
