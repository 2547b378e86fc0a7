//! The tiny model's own tokenizer: byte-level BPE as GPT-2 has it (Sennrich et al., 2016; Radford et al., 2019).

use std::path::Path;

use anyhow::{Result, anyhow};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer, TokenizerBuilder};
use tokenizers::{NormalizerWrapper, TokenizerImpl};

/// Ends a story.
pub const END_OF_TEXT: &str = "<|endoftext|>";

type ByteLevelBpe = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Learns `vocab_size` pieces, all 256 bytes and the end of text among them.
pub fn learn(texts: &[String], vocab_size: usize) -> Result<Tokenizer> {
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer: ByteLevelBpe = TokenizerBuilder::default()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(byte_level)))
        .with_post_processor(None)
        .with_decoder(Some(DecoderWrapper::ByteLevel(byte_level)))
        .build()
        .map_err(|error| anyhow!(error))?;
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    tokenizer
        .train(&mut trainer, texts.iter().map(String::as_str))
        .map_err(|error| anyhow!(error))?;
    // Through its own file form, so that what is trained with is what is shipped.
    let json = tokenizer.to_string(false).map_err(|error| anyhow!(error))?;
    Tokenizer::from_bytes(json.as_bytes()).map_err(|error| anyhow!(error))
}

/// Writes `tokenizer.json` and the two files that `transformers` reads beside it.
pub fn save(tokenizer: &Tokenizer, folder: &Path, context: usize) -> Result<()> {
    tokenizer
        .save(folder.join("tokenizer.json"), false)
        .map_err(|error| anyhow!(error))?;
    let config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": false, "model_max_length": context,
    });
    std::fs::write(folder.join("tokenizer_config.json"), format!("{config:#}\n"))?;
    let special = serde_json::json!({"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT});
    std::fs::write(folder.join("special_tokens_map.json"), format!("{special:#}\n"))?;
    Ok(())
}
