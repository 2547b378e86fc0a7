//! From token bytes to text: UTF-8 across token borders, stop strings across token borders, and nothing that Postgres
//! cannot store.

/// A text that grows by tokens and ends at a stop string.
#[derive(Debug, Default)]
pub(super) struct TextStream {
    text: String,
    /// The beginning of a character whose rest has not come yet.
    partial: Vec<u8>,
    stops: Vec<String>,
    stopped: bool,
}

impl TextStream {
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self {
            stops,
            ..Self::default()
        }
    }

    /// Adds a token's bytes. `true`: a stop string was met, and the text ends before it.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        let new = self.text.len();
        self.partial.extend_from_slice(bytes);
        self.decode();
        self.cut_at_stop(new)
    }

    /// No more tokens: a character that stayed incomplete becomes U+FFFD.
    pub(super) fn finish(&mut self) {
        if !self.partial.is_empty() && !self.stopped {
            let new = self.text.len();
            self.partial.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
            self.cut_at_stop(new);
        }
    }

    /// All of it, as it is now.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// What no later token can take back: all but what may be the beginning of a stop string.
    pub(super) fn certain(&self) -> &str {
        let bytes = self.text.as_bytes();
        let begun = |stop: &String| {
            let stop = stop.as_bytes();
            (1..stop.len()).rev().find(|&length| bytes.ends_with(&stop[..length]))
        };
        // Where a stop string's whole characters begin, a character of the text begins.
        let held = self.stops.iter().filter_map(begun).max().unwrap_or(0);
        &self.text[..self.text.len() - held]
    }

    /// Whole characters so far.
    pub(super) fn characters(&self) -> u32 {
        self.text.chars().count() as u32
    }

    pub(super) fn into_string(self) -> String {
        self.text
    }

    /// Moves whole characters from the partial bytes to the text, as `String::from_utf8_lossy` of all bytes would.
    fn decode(&mut self) {
        loop {
            let (valid, invalid) = match std::str::from_utf8(&self.partial) {
                Ok(text) => (text.len(), Some(0)),
                Err(error) => (error.valid_up_to(), error.error_len()),
            };
            let whole = std::str::from_utf8(&self.partial[..valid]).expect("valid up to there");
            // Postgres' text cannot hold U+0000.
            self.text.extend(
                whole
                    .chars()
                    .map(|c| if c == '\0' { char::REPLACEMENT_CHARACTER } else { c }),
            );
            match invalid {
                // An unfinished character: its rest may come.
                None => {
                    self.partial.drain(..valid);
                    return;
                }
                Some(0) => {
                    self.partial.clear();
                    return;
                }
                Some(bad) => {
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    self.partial.drain(..valid + bad);
                }
            }
        }
    }

    /// Cuts before the first stop string that ends after `new`.
    fn cut_at_stop(&mut self, new: usize) -> bool {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        // A stop string may begin in what was there before.
        let from = self.text.floor_char_boundary(new.saturating_sub(longest));
        let first = self
            .stops
            .iter()
            .filter_map(|stop| self.text[from..].find(stop.as_str()))
            .min();
        if let Some(at) = first {
            self.text.truncate(from + at);
            self.partial.clear();
            self.stopped = true;
        }
        self.stopped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(stops: &[&str], pieces: &[&[u8]]) -> (String, bool) {
        let mut stream = TextStream::new(stops.iter().map(ToString::to_string).collect());
        let stopped = pieces.iter().any(|piece| stream.push(piece));
        stream.finish();
        (stream.into_string(), stopped)
    }

    #[test]
    fn a_character_may_come_in_pieces() {
        assert_eq!(stream(&[], &[b"a\xf0\x9f", b"\x98", b"\x80b"]).0, "a😀b");
    }

    #[test]
    fn a_stop_string_is_found_across_token_borders_and_left_out() {
        assert_eq!(stream(&["END"], &[b"one E", b"N", b"D two"]), ("one ".to_owned(), true));
        assert_eq!(stream(&["é!"], &[b"a\xc3", b"\xa9", b"!b"]), ("a".to_owned(), true));
        assert_eq!(stream(&["END"], &[b"EN", b"E"]), ("ENE".to_owned(), false));
    }

    #[test]
    fn of_several_stop_strings_the_one_that_stands_first_counts() {
        assert_eq!(stream(&["c", "bc"], &[b"abcd"]), ("a".to_owned(), true));
    }

    #[test]
    fn what_postgres_cannot_store_is_replaced() {
        assert_eq!(
            stream(&[], &[b"a\0b", b"\xff", b"\xc3"]).0,
            "a\u{fffd}b\u{fffd}\u{fffd}"
        );
    }

    proptest! {
        #[test]
        fn however_the_bytes_are_cut_the_text_is_the_lossy_whole(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..12),
        ) {
            let whole = pieces.concat();
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let expected = String::from_utf8_lossy(&whole).replace('\0', "\u{fffd}");
            prop_assert_eq!(stream(&[], &pieces).0, expected);
        }

        #[test]
        fn what_is_certain_is_never_taken_back(
            pieces in prop::collection::vec("[ab\u{e9}]{1,3}", 0..12), stops in prop::collection::vec("[ab\u{e9}]{1,4}", 0..3),
        ) {
            let mut stream = TextStream::new(stops);
            let mut certain = Vec::new();
            for piece in pieces {
                let stopped = stream.push(piece.as_bytes());
                certain.push(stream.certain().to_owned());
                if stopped {
                    break;
                }
            }
            stream.finish();
            let text = stream.into_string();
            for certain in certain {
                prop_assert!(text.starts_with(&certain), "{certain:?} of {text:?}");
            }
        }

        #[test]
        fn a_stop_string_cuts_where_it_first_stands_in_the_whole(text in "[ab]{0,30}", cuts in prop::collection::vec(1..4_usize, 30), stop in "[ab]{1,4}") {
            let mut rest = text.as_bytes();
            let mut pieces = Vec::new();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            let expected = text.split(stop.as_str()).next().unwrap();
            let (got, stopped) = stream(&[&stop], &pieces);
            prop_assert_eq!(stopped, text.contains(stop.as_str()));
            prop_assert_eq!(got, expected);
        }
    }
}
