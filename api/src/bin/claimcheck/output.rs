//! What commands print: JSON for programs, lines and tables for people. Results go to standard output, all else to the other.

use std::io::{IsTerminal, Write};

use serde_json::Value;

use crate::failure::{Failure, Outcome};

/// How results are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// A value as the service gave it, or what `text` makes of it.
    pub(crate) fn print(self, value: &Value, text: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
        if self.json {
            line(&value.to_string())
        } else {
            line(&text(value))
        }
    }

    /// Something that is no result: to standard error, and not where programs read.
    pub(crate) fn note(self, note: &str) {
        if !self.json {
            let _nobody_reads = writeln!(std::io::stderr().lock(), "{note}");
        }
    }
}

/// One line.
pub(crate) fn line(line: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout().lock(), "{line}") {
        // Whoever read has read enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Interrupted("nobody reads the output any more".to_owned()))
        }
        written => Ok(written?),
    }
}

/// A whole text, as far as it is read.
pub(crate) fn page(text: &[u8]) -> Result<Outcome, Failure> {
    match std::io::stdout().lock().write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(Outcome::Done),
    }
}

/// Text as it comes, without a line's end.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Whether a person looks at what goes to standard error.
pub(crate) fn watched() -> bool {
    std::io::stderr().is_terminal()
}

/// Columns under their names, as wide as their widest value.
pub(crate) fn table(names: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let values = rows.iter().map(|row| row[column].chars().count());
        values.chain([names[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..names.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let lines = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(names.to_vec()))
        .chain(lines)
        .collect::<Vec<_>>()
        .join("\n")
}

/// A field as a cell of a table.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Unix seconds as a time of day in UTC.
pub(crate) fn time(value: &Value) -> String {
    let at = value
        .as_i64()
        .and_then(|at| time::OffsetDateTime::from_unix_timestamp(at).ok());
    at.map_or_else(
        || "-".to_owned(),
        |at| format!("{} {:02}:{:02}:{:02}Z", at.date(), at.hour(), at.minute(), at.second()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_widest_cells() {
        let rows = [
            vec!["a".to_owned(), "long one".to_owned()],
            vec!["bcd".to_owned(), "x".to_owned()],
        ];
        assert_eq!(table(&["id", "text"], &rows), "id   text\na    long one\nbcd  x");
    }

    #[test]
    fn a_time_reads_and_an_absent_one_is_a_dash() {
        assert_eq!(time(&serde_json::json!(1_800_000_000)), "2027-01-15 08:00:00Z");
        assert_eq!(time(&Value::Null), "-");
    }
}
