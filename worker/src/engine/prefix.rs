//! What a sequence begins with, as hashes of its whole blocks: equal hashes mean equal tokens of the same tenant.
//!
//! A block's hash covers everything before it as well. The tenant goes into the first one, so that nobody learns from the
//! time of an answer what others have asked.

use claimcheck_common::domain::TenantId;
use sha2::{Digest, Sha256};

use crate::gpt2::BLOCK;

/// Names the tokens of a block and all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct BlockHash([u8; 32]);

/// The known tokens of one sequence.
#[derive(Debug, Clone)]
pub(super) struct Prefix {
    tenant: TenantId,
    whole: Vec<BlockHash>,
    /// Tokens after the last whole block.
    tail: Vec<u32>,
}

impl Prefix {
    pub(super) fn new(tenant: TenantId, tokens: &[u32]) -> Self {
        let mut prefix = Self {
            tenant,
            whole: Vec::with_capacity(tokens.len() / BLOCK),
            tail: Vec::with_capacity(BLOCK),
        };
        for token in tokens {
            prefix.push(*token);
        }
        prefix
    }

    /// One more token is known.
    pub(super) fn push(&mut self, token: u32) {
        self.tail.push(token);
        if self.tail.len() == BLOCK {
            let before = Sha256::new();
            let before = match self.whole.last() {
                Some(BlockHash(hash)) => before.chain_update(hash),
                None => before.chain_update(self.tenant.uuid().as_bytes()),
            };
            let hash = self
                .tail
                .iter()
                .fold(before, |hash, token| hash.chain_update(token.to_le_bytes()));
            self.whole.push(BlockHash(hash.finalize().into()));
            self.tail.clear();
        }
    }

    /// How many tokens are known.
    pub(super) fn len(&self) -> usize {
        self.whole.len() * BLOCK + self.tail.len()
    }

    /// Of each whole block, in order.
    pub(super) fn whole(&self) -> &[BlockHash] {
        &self.whole
    }

    /// Of the blocks that another sequence may have computed: all whole ones, but for the last token, which is computed
    /// anew because the next one is drawn from what comes out.
    pub(super) fn sharable(&self) -> &[BlockHash] {
        &self.whole[..self.len().saturating_sub(1) / BLOCK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(number: u128) -> TenantId {
        TenantId::from_uuid(uuid::Uuid::from_u128(number))
    }

    fn tokens(len: u32) -> Vec<u32> {
        (0..len).collect()
    }

    #[test]
    fn equal_beginnings_have_equal_hashes_up_to_the_first_difference() {
        let one = Prefix::new(tenant(1), &tokens(100));
        let mut other = tokens(100);
        other[40] = 7;
        let other = Prefix::new(tenant(1), &other);
        assert_eq!(one.whole().len(), 3);
        assert_eq!(one.whole()[0], other.whole()[0]);
        // The third block's tokens are equal, but not what stands before them.
        assert!(one.whole()[1] != other.whole()[1] && one.whole()[2] != other.whole()[2]);
    }

    #[test]
    fn nothing_is_equal_across_tenants() {
        let (one, other) = (Prefix::new(tenant(1), &tokens(64)), Prefix::new(tenant(2), &tokens(64)));
        assert!(one.whole().iter().all(|hash| !other.whole().contains(hash)));
    }

    #[test]
    fn the_last_token_is_never_shared() {
        for (len, sharable) in [(0, 0), (1, 0), (32, 0), (33, 1), (64, 1), (65, 2)] {
            assert_eq!(
                Prefix::new(tenant(1), &tokens(len)).sharable().len(),
                sharable,
                "{len} tokens"
            );
        }
    }

    #[test]
    fn token_by_token_is_the_same_as_at_once() {
        let mut grown = Prefix::new(tenant(1), &tokens(10));
        (10..80).for_each(|token| grown.push(token));
        assert_eq!(grown.len(), 80);
        assert_eq!(grown.whole(), Prefix::new(tenant(1), &tokens(80)).whole());
    }
}
