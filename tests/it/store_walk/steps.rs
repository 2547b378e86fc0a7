//! What can happen to the store, and how often each is drawn.

use claimcheck_common::domain::Class;
use proptest::prelude::*;

/// Tenants, each with one user.
pub(crate) const TENANTS: usize = 2;

/// Draws one of several: taken modulo how many there are.
pub(crate) type Pick = u16;

/// A job as its caller wants it. Times are in hours.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub tenant: usize,
    pub class: Class,
    pub priority: i16,
    pub max_attempts: u32,
    /// An idempotency key and which of two bodies comes with it.
    pub key: Option<(u8, bool)>,
    pub scheduled_in: Option<i32>,
    pub deadline_in: Option<i32>,
    pub start_in: Option<i32>,
    pub store: bool,
    pub ttl: bool,
}

/// How a worker says that an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Completed,
    /// No other attempt can mend it.
    Failed,
    AttemptFailed,
    /// It was stopped: someone asked.
    Cancelled,
    /// It was stopped: its time was up.
    Expired,
}

/// What is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    Tenant(usize),
    Class(Class),
    Model,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Submit(Order),
    /// The relay takes all that is due and publishes it. If not `recorded`, it dies before its confirms are.
    Relay {
        recorded: bool,
    },
    /// A worker gets a message; one that is not `acked` comes again.
    Deliver {
        message: Pick,
        acked: bool,
    },
    /// The broker loses all that it has.
    Purge,
    Beat(Pick),
    /// Endings of any claims there ever were, in one group.
    Settle(Vec<(Pick, Ending)>),
    /// A worker that stops hands a claim back.
    Release(Pick),
    Cancel(Pick),
    CancelAll(usize),
    Retry(Pick),
    RetryAll(usize),
    Redrive,
    Erase(Pick),
    /// The owner fetches the output.
    Fetch(Pick),
    Pause(Pause, bool),
    /// How many of a tenant's jobs may wait.
    Limit(usize, Option<u32>),
    Hours(i32),
    Promote,
    Expire,
    Rescue,
    Reemit,
    EraseDue,
}

fn class() -> impl Strategy<Value = Class> {
    prop::sample::select(Class::ALL.to_vec())
}

fn hours() -> impl Strategy<Value = Option<i32>> {
    prop_oneof![3 => Just(None), 1 => (1..5).prop_map(Some)]
}

fn order() -> impl Strategy<Value = Order> {
    let key = prop::option::weighted(0.4, (0..3_u8, prop::bool::weighted(0.2)));
    let whose = (0..TENANTS, class(), -1..2_i16, 1..4_u32, key);
    let when = (hours(), hours(), hours(), any::<bool>(), prop::bool::weighted(0.2));
    (whose, when).prop_map(
        |((tenant, class, priority, max_attempts, key), (scheduled_in, deadline_in, start_in, store, ttl))| Order {
            tenant,
            class,
            priority,
            max_attempts,
            key,
            scheduled_in,
            deadline_in,
            start_in,
            store,
            ttl,
        },
    )
}

fn ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        4 => Just(Ending::Completed),
        1 => Just(Ending::Failed),
        4 => Just(Ending::AttemptFailed),
        2 => Just(Ending::Cancelled),
        2 => Just(Ending::Expired),
    ]
}

fn pause() -> impl Strategy<Value = Pause> {
    prop_oneof![
        (0..TENANTS).prop_map(Pause::Tenant),
        class().prop_map(Pause::Class),
        Just(Pause::Model),
    ]
}

/// One step. Simple ones come first: a failing walk shrinks towards them.
pub(crate) fn step() -> impl Strategy<Value = Step> {
    let pick = any::<Pick>;
    prop_oneof![
        20 => order().prop_map(Step::Submit),
        14 => prop::bool::weighted(0.8).prop_map(|recorded| Step::Relay { recorded }),
        24 => (pick(), prop::bool::weighted(0.7)).prop_map(|(message, acked)| Step::Deliver { message, acked }),
        18 => prop::collection::vec((pick(), ending()), 1..4).prop_map(Step::Settle),
        8 => (1..4_i32).prop_map(Step::Hours),
        8 => Just(Step::Rescue),
        5 => Just(Step::Expire),
        4 => Just(Step::Promote),
        4 => Just(Step::Reemit),
        6 => pick().prop_map(Step::Beat),
        4 => pick().prop_map(Step::Release),
        8 => pick().prop_map(Step::Cancel),
        1 => (0..TENANTS).prop_map(Step::CancelAll),
        3 => pick().prop_map(Step::Retry),
        1 => (0..TENANTS).prop_map(Step::RetryAll),
        2 => Just(Step::Redrive),
        4 => pick().prop_map(Step::Erase),
        2 => pick().prop_map(Step::Fetch),
        3 => Just(Step::EraseDue),
        3 => (pause(), any::<bool>()).prop_map(|(what, on)| Step::Pause(what, on)),
        2 => (0..TENANTS, prop::option::of(1..6_u32)).prop_map(|(tenant, most)| Step::Limit(tenant, most)),
        1 => Just(Step::Purge),
    ]
}
