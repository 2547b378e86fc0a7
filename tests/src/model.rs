//! A small random model whose tokens are bytes, as a folder that a worker can load.

use std::path::Path;

use claimcheck_worker::gpt2::{Gpt2Config, save_random};
use serde_json::{Value, json};

/// Most tokens of prompt and output together.
pub const TINY_CONTEXT: usize = 4096;

/// Writes the model: the same weights for the same seed. Its texts are noise, and that is all these tests need.
///
/// # Panics
/// If the folder cannot be written.
pub fn save_tiny_model(folder: &Path, seed: u64) {
    let config = Gpt2Config {
        vocab_size: 256,
        n_positions: TINY_CONTEXT,
        ..Gpt2Config::named("tiny").expect("a named shape")
    };
    save_random(&config, seed, folder).expect("a folder to write to");
    std::fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).expect("a folder to write to");
}

/// GPT-2's alphabet of bytes without merges. No token ends a text, so that a job is as long as it asked to be.
fn tokenizer() -> Value {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let rest = (0..256).filter(|byte| !printable(*byte)).zip(256..).map(|pair| pair.1);
    let vocabulary: serde_json::Map<String, Value> = (0..256)
        .filter(|byte| printable(*byte))
        .chain(rest)
        .zip(0..)
        .map(|(shown, id): (u32, u32)| (char::from_u32(shown).expect("a character").to_string(), json!(id)))
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [],
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": []},
    })
}
