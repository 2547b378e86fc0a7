//! Each guard is taken out, by a trigger, a function or a row of the test's own database, and what it guards must then break:
//! so the checks are known to see it. The fence has its own test (`faults/fence.rs`), and `store_walk.rs` walks without guards.

use claimcheck_common::domain::JobStatus;
use claimcheck_common::store::accounts::Account;
use claimcheck_common::store::idempotency::{Answer, Claim, ClaimedBy};
use claimcheck_common::store::operators::{self, TenantLimits};
use claimcheck_common::store::outbox::Look;
use claimcheck_common::store::submit::{NewJob, Submitted};
use claimcheck_common::store::{self, Pool, outbox, submit};
use claimcheck_tests::{Gate, Moment, World, eventually, in_world, promises};
use std::time::Duration;

use crate::store::{account, cancel, claim_one, claimed, count, new_job, settle_completed, submitted, view};

const LIMIT: Duration = Duration::from_secs(20);

/// Which of the promises are broken, in one text.
async fn broken(world: &World) -> String {
    promises::broken(&world.pool).await.join("; ")
}

async fn without(world: &World, guard: &str) {
    world.execute_as_owner(guard).await;
}

/// Puts a function of the test's own in front of one of Postgres. Connections that are made from now on use it.
async fn replace(world: &World, function: &str) -> Pool {
    let search = "DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database()); END $$";
    without(world, &format!("CREATE FUNCTION public.{function}; {search}")).await;
    store::connect(&world.database).unwrap()
}

/// An order that is sent under a key.
fn order(account: &Account) -> (NewJob, Claim) {
    let job = NewJob {
        metadata: Some([("order".to_owned(), "17".to_owned())].into()),
        ..new_job(account)
    };
    let claim = Claim {
        user_id: account.user_id,
        project_id: account.project_id,
        request_sha256: [7; 32],
        by: ClaimedBy::Key("order-17".to_owned(), Duration::from_hours(24)),
    };
    (job, claim)
}

fn answer(_: &store::jobs::JobView) -> Answer {
    Answer {
        status: 202,
        body: "{}".to_owned(),
        ..Answer::default()
    }
}

#[tokio::test]
async fn without_the_status_guard_of_the_settle_a_job_ends_twice() {
    in_world(async |world| {
        promises::watch(world).await;
        let twice = async || {
            let key = claimed(&world.pool).await;
            settle_completed(&world.pool, key, "once").await;
            settle_completed(&world.pool, key, "twice").await.len()
        };
        assert_eq!((twice().await, broken(world).await.as_str()), (0, ""));
        // The job does not look ended, and has one output and one receipt less to stumble over.
        without(
            world,
            "ALTER TABLE receipts DROP CONSTRAINT receipts_pkey, ALTER finished_at DROP NOT NULL;
             CREATE FUNCTION doctored() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN NEW.status := OLD.status; NEW.finished_at := NULL; NEW.lease_expires_at := OLD.lease_expires_at;
              DELETE FROM job_outputs WHERE job_id = NEW.id; RETURN NEW; END';
             CREATE TRIGGER doctored BEFORE UPDATE ON jobs FOR EACH ROW
                 WHEN (OLD.status = 'in_progress' AND NEW.finished_at IS NOT NULL) EXECUTE FUNCTION doctored()",
        )
        .await;
        assert_eq!(twice().await, 1);
        let broken = broken(world).await;
        assert!(broken.contains("one event and one audit row"), "{broken}");
    })
    .await;
}

#[tokio::test]
async fn without_the_status_check_of_the_claim_two_workers_have_one_job() {
    in_world(async |world| {
        promises::watch(world).await;
        let twice = async || {
            let id = submitted(&world.pool).await.key.id;
            let claims = [claim_one(&world.pool, id).await, claim_one(&world.pool, id).await];
            claims.iter().flatten().count()
        };
        assert_eq!((twice().await, broken(world).await.as_str()), (1, ""));
        without(
            world,
            "CREATE FUNCTION doctored() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN NEW.status := ''queued''; NEW.lease_expires_at := NULL; RETURN NEW; END';
             CREATE TRIGGER doctored BEFORE UPDATE ON jobs FOR EACH ROW
                 WHEN (NEW.status = 'in_progress') EXECUTE FUNCTION doctored()",
        )
        .await;
        assert_eq!(twice().await, 2);
        let broken = broken(world).await;
        assert!(broken.contains("every attempt but the newest has ended"), "{broken}");
    })
    .await;
}

#[tokio::test]
async fn without_the_rows_of_the_keys_an_order_becomes_two_jobs() {
    in_world(async |world| {
        let twice = async || {
            let account = account(&world.pool).await;
            for _ in 0..2 {
                let (job, claim) = order(&account);
                submit::submit(&world.pool, job, Some(claim), answer).await.unwrap();
            }
            broken(world).await
        };
        assert_eq!(twice().await, "");
        without(
            world,
            "CREATE FUNCTION doctored() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER doctored BEFORE INSERT ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION doctored()",
        )
        .await;
        let broken = twice().await;
        assert!(broken.contains("an order that was sent under one key"), "{broken}");
    })
    .await;
}

/// Two submits meet before the first has committed. Answers how many were accepted.
async fn two_at_once(world: &World, pool: &Pool, account: &Account, with_key: bool) -> usize {
    let mut gate = Gate::shut(world, Moment::Statement, "INSERT ON jobs", "true").await;
    let send = || {
        let (pool, (job, claim)) = (pool.clone(), order(account));
        let claim = with_key.then_some(claim);
        tokio::spawn(async move { submit::submit(&pool, job, claim, answer).await.unwrap() })
    };
    let first = send();
    gate.reached().await;
    let second = send();
    eventually("the second waits or is answered", LIMIT, async || {
        (second.is_finished() || gate.waiting().await == 2).then_some(())
    })
    .await;
    gate.open().await;
    let outcomes = [first.await.unwrap(), second.await.unwrap()];
    let accepted = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Submitted::Accepted(..)));
    accepted.count()
}

#[tokio::test]
async fn without_the_lock_of_the_keys_an_order_that_is_sent_twice_at_once_becomes_two_jobs() {
    in_world(async |world| {
        let first = account(&world.pool).await;
        assert_eq!(two_at_once(world, &world.pool, &first, true).await, 1);
        assert_eq!(broken(world).await, "");
        let function = "pg_try_advisory_xact_lock(bigint) RETURNS boolean LANGUAGE sql AS 'SELECT true'";
        let unguarded = replace(world, function).await;
        let second = account(&world.pool).await;
        assert_eq!(two_at_once(world, &unguarded, &second, true).await, 2);
        let broken = broken(world).await;
        assert!(broken.contains("an order that was sent under one key"), "{broken}");
    })
    .await;
}

#[tokio::test]
async fn without_the_line_at_the_quota_two_are_let_in_where_one_may() {
    in_world(async |world| {
        let limited = async || {
            let account = account(&world.pool).await;
            let limits = TenantLimits {
                max_queued: Some(1),
                ..TenantLimits::default()
            };
            let by = account.user_id;
            operators::set_limits(&world.pool, account.tenant_id, limits, by)
                .await
                .unwrap();
            account
        };
        assert_eq!(two_at_once(world, &world.pool, &limited().await, false).await, 1);
        let function = "pg_advisory_xact_lock(bigint) RETURNS void LANGUAGE sql AS ''";
        let unguarded = replace(world, function).await;
        assert_eq!(two_at_once(world, &unguarded, &limited().await, false).await, 2);
    })
    .await;
}

/// A relay that dies before the broker has its message, which it forgets first if it is `hasty`.
async fn a_relay_dies(world: &World, hasty: bool) {
    let mut transaction = world.pool.begin().await.unwrap();
    for queue in outbox::queues(&world.pool).await.unwrap() {
        let taken = outbox::take(&mut transaction, &queue, Look::All, 100, 100)
            .await
            .unwrap();
        assert_eq!(taken.rows.len(), 1);
    }
    if hasty {
        sqlx::query("DELETE FROM outbox")
            .execute(&mut *transaction)
            .await
            .unwrap();
        transaction.commit().await.unwrap();
    } else {
        transaction.rollback().await.unwrap();
    }
}

#[tokio::test]
async fn without_the_confirm_before_the_delete_a_job_is_lost() {
    in_world(async |world| {
        submitted(&world.pool).await;
        a_relay_dies(world, false).await;
        assert_eq!(broken(world).await, "");
        a_relay_dies(world, true).await;
        let broken = broken(world).await;
        assert!(broken.contains("in the outbox or with the broker"), "{broken}");
    })
    .await;
}

#[tokio::test]
async fn without_the_finality_of_a_cancel_a_job_that_was_being_cancelled_completes() {
    in_world(async |world| {
        promises::watch(world).await;
        let pool = &world.pool;
        let cancelled = async |forgetful: bool| {
            let key = claimed(pool).await;
            cancel(pool, key.id).await;
            if forgetful {
                let sql = "UPDATE jobs SET status = 'in_progress' WHERE status = 'cancelling'";
                sqlx::query(sql).execute(pool).await.unwrap();
            }
            settle_completed(pool, key, "a text").await;
            view(pool, key.id).await.status
        };
        assert_eq!(cancelled(false).await, JobStatus::Cancelled);
        assert_eq!(broken(world).await, "");
        assert_eq!(cancelled(true).await, JobStatus::Completed);
        let broken = broken(world).await;
        assert!(broken.contains("went from cancelling to in_progress"), "{broken}");
        assert_eq!(count(pool, "SELECT count(*) FROM events").await, 2);
    })
    .await;
}
