//! What a run has done so far, in a folder beside its output: the shards that it sends, what came of them, and a journal.
//!
//! Each step is written to the journal, to the disk, before the next one begins; a line that a crash cut off is as if it had not
//! been written. So a run that goes on knows what was sent, and what it does not know it sends under the same key again.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::Failure;

/// A shard's size at most; the service takes 200 MB.
const SHARD_BYTES: u64 = 190_000_000;

/// A step of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(super) enum Step {
    /// The first one: what the run was asked for, and what its requests are known by.
    Begun {
        /// Arguments and input.
        asked: Value,
        /// The first part of its idempotency keys.
        key: String,
    },
    /// The input is cut into shards.
    Prepared {
        /// What lines are posted to.
        endpoint: String,
        /// Lines and bytes of each.
        shards: Vec<(u64, u64)>,
    },
    /// A shard's file is with the service.
    Uploaded {
        /// Which.
        shard: usize,
        /// `file-…`
        file: String,
    },
    /// A shard's batch is accepted.
    Created {
        /// Which.
        shard: usize,
        /// `batch_…`
        batch: String,
    },
    /// What came of a shard lies here.
    Collected {
        /// Which.
        shard: usize,
        /// The batch at its end.
        batch: Value,
    },
}

/// A part of the input.
#[derive(Debug, Clone, Default)]
pub(super) struct Shard {
    pub(super) lines: u64,
    pub(super) bytes: u64,
    pub(super) file: Option<String>,
    pub(super) batch: Option<String>,
    /// The batch at its end.
    pub(super) ended: Option<Value>,
}

/// A run's folder.
pub(super) struct Work {
    folder: PathBuf,
    journal: File,
    pub(super) asked: Option<Value>,
    pub(super) key: String,
    pub(super) endpoint: String,
    /// Empty until the input is prepared.
    pub(super) shards: Vec<Shard>,
}

impl Work {
    /// Where the work for an output is kept.
    pub(super) fn folder_of(output: &Path) -> PathBuf {
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(".claimcheck");
        output.with_file_name(name)
    }

    /// Opens the folder, made if it is not there. Only one run may have it.
    pub(super) fn open(folder: PathBuf) -> Result<Self, Failure> {
        fs::create_dir_all(&folder).map_err(|error| Failure::file(&folder, error))?;
        let path = folder.join("journal.jsonl");
        let failed = |error: std::io::Error| Failure::file(&path, error);
        let journal = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(&path)
            .map_err(failed)?;
        if journal.try_lock().is_err() {
            return Err(Failure::Usage(format!("another run is at it: {}", folder.display())));
        }
        let mut work = Self {
            journal,
            asked: None,
            key: String::new(),
            endpoint: String::new(),
            shards: Vec::new(),
            folder,
        };
        let whole = work.replay().map_err(failed)?;
        work.journal.set_len(whole).map_err(failed)?;
        Ok(work)
    }

    /// Takes in the journal's steps; answers how many bytes of it are whole lines.
    fn replay(&mut self) -> std::io::Result<u64> {
        let mut reader = BufReader::new(self.journal.try_clone()?);
        let (mut whole, mut line) = (0, String::new());
        loop {
            line.clear();
            let got = reader.read_line(&mut line)?;
            let step = serde_json::from_str(&line).ok().filter(|_| line.ends_with('\n'));
            let Some(step) = step else { return Ok(whole) };
            self.take(step);
            whole += got as u64;
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Begun { asked, key } => {
                self.asked = Some(asked);
                self.key = key;
            }
            Step::Prepared { endpoint, shards } => {
                self.endpoint = endpoint;
                let shard = |(lines, bytes)| Shard {
                    lines,
                    bytes,
                    ..Shard::default()
                };
                self.shards = shards.into_iter().map(shard).collect();
            }
            Step::Uploaded { shard, file } => self.change(shard, |shard| shard.file = Some(file)),
            Step::Created { shard, batch } => self.change(shard, |shard| shard.batch = Some(batch)),
            Step::Collected { shard, batch } => self.change(shard, |shard| shard.ended = Some(batch)),
        }
    }

    fn change(&mut self, shard: usize, change: impl FnOnce(&mut Shard)) {
        if let Some(shard) = self.shards.get_mut(shard) {
            change(shard);
        }
    }

    /// Writes a step down, and takes it in.
    pub(super) fn note(&mut self, step: Step) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(&step)?;
        line.push(b'\n');
        let written = self.journal.write_all(&line).and_then(|()| self.journal.sync_data());
        written.map_err(|error| Failure::file(&self.folder, error))?;
        self.take(step);
        Ok(())
    }

    /// Where a shard's requests lie.
    pub(super) fn requests(&self, shard: usize) -> PathBuf {
        self.folder.join(format!("shard-{:04}.jsonl", shard + 1))
    }

    /// Where what came of a shard lies once it is collected.
    pub(super) fn answers(&self, shard: usize) -> PathBuf {
        self.folder.join(format!("shard-{:04}.answers.jsonl", shard + 1))
    }

    /// Cuts requests into shards.
    pub(super) fn cutter(&self, lines: u64) -> Cutter<'_> {
        Cutter {
            work: self,
            lines,
            file: None,
            shards: Vec::new(),
        }
    }

    /// Puts what came of all shards into one file, which is there as a whole or not at all.
    pub(super) fn assemble(&self, output: &Path) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::file(output, error);
        let new = self.folder.join("output.jsonl");
        let mut to = File::create(&new).map_err(failed)?;
        for shard in 0..self.shards.len() {
            if let Ok(mut from) = File::open(self.answers(shard)) {
                std::io::copy(&mut from, &mut to).map_err(failed)?;
            }
        }
        to.sync_all().and_then(|()| fs::rename(&new, output)).map_err(failed)
    }

    /// Nothing is left to be done.
    pub(super) fn remove(self) -> Result<(), Failure> {
        fs::remove_dir_all(&self.folder).map_err(|error| Failure::file(&self.folder, error))
    }
}

/// Writes requests to one shard after the other.
pub(super) struct Cutter<'a> {
    work: &'a Work,
    /// Of one shard at most.
    lines: u64,
    file: Option<BufWriter<File>>,
    /// Lines and bytes of each.
    shards: Vec<(u64, u64)>,
}

impl Cutter<'_> {
    pub(super) fn add(&mut self, request: &str) -> Result<(), Failure> {
        let size = request.len() as u64 + 1;
        let full = |(lines, bytes): &(u64, u64)| *lines >= self.lines || bytes + size > SHARD_BYTES;
        if self.shards.last().is_none_or(full) {
            self.close()?;
            let path = self.work.requests(self.shards.len());
            let file = File::create(&path).map_err(|error| Failure::file(&path, error))?;
            self.file = Some(BufWriter::new(file));
            self.shards.push((0, 0));
        }
        if let (Some(file), Some(shard)) = (&mut self.file, self.shards.last_mut()) {
            writeln!(file, "{request}").map_err(|error| Failure::file(&self.work.folder, error))?;
            *shard = (shard.0 + 1, shard.1 + size);
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), Failure> {
        let Some(mut file) = self.file.take() else {
            return Ok(());
        };
        let written = file.flush().and_then(|()| file.get_ref().sync_all());
        written.map_err(|error| Failure::file(&self.work.folder, error))
    }

    /// Lines and bytes of each shard, all of them on the disk.
    pub(super) fn finish(mut self) -> Result<Vec<(u64, u64)>, Failure> {
        self.close()?;
        Ok(self.shards)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn folder() -> PathBuf {
        std::env::temp_dir().join(format!("claimcheck-{}", uuid::Uuid::now_v7()))
    }

    fn begun(work: &mut Work) {
        let asked = json!({"input": "x"});
        let key = "k".to_owned();
        work.note(Step::Begun { asked, key }).unwrap();
    }

    #[test]
    fn what_was_noted_is_known_again_and_a_cut_off_line_is_not() {
        let folder = folder();
        let mut work = Work::open(folder.clone()).unwrap();
        begun(&mut work);
        let prepared = Step::Prepared {
            endpoint: "/v1/completions".to_owned(),
            shards: vec![(3, 30), (1, 10)],
        };
        work.note(prepared).unwrap();
        let created = |batch: &str| Step::Created {
            shard: 1,
            batch: batch.to_owned(),
        };
        work.note(created("batch_1")).unwrap();
        drop(work);
        let path = folder.join("journal.jsonl");
        let whole = fs::read(&path).unwrap();
        fs::write(
            &path,
            [&whole[..], br#"{"step":"created","shard":0,"batch":"bat"#].concat(),
        )
        .unwrap();
        let mut work = Work::open(folder.clone()).unwrap();
        assert_eq!(
            (work.key.as_str(), work.shards.len(), work.shards[1].lines),
            ("k", 2, 1)
        );
        assert_eq!(
            (&work.shards[0].batch, work.shards[1].batch.as_deref()),
            (&None, Some("batch_1"))
        );
        work.note(created("batch_2")).unwrap();
        drop(work);
        let work = Work::open(folder).unwrap();
        assert_eq!(work.shards[1].batch.as_deref(), Some("batch_2"));
        work.remove().unwrap();
    }

    #[test]
    fn only_one_run_may_have_the_folder() {
        let folder = folder();
        let work = Work::open(folder.clone()).unwrap();
        assert!(matches!(Work::open(folder), Err(Failure::Usage(_))));
        work.remove().unwrap();
    }

    #[test]
    fn requests_are_cut_by_lines_and_put_together_again() {
        let folder = folder();
        let mut work = Work::open(folder.clone()).unwrap();
        let mut cutter = work.cutter(2);
        for number in 0..5 {
            cutter.add(&format!("{{\"n\":{number}}}")).unwrap();
        }
        let shards = cutter.finish().unwrap();
        assert_eq!(shards, [(2, 16), (2, 16), (1, 8)]);
        begun(&mut work);
        let endpoint = String::new();
        work.note(Step::Prepared { endpoint, shards }).unwrap();
        for shard in 0..3 {
            fs::copy(work.requests(shard), work.answers(shard)).unwrap();
        }
        let output = folder.with_extension("out");
        work.assemble(&output).unwrap();
        assert_eq!(fs::read_to_string(&output).unwrap().lines().count(), 5);
        work.remove().unwrap();
        fs::remove_file(output).unwrap();
    }
}
