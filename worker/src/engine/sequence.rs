//! One choice: its generator, its tokens, its text, and when it ends.

use std::time::Instant;

use claimcheck_common::domain::{FinishReason, GenerationParams};
use claimcheck_common::tokenizer::Tokenizer;

use super::sampler::Sampler;
use super::text::TextStream;

pub(super) struct Sequence {
    sampler: Sampler,
    text: TextStream,
    tokens: Vec<u32>,
    most: usize,
    finish_reason: Option<FinishReason>,
    /// When the newest token came, for the metrics.
    last_token: Option<Instant>,
}

impl Sequence {
    /// `room` is what the context leaves for new tokens.
    pub(super) fn new(params: &GenerationParams, choice: u32, room: usize) -> Self {
        Self {
            sampler: Sampler::new(params, choice),
            text: TextStream::new(params.stop.clone()),
            tokens: Vec::new(),
            most: room.min(params.max_tokens as usize),
            finish_reason: None,
            last_token: None,
        }
    }

    /// Draws a token. Answers whether the sequence ended by it, or `None` if the logits are not numbers.
    pub(super) fn sample(&mut self, logits: &[f32], tokenizer: &Tokenizer) -> Option<bool> {
        let token = self.sampler.sample(logits)?;
        self.tokens.push(token);
        self.finish_reason = if tokenizer.end_of_text() == Some(token) {
            self.text.finish();
            Some(FinishReason::Stop)
        } else if self.text.push(tokenizer.token_bytes(token)) {
            Some(FinishReason::Stop)
        } else if self.tokens.len() >= self.most {
            self.text.finish();
            Some(FinishReason::Length)
        } else {
            None
        };
        Some(self.finish_reason.is_some())
    }

    /// What was generated, the end-of-text token included.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(super) const fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason
    }

    /// Notes that a token came now; answers when the one before it came.
    pub(super) fn touch(&mut self, now: Instant) -> Option<Instant> {
        self.last_token.replace(now)
    }

    pub(super) fn into_text(mut self) -> String {
        self.text.finish();
        self.text.into_string()
    }
}
