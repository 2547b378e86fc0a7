//! From what the caller has (requests, prompts, a table) to requests of the Batch API, a line at a time.
//!
//! Memory is bounded: a line, and 16 bytes for each one's name.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::ENDPOINT;
use crate::args::{Format, Input};
use crate::failure::Failure;
use crate::jobs::body;

/// A line's length at most; the service takes no longer request.
const LINE_MAX: usize = 1 << 20;
/// So many wrong lines are told one by one.
const WRONG_SHOWN: usize = 100;

/// What was read.
#[derive(Debug)]
pub(super) struct Taken {
    /// Requests.
    pub(super) lines: u64,
    /// What they are posted to.
    pub(super) endpoint: String,
    /// What is wrong.
    pub(super) wrong: Wrong,
}

/// Lines that are no good.
#[derive(Debug, Default)]
pub(super) struct Wrong {
    shown: Vec<(u64, String)>,
    count: u64,
}

impl Wrong {
    fn add(&mut self, line: u64, complaint: impl Into<String>) {
        self.count += 1;
        if self.shown.len() < WRONG_SHOWN {
            self.shown.push((line, complaint.into()));
        }
    }

    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// The first of them, as JSON.
    pub(super) fn listed(&self) -> Vec<Value> {
        let one = |(line, message): &(u64, String)| json!({"line": line, "message": message});
        self.shown.iter().map(one).collect()
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (line, complaint) in &self.shown {
            writeln!(f, "line {line}: {complaint}")?;
        }
        write!(f, "{} lines are wrong", self.count)
    }
}

/// Gives each request, as one line of JSON, to `sink`. Wrong lines are told in the answer.
pub(super) fn read(input: &Input, sink: &mut dyn FnMut(&str) -> Result<(), Failure>) -> Result<Taken, Failure> {
    let source: Box<dyn Read> = if input.file == "-" {
        Box::new(std::io::stdin())
    } else {
        let path = Path::new(&input.file);
        Box::new(File::open(path).map_err(|error| Failure::file(path, error))?)
    };
    let mut reader = Reader {
        sink,
        names: HashSet::new(),
        read: Taken {
            lines: 0,
            endpoint: String::new(),
            wrong: Wrong::default(),
        },
    };
    let template = body(&input.generation);
    match format(input) {
        Format::Batch if !template.is_empty() => {
            let why = "such lines say themselves how they are generated: leave --model and the like out, or give --format text";
            return Err(Failure::Usage(why.to_owned()));
        }
        Format::Batch => reader.lines(source, Reader::request)?,
        Format::Text => reader.lines(source, |reader, line, text| {
            reader.prompt(&format!("line-{line}"), &template, text)
        })?,
        Format::Csv => reader.rows(source, input.column.as_deref(), &template)?,
    }
    let mut read = reader.read;
    if read.lines == 0 && read.wrong.count() == 0 {
        read.wrong.add(1, "there are no lines");
    }
    if read.endpoint.is_empty() {
        ENDPOINT.clone_into(&mut read.endpoint);
    }
    Ok(read)
}

/// What the caller says, or the file's name.
fn format(input: &Input) -> Format {
    let extension = Path::new(&input.file)
        .extension()
        .and_then(|extension| extension.to_str());
    input.format.unwrap_or(match extension {
        Some("csv") => Format::Csv,
        Some("txt") => Format::Text,
        _ if input.column.is_some() => Format::Csv,
        _ => Format::Batch,
    })
}

struct Reader<'a> {
    sink: &'a mut dyn FnMut(&str) -> Result<(), Failure>,
    /// Digests of the lines' names.
    names: HashSet<[u8; 16]>,
    read: Taken,
}

impl Reader<'_> {
    /// Each line that is not blank, with its number from 1.
    fn lines(
        &mut self,
        source: impl Read,
        mut each: impl FnMut(&mut Self, u64, &str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut source = BufReader::new(source);
        let mut bytes = Vec::new();
        for line in 1.. {
            bytes.clear();
            // One more than a line may have tells that it is too long; the rest of it is passed over.
            let got = (&mut source).take(LINE_MAX as u64 + 2).read_until(b'\n', &mut bytes)?;
            if got == 0 {
                break;
            }
            if bytes.len() > LINE_MAX + 1 && !bytes.ends_with(b"\n") {
                self.read.wrong.add(line, format!("is longer than {LINE_MAX} bytes"));
                source.skip_until(b'\n')?;
                continue;
            }
            match std::str::from_utf8(&bytes) {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => each(self, line, text.trim_end_matches(['\r', '\n']))?,
                Err(_) => self.read.wrong.add(line, "is not UTF-8"),
            }
        }
        Ok(())
    }

    fn rows(&mut self, source: impl Read, column: Option<&str>, template: &Map<String, Value>) -> Result<(), Failure> {
        let mut rows = csv::ReaderBuilder::new().from_reader(BufReader::new(source));
        let names = rows
            .headers()
            .map_err(|error| Failure::Usage(error.to_string()))?
            .clone();
        let known = || names.iter().collect::<Vec<_>>().join(", ");
        let place = match column {
            None if names.len() == 1 => 0,
            None => return Err(Failure::Usage(format!("--column is needed; there are: {}", known()))),
            Some(column) => {
                let place = names.iter().position(|name| name == column);
                place.ok_or_else(|| Failure::Usage(format!("there is no column `{column}`; there are: {}", known())))?
            }
        };
        for (row, line) in rows.records().zip(2..) {
            match row {
                Ok(row) => self.prompt(
                    &format!("row-{}", line - 1),
                    template,
                    row.get(place).unwrap_or_default(),
                )?,
                Err(error) => self.read.wrong.add(line, error.to_string()),
            }
        }
        Ok(())
    }

    /// A request as the Batch API takes it.
    fn request(&mut self, line: u64, text: &str) -> Result<(), Failure> {
        match self.checked(text) {
            Ok(()) => self.give(text.trim()),
            Err(complaint) => {
                self.read.wrong.add(line, complaint);
                Ok(())
            }
        }
    }

    fn checked(&mut self, text: &str) -> Result<(), String> {
        let request: Value = serde_json::from_str(text).map_err(|error| format!("is no JSON: {error}"))?;
        let custom_id = request["custom_id"].as_str().filter(|id| !id.is_empty());
        let custom_id = custom_id.ok_or("`custom_id` is missing")?;
        if request["method"] != "POST" {
            return Err("`method` must be POST".to_owned());
        }
        let url = request["url"].as_str().filter(|url| url.starts_with("/v1/"));
        let url = url.ok_or("`url` must be a path, as /v1/completions")?;
        if !request["body"].is_object() {
            return Err("`body` must be an object".to_owned());
        }
        if self.read.endpoint.is_empty() {
            url.clone_into(&mut self.read.endpoint);
        } else if self.read.endpoint != url {
            return Err(format!("`url` must be that of the first line, {}", self.read.endpoint));
        }
        if !self.names.insert(short_digest(custom_id)) {
            return Err(format!("`custom_id` {custom_id} was there before"));
        }
        Ok(())
    }

    /// A request for a prompt that stands by itself.
    fn prompt(&mut self, custom_id: &str, template: &Map<String, Value>, prompt: &str) -> Result<(), Failure> {
        let mut body = template.clone();
        body.insert("prompt".to_owned(), Value::String(prompt.to_owned()));
        let request = json!({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body});
        self.give(&request.to_string())
    }

    fn give(&mut self, request: &str) -> Result<(), Failure> {
        self.read.lines += 1;
        (self.sink)(request)
    }
}

fn short_digest(name: &str) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(name)[..16]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Generation;

    fn read_text(name: &str, text: &str, change: impl FnOnce(&mut Input)) -> (Result<Taken, Failure>, Vec<Value>) {
        let path = std::env::temp_dir().join(format!("{}-{name}", uuid::Uuid::now_v7()));
        std::fs::write(&path, text).unwrap();
        let mut input = Input {
            file: path.display().to_string(),
            format: None,
            column: None,
            generation: Generation::default(),
        };
        change(&mut input);
        let mut got = Vec::new();
        let outcome = read(&input, &mut |line| {
            got.push(serde_json::from_str(line).unwrap());
            Ok(())
        });
        std::fs::remove_file(path).unwrap();
        (outcome, got)
    }

    #[test]
    fn requests_pass_as_they_are_and_each_wrong_line_is_named() {
        let good = r#"{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}"#;
        let text = [
            good,
            "",
            "{",
            good,
            &good.replace(r#""a""#, r#""b""#).replace("POST", "GET"),
            &good.replace(r#""a""#, r#""c""#).replace("completions", "embeddings"),
            r#"{"method": "POST"}"#,
            &good.replace(r#""a""#, r#""d""#),
        ]
        .join("\n");
        let (outcome, got) = read_text("x.jsonl", &text, |_| {});
        let outcome = outcome.unwrap();
        assert_eq!(
            (outcome.lines, got.len(), outcome.endpoint.as_str()),
            (2, 2, "/v1/completions")
        );
        let wrong: Vec<_> = outcome
            .wrong
            .listed()
            .iter()
            .map(|one| one["line"].as_u64().unwrap())
            .collect();
        assert_eq!(wrong, [3, 4, 5, 6, 7]);
    }

    #[test]
    fn prompts_and_a_column_become_requests() {
        let with_seed = |input: &mut Input| input.generation.seed = Some(7);
        let (outcome, got) = read_text("x.txt", "one\r\n\n two\n", with_seed);
        assert_eq!(outcome.unwrap().lines, 2);
        assert_eq!(got[0]["body"], json!({"prompt": "one", "seed": 7}));
        assert_eq!(
            (&got[1]["custom_id"], &got[1]["body"]["prompt"]),
            (&json!("line-3"), &json!(" two"))
        );
        let table = "id,prompt\n1,\"a, b\"\n2,c\n";
        let (outcome, got) = read_text("x.csv", table, |input| input.column = Some("prompt".to_owned()));
        assert_eq!(outcome.unwrap().lines, 2);
        assert_eq!(
            (&got[0]["custom_id"], &got[0]["body"]["prompt"]),
            (&json!("row-1"), &json!("a, b"))
        );
        let (outcome, _) = read_text("x.csv", table, |_| {});
        assert!(outcome.unwrap_err().to_string().contains("id, prompt"));
    }

    #[test]
    fn a_line_without_an_end_and_an_empty_file_are_told() {
        let long = "x".repeat(LINE_MAX + 10);
        let (outcome, got) = read_text("x.txt", &format!("{long}\nshort\n"), |_| {});
        assert_eq!((outcome.unwrap().wrong.count(), got.len()), (1, 1));
        let (outcome, _) = read_text("x.jsonl", "\n\n", |_| {});
        assert_eq!(outcome.unwrap().wrong.count(), 1);
    }
}
