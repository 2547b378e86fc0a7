//! Group commit: submissions share transactions, and none suffers from another.

use std::time::Duration;

use claimcheck_tests::{World, eventually};
use reqwest::StatusCode;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::http_face::{Session, answer, with_api};

const LIMIT: Duration = Duration::from_secs(20);

async fn count(world: &World, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&world.pool).await.unwrap()
}

/// The statuses of so many submissions at once, with these priorities.
async fn at_once(session: &Session, priorities: impl Iterator<Item = i16>) -> Vec<StatusCode> {
    let submits = priorities.map(|priority| {
        let body = json!({"prompt": "hi", "priority": priority});
        answer(session.post("/v1/jobs").json(&body))
    });
    let answers = futures::future::join_all(submits).await;
    answers.into_iter().map(|(status, _)| status).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn submissions_that_come_together_share_transactions() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let statuses = at_once(&ada, (0..200).map(|_| 0)).await;
        assert!(statuses.iter().all(|status| *status == StatusCode::ACCEPTED));
        for table in ["jobs", "job_inputs", "audit_log WHERE action = 'job.submitted'"] {
            let sql = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
            let rows: i64 = sqlx::query_scalar(sql).fetch_one(&world.pool).await.unwrap();
            assert_eq!(rows, 200, "{table}");
        }
        let transactions = count(world, "SELECT count(DISTINCT xmin::text) FROM job_inputs").await;
        assert!(transactions <= 100, "{transactions} transactions for 200 submissions");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_to_a_submit_is_the_job_as_a_look_at_it_shows() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let later = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
        let full = json!({
            "prompt": [1, 2, 3], "max_tokens": 7, "temperature": 0.25, "top_p": 0.5, "top_k": 9, "n": 2,
            "stop": ["a", "b"], "seed": -5, "metadata": {"order": "17"}, "scheduled_at": later, "priority": -3,
            "deadline_at": later + 60, "start_by": later + 50, "class": "batch", "max_attempts": 2, "store": false,
            "ttl": 90, "min_p": 0.05, "repetition_penalty": 1.1, "presence_penalty": -0.5, "frequency_penalty": 0.3,
            "logit_bias": {"7": -100, "9": 1.5}, "logprobs": 2, "stop_token_ids": [0]
        });
        for body in [json!({"prompt": "hi"}), full] {
            let (status, answered) = answer(ada.post("/v1/jobs").json(&body)).await;
            assert_eq!(status, StatusCode::ACCEPTED, "{answered}");
            assert_eq!(ada.job(answered["id"].as_str().unwrap()).await, answered);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_that_the_database_refuses_fails_alone() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'doctored'; END $$;
            CREATE TRIGGER refuse BEFORE INSERT ON jobs FOR EACH ROW WHEN (NEW.priority = 7)
            EXECUTE FUNCTION refuse()";
        world.execute_as_owner(refuse).await;
        let statuses = at_once(&ada, (0..100).map(|number| if number % 10 == 0 { 7 } else { 0 })).await;
        for (number, status) in statuses.into_iter().enumerate() {
            let wanted = if number % 10 == 0 {
                StatusCode::INTERNAL_SERVER_ERROR
            } else {
                StatusCode::ACCEPTED
            };
            assert_eq!(status, wanted, "submission {number}");
        }
        assert_eq!(count(world, "SELECT count(*) FROM jobs").await, 90);
        assert_eq!(count(world, "SELECT count(*) FROM job_inputs").await, 90);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_that_is_held_up_waits_alone() {
    with_api(async |world, api| {
        let (ada, bob) = (api.user("ada").await, api.user("bob").await);
        // Bob's submissions stand in line behind somebody who asks for room for the same tenant.
        world
            .execute_as_owner(
                "INSERT INTO tenant_limits (tenant_id, max_queued) SELECT tenant_id, 100 FROM users WHERE username = 'bob'",
            )
            .await;
        let mut in_the_way = PgConnection::connect(world.database.owner_url()).await.unwrap();
        let lock = "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('quota:' || tenant_id::text, 0))
                    FROM users WHERE username = 'bob'";
        sqlx::raw_sql(lock).execute(&mut in_the_way).await.unwrap();
        let held = tokio::spawn(async move { at_once(&bob, (0..3).map(|_| 0)).await });
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        eventually("bob's submission waits", LIMIT, async || {
            (count(world, waits).await > 0).then_some(())
        })
        .await;
        for _ in 0..3 {
            let statuses = at_once(&ada, (0..50).map(|_| 0)).await;
            assert!(
                statuses.iter().all(|status| *status == StatusCode::ACCEPTED),
                "{statuses:?}"
            );
        }
        assert!(!held.is_finished());
        sqlx::raw_sql("ROLLBACK").execute(&mut in_the_way).await.unwrap();
        assert_eq!(held.await.unwrap(), [StatusCode::ACCEPTED; 3]);
        assert_eq!(count(world, "SELECT count(*) FROM jobs").await, 153);
    })
    .await;
}

/// Lets a statement that writes a job of priority 7 go on for as long as `slowness` has a row, and counts its tries: also
/// undone ones.
const DAWDLE: &str = "CREATE TABLE slowness AS SELECT now();
    CREATE SEQUENCE tries;
    GRANT SELECT ON slowness TO PUBLIC;
    GRANT ALL ON SEQUENCE tries TO PUBLIC;
    CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM nextval('tries');
        WHILE EXISTS (SELECT FROM slowness) LOOP PERFORM pg_sleep(0.05); END LOOP;
        RETURN NEW;
    END $$;
    CREATE TRIGGER dawdle BEFORE INSERT ON jobs FOR EACH ROW WHEN (NEW.priority = 7) EXECUTE FUNCTION dawdle()";

async fn until_tried(world: &World, times: i64) {
    let tries = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM tries";
    eventually(&format!("{times} tries"), LIMIT, async || {
        (count(world, tries).await >= times).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_whose_statement_is_slow_gives_way_to_others_and_is_accepted_in_the_end() {
    // Two groups may be in the way, each for two seconds.
    const GIVEN_WAY: Duration = Duration::from_secs(10);
    with_api(async |world, api| {
        let (ada, bob) = (api.user("ada").await, api.user("bob").await);
        world.execute_as_owner(DAWDLE).await;
        let slow = || {
            let bob = bob.clone();
            tokio::spawn(async move { at_once(&bob, [7].into_iter()).await })
        };
        let first = slow();
        until_tried(world, 1).await;
        // These come meanwhile and make a group with the second one.
        let second = slow();
        let beside = tokio::time::timeout(GIVEN_WAY, at_once(&ada, (0..50).map(|_| 0))).await;
        assert_eq!(
            beside.expect("the others need not wait for it"),
            [StatusCode::ACCEPTED; 50]
        );
        assert!(!first.is_finished() && !second.is_finished());
        // The first in its group, alone for a short time and alone for a long one; the second in its group and alone.
        until_tried(world, 5).await;
        world.execute_as_owner("DELETE FROM slowness").await;
        for slow in [first, second] {
            assert_eq!(slow.await.unwrap(), [StatusCode::ACCEPTED]);
        }
        assert_eq!(count(world, "SELECT count(*) FROM jobs").await, 52);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_hangs_up_spoils_no_other() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        for _ in 0..5 {
            let leaving: Vec<_> = (0..20)
                .map(|_| tokio::spawn(ada.post("/v1/jobs").json(&json!({"prompt": "bye"})).send()))
                .collect();
            let staying = at_once(&ada, (0..20).map(|_| 1));
            let leave = async {
                tokio::task::yield_now().await;
                for task in leaving {
                    task.abort();
                }
            };
            let (statuses, ()) = futures::future::join(staying, leave).await;
            assert!(
                statuses.iter().all(|status| *status == StatusCode::ACCEPTED),
                "{statuses:?}"
            );
        }
        assert_eq!(count(world, "SELECT count(*) FROM jobs WHERE priority = 1").await, 100);
        let halves = "SELECT count(*) FROM jobs j FULL JOIN job_inputs i ON i.job_id = j.id
                      WHERE j.id IS NULL OR i.job_id IS NULL";
        assert_eq!(count(world, halves).await, 0);
    })
    .await;
}
