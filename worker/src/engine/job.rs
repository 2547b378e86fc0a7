//! A job inside the engine: one sequence for each of its choices.

use std::ops::Range;
use std::time::{Duration, Instant};

use claimcheck_common::domain::{Choice, Completion, JobError, JobKey, Spent, Usage};
use claimcheck_common::tokenizer::Tokenizer;

use super::EngineJob;
use super::metrics;
use super::scheduler::Drawn;
use super::sequence::{Sequence, Token};
use crate::gpt2;

/// One choice of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SequenceId {
    pub(super) key: JobKey,
    pub(super) choice: u32,
}

pub(super) struct Job {
    prompt: Vec<u32>,
    sequences: Vec<Sequence>,
    arrived: Instant,
    spent: Spent,
    first_token: Option<Instant>,
}

impl Job {
    /// Checks what the API checked before, since a model may have changed in between.
    pub(super) fn new(
        job: EngineJob,
        arrived: Instant,
        context_length: usize,
        vocab_size: usize,
    ) -> Result<Self, JobError> {
        let len = job.prompt.len();
        if len == 0 || len >= context_length {
            let message = format!(
                "The prompt has {len} tokens; this model takes 1 to {}.",
                context_length - 1
            );
            return Err(JobError::invalid("prompt_too_long", message));
        }
        let biased = job.params.logit_bias.keys();
        if let Some(token) = job
            .prompt
            .iter()
            .chain(biased)
            .find(|token| **token as usize >= vocab_size)
        {
            let message = format!("Token {token} is not in this model's vocabulary of {vocab_size}.");
            return Err(JobError::invalid("unknown_token", message));
        }
        let room = context_length - len;
        let sequences = (0..job.params.n.max(1))
            .map(|choice| Sequence::new(&job.params, choice, &job.prompt, room))
            .collect();
        Ok(Self {
            prompt: job.prompt,
            sequences,
            arrived,
            spent: Spent::default(),
            first_token: None,
        })
    }

    /// What all choices continue.
    pub(super) fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// The numbers of its choices.
    pub(super) const fn choices(&self) -> Range<u32> {
        0..self.sequences.len() as u32
    }

    /// `true` the first time.
    pub(super) fn start(&mut self) -> bool {
        let first = self.spent.began.is_none();
        self.spent.began.get_or_insert_with(Instant::now);
        first
    }

    /// Adds a part of a step's time, `padding` of it for positions without a token.
    pub(super) fn charge(&mut self, share: Duration, padding: Duration) {
        self.spent.device += share;
        self.spent.padding += padding;
    }

    /// What it has taken so far.
    pub(super) const fn spent(&self) -> Spent {
        self.spent
    }

    /// A part of prompt and generated tokens of a choice.
    pub(super) fn tokens(&self, choice: u32, range: Range<usize>) -> Vec<u32> {
        let generated = self.sequences[choice as usize].tokens();
        self.prompt
            .iter()
            .chain(generated)
            .copied()
            .skip(range.start)
            .take(range.len())
            .collect()
    }

    /// The draw of a choice's next token.
    pub(super) fn ask(&self, choice: u32) -> gpt2::Draw {
        self.sequences[choice as usize].ask()
    }

    /// A choice's next token, or `None` if the logits are not numbers.
    pub(super) fn draw(&self, choice: u32, drawn: gpt2::Drawn) -> Option<Token> {
        self.sequences[choice as usize].draw(drawn)
    }

    /// A choice goes on with its next token, or ends.
    pub(super) fn take(&mut self, choice: u32, token: Token, tokenizer: &Tokenizer) -> Drawn {
        let sequence = &mut self.sequences[choice as usize];
        let drawn = sequence.take(token, tokenizer);
        metrics::token(sequence, self.arrived);
        self.note_token(Instant::now());
        drawn
    }

    /// One of its choices.
    pub(super) fn sequence(&mut self, choice: u32) -> &mut Sequence {
        &mut self.sequences[choice as usize]
    }

    fn note_token(&mut self, now: Instant) {
        let first = *self.first_token.get_or_insert(now);
        self.spent.decode = now - first;
        self.spent.prefill = self.spent.began.map_or(Duration::ZERO, |began| first - began);
    }

    pub(super) fn is_complete(&self) -> bool {
        self.sequences.iter().all(|sequence| sequence.finish_reason().is_some())
    }

    /// What there is: everything, or as far as each choice came.
    pub(super) fn into_completion(self) -> Completion {
        let completion_tokens = self
            .sequences
            .iter()
            .map(|sequence| sequence.tokens().len() as u32)
            .sum();
        let choices = self.sequences.into_iter().zip(0..).map(|(sequence, index)| {
            let finish_reason = sequence.finish_reason();
            let tokens = sequence.tokens().to_vec();
            let (text, logprobs) = sequence.into_output();
            Choice {
                text,
                index,
                finish_reason,
                logprobs,
                tokens,
            }
        });
        Completion {
            choices: choices.collect(),
            usage: Usage::new(self.prompt.len() as u32, completion_tokens),
        }
    }
}
