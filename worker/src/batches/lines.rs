//! A file's lines, one at a time, each with its number and the place where the next one begins.

use bytes::{Bytes, BytesMut};
use claimcheck_common::batch::LINE_BYTES_MAX;
use claimcheck_common::domain::{FileId, LineProblem};
use claimcheck_common::files::{FileError, FileStore};
use claimcheck_common::store::batch_work::{Held, Mark};
use futures::StreamExt;
use futures::stream::BoxStream;

/// What editors put in front of a text to say that it is UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A line that is not blank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawLine {
    /// Its number, from 1; blank lines count.
    pub(super) number: u32,
    /// Where the next line begins.
    pub(super) end: u64,
    /// Its bytes, without the line feed. Cut where it is longer than a line may be, which the upload does not let pass.
    pub(super) text: Bytes,
}

/// What is said of a batch whose input is gone, here and in the log.
pub(super) fn lost(held: &Held) -> LineProblem {
    tracing::error!(file = %held.view.input_file_id, "the input of a batch is gone");
    LineProblem {
        code: "input_file_lost".to_owned(),
        line: None,
        message: "The input file could not be read any more. What was done until then is kept.".to_owned(),
        param: Some("input_file_id".to_owned()),
    }
}

/// Reads lines from where a mark stands.
pub(super) struct Lines {
    bytes: BoxStream<'static, Result<Bytes, FileError>>,
    rest: Bytes,
    number: u32,
    place: u64,
}

impl Lines {
    pub(super) async fn open(files: &FileStore, id: FileId, mark: Mark) -> Result<Self, FileError> {
        Ok(Self::of(files.read(id, mark.bytes).await?, mark))
    }

    fn of(bytes: BoxStream<'static, Result<Bytes, FileError>>, mark: Mark) -> Self {
        Self {
            bytes,
            rest: Bytes::new(),
            number: mark.line,
            place: mark.bytes,
        }
    }

    /// The next line that is not blank; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<RawLine>, FileError> {
        while let Some(mut text) = self.next_of_any_kind().await? {
            if self.number == 1 && text.starts_with(BYTE_ORDER_MARK) {
                text = text.slice(BYTE_ORDER_MARK.len()..);
            }
            if !text.trim_ascii().is_empty() {
                return Ok(Some(RawLine {
                    number: self.number,
                    end: self.place,
                    text,
                }));
            }
        }
        Ok(None)
    }

    async fn next_of_any_kind(&mut self) -> Result<Option<Bytes>, FileError> {
        let mut gathered = BytesMut::new();
        let mut any = false;
        loop {
            if let Some(length) = self.rest.iter().position(|byte| *byte == b'\n') {
                let part = self.rest.split_to(length + 1);
                self.place += part.len() as u64;
                self.number += 1;
                let part = part.slice(..length);
                return Ok(Some(if any { join(gathered, &part) } else { part }));
            }
            any |= !self.rest.is_empty();
            self.place += self.rest.len() as u64;
            let room = LINE_BYTES_MAX.saturating_sub(gathered.len()).min(self.rest.len());
            gathered.extend_from_slice(&self.rest[..room]);
            let Some(more) = self.bytes.next().await.transpose()? else {
                self.rest = Bytes::new();
                self.number += u32::from(any);
                return Ok(any.then(|| gathered.freeze()));
            };
            self.rest = more;
        }
    }
}

fn join(mut gathered: BytesMut, part: &[u8]) -> Bytes {
    gathered.extend_from_slice(part);
    gathered.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: Mark = Mark {
        bytes: 0,
        line: 0,
        items: 0,
    };

    fn lines(pieces: Vec<Vec<u8>>, mark: Mark) -> Vec<RawLine> {
        let pieces: Vec<_> = pieces.into_iter().map(|piece| Ok(Bytes::from(piece))).collect();
        let mut lines = Lines::of(futures::stream::iter(pieces).boxed(), mark);
        futures::executor::block_on(async {
            let mut all = Vec::new();
            while let Some(line) = lines.next().await.unwrap() {
                all.push(line);
            }
            all
        })
    }

    #[test]
    fn blank_lines_are_counted_and_left_out() {
        let read = lines(vec![b"\xef\xbb\xbfa\n\n  \r\nbc\r\nd".to_vec()], START);
        let short: Vec<_> = read
            .iter()
            .map(|line| (line.number, line.end, &line.text[..]))
            .collect();
        assert_eq!(short, [(1, 5, &b"a"[..]), (4, 14, b"bc\r"), (5, 15, b"d")]);
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_the_bytes_come_and_wherever_reading_goes_on(
            text in "[ab\n]{0,60}", cuts in prop::collection::vec(0_usize..60, 0..6), from in 0_usize..12,
        ) {
            let whole = lines(vec![text.clone().into_bytes()], START);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut begin = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                pieces.push(text.as_bytes()[begin..cut].to_vec());
                begin = cut;
            }
            prop_assert_eq!(&lines(pieces, START), &whole);
            if let Some(line) = whole.get(from) {
                let mark = Mark { bytes: line.end, line: line.number, items: 0 };
                let rest = text.as_bytes()[line.end as usize..].to_vec();
                prop_assert_eq!(lines(vec![rest], mark), whole[from + 1..].to_vec());
            }
        }
    }
}
