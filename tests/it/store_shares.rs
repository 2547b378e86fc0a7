//! Fair shares where jobs wait for the broker: no tenant, however long its list, stands in front of another.

use claimcheck_common::domain::{Class, JobId, QueueName, TenantId};
use claimcheck_common::store::accounts::Account;
use claimcheck_common::store::idempotency::Answer;
use claimcheck_common::store::jobs::WaitingReason;
use claimcheck_common::store::operators::{self, TenantLimits};
use claimcheck_common::store::outbox::Look;
use claimcheck_common::store::quota::Refusal;
use claimcheck_common::store::submit::{JobOptions, NewJob, Submitted};
use claimcheck_common::store::{Pool, outbox, rescue, submit};
use claimcheck_tests::in_world;
use futures::future::join_all;
use sqlx::AssertSqlSafe;

use crate::store::{accept, account, alone, claim_one, count, new_job, settle_completed, view};

const WINDOW: u32 = 8;

fn queue(class: Class) -> QueueName {
    QueueName {
        model: "m".to_owned(),
        class,
    }
}

/// One turn of the relay at the queue of class `interactive`.
async fn release(pool: &Pool) -> Vec<JobId> {
    release_of(pool, Class::Interactive).await
}

/// One turn of the relay at a queue, as if the broker had confirmed all: the jobs it released.
async fn release_of(pool: &Pool, class: Class) -> Vec<JobId> {
    let mut transaction = pool.begin().await.unwrap();
    let rows = outbox::take(&mut transaction, &queue(class), Look::All, WINDOW, 256)
        .await
        .unwrap()
        .rows;
    outbox::confirm(&mut transaction, &alone(&rows)).await.unwrap();
    transaction.commit().await.unwrap();
    rows.into_iter().map(|row| row.job_id).collect()
}

/// Queues copies of one job, without a round trip each.
async fn queue_many(pool: &Pool, account: &Account, jobs: u32) {
    let first = accept(pool, new_job(account)).await.key.id.uuid();
    for sql in [
        format!(
            "INSERT INTO jobs (id, tenant_id, project_id, user_id, model, model_revision, class, status, prompt_tokens)
             SELECT gen_random_uuid(), tenant_id, project_id, user_id, model, model_revision, class, status, prompt_tokens
             FROM jobs, generate_series(2, {jobs}) WHERE id = '{first}'"
        ),
        format!(
            "INSERT INTO job_inputs (job_id, prompt, parameters) SELECT j.id, i.prompt, i.parameters
             FROM jobs j, job_inputs i WHERE i.job_id = '{first}' AND j.id <> '{first}'"
        ),
        format!(
            "INSERT INTO outbox (job_id, model, class, tenant_id) SELECT id, model, class, tenant_id
             FROM jobs WHERE id <> '{first}'"
        ),
    ] {
        sqlx::query(AssertSqlSafe(sql)).execute(pool).await.unwrap();
    }
}

async fn limit(pool: &Pool, account: &Account, limits: TenantLimits) {
    operators::set_limits(pool, account.tenant_id, limits, account.user_id)
        .await
        .unwrap();
}

#[tokio::test]
async fn fifty_thousand_jobs_of_one_tenant_keep_another_waiting_for_one_window_at_most() {
    in_world(async |world| {
        let pool = &world.pool;
        let (many, few) = (account(pool).await, account(pool).await);
        queue_many(pool, &many, 50_000).await;
        let mut released = release(pool).await;
        assert_eq!(released.len(), WINDOW as usize);
        let single = accept(pool, new_job(&few)).await.key.id;
        assert_eq!(release(pool).await, [], "the window is full");
        // The broker hands out in the order of release; each claim makes room for one.
        let mut claimed = 0;
        loop {
            let next = released.remove(0);
            if next == single {
                break;
            }
            claim_one(pool, next).await.expect("it waits");
            claimed += 1;
            released.extend(release(pool).await);
        }
        assert_eq!(claimed, WINDOW, "what was released before it, and nothing else");
    })
    .await;
}

#[tokio::test]
async fn a_relay_knows_whether_it_left_anything() {
    in_world(async |world| {
        let pool = &world.pool;
        let account = account(pool).await;
        for _ in 0..3 {
            accept(pool, new_job(&account)).await;
        }
        let mut transaction = pool.begin().await.unwrap();
        let queue = queue(Class::Interactive);
        let mut left = Vec::new();
        for most in [2, 1, 1] {
            let taken = outbox::take(&mut transaction, &queue, Look::All, WINDOW, most)
                .await
                .unwrap();
            outbox::confirm(&mut transaction, &alone(&taken.rows)).await.unwrap();
            left.push((taken.rows.len(), taken.left));
        }
        assert_eq!(left, [(2, true), (1, false), (0, false)]);
    })
    .await;
}

#[tokio::test]
async fn a_relay_that_looks_at_what_is_new_takes_it_by_the_same_rules() {
    in_world(async |world| {
        let pool = &world.pool;
        let (many, few) = (account(pool).await, account(pool).await);
        for _ in 0..3 {
            accept(pool, new_job(&many)).await;
        }
        let mut transaction = pool.begin().await.unwrap();
        let queue = queue(Class::Interactive);
        let old = outbox::take(&mut transaction, &queue, Look::All, WINDOW, 1)
            .await
            .unwrap();
        transaction.rollback().await.unwrap();

        let first = old.rows[0].id + 1;
        let third = accept(pool, new_job(&few)).await.key.id;
        let mut transaction = pool.begin().await.unwrap();
        let look = Look::From(first);
        let new = outbox::take(&mut transaction, &queue, look, WINDOW, 100).await.unwrap();
        let sent = alone(&new.rows);
        assert!(
            sent.iter().all(|(row, _)| row.id >= first) && sent.len() == 3 && !new.left,
            "{new:?}"
        );
        assert_eq!(new.rows[1].job_id, third, "tenant by tenant in turn");
        let new = outbox::take(&mut transaction, &queue, look, 2, 100).await.unwrap();
        assert_eq!(
            (new.rows.len(), new.left),
            (2, true),
            "no more than the window has room for"
        );
        outbox::confirm(&mut transaction, &sent).await.unwrap();
        let none = outbox::take(&mut transaction, &queue, look, WINDOW, 100).await.unwrap();
        assert_eq!((none.rows.len(), none.left), (0, true), "an older one is there");
    })
    .await;
}

#[tokio::test]
async fn tenants_share_the_window_evenly_and_priority_and_deadline_order_ones_own_jobs() {
    in_world(async |world| {
        let pool = &world.pool;
        let (many, few) = (account(pool).await, account(pool).await);
        for _ in 0..20 {
            accept(pool, new_job(&many)).await;
        }
        let soon = Some(time::OffsetDateTime::now_utc() + std::time::Duration::from_mins(5));
        let mut own = Vec::new();
        for (priority, deadline_at) in [(0, None), (0, soon), (5, None)] {
            let options = JobOptions {
                priority,
                deadline_at,
                ..JobOptions::default()
            };
            let job = NewJob {
                options,
                ..new_job(&few)
            };
            own.push(accept(pool, job).await.key.id);
        }
        let released = release(pool).await;
        assert_eq!(released.len(), WINDOW as usize);
        let of_few: Vec<_> = released.iter().filter(|id| own.contains(id)).copied().collect();
        assert_eq!(
            of_few,
            [own[2], own[1], own[0]],
            "all of the one who has few, the urgent first"
        );
    })
    .await;
}

#[tokio::test]
async fn a_rescued_job_goes_before_all_that_came_later() {
    in_world(async |world| {
        let pool = &world.pool;
        let account = account(pool).await;
        let first = accept(pool, new_job(&account)).await.key.id;
        release(pool).await;
        claim_one(pool, first).await.unwrap();
        for _ in 0..3 * WINDOW {
            accept(pool, new_job(&account)).await;
        }
        sqlx::query(
            "UPDATE jobs SET lease_expires_at = now() - interval '1 second' WHERE lease_expires_at IS NOT NULL",
        )
        .execute(pool)
        .await
        .unwrap();
        rescue::rescue_lapsed(pool).await.unwrap();
        assert_eq!(release(pool).await[0], first);
    })
    .await;
}

#[tokio::test]
async fn what_is_beyond_a_tenants_running_limit_stays_and_goes_when_there_is_room() {
    in_world(async |world| {
        let pool = &world.pool;
        let account = account(pool).await;
        let limits = TenantLimits {
            max_running: Some(2),
            ..TenantLimits::default()
        };
        limit(pool, &account, limits).await;
        for _ in 0..4 {
            accept(pool, new_job(&account)).await;
        }
        let first = release(pool).await;
        assert_eq!(first.len(), 2);
        let key = claim_one(pool, first[0]).await.unwrap();
        assert_eq!(release(pool).await, [], "one is released and one runs");
        settle_completed(pool, key, "a text").await;
        assert_eq!(release(pool).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn what_waits_for_its_tenants_running_limit_says_so_until_there_is_room() {
    in_world(async |world| {
        let pool = &world.pool;
        sqlx::query(
            "INSERT INTO workers (id, model, model_revision, prefetch, ready_at)
             VALUES (gen_random_uuid(), 'm', 'r', 1, now())",
        )
        .execute(pool)
        .await
        .unwrap();
        let (limited, free) = (account(pool).await, account(pool).await);
        let limits = TenantLimits {
            max_running: Some(1),
            ..TenantLimits::default()
        };
        limit(pool, &limited, limits).await;
        let first = accept(pool, new_job(&limited)).await.key.id;
        let second = accept(pool, new_job(&limited)).await;
        assert_eq!(second.waiting, Some(WaitingReason::Capacity), "none runs yet");
        let second = second.key.id;
        let reason = async |id| view(pool, id).await.waiting;

        assert_eq!(release(pool).await, [first]);
        assert_eq!(reason(first).await, Some(WaitingReason::Capacity), "it has its turn");
        assert_eq!(reason(second).await, Some(WaitingReason::RateLimit));
        let key = claim_one(pool, first).await.unwrap();
        assert_eq!(reason(first).await, None, "it runs");
        assert_eq!(reason(second).await, Some(WaitingReason::RateLimit));
        let third = accept(pool, new_job(&limited)).await;
        assert_eq!(third.waiting, Some(WaitingReason::RateLimit), "at once");
        let other = accept(pool, new_job(&free)).await;
        assert_eq!(other.waiting, Some(WaitingReason::Capacity), "another tenant's limit");

        settle_completed(pool, key, "a text").await;
        assert_eq!(reason(second).await, Some(WaitingReason::Capacity));
    })
    .await;
}

#[tokio::test]
async fn a_tenants_running_limit_holds_over_all_its_queues() {
    in_world(async |world| {
        let pool = &world.pool;
        let account = account(pool).await;
        let limits = TenantLimits {
            max_running: Some(2),
            ..TenantLimits::default()
        };
        limit(pool, &account, limits).await;
        for class in [Class::Interactive, Class::Batch, Class::Batch] {
            let job = NewJob {
                class,
                ..new_job(&account)
            };
            accept(pool, job).await;
        }
        assert_eq!(release(pool).await.len(), 1);
        assert_eq!(
            release_of(pool, Class::Batch).await.len(),
            1,
            "the other place is taken"
        );
    })
    .await;
}

#[tokio::test]
async fn what_is_paused_stays_in_the_outbox_and_holds_up_nobody() {
    in_world(async |world| {
        let pool = &world.pool;
        let (paused, other) = (account(pool).await, account(pool).await);
        let stays = accept(pool, new_job(&paused)).await.key.id;
        let goes = accept(pool, new_job(&other)).await.key.id;
        let tenant: TenantId = paused.tenant_id;
        let value = tenant.uuid().to_string();
        let set = async |on| {
            operators::set_pause(pool, operators::PauseScope::Tenant, value.clone(), on, paused.user_id)
                .await
                .unwrap();
        };
        set(true).await;
        assert_eq!(release(pool).await, [goes]);
        set(false).await;
        assert_eq!(release(pool).await, [stays]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_submits_at_once_let_in_as_many_as_the_quota_has_room_for() {
    in_world(async |world| {
        let pool = &world.pool;
        let (limited, free) = (account(pool).await, account(pool).await);
        let limits = TenantLimits {
            max_queued: Some(100),
            ..TenantLimits::default()
        };
        limit(pool, &limited, limits).await;
        let submits = (0..1000).map(|_| submit::submit(pool, new_job(&limited), None, |_| Answer::default()));
        let outcomes = join_all(submits).await;
        let accepted = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, Ok(Submitted::Accepted(..))));
        assert_eq!(accepted.count(), 100);
        let refused = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, Ok(Submitted::Refused(Refusal::Queue(100)))));
        assert_eq!(refused.count(), 900);
        assert_eq!(count(pool, "SELECT count(*) FROM jobs").await, 100);
        accept(pool, new_job(&free)).await;
        // One that is taken up makes room for one.
        let waiting: uuid::Uuid = sqlx::query_scalar("SELECT id FROM jobs WHERE tenant_id = $1 LIMIT 1")
            .bind(limited.tenant_id.uuid())
            .fetch_one(pool)
            .await
            .unwrap();
        claim_one(pool, JobId::from_uuid(waiting)).await.unwrap();
        accept(pool, new_job(&limited)).await;
        let again = submit::submit(pool, new_job(&limited), None, |_| Answer::default()).await;
        assert!(matches!(again, Ok(Submitted::Refused(Refusal::Queue(100)))));
    })
    .await;
}
