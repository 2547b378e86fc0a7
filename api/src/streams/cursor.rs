//! How far a caller has come in a job's text.
//!
//! A cursor knows the length and a digest of what was sent of each choice, and no text. So it can be handed to the caller as
//! an event's id, and be taken back by any process: what is still to be sent follows from the text alone, from whichever
//! attempt it is, and a text that does not begin with what was sent is noticed.

use std::fmt;
use std::str::FromStr;

/// No job has more choices.
const CHOICES_MAX: usize = 16;

/// What was sent of one choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Bytes of its text.
    pub bytes: usize,
    /// Tokens whose log probabilities were sent.
    pub tokens: usize,
    /// FNV-1a over those bytes.
    digest: u64,
}

/// What was sent of each choice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    places: Vec<Place>,
}

/// The text is not the one that was sent from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Diverged;

impl Default for Place {
    fn default() -> Self {
        Self {
            bytes: 0,
            tokens: 0,
            // The offset basis of the algorithm.
            digest: 0xcbf2_9ce4_8422_2325,
        }
    }
}

impl Place {
    fn pass(&mut self, text: &str) {
        for byte in text.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.bytes += text.len();
    }
}

impl Cursor {
    /// What was sent of a choice.
    pub fn place(&self, choice: usize) -> Place {
        self.places.get(choice).copied().unwrap_or_default()
    }

    /// Whether `text` begins with all that was sent of the choice; a shorter text may still come to.
    pub fn check(&self, choice: usize, text: &str) -> Result<(), Diverged> {
        let place = self.place(choice);
        if text.len() < place.bytes {
            return Ok(());
        }
        let mut again = Place::default();
        again.pass(text.get(..place.bytes).ok_or(Diverged)?);
        if again.digest == place.digest {
            Ok(())
        } else {
            Err(Diverged)
        }
    }

    /// The same of a text that nothing more comes to: a shorter one is another one.
    pub fn check_whole(&self, choice: usize, text: &str) -> Result<(), Diverged> {
        if text.len() < self.place(choice).bytes {
            return Err(Diverged);
        }
        self.check(choice, text)
    }

    /// What `text` has beyond what was sent of the choice, which counts as sent from now on. The text must have been checked.
    pub fn advance<'t>(&mut self, choice: usize, text: &'t str, tokens: usize) -> &'t str {
        let place = self.place(choice);
        let new = text.get(place.bytes..).unwrap_or_default();
        self.pass(choice, new, tokens.saturating_sub(place.tokens));
        new
    }

    /// A piece of the choice's text and so many tokens' log probabilities were sent.
    pub fn pass(&mut self, choice: usize, piece: &str, tokens: usize) {
        if self.places.len() <= choice {
            self.places.resize_with(choice + 1, Place::default);
        }
        let place = &mut self.places[choice];
        place.pass(piece);
        place.tokens += tokens;
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, Place { bytes, tokens, digest }) in self.places.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma}{bytes}.{tokens}.{digest:016x}")?;
        }
        Ok(())
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let place = |text: &str| {
            let mut parts = text.splitn(3, '.');
            let mut number = || parts.next()?.parse::<usize>().ok();
            let (bytes, tokens) = (number()?, number()?);
            let digest = u64::from_str_radix(parts.next()?, 16).ok()?;
            Some(Place { bytes, tokens, digest })
        };
        let places: Option<Vec<_>> = text.split(',').map(place).collect();
        let places = places.filter(|places| places.len() <= CHOICES_MAX).ok_or(())?;
        Ok(Self { places })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_from_any_prefixes_add_up_to_the_text(text in "[aé😀]{0,20}", cuts in prop::collection::vec(0..21_usize, 0..10)) {
            let mut cursor = Cursor::default();
            let mut sent = String::new();
            for cut in cuts.into_iter().chain([21]) {
                let known: String = text.chars().take(cut).collect();
                prop_assert_eq!(cursor.check(0, &known), Ok(()));
                sent.push_str(cursor.advance(0, &known, 0));
                // As an id it comes back the same.
                cursor = cursor.to_string().parse().unwrap();
            }
            prop_assert_eq!(sent, text);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in ".*") {
            let _ = text.parse::<Cursor>();
        }
    }

    #[test]
    fn another_text_is_noticed_as_soon_as_it_is_long_enough() {
        let mut cursor = Cursor::default();
        cursor.advance(1, "once upon", 2);
        assert_eq!(cursor.check(1, "once"), Ok(()), "it may still come to it");
        assert_eq!(cursor.check_whole(1, "once"), Err(Diverged), "nothing more comes");
        assert_eq!(cursor.check_whole(1, "once upon"), Ok(()));
        assert_eq!(cursor.check(1, "once upon a time"), Ok(()));
        assert_eq!(cursor.check(1, "once there was"), Err(Diverged));
        assert_eq!(cursor.check(1, "once upöä"), Err(Diverged), "cut within a character");
        assert_eq!(cursor.check(0, "anything"), Ok(()), "nothing was sent of it");
    }
}
