//! Checks every line of a batch before any of it runs, and reports all that is wrong by line.
//!
//! What can be told from the line itself is told here; what depends on the model becomes that line's own error when it is
//! taken up. Reads only: whoever is killed here leaves nothing, and the next one begins anew.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use claimcheck_common::batch::{LINES_MAX, input};
use claimcheck_common::domain::LineProblem;
use claimcheck_common::files::{FileError, FileStore};
use claimcheck_common::store::Pool;
use claimcheck_common::store::batch_work::{self, Held, Progress, Verdict};
use claimcheck_common::validate::Problem;

use super::BatchError;
use super::lines::{self, Lines};

/// The first problems are kept; all are counted.
const PROBLEMS_SHOWN: usize = 100;
/// Lines that are checked on another thread at a time.
const CHUNK: usize = 500;
const CHUNK_BYTES: usize = 4 << 20;

/// All that was found so far.
#[derive(Default)]
struct Findings {
    lines: u32,
    /// Each `custom_id` by a hash of 64 bits, with the line that has it. Of 50,000 different ones two meet by chance once in
    /// ten thousand million files.
    seen: HashMap<u64, u32>,
    hasher: RandomState,
    problems: Vec<LineProblem>,
    count: u32,
}

/// The verdict, unless the batch was lost on the way.
pub(super) async fn check(pool: &Pool, files: &FileStore, held: &Held) -> Result<Progress<Verdict>, BatchError> {
    let mut lines = match Lines::open(files, held.view.input_file_id, held.mark).await {
        Ok(lines) => lines,
        Err(FileError::Missing) => return Ok(Progress::Done(Verdict::Wrong(vec![lines::lost(held)], 1))),
        Err(error) => return Err(error.into()),
    };
    let mut findings = Findings::default();
    let keep_every = held.keep_every();
    let mut kept = Instant::now();
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let mut bytes = 0;
        while chunk.len() < CHUNK && bytes < CHUNK_BYTES {
            let Some(line) = lines.next().await? else { break };
            bytes += line.text.len();
            chunk.push(line);
        }
        if chunk.is_empty() {
            break;
        }
        findings = tokio::task::spawn_blocking(move || {
            for line in &chunk {
                findings.add(line.number, &line.text);
            }
            findings
        })
        .await?;
        if findings.lines > LINES_MAX {
            break;
        }
        if kept.elapsed() > keep_every {
            kept = Instant::now();
            if batch_work::keep(pool, held).await? == Progress::Lost {
                return Ok(Progress::Lost);
            }
        }
    }
    Ok(Progress::Done(findings.verdict()))
}

impl Findings {
    fn add(&mut self, number: u32, text: &[u8]) {
        self.lines += 1;
        match input::read(text) {
            Ok(line) => {
                if let Some(earlier) = self.seen.insert(self.hasher.hash_one(&line.custom_id), number) {
                    let message = format!("`custom_id` was used in line {earlier} already; each line needs its own.");
                    self.problem(number, Problem::new("duplicate_custom_id", message).at("custom_id"));
                }
            }
            Err(problem) => self.problem(number, problem),
        }
    }

    fn problem(&mut self, line: u32, problem: Problem) {
        self.count += 1;
        if self.problems.len() < PROBLEMS_SHOWN {
            self.problems.push(LineProblem {
                code: problem.code.to_owned(),
                line: Some(line),
                message: problem.message,
                param: problem.param,
            });
        }
    }

    fn verdict(self) -> Verdict {
        let whole = |code: &str, message: String| {
            let problem = LineProblem {
                code: code.to_owned(),
                line: None,
                message,
                param: None,
            };
            Verdict::Wrong(vec![problem], 1)
        };
        if self.lines == 0 {
            whole(
                "empty_file",
                "The file has no lines; write one request a line.".to_owned(),
            )
        } else if self.lines > LINES_MAX {
            whole(
                "too_many_lines",
                format!("The file has more than {LINES_MAX} lines; make several batches of it."),
            )
        } else if self.count > 0 {
            Verdict::Wrong(self.problems, self.count)
        } else {
            Verdict::InOrder(self.lines)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(custom_id: &str) -> String {
        format!(
            r#"{{"custom_id": "{custom_id}", "method": "POST", "url": "/v1/completions", "body": {{"prompt": "hi"}}}}"#
        )
    }

    #[test]
    fn every_bad_line_is_counted_and_the_first_are_named() {
        let mut findings = Findings::default();
        findings.add(1, line("a").as_bytes());
        for number in 2..=300 {
            findings.add(number, b"{");
        }
        findings.add(301, line("a").as_bytes());
        let Verdict::Wrong(problems, count) = findings.verdict() else {
            panic!("299 lines are no JSON")
        };
        assert_eq!((problems.len(), count), (PROBLEMS_SHOWN, 300));
        assert_eq!((problems[0].line, problems[99].line), (Some(2), Some(101)));
    }

    #[test]
    fn a_name_that_comes_twice_is_told_with_both_lines() {
        let mut findings = Findings::default();
        for (number, name) in [(1, "a"), (3, "b"), (7, "a")] {
            findings.add(number, line(name).as_bytes());
        }
        let Verdict::Wrong(problems, 1) = findings.verdict() else {
            panic!("a comes twice")
        };
        assert_eq!(
            (problems[0].line, problems[0].code.as_str()),
            (Some(7), "duplicate_custom_id")
        );
        assert!(problems[0].message.contains("line 1"), "{problems:?}");
    }
}
