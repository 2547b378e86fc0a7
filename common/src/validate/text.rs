//! Texts with their length in the type, refused while they are read.
//!
//! Lengths count characters (Unicode scalar values). U+0000 is never accepted: Postgres cannot store it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A text of `MIN` to `MAX` characters without U+0000.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text<const MIN: usize, const MAX: usize>(String);

impl<const MIN: usize, const MAX: usize> Text<MIN, MAX> {
    /// Checks a text; the error reads on from the field's name ("must have …").
    pub fn parse(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        check(&text, MIN, MAX)?;
        Ok(Self(text))
    }

    /// The text.
    pub fn into_string(self) -> String {
        self.0
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The rule itself, for texts that are not of this type.
pub fn check(text: &str, min: usize, max: usize) -> Result<(), String> {
    if text.contains('\0') {
        return Err("must not contain the character U+0000".to_owned());
    }
    let length = text.chars().count();
    if (min..=max).contains(&length) {
        Ok(())
    } else if length == 0 {
        Err(format!("must not be empty; {min} to {max} characters are accepted"))
    } else {
        Err(format!("has {length} characters; {min} to {max} are accepted"))
    }
}

impl<'de, const MIN: usize, const MAX: usize> Deserialize<'de> for Text<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor::<MIN, MAX>)
    }
}

struct TextVisitor<const MIN: usize, const MAX: usize>;

impl<const MIN: usize, const MAX: usize> Visitor<'_> for TextVisitor<MIN, MAX> {
    type Value = Text<MIN, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a string of {MIN} to {MAX} characters")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Text::parse(text).map_err(E::custom)
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Self::Value, E> {
        Text::parse(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_counts_characters_and_not_bytes() {
        assert!(Text::<1, 3>::parse("äöü").is_ok());
        assert_eq!(
            Text::<1, 3>::parse("äöüß").unwrap_err(),
            "has 4 characters; 1 to 3 are accepted"
        );
        assert!(Text::<1, 3>::parse("").unwrap_err().contains("must not be empty"));
    }

    #[test]
    fn a_nul_is_refused_wherever_it_stands() {
        for text in ["\0", "a\0", "\0a"] {
            assert!(Text::<0, 9>::parse(text).unwrap_err().contains("U+0000"));
        }
        assert!(serde_json::from_str::<Text<0, 9>>(r#""a\u0000b""#).is_err());
    }

    #[test]
    fn other_json_values_are_told_what_is_wanted() {
        let error = serde_json::from_str::<Text<1, 3>>("17").unwrap_err().to_string();
        assert!(error.contains("a string of 1 to 3 characters"), "{error}");
    }
}
