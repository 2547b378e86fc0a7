//! How likely the model held a token: the logarithm of the softmax of its logits, as they came, in f64 and one fixed order.

use super::weights::Weights;
use crate::gpt2::Likely;

/// A drawn token with the likeliest ones at its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TokenLogprob {
    /// Of the drawn token.
    pub(super) logprob: f32,
    /// Likeliest first; of equal ones the lower id.
    pub(super) top: Vec<(u32, f32)>,
}

/// `token` must be an id of `logits`, which must be finite.
pub(super) fn of_token(logits: &[f32], token: u32, top: usize) -> TokenLogprob {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    TokenLogprob::from(Likely {
        logit: logits[token as usize],
        greatest,
        sum: Weights::new(logits, greatest, 1.0).sum(),
        top: likeliest(logits, top),
    })
}

impl From<Likely> for TokenLogprob {
    fn from(likely: Likely) -> Self {
        let normalizer = f64::from(likely.greatest) + likely.sum.ln();
        let logprob = |logit: f32| (f64::from(logit) - normalizer) as f32;
        let top = likely.top.into_iter();
        Self {
            logprob: logprob(likely.logit),
            top: top.map(|(id, logit)| (id, logprob(logit))).collect(),
        }
    }
}

fn likeliest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (id, logit) in (0..).zip(logits.iter().copied()) {
        // Most tokens are not among the best: one comparison each.
        if best.len() == count && best.last().is_none_or(|(_, least)| logit <= *least) {
            continue;
        }
        let place = best.partition_point(|(_, other)| *other >= logit);
        best.insert(place, (id, logit));
        best.truncate(count);
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_likeliest_are_those_of_a_full_sort(logits in prop::collection::vec((-5..5_i8).prop_map(f32::from), 1..60), count in 0..6_usize) {
            let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            sorted.truncate(count);
            prop_assert_eq!(likeliest(&logits, count), sorted);
        }
    }

    #[test]
    fn all_probabilities_together_are_one() {
        let logits = [0.3, -1.0, 2.0, 90.0, 89.5, -300.0];
        let total: f64 = (0..6).map(|id| f64::from(of_token(&logits, id, 0).logprob).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6, "{total}");
    }
}
