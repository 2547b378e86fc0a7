//! What an uploaded file must be to be a batch's input, told while it streams by: text in lines of bounded length.
//!
//! What the lines say is checked when a batch is made of them (`worker/src/batches/validate.rs`).

use claimcheck_common::batch::LINE_BYTES_MAX;

use crate::error::Problem;

/// How far a file was seen.
#[derive(Debug, Default)]
pub struct Jsonl {
    /// Of the line that is being read: its number less one, its length, whether it is more than blanks.
    number: u64,
    length: usize,
    is_written: bool,
    lines: u64,
    /// The begin of a character whose rest comes with the next piece.
    cut: Vec<u8>,
}

impl Jsonl {
    /// Looks at the next piece.
    pub fn see(&mut self, piece: &[u8]) -> Result<(), Problem> {
        self.see_text(piece)?;
        for (place, part) in piece.split(|byte| *byte == b'\n').enumerate() {
            if place > 0 {
                self.end_line();
            }
            self.length += part.len();
            if self.length > LINE_BYTES_MAX {
                let message = format!(
                    "Line {} of `file` is longer than {LINE_BYTES_MAX} bytes. Is it a JSONL file, with one request a line?",
                    self.number + 1
                );
                return Err(Problem::new("line_too_long", message).at("file"));
            }
            self.is_written |= !part.trim_ascii().is_empty();
        }
        Ok(())
    }

    /// The file has ended. Answers how many of its lines are not blank.
    pub fn finish(mut self) -> Result<u64, Problem> {
        if !self.cut.is_empty() {
            return Err(self.not_text());
        }
        self.end_line();
        if self.lines == 0 {
            return Err(Problem::new("empty_file", "`file` has no lines; write one request a line.").at("file"));
        }
        Ok(self.lines)
    }

    fn end_line(&mut self) {
        self.number += 1;
        self.length = 0;
        self.lines += u64::from(std::mem::take(&mut self.is_written));
    }

    fn see_text(&mut self, piece: &[u8]) -> Result<(), Problem> {
        if piece.contains(&0) {
            return Err(self.not_text());
        }
        let joined;
        let text = if self.cut.is_empty() {
            piece
        } else {
            joined = [self.cut.as_slice(), piece].concat();
            &joined
        };
        match std::str::from_utf8(text) {
            Ok(_) => self.cut.clear(),
            Err(error) if error.error_len().is_none() => self.cut = text[error.valid_up_to()..].to_vec(),
            Err(_) => return Err(self.not_text()),
        }
        Ok(())
    }

    fn not_text(&self) -> Problem {
        let message = format!(
            "`file` is not UTF-8 text (at line {} or soon after); upload the JSONL file as it is, not compressed.",
            self.number + 1
        );
        Problem::new("not_text", message).at("file")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Result<u64, Problem> {
        let mut file = Jsonl::default();
        for piece in pieces {
            file.see(piece)?;
        }
        file.finish()
    }

    #[test]
    fn lines_are_counted_however_they_come_and_blank_ones_are_not() {
        assert_eq!(lines(&[b"{}\n{}"]).unwrap(), 2);
        assert_eq!(lines(&[b"{", b"}\n\n  \r\n{", b"", b"}\n"]).unwrap(), 2);
        assert_eq!(
            lines(&["\"ä".as_bytes()[..2].as_ref(), &"ä".as_bytes()[1..], b"\"\n"]).unwrap(),
            1
        );
    }

    #[test]
    fn what_is_no_text_is_refused_wherever_it_is_cut() {
        for pieces in [
            &[b"{}\n\0".as_slice()] as &[&[u8]],
            &[b"\x1f\x8b\x08"],
            &[b"a\xc3", b"(\n"],
            &[b"a\xc3"],
        ] {
            assert_eq!(lines(pieces).unwrap_err().code, "not_text", "{pieces:?}");
        }
    }

    #[test]
    fn a_file_without_lines_and_a_line_without_end_are_refused() {
        for pieces in [&[] as &[&[u8]], &[b"\n \n"]] {
            assert_eq!(lines(pieces).unwrap_err().code, "empty_file");
        }
        let long = vec![b'x'; LINE_BYTES_MAX];
        assert!(lines(&[&long]).is_ok());
        let problem = lines(&[b"{}\n", &long, b"x"]).unwrap_err();
        assert_eq!(problem.code, "line_too_long");
        assert!(problem.message.contains("Line 2"), "{}", problem.message);
    }
}
