//! Who uses which block of the cache, and what each holds. Pure arithmetic: tensors are the runner's.
//!
//! A block is *free* (it holds nothing that could be of use), *used* by one sequence or by several that begin alike, or *idle*:
//! used by nobody, but found again by its hash until somebody needs the room. Of the idle ones the least recently used goes
//! first. Blocks that were used before are taken before fresh ones, so that memory follows use.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use super::prefix::BlockHash;

#[derive(Debug, Clone, Copy, Default)]
struct Block {
    /// Sequences that use it.
    users: u32,
    /// By what it is found, once it is computed.
    hash: Option<BlockHash>,
    /// Its key among the idle ones.
    idle_since: u64,
}

#[derive(Debug)]
pub(super) struct Blocks {
    all: Vec<Block>,
    /// The next one last.
    free: Vec<u32>,
    /// The least recently used first.
    idle: BTreeMap<u64, u32>,
    of_hash: HashMap<BlockHash, u32>,
    /// Time, as the number of blocks that became idle so far.
    now: u64,
    /// Whether blocks are found again.
    keep: bool,
}

impl Blocks {
    /// `keep` is whether what was computed once is kept to be used again.
    pub(super) fn new(count: usize, keep: bool) -> Self {
        Self {
            all: vec![Block::default(); count],
            free: (0..count as u32).rev().collect(),
            idle: BTreeMap::new(),
            of_hash: HashMap::new(),
            now: 0,
            keep,
        }
    }

    /// Whether what was computed is found again.
    pub(super) const fn keeps(&self) -> bool {
        self.keep
    }

    /// How many can be taken.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// The blocks that hold the first of these hashes, as far as there are any, without using them.
    pub(super) fn find<'a>(&'a self, hashes: &'a [BlockHash]) -> impl Iterator<Item = u32> + 'a {
        hashes.iter().map_while(|hash| self.of_hash.get(hash).copied())
    }

    /// How many of these can be taken as long as they are not used.
    pub(super) fn idle_among(&self, blocks: &[u32]) -> usize {
        blocks.iter().filter(|block| self.block(**block).users == 0).count()
    }

    /// One more sequence uses a block that was found.
    pub(super) fn share(&mut self, block: u32) {
        let one = &mut self.all[block as usize];
        if one.users == 0 {
            self.idle.remove(&one.idle_since);
        }
        one.users += 1;
    }

    /// A block for one sequence to write, or `None` if all are used.
    pub(super) fn take(&mut self) -> Option<u32> {
        let block = self.free.pop().or_else(|| {
            let (_, block) = self.idle.pop_first()?;
            self.forget(block);
            Some(block)
        })?;
        self.all[block as usize].users = 1;
        Some(block)
    }

    /// A block is computed and will not be written any more: from now on it is found by its hash.
    pub(super) fn complete(&mut self, block: u32, hash: BlockHash) {
        // Another one that holds the same is as good.
        if self.keep
            && let Entry::Vacant(place) = self.of_hash.entry(hash)
        {
            place.insert(block);
            self.all[block as usize].hash = Some(hash);
        }
    }

    /// Nobody finds the block any more.
    pub(super) fn forget(&mut self, block: u32) {
        if let Some(hash) = self.all[block as usize].hash.take() {
            self.of_hash.remove(&hash);
        }
    }

    /// A sequence leaves its blocks. The last one is idle the longest, since it is of use to the fewest.
    pub(super) fn release(&mut self, blocks: &[u32]) {
        for block in blocks.iter().rev() {
            let one = &mut self.all[*block as usize];
            one.users = one.users.checked_sub(1).expect("who leaves a block has used it");
            if one.users > 0 {
                continue;
            }
            if one.hash.is_some() {
                one.idle_since = self.now;
                self.idle.insert(self.now, *block);
                self.now += 1;
            } else {
                self.free.push(*block);
            }
        }
    }

    fn block(&self, block: u32) -> &Block {
        &self.all[block as usize]
    }

    /// Sequences that use a block.
    #[cfg(test)]
    pub(super) fn users(&self, block: u32) -> u32 {
        self.block(block).users
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use claimcheck_common::domain::TenantId;
    use proptest::prelude::*;

    use super::super::prefix::Prefix;
    use super::*;
    use crate::gpt2::BLOCK;

    fn hashes(text: u32, count: usize) -> Vec<BlockHash> {
        let tenant = TenantId::from_uuid(uuid::Uuid::nil());
        Prefix::new(tenant, &vec![text; count * BLOCK]).whole().to_vec()
    }

    /// Takes and completes a block for each hash.
    fn fill(blocks: &mut Blocks, hashes: &[BlockHash]) -> Vec<u32> {
        let take = |hash: &BlockHash| {
            let block = blocks.take().unwrap();
            blocks.complete(block, *hash);
            block
        };
        hashes.iter().map(take).collect()
    }

    #[test]
    fn what_was_computed_is_found_until_the_room_is_needed_and_the_oldest_goes_first() {
        let mut blocks = Blocks::new(4, true);
        let (old, new) = (hashes(1, 2), hashes(2, 2));
        let of_old = fill(&mut blocks, &old);
        let of_new = fill(&mut blocks, &new);
        blocks.release(&of_old);
        blocks.release(&of_new);
        assert_eq!(blocks.available(), 4);
        // Used again, the old one is the newer one.
        for block in &of_old {
            blocks.share(*block);
        }
        blocks.release(&of_old);
        blocks.take().unwrap();
        assert_eq!(
            blocks.find(&new).collect::<Vec<_>>(),
            of_new[..1],
            "the last one of the other went"
        );
        assert_eq!(blocks.find(&old).collect::<Vec<_>>(), of_old);
    }

    #[test]
    fn what_is_used_is_not_taken() {
        let mut blocks = Blocks::new(2, true);
        let used = fill(&mut blocks, &hashes(1, 2));
        blocks.share(used[0]);
        blocks.release(&used);
        assert_eq!(blocks.take(), Some(used[1]));
        assert_eq!(blocks.take(), None);
    }

    #[test]
    fn without_keeping_nothing_is_found() {
        let mut blocks = Blocks::new(2, false);
        let hashes = hashes(1, 2);
        let used = fill(&mut blocks, &hashes);
        assert_eq!(blocks.find(&hashes).count(), 0);
        blocks.release(&used);
        assert_eq!((blocks.available(), blocks.idle.len()), (2, 0));
    }

    #[test]
    fn a_forgotten_block_is_free_after_its_last_user() {
        let mut blocks = Blocks::new(1, true);
        let hashes = hashes(1, 1);
        let used = fill(&mut blocks, &hashes);
        blocks.forget(used[0]);
        assert_eq!(blocks.find(&hashes).count(), 0);
        blocks.release(&used);
        assert_eq!(blocks.free, used);
    }

    proptest! {
        /// Sequences of a few texts come, share what they find, take the rest, and leave, in any order.
        #[test]
        fn no_block_leaks_and_none_is_given_out_while_somebody_uses_it(
            count in 1..12_usize,
            keep in prop::bool::ANY,
            steps in prop::collection::vec((0..4_u32, 1..5_usize, 0..4_usize), 1..60),
        ) {
            let mut blocks = Blocks::new(count, keep);
            let mut running: Vec<Vec<u32>> = Vec::new();
            for (text, len, leaving) in steps {
                let wanted = hashes(text, len);
                let mut table: Vec<u32> = blocks.find(&wanted).collect();
                if len - table.len() + blocks.idle_among(&table) <= blocks.available() {
                    for block in &table {
                        blocks.share(*block);
                    }
                    while table.len() < len {
                        let block = blocks.take().expect("it was counted");
                        prop_assert!(running.iter().chain([&table]).all(|other| !other.contains(&block)));
                        blocks.complete(block, wanted[table.len()]);
                        table.push(block);
                    }
                    running.push(table);
                }
                if leaving < running.len() {
                    blocks.release(&running.swap_remove(leaving));
                }
                let used: HashSet<u32> = running.iter().flatten().copied().collect();
                prop_assert_eq!(blocks.available(), count - used.len());
                for block in 0..count as u32 {
                    let users = running.iter().filter(|table| table.contains(&block)).count();
                    prop_assert_eq!(blocks.users(block) as usize, users);
                }
            }
            for table in &running {
                blocks.release(table);
            }
            prop_assert_eq!(blocks.available(), count);
        }
    }
}
