//! The scheduler against a model of the cache: who reads a place of it finds there what the sequence itself would have
//! computed.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use claimcheck_common::domain::{JobId, JobKey, TenantId};
use proptest::prelude::*;

use super::*;

fn id(number: usize) -> SequenceId {
    let id = JobId::from_uuid(uuid::Uuid::from_u128(number as u128));
    SequenceId {
        key: JobKey { id, fence: 1 },
        choice: 0,
    }
}

fn entry(number: usize, tenant: u128, tokens: &[u32]) -> Entry {
    let tenant = TenantId::from_uuid(uuid::Uuid::from_u128(tenant));
    Entry {
        id: id(number),
        prefix: Prefix::new(tenant, tokens),
        share: Share {
            tenant,
            ..Share::default()
        },
    }
}

fn scheduler(slots: usize, budget: usize, blocks: usize) -> Scheduler {
    Scheduler::new(slots, budget, Blocks::new(blocks, true))
}

/// Many blocks and no prompt like another: what a scheduler without a cache would see.
fn plain(slots: usize, budget: usize) -> Scheduler {
    scheduler(slots, budget, 1000)
}

fn prompt(number: usize, len: usize) -> Vec<u32> {
    (0..len).map(|place| (number * 1000 + place) as u32).collect()
}

/// Does all of a plan; a complete row draws `token`.
fn advance(scheduler: &mut Scheduler, plan: &[Planned], token: u32) {
    for row in plan {
        scheduler.advance(row, row.complete.then_some(Drawn::Next(token)));
    }
}

/// A sequence as the test keeps account of it.
#[derive(Debug, Clone)]
struct Account {
    tenant: u128,
    /// Prompt, and then what was drawn.
    tokens: Vec<u32>,
    /// Of each token, whose it is and what stands up to it.
    marks: Vec<u64>,
    to_generate: usize,
    generated: usize,
    first_step: Option<usize>,
}

impl Account {
    fn new(tenant: u128, tokens: &[u32], to_generate: usize) -> Self {
        let mut account = Self {
            tenant,
            tokens: Vec::new(),
            marks: Vec::new(),
            to_generate,
            generated: 0,
            first_step: None,
        };
        for token in tokens {
            account.push(*token);
        }
        account
    }

    fn push(&mut self, token: u32) {
        let mut mark = DefaultHasher::new();
        (self.tenant, self.marks.last(), token).hash(&mut mark);
        self.marks.push(mark.finish());
        self.tokens.push(token);
    }
}

#[derive(Debug, Clone)]
struct Arriving {
    text: usize,
    common: usize,
    own: usize,
    to_generate: usize,
    arrival: usize,
    cancelled: bool,
}

fn arriving() -> impl Strategy<Value = Arriving> {
    (
        0..3_usize,
        0..100_usize,
        1..60_usize,
        1..50_usize,
        0..30_usize,
        prop::bool::weighted(0.1),
    )
        .prop_map(|(text, common, own, to_generate, arrival, cancelled)| Arriving {
            text,
            common,
            own,
            to_generate,
            arrival,
            cancelled,
        })
}

impl Arriving {
    /// Texts 0 and 1 are of different tenants and read the same.
    fn account(&self, number: usize) -> Account {
        let common = prompt(self.text / 2, self.common);
        let tokens = [common, prompt(number + 10, self.own)].concat();
        Account::new(self.text as u128, &tokens, self.to_generate)
    }
}

/// The longest that `arriving` makes.
const LONGEST: usize = 210;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn all_finish_within_budget_and_no_place_of_the_cache_is_lost_or_shared_wrongly(
        slots in 1..6_usize,
        budget in 1..60_usize,
        blocks in LONGEST.div_ceil(BLOCK)..30,
        keep in prop::bool::ANY,
        sequences in prop::collection::vec(arriving(), 1..20),
    ) {
        let mut scheduler = Scheduler::new(slots, budget, Blocks::new(blocks, keep));
        let budget = scheduler.budget;
        let mut accounts: Vec<_> = sequences.iter().enumerate().map(|(number, one)| one.account(number)).collect();
        let mut cache = vec![[0_u64; BLOCK]; blocks];
        let mut live: HashSet<usize> = HashSet::new();
        let total: usize = accounts.iter().map(|one| one.tokens.len() + one.to_generate).sum();
        // The first in the order of admission gets a token in every step and is never preempted.
        for step in 0..total + 40 {
            for (number, one) in sequences.iter().enumerate().filter(|(_, one)| one.arrival == step) {
                scheduler.add(entry(number, one.text as u128, &accounts[number].tokens));
                live.insert(number);
            }
            if live.is_empty() && step > 30 {
                break;
            }
            let first = scheduler.order.first().copied();
            let decoding: Vec<_> = scheduler.order.iter().copied().filter(|id| scheduler.running[id].behind() == 1).collect();
            let plan = scheduler.schedule();
            let decoded = plan.iter().filter(|row| decoding.contains(&row.id)).count();
            prop_assert!(plan.iter().map(|row| row.tokens.len()).sum::<usize>() <= budget.max(STRETCH * decoded));
            prop_assert!(scheduler.running() <= slots);
            prop_assert!(live.is_empty() || !plan.is_empty(), "work waits and nothing runs");
            for id in decoding {
                let runs = plan.iter().any(|row| row.id == id);
                prop_assert!(runs || (Some(id) != first && !scheduler.running.contains_key(&id)), "a running row was stalled");
            }
            let rows: HashSet<_> = plan.iter().map(|row| row.id).collect();
            prop_assert_eq!(rows.len(), plan.len(), "a sequence has two rows");
            check_writes(&scheduler, &plan)?;
            for row in plan {
                let number = (0..accounts.len()).find(|number| id(*number) == row.id).unwrap();
                let account = &mut accounts[number];
                account.first_step.get_or_insert(step);
                for (at, mark) in account.marks.iter().enumerate().take(row.tokens.end) {
                    let place = &mut cache[row.blocks[at / BLOCK] as usize][at % BLOCK];
                    if at >= row.tokens.start {
                        *place = *mark;
                    }
                    prop_assert_eq!(*place, *mark, "sequence {} reads what is not its own", number);
                }
                prop_assert_eq!(row.complete, row.tokens.end == account.tokens.len());
                let cancelled = sequences[number].cancelled && account.generated > 0;
                if !row.complete {
                    scheduler.advance(&row, None);
                } else if account.generated + 1 == account.to_generate {
                    scheduler.advance(&row, Some(Drawn::Last));
                    live.remove(&number);
                } else {
                    account.generated += 1;
                    let token = (500_000 + number * 1000 + account.generated) as u32;
                    account.push(token);
                    scheduler.advance(&row, Some(Drawn::Next(token)));
                }
                if cancelled && live.remove(&number) {
                    scheduler.remove(id(number));
                }
            }
        }
        prop_assert!(live.is_empty(), "starved: {live:?}");
        prop_assert_eq!(scheduler.free_blocks(), blocks, "a block leaked");
        prop_assert!(scheduler.running.is_empty() && scheduler.order.is_empty() && scheduler.waiting() == 0);
        prop_assert!(scheduler.promised.is_empty(), "a promise outlived who made it");
        // First come, first served, among those that came in different steps to one tenant.
        for (a, first) in accounts.iter().enumerate().filter(|_| !keep) {
            for (b, second) in accounts.iter().enumerate().filter(|(_, one)| one.tenant == first.tenant) {
                if sequences[a].arrival < sequences[b].arrival
                    && let (Some(first), Some(second)) = (first.first_step, second.first_step)
                {
                    prop_assert!(first <= second);
                }
            }
        }
    }
}

/// What a row writes, no other sequence has.
fn check_writes(scheduler: &Scheduler, plan: &[Planned]) -> Result<(), TestCaseError> {
    for row in plan {
        for block in &row.blocks[row.tokens.start / BLOCK..row.tokens.end.div_ceil(BLOCK)] {
            prop_assert_eq!(
                scheduler.blocks.users(*block),
                1,
                "a block that is written has one user"
            );
        }
    }
    let mut users: HashMap<u32, u32> = HashMap::new();
    for block in scheduler.running.values().flat_map(|one| &one.blocks) {
        *users.entry(*block).or_default() += 1;
    }
    for (block, count) in users {
        prop_assert_eq!(scheduler.blocks.users(block), count);
    }
    Ok(())
}

#[test]
fn a_long_prompt_is_prefilled_in_chunks_beside_running_rows() {
    let mut scheduler = plain(2, 20);
    scheduler.add(entry(0, 0, &prompt(0, 1)));
    let plan = scheduler.schedule();
    advance(&mut scheduler, &plan, 7);
    scheduler.add(entry(1, 0, &prompt(1, 50)));
    for expected in [0..19, 19..38, 38..50] {
        let plan = scheduler.schedule();
        assert_eq!(
            (plan[0].id, plan[0].tokens.len()),
            (id(0), 1),
            "the running row comes first"
        );
        assert_eq!((plan[1].id, plan[1].tokens.clone()), (id(1), expected));
        advance(&mut scheduler, &plan, 7);
    }
}

#[test]
fn beside_many_running_rows_more_of_a_prompt_is_read_in_a_step() {
    let mut scheduler = plain(8, 24);
    for number in 0..7 {
        scheduler.add(entry(number, 0, &prompt(number, 1)));
    }
    let plan = scheduler.schedule();
    advance(&mut scheduler, &plan, 7);
    scheduler.add(entry(7, 0, &prompt(7, 50)));
    // Four tokens for each that decodes are more than the budget.
    for expected in [0..21, 21..42, 42..50] {
        let plan = scheduler.schedule();
        assert_eq!(plan.len(), 8);
        assert_eq!((plan[7].id, plan[7].tokens.clone()), (id(7), expected));
        advance(&mut scheduler, &plan, 7);
    }
}

#[test]
fn choices_of_one_prompt_share_one_prefill() {
    let mut scheduler = plain(4, 500);
    for number in 0..4 {
        scheduler.add(entry(number, 0, &prompt(0, 100)));
    }
    let plan = scheduler.schedule();
    assert_eq!(plan.len(), 1, "the others wait for the first one's blocks");
    advance(&mut scheduler, &plan, 7);
    let plan = scheduler.schedule();
    assert_eq!(plan.len(), 4);
    for row in &plan[1..] {
        assert_eq!(row.tokens, 96..100);
        assert_eq!(row.blocks[..3], plan[0].blocks[..3]);
    }
    let counts = scheduler.take_counts();
    assert_eq!((counts.admitted_tokens, counts.hit_tokens), (400, 3 * 96));
}

#[test]
fn who_waits_for_a_prefix_waits_no_longer_than_its_maker_lives() {
    let mut scheduler = plain(4, 40);
    scheduler.add(entry(0, 0, &prompt(0, 100)));
    scheduler.add(entry(1, 0, &prompt(0, 100)));
    let plan = scheduler.schedule();
    advance(&mut scheduler, &plan, 7);
    assert_eq!(scheduler.running(), 1);
    scheduler.remove(id(0));
    let plan = scheduler.schedule();
    assert_eq!(
        (plan[0].id, plan[0].tokens.clone()),
        (id(1), 32..72),
        "the block that was finished is of use"
    );
}

#[test]
fn another_tenant_neither_waits_for_a_prefix_nor_finds_it() {
    let mut scheduler = plain(4, 500);
    for tenant in 0..2 {
        scheduler.add(entry(tenant, tenant as u128, &prompt(0, 100)));
    }
    let plan = scheduler.schedule();
    assert_eq!(plan.len(), 2);
    assert!(plan.iter().all(|row| row.tokens == (0..100)));
    assert!(plan[0].blocks.iter().all(|block| !plan[1].blocks.contains(block)));
}

#[test]
fn the_sequence_that_was_admitted_last_makes_room_and_goes_on_before_those_that_wait() {
    // Each takes one block, and the first two need another one at the same time.
    let mut scheduler = scheduler(4, 100, 4);
    for number in 0..2 {
        scheduler.add(entry(number, number as u128, &prompt(number, 31)));
    }
    let plan = scheduler.schedule();
    assert_eq!(plan.len(), 2);
    advance(&mut scheduler, &plan, 7);
    let plan = scheduler.schedule();
    advance(&mut scheduler, &plan, 7);
    scheduler.add(entry(2, 2, &prompt(2, 1)));
    // Both have grown to two blocks and fill them.
    for _ in 0..32 {
        let plan = scheduler.schedule();
        assert_eq!(plan.len(), 2, "the third one has no room");
        advance(&mut scheduler, &plan, 7);
    }
    let plan = scheduler.schedule();
    assert_eq!(plan.iter().map(|row| row.id).collect::<Vec<_>>(), [id(0)]);
    assert_eq!(scheduler.take_counts().preemptions, 1);
    assert_eq!(scheduler.waiting(), 2);
    scheduler.advance(&plan[0], Some(Drawn::Last));
    let plan = scheduler.schedule();
    assert_eq!(plan[0].id, id(1), "it goes before the third one");
    assert_eq!(plan[0].tokens.end, 65, "all that it knows is computed again");
}

#[test]
fn what_a_spoiled_sequence_computed_is_not_found_again() {
    let mut scheduler = plain(4, 500);
    scheduler.add(entry(0, 0, &prompt(0, 100)));
    let plan = scheduler.schedule();
    advance(&mut scheduler, &plan, 7);
    scheduler.spoil(id(0));
    scheduler.add(entry(1, 0, &prompt(0, 100)));
    assert_eq!(scheduler.schedule()[0].tokens, 0..100);
    assert_eq!(scheduler.take_counts().hit_tokens, 0);
}

#[test]
fn after_a_step_that_had_no_room_fewer_run_side_by_side_and_bit_by_bit_all_again() {
    let mut scheduler = plain(8, 100);
    for number in 0..8 {
        scheduler.add(entry(number, 1, &prompt(number, 3)));
    }
    let plan = scheduler.schedule();
    assert_eq!(plan.len(), 8);
    advance(&mut scheduler, &plan, 7);
    scheduler.narrow(3);
    assert_eq!((scheduler.running(), scheduler.waiting()), (3, 5));
    let mut widths = Vec::new();
    for _ in 0..6 * CALM {
        let plan = scheduler.schedule();
        widths.push(plan.len());
        advance(&mut scheduler, &plan, 7);
    }
    assert_eq!(widths[0], 3);
    assert!(widths.is_sorted(), "{widths:?}");
    assert!(widths.windows(2).all(|pair| pair[1] <= pair[0] + 1), "{widths:?}");
    assert_eq!((widths[4 * CALM], widths[6 * CALM - 1]), (7, 8));
    scheduler.narrow(0);
    assert_eq!(scheduler.schedule().len(), 1, "one always runs");
}
