//! Text to token ids, by a model's own `tokenizer.json`.
//!
//! In `common`, because the API counts a prompt by the same code that the worker encodes it with: a prompt that was
//! accepted fits. Adds no special tokens of its own, as GPT-2 has none in front of a text.

/// A file or a text that the tokenizer does not take.
#[derive(Debug, thiserror::Error)]
#[error("the tokenizer failed: {0}")]
pub struct TokenizerError(String);

/// One model's tokenizer. Encoding needs no lock; share it in an `Arc`.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        let inner = tokenizers::Tokenizer::from_bytes(json).map_err(failed)?;
        Ok(Self { inner })
    }

    /// The text's token ids.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
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
    fn a_file_that_is_no_tokenizer_is_refused() {
        assert!(Tokenizer::from_bytes(b"{}").is_err());
    }
}
