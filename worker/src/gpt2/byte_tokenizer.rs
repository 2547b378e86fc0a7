//! The tokenizer of random weights: one token for each byte, in GPT-2's alphabet of bytes and without merges.
//!
//! Makes what `save.rs` writes a whole model, which every command can load. The end of text follows the bytes if the
//! vocabulary has room for it, and longer vocabularies have tokens that stand for nothing.

use serde_json::{Map, Value, json};

const BYTES: usize = 256;

/// The text of a `tokenizer.json` for a model of so many tokens.
pub(crate) fn json(vocab_size: usize) -> String {
    let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    // Bytes that cannot be shown are written as the characters from 256 on, and come after those that can.
    let hidden = (0..BYTES as u32).filter(|byte| !printable(byte)).zip(256..);
    let shown = (0..BYTES as u32).filter(printable).chain(hidden.map(|pair| pair.1));
    let vocabulary: Map<String, Value> = shown
        .filter_map(char::from_u32)
        .zip(0..)
        .take(vocab_size)
        .map(|(character, id)| (character.to_string(), json!(id)))
        .collect();
    let end_of_text = json!({
        "id": BYTES, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    });
    let added: Vec<Value> = (vocab_size > BYTES).then_some(end_of_text).into_iter().collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "added_tokens": added,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": [],
        },
    });
    format!("{tokenizer:#}\n")
}

#[cfg(test)]
mod tests {
    use claimcheck_common::tokenizer::Tokenizer;

    use super::*;

    #[test]
    fn every_byte_is_a_token_and_the_end_of_text_follows_where_there_is_room() {
        for (vocab_size, end_of_text) in [(256, vec![]), (257, vec![256]), (50_257, vec![256])] {
            let tokenizer = Tokenizer::from_bytes(json(vocab_size).as_bytes()).unwrap();
            assert_eq!(tokenizer.end_tokens(), end_of_text);
            let mut bytes: Vec<_> = (0..256).map(|id| tokenizer.token_bytes(id).to_vec()).collect();
            bytes.sort();
            assert!(
                bytes.iter().zip(0..=u8::MAX).all(|(one, byte)| *one == [byte]),
                "{bytes:?}"
            );
            let text = "Ünïcode, 😀\n\0";
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(ids.len(), text.len());
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }
}
