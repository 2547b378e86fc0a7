//! Who runs in the next step. Pure arithmetic: no tensors, no I/O, no clock.
//!
//! Every sequence has some tokens known and some of them in the cache; a step lets sequences catch up within a token
//! budget. Running ones come first, those that decode (one token behind) before those that prefill; then those that wait
//! are admitted in the order that `waiting.rs` knows, while slots and budget last. The budget is greater than the number of slots, so a
//! decoding sequence gets its token in every step, however long its neighbours' prompts are.

use std::collections::HashMap;
use std::ops::Range;

use claimcheck_common::domain::TenantId;

use super::job::SequenceId;
use super::waiting::{Entry, Waiting};

/// One row of the next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) id: SequenceId,
    pub(super) slot: usize,
    /// Which tokens of prompt and generated ones.
    pub(super) tokens: Range<usize>,
    /// Whether these are the last known ones, so that a new token can be drawn.
    pub(super) complete: bool,
}

/// A sequence that holds a slot.
#[derive(Debug, Clone, Copy)]
struct Running {
    slot: usize,
    tenant: TenantId,
    known: usize,
    cached: usize,
}

pub(super) struct Scheduler {
    budget: usize,
    free: Vec<usize>,
    waiting: Waiting,
    /// In the order of admission.
    order: Vec<SequenceId>,
    running: HashMap<SequenceId, Running>,
}

impl Scheduler {
    /// A budget that leaves nothing for prefill beside full slots is raised.
    pub(super) fn new(slots: usize, budget: usize) -> Self {
        Self {
            budget: budget.max(slots + 16),
            free: (0..slots).rev().collect(),
            waiting: Waiting::default(),
            order: Vec::new(),
            running: HashMap::new(),
        }
    }

    /// Sequences that hold a slot.
    pub(super) fn running(&self) -> usize {
        self.order.len()
    }

    /// Sequences that wait for a slot.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// A new sequence.
    pub(super) fn add(&mut self, entry: Entry) {
        self.waiting.push(entry);
    }

    /// The rows of the next step, of at most the budget's tokens together. Each is to be followed by [`Self::advance`].
    pub(super) fn schedule(&mut self) -> Vec<Planned> {
        let mut left = self.budget;
        let mut plan = Vec::with_capacity(self.order.len());
        for decoding in [true, false] {
            for id in &self.order {
                let running = self.running[id];
                if (running.known - running.cached == 1) == decoding {
                    plan.extend(take(*id, running, &mut left));
                }
            }
        }
        while left > 0
            && !self.waiting.is_empty()
            && let Some(slot) = self.free.pop()
        {
            let running = &self.running;
            let slots_of = |tenant| running.values().filter(|one| one.tenant == tenant).count();
            let Entry { id, len, share } = self.waiting.pop(slots_of).expect("not empty");
            let running = Running {
                slot,
                tenant: share.tenant,
                known: len,
                cached: 0,
            };
            self.order.push(id);
            self.running.insert(id, running);
            plan.extend(take(id, running, &mut left));
        }
        plan
    }

    /// A row was computed. `ended` is `Some` if a token was drawn: `true` frees the slot, `false` makes the token known.
    pub(super) fn advance(&mut self, planned: &Planned, ended: Option<bool>) {
        if let Some(running) = self.running.get_mut(&planned.id) {
            running.cached = planned.tokens.end;
            running.known += usize::from(ended == Some(false));
        }
        if ended == Some(true) {
            self.remove(planned.id);
        }
    }

    /// Forgets a sequence, wherever it is. One that is not there is none of its business.
    pub(super) fn remove(&mut self, id: SequenceId) {
        if let Some(running) = self.running.remove(&id) {
            self.free.push(running.slot);
            self.order.retain(|other| *other != id);
        } else {
            self.waiting.remove(id);
        }
    }
}

fn take(id: SequenceId, running: Running, left: &mut usize) -> Option<Planned> {
    let count = (running.known - running.cached).min(*left);
    *left -= count;
    let tokens = running.cached..running.cached + count;
    let complete = tokens.end == running.known;
    (count > 0).then_some(Planned {
        id,
        slot: running.slot,
        tokens,
        complete,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use claimcheck_common::domain::{JobId, JobKey, Share};
    use proptest::prelude::*;

    use super::*;

    fn id(number: usize) -> SequenceId {
        let id = JobId::from_uuid(uuid::Uuid::from_u128(number as u128));
        SequenceId {
            key: JobKey { id, fence: 1 },
            choice: 0,
        }
    }

    fn entry(number: usize, len: usize) -> Entry {
        Entry {
            id: id(number),
            len,
            share: Share::default(),
        }
    }

    /// A sequence as the test keeps account of it.
    #[derive(Debug, Clone)]
    struct Account {
        prompt: usize,
        to_generate: usize,
        cached: usize,
        generated: usize,
        first_step: Option<usize>,
    }

    proptest! {
        #[test]
        fn all_finish_in_order_within_budget_and_no_slot_leaks_or_is_shared(
            slots in 1..6_usize,
            budget in 1..40_usize,
            sequences in prop::collection::vec((1..60_usize, 1..12_usize, 0..20_usize, prop::bool::weighted(0.1)), 1..30),
        ) {
            let mut scheduler = Scheduler::new(slots, budget);
            let budget = scheduler.budget;
            let mut accounts: Vec<_> = sequences
                .iter()
                .map(|(prompt, to_generate, ..)| Account { prompt: *prompt, to_generate: *to_generate, cached: 0, generated: 0, first_step: None })
                .collect();
            let mut live: HashSet<usize> = HashSet::new();
            let total: usize = sequences.iter().map(|(prompt, generate, ..)| prompt + generate).sum();
            // Every step with work moves at least one token, so that nobody can wait longer than all work together.
            for step in 0..total + 20 {
                for (number, (prompt, _, arrival, _)) in sequences.iter().enumerate() {
                    if *arrival == step {
                        scheduler.add(entry(number, *prompt));
                        live.insert(number);
                    }
                }
                let plan = scheduler.schedule();
                prop_assert!(plan.iter().map(|row| row.tokens.len()).sum::<usize>() <= budget);
                let used: HashSet<_> = plan.iter().map(|row| row.slot).collect();
                prop_assert_eq!(used.len(), plan.len(), "a slot has two rows");
                prop_assert!(used.iter().all(|slot| *slot < slots));
                prop_assert!(live.is_empty() || !plan.is_empty(), "work waits and nothing runs");
                // Who decodes is never left out.
                for number in &live {
                    let account = &accounts[*number];
                    if account.cached >= account.prompt {
                        prop_assert!(plan.iter().any(|row| row.id == id(*number)), "a running row was stalled");
                    }
                }
                for row in plan {
                    let number = (0..accounts.len()).find(|number| id(*number) == row.id).unwrap();
                    let account = &mut accounts[number];
                    account.first_step.get_or_insert(step);
                    prop_assert_eq!(row.tokens.start, account.cached, "each token once and in order");
                    account.cached = row.tokens.end;
                    let known = account.prompt + account.generated;
                    prop_assert!(row.tokens.end <= known);
                    prop_assert_eq!(row.complete, row.tokens.end == known);
                    let cancelled = sequences[number].3 && account.generated > 0;
                    if row.complete {
                        account.generated += 1;
                        let ended = account.generated == account.to_generate;
                        scheduler.advance(&row, Some(ended));
                        if ended {
                            live.remove(&number);
                        }
                    } else {
                        scheduler.advance(&row, None);
                    }
                    if cancelled && live.remove(&number) {
                        scheduler.remove(id(number));
                    }
                }
            }
            prop_assert!(live.is_empty(), "starved: {live:?}");
            prop_assert_eq!(scheduler.free.len(), slots, "a slot leaked");
            prop_assert!(scheduler.running.is_empty() && scheduler.order.is_empty());
            // First come, first served, among those that came in different steps.
            for (a, first) in accounts.iter().enumerate() {
                for (b, second) in accounts.iter().enumerate() {
                    if sequences[a].2 < sequences[b].2 && let (Some(first), Some(second)) = (first.first_step, second.first_step) {
                        prop_assert!(first <= second);
                    }
                }
            }
        }
    }

    #[test]
    fn a_long_prompt_is_prefilled_in_chunks_beside_running_rows() {
        let mut scheduler = Scheduler::new(2, 20);
        scheduler.add(entry(0, 1));
        let plan = scheduler.schedule();
        scheduler.advance(&plan[0], Some(false));
        scheduler.add(entry(1, 50));
        for expected in [0..19, 19..38, 38..50] {
            let plan = scheduler.schedule();
            assert_eq!(
                (plan[0].id, plan[0].tokens.len()),
                (id(0), 1),
                "the running row comes first"
            );
            assert_eq!((plan[1].id, plan[1].tokens.clone()), (id(1), expected.clone()));
            scheduler.advance(&plan[0], Some(false));
            scheduler.advance(&plan[1], (expected.end == 50).then_some(false));
        }
    }
}
