//! A text as a tokenizer read it, kept so that it is read once.

/// The beginning of the SHA-256 of a `tokenizer.json`.
pub type TokenizerMark = [u8; 8];

/// A text's tokens. Only a model with that tokenizer may take them: in another vocabulary they are another text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Whose they are.
    pub tokenizer: TokenizerMark,
    /// Their ids, in the order of the text.
    pub tokens: Vec<u32>,
}

impl Encoded {
    /// The tokenizer's mark, then each id in four bytes, the lowest first.
    pub fn to_bytes(&self) -> Vec<u8> {
        let tokens = self.tokens.iter().flat_map(|id| id.to_le_bytes());
        self.tokenizer.into_iter().chain(tokens).collect()
    }

    /// What [`to_bytes`](Self::to_bytes) made; `None` of anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (tokenizer, rest) = bytes.split_first_chunk()?;
        let (tokens, []) = rest.as_chunks() else {
            return None;
        };
        Some(Self {
            tokenizer: *tokenizer,
            tokens: tokens.iter().map(|id| u32::from_le_bytes(*id)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tokens_read_back(tokenizer: TokenizerMark, tokens: Vec<u32>) {
            let encoded = Encoded { tokenizer, tokens };
            let bytes = encoded.to_bytes();
            prop_assert_eq!(bytes.len(), 8 + 4 * encoded.tokens.len());
            prop_assert_eq!(Encoded::from_bytes(&bytes), Some(encoded));
        }
    }

    #[test]
    fn bytes_that_were_cut_off_are_no_tokens() {
        for length in [0, 7, 9, 11, 13] {
            assert_eq!(Encoded::from_bytes(&vec![0; length]), None, "{length}");
        }
    }
}
