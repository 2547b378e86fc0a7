//! Text to token ids, by a model's own `tokenizer.json`.
//!
//! In `common`, because a prompt is encoded where it is accepted, and once more by a worker that has another tokenizer by then: a
//! prompt that was accepted fits. Adds no special tokens of its own, as GPT-2 has none in front of a text.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::domain::{Encoded, TokenizerMark};

/// A file or a text that the tokenizer does not take.
#[derive(Debug, thiserror::Error)]
#[error("the tokenizer failed: {0}")]
pub struct TokenizerError(String);

/// One model's tokenizer. Encoding needs no lock; share it in an `Arc`.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    mark: TokenizerMark,
    /// The raw bytes of each token; none for special ones.
    bytes: Vec<Box<[u8]>>,
    end_tokens: Vec<u32>,
}

/// The special token that GPT-2's texts end with.
const END_OF_TEXT: &str = "<|endoftext|>";

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`. What it says of truncation and padding is for training and counts for nothing: a
    /// prompt is taken whole or not at all.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(failed)?;
        inner.with_truncation(None).map_err(failed)?.with_padding(None);
        let vocabulary = inner
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |greatest| greatest + 1);
        let bytes = (0..vocabulary).map(|id| token_bytes(&inner, id)).collect();
        let end_tokens = inner.token_to_id(END_OF_TEXT).into_iter().collect();
        let digest = Sha256::digest(json);
        Ok(Self {
            inner,
            mark: std::array::from_fn(|place| digest[place]),
            bytes,
            end_tokens,
        })
    }

    /// For a model that says itself which tokens end its texts. One that names none keeps `<|endoftext|>`.
    #[must_use]
    pub fn with_end_tokens(mut self, ids: Vec<u32>) -> Self {
        if !ids.is_empty() {
            self.end_tokens = ids;
        }
        self
    }

    /// The raw bytes that a token stands for: a part of a character, perhaps. None for special and unknown tokens.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], |bytes| bytes)
    }

    /// A token's name for people and for JSON, different for each: its text; for a part of a character, or what Postgres
    /// cannot store, `bytes:` and each byte as `\\xNN`; for a special token, what the vocabulary calls it.
    pub fn token_name(&self, id: u32) -> String {
        let bytes = self.token_bytes(id);
        if bytes.is_empty() {
            return self.inner.id_to_token(id).unwrap_or_else(|| format!("token:{id}"));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => text.to_owned(),
            _ => bytes.iter().fold("bytes:".to_owned(), |mut name, byte| {
                // Writing to a string cannot fail.
                let _ = write!(name, "\\x{byte:02x}");
                name
            }),
        }
    }

    /// One more than the greatest id that encoding can give.
    pub const fn vocabulary_size(&self) -> usize {
        self.bytes.len()
    }

    /// The tokens that end a text: those that the model names, or `<|endoftext|>` if the vocabulary has it.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// The text's token ids.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text's token ids, with whose they are.
    pub fn encode_marked(&self, text: &str) -> Result<Encoded, TokenizerError> {
        let (tokenizer, tokens) = (self.mark, self.encode(text)?);
        Ok(Encoded { tokenizer, tokens })
    }

    /// The token ids, if it was this tokenizer that read the text.
    pub fn own(&self, encoded: Encoded) -> Option<Vec<u32>> {
        (encoded.tokenizer == self.mark).then_some(encoded.tokens)
    }

    /// The text that token ids stand for, special tokens left out. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, true).map_err(failed)
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn failed(error: tokenizers::Error) -> TokenizerError {
    TokenizerError(error.to_string())
}

fn token_bytes(inner: &tokenizers::Tokenizer, id: u32) -> Box<[u8]> {
    let special = inner
        .get_added_tokens_decoder()
        .get(&id)
        .is_some_and(|token| token.special);
    let Some(token) = inner.id_to_token(id).filter(|_| !special) else {
        return Box::default();
    };
    // A token that is not written in the byte alphabet (an added one, say) stands for its own text.
    let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
    bytes.unwrap_or_else(|| token.into_bytes()).into()
}

/// The byte that a character of byte-level BPE stands for. Printable bytes stand for themselves, the others are shifted
/// to 256 and above, in their order (Radford et al., 2019, `bytes_to_unicode` in the code they published).
fn byte_of(character: char) -> Option<u8> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..);
    if let Ok(byte) = u8::try_from(u32::from(character)) {
        return Some(byte).filter(printable);
    }
    let shifted = u32::from(character) as usize - 256;
    (0..=u8::MAX).filter(|byte| !printable(byte)).nth(shifted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte-level tokenizer of four pieces and one merge.
    const SMALL: &str = r#"{
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 4, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3}, "merges": [["a", "b"]]}
    }"#;

    #[test]
    fn a_text_is_merged_into_its_pieces_and_reads_back() {
        let tokenizer = Tokenizer::from_bytes(SMALL.as_bytes()).unwrap();
        let ids = tokenizer.encode("ab ba").unwrap();
        assert_eq!(ids, [3, 2, 1, 0]);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "ab ba");
    }

    #[test]
    fn tokens_are_taken_back_by_the_tokenizer_that_made_them_and_by_no_other() {
        let tokenizer = Tokenizer::from_bytes(SMALL.as_bytes()).unwrap();
        let other = Tokenizer::from_bytes(SMALL.replace(r#""a": 0, "b": 1"#, r#""a": 1, "b": 0"#).as_bytes()).unwrap();
        let encoded = tokenizer.encode_marked("ab ba").unwrap();
        assert_eq!(other.own(encoded.clone()), None);
        assert_eq!(tokenizer.own(encoded), Some(vec![3, 2, 1, 0]));
    }

    #[test]
    fn tokens_know_their_bytes() {
        let tokenizer = Tokenizer::from_bytes(SMALL.as_bytes()).unwrap();
        assert_eq!(tokenizer.token_bytes(3), b"ab");
        assert_eq!(tokenizer.token_bytes(2), b" ");
        assert!(tokenizer.token_bytes(4).is_empty() && tokenizer.token_bytes(99).is_empty());
    }

    #[test]
    fn texts_end_with_the_tokens_that_the_model_names_or_else_with_end_of_text() {
        let tokenizer = Tokenizer::from_bytes(SMALL.as_bytes()).unwrap();
        assert_eq!(tokenizer.clone().with_end_tokens(vec![]).end_tokens(), [4]);
        assert_eq!(tokenizer.with_end_tokens(vec![1, 2]).end_tokens(), [1, 2]);
    }

    #[test]
    fn a_prompt_is_taken_whole_whatever_the_file_says_of_truncation_and_padding() {
        let mut file: serde_json::Value = serde_json::from_str(SMALL).unwrap();
        file["truncation"] = serde_json::json!(
            {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        );
        file["padding"] = serde_json::json!({
            "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 4, "pad_type_id": 0,
            "pad_token": "<|endoftext|>"
        });
        let tokenizer = Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap();
        assert_eq!(tokenizer.encode("ab ba").unwrap(), [3, 2, 1, 0]);
        assert_eq!(tokenizer.encode("a").unwrap(), [0]);
    }

    #[test]
    fn every_token_has_a_name_that_json_and_postgres_take() {
        let mut vocabulary: serde_json::Value = serde_json::from_str(SMALL).unwrap();
        vocabulary["model"]["vocab"]["Ã"] = 4.into();
        vocabulary["model"]["vocab"]["Ā"] = 5.into();
        vocabulary["added_tokens"][0]["id"] = 6.into();
        let tokenizer = Tokenizer::from_bytes(vocabulary.to_string().as_bytes()).unwrap();
        let names: Vec<_> = (0..8).map(|id| tokenizer.token_name(id)).collect();
        let expected = [
            "a",
            "b",
            " ",
            "ab",
            r"bytes:\xc3",
            r"bytes:\x00",
            "<|endoftext|>",
            "token:7",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn every_byte_has_one_character_in_the_byte_alphabet() {
        let bytes: Vec<u8> = ('!'..='\u{143}').filter_map(byte_of).collect();
        let distinct: std::collections::BTreeSet<_> = bytes.iter().collect();
        assert_eq!((bytes.len(), distinct.len()), (256, 256));
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_refused() {
        assert!(Tokenizer::from_bytes(b"{}").is_err());
    }
}
