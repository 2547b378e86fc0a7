//! `eos_token_id` of `config.json`: which tokens end a text, by number, as `transformers` goes by it.
//!
//! Beside `config.rs` and not in it, for it says nothing of the model's shape.

use std::path::Path;

use serde::Deserialize;

use super::LoadError;
use super::files::read;

#[derive(Deserialize)]
struct Ends {
    vocab_size: u32,
    #[serde(default)]
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`eos_token_id` is neither a token id nor a list of them")]
enum OneOrMany {
    One(i64),
    Many(Vec<i64>),
}

/// The tokens that the `config.json` at `path` names; none if it names none.
///
/// Ids beyond the vocabulary are left out and not refused: they are never drawn, and `transformers` writes its default of 50256
/// beside every smaller vocabulary.
pub fn end_tokens(path: &Path) -> Result<Vec<u32>, LoadError> {
    let ends: Ends = serde_json::from_slice(&read(path)?).map_err(|error| LoadError::Malformed {
        path: path.to_owned(),
        complaint: error.to_string(),
    })?;
    let named = match ends.eos_token_id {
        None => vec![],
        Some(OneOrMany::One(id)) => vec![id],
        Some(OneOrMany::Many(ids)) => ids,
    };
    let known = |id: i64| u32::try_from(id).ok().filter(|id| *id < ends.vocab_size);
    Ok(named.into_iter().filter_map(known).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_from(rest: &str) -> Result<Vec<u32>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!(r#"{{"vocab_size": 300{rest}}}"#)).unwrap();
        end_tokens(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn one_token_ends_a_text_or_several_or_none_is_named() {
        assert_eq!(read_from(r#", "eos_token_id": 7"#).unwrap(), [7]);
        assert_eq!(read_from(r#", "eos_token_id": [7, 299]"#).unwrap(), [7, 299]);
        for none in ["", r#", "eos_token_id": null"#, r#", "eos_token_id": []"#] {
            assert_eq!(read_from(none).unwrap(), [0; 0], "{none}");
        }
    }

    #[test]
    fn ids_beyond_the_vocabulary_are_left_out() {
        assert_eq!(read_from(r#", "eos_token_id": 50256"#).unwrap(), [0; 0]);
        assert_eq!(read_from(r#", "eos_token_id": [-1, 300, 8]"#).unwrap(), [8]);
    }

    #[test]
    fn what_is_no_id_is_refused_and_named() {
        for wrong in [r#""</s>""#, "1.5", "[true]", "{}"] {
            let complaint = read_from(&format!(r#", "eos_token_id": {wrong}"#)).unwrap_err();
            assert!(complaint.contains("eos_token_id"), "{wrong}: {complaint}");
        }
    }
}
