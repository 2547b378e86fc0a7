//! Who is admitted next, of those that wait for a slot. Pure arithmetic, like the scheduler that asks.
//!
//! Interactive goes before batch, but not for ever; then the tenant that has the fewest slots; then, within that tenant,
//! priority, deadline, arrival. What never ends is only what a tenant does to itself: a low priority behind ever new high ones.
//! Whoever would only repeat what a running sequence is about to have computed is passed over until then.

use std::cmp::Reverse;

use claimcheck_common::domain::{Class, Share, TenantId};

use super::job::SequenceId;
use super::prefix::Prefix;

/// A batch sequence that waits lets so many interactive ones go first, and then one of its class goes.
const PASSED_OVER: u32 = 3;

/// A sequence that waits.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) id: SequenceId,
    /// What it begins with: its prompt, and what was generated before it had to make room.
    pub(super) prefix: Prefix,
    pub(super) share: Share,
}

/// All that wait, in the order of their arrival.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    entries: Vec<Entry>,
    /// Interactive admissions in a row while a batch sequence waited.
    passed_over: u32,
}

impl Waiting {
    pub(super) const fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    pub(super) fn remove(&mut self, id: SequenceId) {
        self.entries.retain(|entry| entry.id != id);
    }

    /// Whose turn it is of those that are `ready`, given how many slots each tenant has. Nothing changes until it is taken.
    pub(super) fn next(&self, slots_of: impl Fn(TenantId) -> usize, ready: impl Fn(&Entry) -> bool) -> Option<Turn> {
        let ready: Vec<_> = self.entries.iter().enumerate().filter(|(_, one)| ready(one)).collect();
        let class = self.next_class(|class| ready.iter().any(|(_, one)| one.share.class == class))?;
        let candidates = || ready.iter().filter(|(_, one)| one.share.class == class);
        // Of several that are least, the one that arrived first.
        let tenant = candidates()
            .map(|(_, one)| one.share.tenant)
            .min_by_key(|tenant| slots_of(*tenant))?;
        let (place, _) = candidates()
            .filter(|(_, one)| one.share.tenant == tenant)
            .min_by_key(|(_, one)| {
                let Share { priority, deadline, .. } = one.share;
                (Reverse(priority), deadline.is_none(), deadline)
            })?;
        Some(Turn(*place))
    }

    /// Looks at whose turn it is.
    pub(super) fn entry(&self, turn: &Turn) -> &Entry {
        &self.entries[turn.0]
    }

    /// The turn is used: the entry does not wait any more.
    pub(super) fn take(&mut self, Turn(place): Turn) -> Entry {
        let entry = self.entries.remove(place);
        let batch_waits = self.entries.iter().any(|one| one.share.class == Class::Batch);
        self.passed_over = match entry.share.class {
            Class::Interactive if batch_waits => self.passed_over + 1,
            _ => 0,
        };
        entry
    }

    fn next_class(&self, has: impl Fn(Class) -> bool) -> Option<Class> {
        let (interactive, batch) = (has(Class::Interactive), has(Class::Batch));
        if interactive && !(batch && self.passed_over >= PASSED_OVER) {
            Some(Class::Interactive)
        } else {
            batch.then_some(Class::Batch)
        }
    }
}

/// A place among those that wait; good until something is pushed, taken or removed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn(usize);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use claimcheck_common::domain::{JobId, JobKey};
    use time::OffsetDateTime;

    use super::*;

    fn entry(number: u128, share: Share) -> Entry {
        let id = JobId::from_uuid(uuid::Uuid::from_u128(number));
        Entry {
            id: SequenceId {
                key: JobKey { id, fence: 1 },
                choice: 0,
            },
            prefix: Prefix::new(share.tenant, &[1]),
            share,
        }
    }

    fn of(tenant: u128) -> Share {
        Share {
            tenant: TenantId::from_uuid(uuid::Uuid::from_u128(tenant)),
            ..Share::default()
        }
    }

    /// Pushes all and pops all while nothing ends: the numbers in the order of admission.
    fn admitted(shares: &[Share]) -> Vec<usize> {
        let mut waiting = Waiting::default();
        for (number, share) in shares.iter().enumerate() {
            waiting.push(entry(number as u128, *share));
        }
        let mut running: Vec<TenantId> = Vec::new();
        let mut order = Vec::new();
        while let Some(turn) = waiting.next(|tenant| running.iter().filter(|one| **one == tenant).count(), |_| true) {
            let next = waiting.take(turn);
            running.push(next.share.tenant);
            order.push(next.id.key.id.uuid().as_u128() as usize);
        }
        order
    }

    #[test]
    fn equals_are_admitted_in_the_order_of_their_arrival() {
        assert_eq!(admitted(&[of(1); 4]), [0, 1, 2, 3]);
    }

    #[test]
    fn one_job_of_a_tenant_does_not_wait_for_many_of_another() {
        assert_eq!(admitted(&[of(1), of(1), of(1), of(2), of(2)]), [0, 3, 1, 4, 2]);
    }

    #[test]
    fn who_is_not_ready_is_passed_over_and_keeps_the_place() {
        let mut waiting = Waiting::default();
        for number in 0..2 {
            waiting.push(entry(number, of(1)));
        }
        let first = waiting.entries[0].id;
        let turn = waiting.next(|_| 0, |one| one.id != first).unwrap();
        assert_ne!(waiting.take(turn).id, first);
        assert_eq!(waiting.next(|_| 0, |one| one.id != first), None);
        let turn = waiting.next(|_| 0, |_| true).unwrap();
        assert_eq!(waiting.entry(&turn).id, first);
    }

    #[test]
    fn within_a_tenant_priority_counts_and_then_the_deadline() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let due = |seconds| Some(now + Duration::from_secs(seconds));
        let with = |priority, deadline| Share {
            priority,
            deadline,
            ..of(1)
        };
        let shares = [
            with(0, None),
            with(0, due(9)),
            with(5, None),
            with(0, due(3)),
            with(-1, due(1)),
        ];
        assert_eq!(admitted(&shares), [2, 3, 1, 0, 4]);
    }

    #[test]
    fn a_priority_does_not_reach_into_another_tenants_share() {
        let urgent = Share { priority: 10, ..of(2) };
        assert_eq!(admitted(&[of(1), urgent, urgent, of(1)]), [0, 1, 2, 3]);
    }

    #[test]
    fn interactive_goes_first_and_batch_is_never_left_out() {
        let batch = |tenant| Share {
            class: Class::Batch,
            ..of(tenant)
        };
        let shares = [batch(1), batch(1), of(1), of(1), of(1), of(1), of(1)];
        assert_eq!(admitted(&shares), [2, 3, 4, 0, 5, 6, 1]);
    }
}
