//! What fewer bits a weight cost in quality: text that the bundled model was never trained on, and the logits of a random one.

use burn::backend::flex::FlexDevice;
use claimcheck_common::domain::Dtype;
use claimcheck_common::tokenizer::Tokenizer;
use claimcheck_worker::gpt2::{Cpu, Gpt2, Gpt2Runner, ModelFiles, StepModel, StepRow};

use crate::parity::{bundled_folder, files_in, fixtures};

fn runner(files: &ModelFiles, dtype: Dtype) -> impl StepModel + use<> {
    Gpt2Runner::new(Gpt2::<Cpu>::load(files, dtype, &FlexDevice).unwrap(), 1)
}

/// The logits after each of `tokens`, a row a token.
fn logits(model: &mut impl StepModel, tokens: &[u32]) -> Vec<Vec<f32>> {
    let blocks: Vec<u32> = (0..model.blocks() as u32).collect();
    let row = |(position, token)| StepRow {
        blocks: blocks.clone(),
        position,
        tokens: vec![token],
        wants_logits: true,
    };
    let rows = tokens.iter().copied().enumerate().map(row);
    rows.map(|row| model.step(&[row]).unwrap()).collect()
}

/// −ln of the probability that the softmax of `logits` gives to `token`.
fn surprise(logits: &[f32], token: u32) -> f64 {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from(logit - greatest).exp()).sum();
    total.ln() - f64::from(logits[token as usize] - greatest)
}

/// Of the bundled model on its held-out text, in windows of the whole context.
fn perplexity(dtype: Dtype) -> f64 {
    let files = ModelFiles::open(&bundled_folder()).unwrap();
    let tokenizer = Tokenizer::from_bytes(&std::fs::read(&files.tokenizer).unwrap()).unwrap();
    let text = std::fs::read_to_string(bundled_folder().join("heldout.txt")).unwrap();
    let tokens = tokenizer.encode(&text).unwrap();
    let mut model = runner(&files, dtype);
    let mut surprises = Vec::new();
    for window in tokens.chunks(model.context_length()) {
        let logits = logits(&mut model, window);
        surprises.extend(
            logits
                .iter()
                .zip(&window[1..])
                .map(|(logits, next)| surprise(logits, *next)),
        );
    }
    assert!(surprises.len() > 1000, "too little text to tell");
    (surprises.iter().sum::<f64>() / surprises.len() as f64).exp()
}

#[test]
fn fewer_bits_keep_the_perplexity_of_held_out_text_within_a_percent() {
    let full = perplexity(Dtype::F32);
    for dtype in [Dtype::Bf16, Dtype::Int8] {
        let fewer = perplexity(dtype);
        println!("perplexity: f32 {full:.4}, {dtype} {fewer:.4}");
        assert!(
            (fewer / full - 1.0).abs() < 0.01,
            "{dtype}: {fewer} where f32 has {full}"
        );
    }
}

#[test]
fn fewer_bits_change_the_logits_by_what_is_written_down() {
    let files = files_in(&fixtures().join("parity/plain"));
    let tokens: Vec<u32> = (1..40).collect();
    let full = logits(&mut runner(&files, Dtype::F32), &tokens);
    let greatest = full
        .iter()
        .flatten()
        .fold(0.0_f32, |greatest, logit| greatest.max(logit.abs()));
    for (dtype, allowed) in [(Dtype::Bf16, 0.01), (Dtype::Int8, 0.04)] {
        let fewer = logits(&mut runner(&files, dtype), &tokens);
        let errors = full
            .iter()
            .flatten()
            .zip(fewer.iter().flatten())
            .map(|(a, b)| (a - b).abs());
        let worst = errors.fold(0.0, f32::max) / greatest;
        println!("{dtype}: the worst logit is off by {worst:.5} of the greatest");
        assert!(worst > 0.0, "{dtype} is f32 in disguise");
        assert!(worst < allowed, "{dtype}: off by {worst}");
    }
}
