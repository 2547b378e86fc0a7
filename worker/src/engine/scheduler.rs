//! Who runs in the next step, and in which blocks of the cache. Pure arithmetic: no tensors, no I/O, no clock.
//!
//! Every sequence has some tokens known and some of them in the cache; a step lets sequences catch up within a token
//! budget. Running ones come first, those that decode (one token behind) before those that prefill; then those that wait
//! are admitted in the order that `waiting.rs` knows, while slots, blocks and budget last. The budget is greater than the
//! number of slots, so a decoding sequence gets its token in every step, however long its neighbours' prompts are. It
//! grows with those that decode: what makes a step of few rows three times as long is less to a step of many.
//!
//! A sequence that needs one block more than there are takes the blocks of the one that was admitted last. That one waits,
//! before all others, and computes its tokens anew: the first in the order of admission is never made to wait, so that all
//! come to their end one after the other.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use claimcheck_common::domain::{Share, TenantId};

use super::blocks::Blocks;
use super::job::SequenceId;
use super::prefix::{BlockHash, Prefix};
use super::waiting::{Entry, Waiting};
use crate::gpt2::BLOCK;

/// A step may have so many times the tokens of its decoding rows, if that is more than the budget: on a processor it then
/// takes about three times as long as without prompts (`docs/benchmarks/engine-cpu.md`).
const STRETCH: usize = 4;

/// One row of the next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) id: SequenceId,
    /// Where the sequence lies in the cache.
    pub(super) blocks: Vec<u32>,
    /// Which tokens of prompt and generated ones.
    pub(super) tokens: Range<usize>,
    /// Whether these are the last known ones, so that a new token can be drawn.
    pub(super) complete: bool,
}

/// A token was drawn for a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drawn {
    /// It goes on with this one.
    Next(u32),
    /// It ended.
    Last,
}

/// What was counted since it was last asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Known tokens of sequences that were admitted.
    pub(super) admitted_tokens: u64,
    /// Those of them that were in the cache already.
    pub(super) hit_tokens: u64,
    /// Sequences that had to make room.
    pub(super) preemptions: u64,
}

/// A sequence that holds a slot.
#[derive(Debug)]
struct Running {
    share: Share,
    prefix: Prefix,
    blocks: Vec<u32>,
    cached: usize,
    /// Whole blocks of the prefix that others may be waiting for.
    promised: Range<usize>,
}

impl Running {
    fn behind(&self) -> usize {
        self.prefix.len() - self.cached
    }

    const fn is_full(&self) -> bool {
        self.cached == self.blocks.len() * BLOCK
    }
}

/// After so many steps without trouble one more sequence may run beside the others again.
const CALM: usize = 64;

pub(super) struct Scheduler {
    slots: usize,
    /// Most sequences that run side by side for now: the slots, or fewer since the device had no room for all.
    side_by_side: usize,
    /// Steps since that changed.
    calm: usize,
    budget: usize,
    blocks: Blocks,
    waiting: Waiting,
    /// Had to make room, in the order of their first admission: they go before all that wait.
    preempted: VecDeque<Entry>,
    /// In the order of admission.
    order: Vec<SequenceId>,
    running: HashMap<SequenceId, Running>,
    /// How many running sequences will have computed a block.
    promised: HashMap<BlockHash, u32>,
    counts: Counts,
}

impl Scheduler {
    /// A budget that leaves nothing for prefill beside full slots is raised. The longest sequence fits into `blocks`.
    pub(super) fn new(slots: usize, budget: usize, blocks: Blocks) -> Self {
        Self {
            slots,
            side_by_side: slots,
            calm: 0,
            budget: budget.max(slots + 16),
            blocks,
            waiting: Waiting::default(),
            preempted: VecDeque::new(),
            order: Vec::new(),
            running: HashMap::new(),
            promised: HashMap::new(),
            counts: Counts::default(),
        }
    }

    /// Goes on with another cache, which is empty. Nobody may hold a slot.
    pub(super) fn forget_cache(&mut self, blocks: Blocks) {
        debug_assert!(self.running.is_empty(), "the cache of those who run is gone");
        self.blocks = blocks;
    }

    /// Sequences that hold a slot.
    pub(super) const fn running(&self) -> usize {
        self.order.len()
    }

    /// Sequences that wait for a slot or for blocks.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len() + self.preempted.len()
    }

    /// Blocks that can be taken.
    pub(super) fn free_blocks(&self) -> usize {
        self.blocks.available()
    }

    /// What was counted since the last call.
    pub(super) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// A new sequence.
    pub(super) fn add(&mut self, entry: Entry) {
        self.waiting.push(entry);
    }

    /// The device had room for a step of so many rows and for no more: so many run side by side from now on, and those that came
    /// last wait. Bit by bit there are more again.
    pub(super) fn narrow(&mut self, rows: usize) {
        self.side_by_side = rows.clamp(1, self.side_by_side);
        self.calm = 0;
        while self.order.len() > self.side_by_side {
            self.preempt(self.order[self.order.len() - 1]);
        }
    }

    fn widen(&mut self) {
        self.calm += 1;
        if self.calm == CALM {
            self.calm = 0;
            self.side_by_side = self.slots.min(self.side_by_side + 1);
        }
    }

    /// The rows of the next step, of at most the budget's tokens together, or [`STRETCH`] for each that decodes. Each is to be
    /// followed by [`Self::advance`].
    pub(super) fn schedule(&mut self) -> Vec<Planned> {
        self.widen();
        let mut left = self.budget;
        let mut plan = Vec::with_capacity(self.order.len());
        for id in self.order.clone() {
            if self.running.get(&id).is_some_and(|one| one.behind() == 1) && self.grow(id) {
                plan.extend(self.take(id, &mut left));
            }
        }
        let decoding = plan.len();
        left = left.max((STRETCH - 1) * decoding);
        for id in &self.order {
            if self.running[id].behind() > 1 {
                plan.extend(self.take(*id, &mut left));
            }
        }
        while left > 0
            && self.running.len() < self.side_by_side
            && let Some(id) = self.admit()
        {
            plan.extend(self.take(id, &mut left));
        }
        plan
    }

    /// A row was computed.
    pub(super) fn advance(&mut self, planned: &Planned, drawn: Option<Drawn>) {
        let Some(running) = self.running.get_mut(&planned.id) else {
            return;
        };
        running.cached = planned.tokens.end;
        for place in planned.tokens.start / BLOCK..planned.tokens.end / BLOCK {
            let hash = running.prefix.whole()[place];
            self.blocks.complete(running.blocks[place], hash);
            if running.promised.contains(&place) {
                running.promised.start = place + 1;
                withdraw(&mut self.promised, &[hash]);
            }
        }
        match drawn {
            Some(Drawn::Next(token)) => running.prefix.push(token),
            Some(Drawn::Last) => self.remove(planned.id),
            None => {}
        }
    }

    /// Forgets a sequence, wherever it is. One that is not there is none of its business.
    pub(super) fn remove(&mut self, id: SequenceId) {
        if self.stop(id).is_none() {
            self.waiting.remove(id);
            self.preempted.retain(|one| one.id != id);
        }
    }

    /// Forgets a sequence whose row went wrong, and what it left in the cache.
    pub(super) fn spoil(&mut self, id: SequenceId) {
        if let Some(running) = self.running.get(&id) {
            for block in &running.blocks {
                self.blocks.forget(*block);
            }
        }
        self.remove(id);
    }

    /// Makes room for a sequence's next token. `false`: it had to make room itself.
    fn grow(&mut self, id: SequenceId) -> bool {
        if !self.running[&id].is_full() {
            return true;
        }
        loop {
            if let Some(block) = self.blocks.take() {
                self.running.get_mut(&id).expect("it runs").blocks.push(block);
                return true;
            }
            // Never one that is planned already: those were admitted earlier.
            let last = *self.order.last().expect("at least this one runs");
            self.preempt(last);
            if last == id {
                return false;
            }
        }
    }

    fn preempt(&mut self, id: SequenceId) {
        let Running { share, prefix, .. } = self.stop(id).expect("it runs");
        self.preempted.push_front(Entry { id, prefix, share });
        self.counts.preemptions += 1;
    }

    /// Takes a sequence's slot and blocks.
    fn stop(&mut self, id: SequenceId) -> Option<Running> {
        let running = self.running.remove(&id)?;
        self.order.retain(|other| *other != id);
        self.blocks.release(&running.blocks);
        withdraw(&mut self.promised, &running.prefix.whole()[running.promised.clone()]);
        Some(running)
    }

    /// Gives a slot, and blocks for all that is known, to the sequence whose turn it is, if it has room.
    fn admit(&mut self) -> Option<SequenceId> {
        let Entry { id, prefix, share } = if let Some(entry) = self.preempted.front() {
            self.room(&entry.prefix)?;
            self.preempted.pop_front()?
        } else {
            let mut slots: HashMap<TenantId, usize> = HashMap::new();
            for running in self.running.values() {
                *slots.entry(running.share.tenant).or_default() += 1;
            }
            let slots_of = |tenant| slots.get(&tenant).copied().unwrap_or(0);
            let turn = self.waiting.next(slots_of, |entry| self.is_ready(entry))?;
            self.room(&self.waiting.entry(&turn).prefix)?;
            self.waiting.take(turn)
        };
        let mut blocks: Vec<u32> = self.blocks.find(prefix.sharable()).collect();
        let found = blocks.len();
        for block in &blocks {
            self.blocks.share(*block);
        }
        while blocks.len() < prefix.len().div_ceil(BLOCK) {
            blocks.push(self.blocks.take().expect("there was room"));
        }
        let promised = found..prefix.whole().len();
        for hash in &prefix.whole()[promised.clone()] {
            *self.promised.entry(*hash).or_default() += 1;
        }
        self.counts.admitted_tokens += prefix.len() as u64;
        self.counts.hit_tokens += (found * BLOCK) as u64;
        self.order.push(id);
        let running = Running {
            share,
            prefix,
            blocks,
            cached: found * BLOCK,
            promised,
        };
        self.running.insert(id, running);
        Some(id)
    }

    /// Whether the blocks of a sequence are there, and one more for each that runs, so that it does not have to leave soon.
    fn room(&self, prefix: &Prefix) -> Option<()> {
        let found: Vec<u32> = self.blocks.find(prefix.sharable()).collect();
        let new = prefix.len().div_ceil(BLOCK) - found.len();
        let needed = new + self.blocks.idle_among(&found) + self.running.len();
        (needed <= self.blocks.available()).then_some(())
    }

    /// Whether no running sequence is about to have computed what this one would begin with.
    fn is_ready(&self, entry: &Entry) -> bool {
        let sharable = entry.prefix.sharable();
        let next = sharable.get(self.blocks.find(sharable).count());
        next.is_none_or(|hash| !self.blocks.keeps() || !self.promised.contains_key(hash))
    }

    /// A row of a running sequence, as long as the budget allows.
    fn take(&self, id: SequenceId, left: &mut usize) -> Option<Planned> {
        let running = &self.running[&id];
        let count = running.behind().min(*left);
        *left -= count;
        let tokens = running.cached..running.cached + count;
        let complete = tokens.end == running.prefix.len();
        (count > 0).then(|| Planned {
            id,
            blocks: running.blocks.clone(),
            tokens,
            complete,
        })
    }
}

fn withdraw(promised: &mut HashMap<BlockHash, u32>, hashes: &[BlockHash]) {
    for hash in hashes {
        if let Some(count) = promised.get_mut(hash) {
            *count -= 1;
            if *count == 0 {
                promised.remove(hash);
            }
        }
    }
}

#[cfg(test)]
mod tests;
