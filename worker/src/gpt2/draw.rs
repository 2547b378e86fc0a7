//! What is asked of a row of logits, and what comes of it: a token, where the device draws, or the logits themselves.
//!
//! `engine/sampler.rs` asks, and it is the reference: a device that draws answers the token that the sampler would have
//! drawn from the same logits, or leaves the row to it.

/// How a token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// The greatest logit, of the lowest id where several are equal.
    Greedy,
    /// By weights `exp(logit / temperature)`, of which some are left out. The numbers are those of an `f32` each.
    Random {
        /// Greater than 0.
        temperature: f64,
        /// So many of the likeliest are kept, at least one.
        top_k: Option<usize>,
        /// Of those the likeliest that hold this share of their weight.
        top_p: f64,
        /// Of those the ones that weigh so much beside the likeliest, at most 1.
        min_p: f64,
    },
}

/// A logit that is changed before the draw, in this order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Edit {
    /// Which one.
    pub token: u32,
    /// Divides what is positive and multiplies what is not.
    pub repetition: Option<f32>,
    /// Taken off.
    pub less: Option<f32>,
    /// Added.
    pub bias: Option<f32>,
}

/// What is asked of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    /// How the token is chosen.
    pub method: Method,
    /// From `[0, 1)`; a greedy one needs none.
    pub uniform: f64,
    /// At most one for each token.
    pub edits: Vec<Edit>,
    /// So many of the likeliest tokens are wanted besides, as the model held them.
    pub top: Option<usize>,
}

/// How likely the model held a token, as it can be told without the other logits: nothing here is edited.
#[derive(Debug, Clone, PartialEq)]
pub struct Likely {
    /// Of the drawn token.
    pub logit: f32,
    /// Of the likeliest token.
    pub greatest: f32,
    /// The sum of `exp(logit - greatest)` over all tokens.
    pub sum: f64,
    /// The likeliest tokens with their logits, likeliest first; of equal ones the lower id.
    pub top: Vec<(u32, f32)>,
}

/// What came of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Drawn {
    /// `[vocab_size]`, as they came: the token is the sampler's to draw.
    Logits(Vec<f32>),
    /// A token, from logits that are all finite, and how likely it was, if that was asked.
    Token(u32, Option<Likely>),
}

impl Draw {
    /// The likeliest token, and nothing besides.
    pub const GREEDY: Self = Self {
        method: Method::Greedy,
        uniform: 0.0,
        edits: Vec::new(),
        top: None,
    };
}

impl Drawn {
    /// Rows `[rows, vocab_size]` as they came, none of them drawn from.
    pub(crate) fn left(logits: &[f32], vocab_size: usize) -> Vec<Self> {
        logits
            .chunks_exact(vocab_size)
            .map(|row| Self::Logits(row.to_vec()))
            .collect()
    }
}
