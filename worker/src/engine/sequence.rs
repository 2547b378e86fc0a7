//! One choice: its generator, its tokens, its text, and when it ends.

use std::time::Instant;

use claimcheck_common::domain::{FinishReason, GenerationParams, Logprobs};
use claimcheck_common::tokenizer::Tokenizer;

use super::logprobs::{self, TokenLogprob};
use super::sampler::Sampler;
use super::scheduler::Drawn;
use super::text::TextStream;
use crate::gpt2;

pub(super) struct Sequence {
    sampler: Sampler,
    text: TextStream,
    tokens: Vec<u32>,
    stop_ids: Vec<u32>,
    /// So many of the likeliest tokens are wanted at each place.
    top: Option<usize>,
    logprobs: Logprobs,
    most: usize,
    finish_reason: Option<FinishReason>,
    /// When the newest token came, for the metrics.
    last_token: Option<Instant>,
    told: Told,
}

/// A token that was drawn and not taken yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    id: u32,
    /// If it is to be listed.
    logprob: Option<TokenLogprob>,
}

/// How far this choice was told to whoever follows it.
#[derive(Default)]
struct Told {
    /// Changes when all is to be told again; 0 while nobody follows.
    number: u64,
    bytes: usize,
}

/// What was not told yet.
pub(super) struct Untold {
    pub(super) offset: usize,
    pub(super) text: String,
}

impl Sequence {
    /// `prompt` and `params` must name ids of the vocabulary alone; `room` is what the context leaves for new tokens.
    pub(super) fn new(params: &GenerationParams, choice: u32, prompt: &[u32], room: usize) -> Self {
        Self {
            sampler: Sampler::new(params, choice, prompt),
            text: TextStream::new(params.stop.clone()),
            tokens: Vec::new(),
            stop_ids: params.stop_token_ids.clone(),
            top: params.logprobs.map(|count| count as usize),
            logprobs: Logprobs::default(),
            most: room.min(params.max_tokens as usize),
            finish_reason: None,
            last_token: None,
            told: Told::default(),
        }
    }

    /// The draw that is next.
    pub(super) fn ask(&self) -> gpt2::Draw {
        self.sampler.ask(self.top)
    }

    /// The token that the device drew, or one drawn here; `None` if the logits are not numbers. Nothing changes until it is
    /// taken.
    pub(super) fn draw(&self, drawn: gpt2::Drawn) -> Option<Token> {
        Some(match drawn {
            gpt2::Drawn::Logits(logits) => {
                let id = self.sampler.draw(&logits)?;
                let logprob = self.top.map(|top| logprobs::of_token(&logits, id, top));
                Token { id, logprob }
            }
            gpt2::Drawn::Token(id, likely) => Token {
                id,
                logprob: likely.map(TokenLogprob::from),
            },
        })
    }

    /// Goes on with a token that was drawn for it, or ends.
    pub(super) fn take(&mut self, token: Token, tokenizer: &Tokenizer) -> Drawn {
        let Token { id, logprob } = token;
        self.sampler.take(id);
        if let Some(logprob) = logprob {
            self.note_logprobs(logprob, id, tokenizer);
        }
        self.tokens.push(id);
        self.finish_reason = if tokenizer.end_tokens().contains(&id) || self.stop_ids.contains(&id) {
            self.text.finish();
            Some(FinishReason::Stop)
        } else if self.text.push(tokenizer.token_bytes(id)) {
            Some(FinishReason::Stop)
        } else if self.tokens.len() >= self.most {
            self.text.finish();
            Some(FinishReason::Length)
        } else {
            None
        };
        match self.finish_reason {
            Some(_) => Drawn::Last,
            None => Drawn::Next(id),
        }
    }

    fn note_logprobs(&mut self, found: TokenLogprob, token: u32, tokenizer: &Tokenizer) {
        let drawn = (token, found.logprob);
        let named = found.top.into_iter().chain([drawn]);
        let named = named.map(|(id, logprob)| (tokenizer.token_name(id), logprob));
        self.logprobs.top_logprobs.push(named.collect());
        self.logprobs.tokens.push(tokenizer.token_name(token));
        self.logprobs.token_logprobs.push(found.logprob);
        self.logprobs.text_offset.push(self.text.characters());
    }

    /// What is new since the last call with the same number, which counts as told from now on. With another number: all.
    pub(super) fn untold(&mut self, number: u64) -> Option<Untold> {
        if self.told.number != number {
            self.told = Told { number, bytes: 0 };
        }
        let text = if self.finish_reason.is_some() {
            self.text.text()
        } else {
            self.text.certain()
        };
        let new = text.get(self.told.bytes..).filter(|new| !new.is_empty())?;
        let untold = Untold {
            offset: self.told.bytes,
            text: new.to_owned(),
        };
        self.told.bytes = text.len();
        Some(untold)
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

    /// Text and, if they were asked for, log probabilities.
    pub(super) fn into_output(mut self) -> (String, Option<Logprobs>) {
        self.text.finish();
        (self.text.into_string(), self.top.map(|_| self.logprobs))
    }
}
