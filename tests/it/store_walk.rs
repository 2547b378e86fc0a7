//! A random walk of the whole store beside a model of it: submits, deliveries, endings of old and new claims, cancels, lapses
//! and lost messages in any order, with hours passing in between.
//!
//! After each step the store must answer as the model does, hold the same jobs, and keep every promise of
//! `tests/src/promises.rs`; after the last one every job must come to its end. A walk that fails is shrunk. `tests/walk` takes
//! more of them, drawn from a seed.

mod model;
mod steps;
mod walker;

use claimcheck_tests::{World, in_world, promises, setting};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use steps::{Step, step};
use tokio::runtime::Handle;
use walker::Walker;

/// Walks among the other tests, and steps of each.
const CASES: u32 = 32;
const STEPS: usize = 60;

/// Steps on the way to a shorter walk that fails.
const SHRINKS: u32 = 400;

/// Takes walks that are drawn from `seed` until one fails. Answers that one, shrunk, and what is wrong with it.
fn walks(world: &World, cases: u32, shrinks: u32, seed: u64) -> Result<(), (Vec<Step>, String)> {
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: shrinks,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let taken = TestRunner::new_with_rng(config, random).run(&prop::collection::vec(step(), 1..STEPS), |steps| {
        let walk = async { Walker::begin(world).await.walk(&steps).await };
        Handle::current().block_on(walk).map_err(TestCaseError::fail)
    });
    taken.map_err(|error| match error {
        TestError::Fail(reason, steps) => (steps, reason.message().to_owned()),
        TestError::Abort(reason) => (Vec::new(), reason.message().to_owned()),
    })
}

async fn walk_in_a_world(cases: u32, seed: u64) {
    in_world(async |world| {
        promises::watch(world).await;
        if let Err((steps, wrong)) = tokio::task::block_in_place(|| walks(world, cases, SHRINKS, seed)) {
            panic!("{wrong}\n\nafter these steps of seed {seed}: {steps:#?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_walks_of_the_store_go_where_the_model_goes() {
    walk_in_a_world(CASES, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "as long as it was asked for: tests/walk"]
async fn as_many_walks_as_asked_for_go_where_the_model_goes() {
    let number = |name: &str, default: u64| setting(name).map_or(default, |text| text.parse().expect("a number"));
    walk_in_a_world(number("WALK_CASES", 1000) as u32, number("WALK_SEED", 1)).await;
}

/// Walks before a missing guard must have been found; most are found by the first few.
const MOST: u32 = 8 * CASES;

/// A guard taken out by a trigger, and what must be found.
const WITHOUT: [(&str, &str, &str); 7] = [
    (
        "a fence that grows",
        "CREATE FUNCTION doctored() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN NEW.fence := least(NEW.fence, 1); RETURN NEW; END';
         CREATE TRIGGER doctored BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION doctored()",
        "the store answers Claimed(Some(1)), the model Claimed(Some(2))",
    ),
    (
        "an ending that lasts",
        "CREATE FUNCTION doctored() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN NEW.status := OLD.status; NEW.finished_at := NULL; NEW.lease_expires_at := OLD.lease_expires_at; RETURN NEW; END';
         CREATE TRIGGER doctored BEFORE UPDATE ON jobs FOR EACH ROW
             WHEN (OLD.status = 'in_progress' AND NEW.finished_at IS NOT NULL) EXECUTE FUNCTION doctored()",
        "in_progress",
    ),
    (
        "an entrance for what was rescued",
        "CREATE FUNCTION doctored() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN DELETE FROM outbox WHERE job_id = NEW.id; RETURN NULL; END';
         CREATE CONSTRAINT TRIGGER doctored AFTER UPDATE ON jobs DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
             WHEN (OLD.lapses < NEW.lapses) EXECUTE FUNCTION doctored()",
        "outbox: 0",
    ),
    (
        "cancels that are final",
        "CREATE FUNCTION doctored() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN NEW.status := ''completed''; RETURN NEW; END';
         CREATE TRIGGER doctored BEFORE UPDATE ON jobs FOR EACH ROW
             WHEN (OLD.status = 'cancelling' AND NEW.status = 'cancelled') EXECUTE FUNCTION doctored()",
        r#"status: "completed""#,
    ),
    (
        "a lease check",
        "CREATE FUNCTION doctored() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN NEW.lease_expires_at := now() - interval ''1 second''; RETURN NEW; END';
         CREATE TRIGGER doctored BEFORE UPDATE ON jobs FOR EACH ROW
             WHEN (NEW.lease_expires_at IS NOT NULL) EXECUTE FUNCTION doctored()",
        "the model Rescued(0, 0)",
    ),
    (
        "one event for each ending",
        "CREATE FUNCTION doctored() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN INSERT INTO events SELECT gen_random_uuid(), NEW.project_id, NEW.type, NEW.job_id; RETURN NULL; END';
         CREATE TRIGGER doctored AFTER INSERT ON events FOR EACH ROW WHEN (pg_trigger_depth() = 0)
             EXECUTE FUNCTION doctored()",
        "one event and one audit row",
    ),
    (
        "a refund for each ending",
        "CREATE FUNCTION doctored() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER doctored BEFORE DELETE ON reservations FOR EACH ROW EXECUTE FUNCTION doctored()",
        "of a budget that is reserved",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn without_any_one_guard_a_walk_goes_astray() {
    for (guard, sql, found) in WITHOUT {
        in_world(async |world| {
            promises::watch(world).await;
            world.execute_as_owner(sql).await;
            let (steps, wrong) = tokio::task::block_in_place(|| walks(world, MOST, 0, 1)).expect_err(guard);
            assert!(
                wrong.contains(found),
                "without {guard}: {wrong} after {} steps",
                steps.len()
            );
        })
        .await;
    }
}
