//! What changes a sequence's logits before a token is drawn: the repetition penalty, then the frequency and presence
//! penalties, then the bias. All of it depends on the sequence's own tokens alone.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use claimcheck_common::domain::GenerationParams;

use crate::gpt2::Edit;

pub(super) struct Penalties {
    /// Divides what is positive and multiplies what is not (Keskar et al., "CTRL", 2019).
    repetition: f32,
    presence: f32,
    frequency: f32,
    bias: BTreeMap<u32, f32>,
    /// The distinct tokens of prompt and text; empty where nothing asks for them.
    context: BTreeSet<u32>,
    /// How often each token was generated.
    counts: BTreeMap<u32, u32>,
}

impl Penalties {
    pub(super) fn new(params: &GenerationParams, prompt: &[u32]) -> Self {
        let mut penalties = Self {
            repetition: params.repetition_penalty,
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
            bias: params.logit_bias.clone(),
            context: BTreeSet::new(),
            counts: BTreeMap::new(),
        };
        if penalties.repeats() {
            penalties.context.extend(prompt);
        }
        penalties
    }

    /// The logits as they are to be drawn from: untouched, where nothing is asked.
    pub(super) fn apply<'a>(&self, logits: &'a [f32]) -> Cow<'a, [f32]> {
        let mut logits = Cow::Borrowed(logits);
        if self.repeats() {
            for token in &self.context {
                let logit = &mut logits.to_mut()[*token as usize];
                *logit = if *logit < 0.0 {
                    *logit * self.repetition
                } else {
                    *logit / self.repetition
                };
            }
        }
        if self.counts_matter() {
            for (token, count) in &self.counts {
                logits.to_mut()[*token as usize] -= self.frequency * *count as f32 + self.presence;
            }
        }
        for (token, bias) in &self.bias {
            logits.to_mut()[*token as usize] += bias;
        }
        logits
    }

    /// What [`Self::apply`] does, token by token.
    pub(super) fn edits(&self) -> Vec<Edit> {
        let untouched = |token| Edit {
            token,
            repetition: None,
            less: None,
            bias: None,
        };
        let mut edits: BTreeMap<u32, Edit> = BTreeMap::new();
        for token in &self.context {
            edits.entry(*token).or_insert_with(|| untouched(*token)).repetition = Some(self.repetition);
        }
        for (token, count) in &self.counts {
            let less = self.frequency * *count as f32 + self.presence;
            edits.entry(*token).or_insert_with(|| untouched(*token)).less = Some(less);
        }
        for (token, bias) in &self.bias {
            edits.entry(*token).or_insert_with(|| untouched(*token)).bias = Some(*bias);
        }
        edits.into_values().collect()
    }

    /// A token was generated.
    pub(super) fn note(&mut self, token: u32) {
        if self.repeats() {
            self.context.insert(token);
        }
        if self.counts_matter() {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    fn repeats(&self) -> bool {
        (self.repetition - 1.0).abs() > f32::EPSILON
    }

    fn counts_matter(&self) -> bool {
        self.presence != 0.0 || self.frequency != 0.0
    }
}
