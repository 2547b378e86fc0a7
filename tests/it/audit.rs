//! The audit log: who may read what, and whether anybody can touch it unseen.

use std::time::Duration;

use claimcheck_common::domain::TenantId;
use claimcheck_common::store::Pool;
use claimcheck_common::store::audit::{self, By, Entry};
use claimcheck_common::store::seal::{self, Finding, Head, Verdict};
use claimcheck_tests::{World, in_world};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::http_face::{PASSWORD, Session, answer, code, with_api};
use crate::http_operators::{a_job, admin, complete};

/// What the log shows, newest first.
async fn rows(session: &Session, query: &str) -> Vec<Value> {
    let (status, body) = answer(session.get(&format!("/v1/audit{query}"))).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body["data"].as_array().unwrap().clone()
}

fn actions(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["action"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_action_tells_who_did_it_by_what_from_where_and_in_which_request() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let submit = ada.post("/v1/jobs").header("x-request-id", "order-17").json(&a_job());
        let id = answer(submit).await.1["id"].as_str().unwrap().to_owned();
        complete(&world.pool, &id).await;
        ada.request(Method::DELETE, &format!("/v1/jobs/{id}"))
            .send()
            .await
            .unwrap();
        let other = ada.submit(&a_job()).await;
        ada.post(&format!("/v1/jobs/{other}/cancel")).send().await.unwrap();
        let refused = answer(api.token("ada", "wrong")).await.0;
        assert_eq!(refused, StatusCode::UNAUTHORIZED);
        let all = rows(&ada, "").await;
        assert_eq!(
            actions(&all),
            [
                "session.begun",
                "job.cancelled",
                "job.submitted",
                "job.erased",
                "job.completed",
                "job.submitted",
                "session.begun",
                "user.registered"
            ]
        );
        assert_eq!(
            (&all[0]["outcome"], &all[0]["actor"]),
            (&json!("refused"), &json!("anonymous"))
        );
        for row in all.iter().filter(|row| row["action"] != "job.completed") {
            assert_eq!(row["address"], "127.0.0.1", "{row}");
            assert!(row["request_id"].is_string(), "{row}");
        }
        for row in all
            .iter()
            .filter(|row| row["action"].as_str().unwrap().starts_with("job."))
        {
            let by_user = row["actor"].as_str().unwrap().starts_with("user:");
            assert_eq!(by_user, row["action"] != "job.completed", "{row}");
            assert_eq!(row["credential"] == "token", by_user, "{row}");
        }
        let of_request = rows(&ada, "?request_id=order-17").await;
        assert_eq!(actions(&of_request), ["job.submitted"]);
        assert_eq!(
            actions(&rows(&ada, &format!("?subject={other}")).await),
            ["job.cancelled", "job.submitted"]
        );
        assert_eq!(rows(&ada, "?action=session.&outcome=refused").await.len(), 1);
        assert_eq!(rows(&ada, "?since=4000000000").await.len(), 0);
        let log = serde_json::to_string(&all).unwrap();
        assert!(!log.contains("Once upon a time") && !log.contains(PASSWORD) && !log.contains(&ada.token));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logouts_passwords_stolen_tokens_webhooks_and_batches_tell_from_where_they_came() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let hook = json!({"url": "https://example.org/"});
        let (_, made) = answer(ada.post("/v1/webhook_endpoints").json(&hook)).await;
        let path = format!("/v1/webhook_endpoints/{}", made["id"].as_str().unwrap());
        answer(ada.request(Method::PATCH, &path).json(&json!({"description": "mine"}))).await;
        answer(ada.post(&format!("{path}/secret/rotate")).json(&json!({}))).await;
        ada.request(Method::DELETE, &path).send().await.unwrap();
        let batch = json!({"requests": [{"custom_id": "a", "body": {"prompt": "Once"}}]});
        let (_, batch) = answer(ada.post("/v1/batches").json(&batch)).await;
        for verb in ["pause", "resume", "cancel"] {
            answer(ada.post(&format!("/v1/batches/{}/{verb}", batch["id"].as_str().unwrap()))).await;
        }
        let (_, first) = answer(api.token("ada", PASSWORD)).await;
        let token = format!(
            "grant_type=refresh_token&refresh_token={}",
            first["refresh_token"].as_str().unwrap()
        );
        for _ in 0..2 {
            let form = api
                .post("/v1/auth/token")
                .header("content-type", "application/x-www-form-urlencoded");
            answer(form.body(token.clone())).await;
            world
                .execute_as_owner("UPDATE refresh_tokens SET used_at = used_at - interval '1 minute'")
                .await;
        }
        let change = json!({"current_password": PASSWORD, "new_password": "another horse"});
        ada.post("/v1/auth/password").json(&change).send().await.unwrap();
        let (_, again) = answer(api.token("ada", "another horse")).await;
        let ada = ada.with_token(again["access_token"].as_str().unwrap());
        let all = rows(&ada, "?limit=100").await;
        ada.post("/v1/auth/logout").send().await.unwrap();
        let logout: (String, Option<String>, Option<String>, Option<String>) = sqlx::query_as(
            "SELECT actor, credential, address, request_id FROM audit_log WHERE details->>'because' = 'logout'",
        )
        .fetch_one(&world.pool)
        .await
        .unwrap();
        assert!(logout.0.starts_with("user:") && logout.3.is_some(), "{logout:?}");
        assert_eq!(
            (logout.1.as_deref(), logout.2.as_deref()),
            (Some("token"), Some("127.0.0.1"))
        );
        for action in [
            "webhook_endpoint.created",
            "webhook_endpoint.updated",
            "webhook_endpoint.secret_rotated",
            "webhook_endpoint.deleted",
            "batch.created",
            "batch.paused",
            "batch.resumed",
            "batch.cancel_requested",
            "user.password",
            "session.ended",
        ] {
            let row = all.iter().find(|row| row["action"] == action);
            let row = row.unwrap_or_else(|| panic!("no {action} in {all:?}"));
            assert_eq!(row["address"], "127.0.0.1", "{row}");
            assert!(row["request_id"].is_string(), "{row}");
            // Who shows a used token is not known to be its user.
            let stolen = action == "session.ended";
            assert_eq!(row["credential"] == "token", !stolen, "{row}");
            assert_eq!(row["actor"] == "anonymous", stolen, "{row}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_reads_their_own_log_and_auditors_read_all() {
    with_api(async |world, api| {
        let (ada, eve) = (api.user("ada").await, api.user("eve").await);
        let job = ada.submit(&a_job()).await;
        assert!(rows(&eve, &format!("?subject={job}")).await.is_empty());
        let tenant: uuid::Uuid = sqlx::query_scalar("SELECT tenant_id FROM users WHERE username = 'ada'")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        let foreign = format!("?tenant={}", TenantId::from_uuid(tenant));
        let (status, body) = answer(eve.get(&format!("/v1/audit{foreign}"))).await;
        assert_eq!((status, code(&body)), (StatusCode::FORBIDDEN, "auditor_only"));
        assert!(!rows(&ada, &foreign).await.is_empty());
        let eve = admin(world, eve).await;
        assert_eq!(
            actions(&rows(&eve, &format!("{foreign}&limit=1")).await),
            ["job.submitted"]
        );
        assert!(rows(&eve, "?action=user.role").await.len() == 1);
        let (status, body) = answer(eve.get("/v1/audit?limit=2")).await;
        assert_eq!((status, &body["has_more"]), (StatusCode::OK, &json!(true)));
        let last = body["last_id"].as_str().unwrap();
        let next = rows(&eve, &format!("?limit=100&after={last}")).await;
        assert_eq!(next.len() + 2, rows(&eve, "?limit=100").await.len());
        for bad in [
            "?limit=0",
            "?after=x",
            "?outcome=maybe",
            "?since=x",
            // Before the years that Postgres knows.
            "?since=-300000000000",
            "?subject=x",
            "?colour=red",
        ] {
            assert_eq!(
                answer(eve.get(&format!("/v1/audit{bad}"))).await.0,
                StatusCode::BAD_REQUEST,
                "{bad}"
            );
        }
    })
    .await;
}

async fn write(pool: &Pool, count: usize) {
    for number in 0..count {
        let entry = Entry::done(None, "test.done", None).with(json!({"number": number, "b": {"z": 1, "a": [1.50]}}));
        audit::record(pool, &By::service(), entry).await.unwrap();
    }
}

async fn seal_all(pool: &Pool) {
    while seal::seal(pool, Duration::ZERO).await.unwrap() > 0 {}
}

async fn verify(pool: &Pool, noted: Option<&Head>) -> Verdict {
    seal::verify(pool, noted).await.unwrap()
}

/// A sealed log, tampered with by its owner: what is found.
async fn tampered(sql: &'static str) -> Option<Finding> {
    let mut finding = None;
    in_world(async |world| {
        write(&world.pool, 20).await;
        seal_all(&world.pool).await;
        let head = verify(&world.pool, None).await;
        assert_eq!((head.finding, head.rows), (None, 20));
        world.execute_as_owner(sql).await;
        finding = verify(&world.pool, head.head.as_ref()).await.finding;
    })
    .await;
    finding
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_row_that_was_changed_moved_or_cut_off_is_named() {
    let row = |id: i64| id;
    for (sql, found) in [
        (
            "UPDATE audit_log SET actor = 'nobody' WHERE id IN (7, 9)",
            Finding::Changed(row(7)),
        ),
        (
            r#"UPDATE audit_log SET details = '{"number": 0}' WHERE id = 5"#,
            Finding::Changed(5),
        ),
        (
            "UPDATE audit_log SET address = '127.0.0.1' WHERE id = 5",
            Finding::Changed(5),
        ),
        ("DELETE FROM audit_log WHERE id = 12", Finding::Gone(12)),
        ("DELETE FROM audit_log WHERE id > 15", Finding::Gone(16)),
        // Their ids are changed for each other's.
        (
            "UPDATE audit_log SET action = CASE id WHEN 3 THEN 'b' ELSE 'a' END WHERE id IN (3, 4)",
            Finding::Changed(3),
        ),
        ("DELETE FROM audit_seals WHERE seq = 8", Finding::SealGone(8)),
        (
            "UPDATE audit_seals SET link = '\\x00' WHERE seq = 8",
            Finding::SealChanged { seq: 8, row: 8 },
        ),
        // A row and its seal.
        (
            "DELETE FROM audit_log WHERE id = 1; DELETE FROM audit_seals WHERE seq = 1",
            Finding::SealGone(1),
        ),
        // The end, with its seals: only who noted the head can tell.
        (
            "DELETE FROM audit_log WHERE id > 15; DELETE FROM audit_seals WHERE seq > 15",
            Finding::OtherHead(20),
        ),
        (
            "INSERT INTO audit_log (id, actor, action) OVERRIDING SYSTEM VALUE VALUES (0, 'service', 'late')",
            Finding::PutIn(0),
        ),
    ] {
        assert_eq!(tampered(sql).await, Some(found), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_can_add_to_the_log_and_to_its_seals_and_change_neither() {
    in_world(async |world| {
        write(&world.pool, 3).await;
        seal_all(&world.pool).await;
        for sql in [
            "UPDATE audit_log SET actor = 'nobody'",
            "DELETE FROM audit_log",
            "TRUNCATE audit_log",
            "UPDATE audit_seals SET link = '\\x00'",
            "DELETE FROM audit_seals",
            "INSERT INTO audit_drops (before, last_seq) VALUES (now(), 100)",
        ] {
            let refused = sqlx::query(sql).execute(&world.pool).await.unwrap_err().to_string();
            assert!(refused.contains("permission denied"), "{sql}: {refused}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_sealed_when_no_earlier_one_can_come_and_by_one_process_at_a_time() {
    in_world(async |world| {
        write(&world.pool, 3).await;
        assert_eq!(seal::seal(&world.pool, seal::FINAL_AFTER).await.unwrap(), 0);
        let sealers = (0..8).map(|_| seal_all(&world.pool));
        futures::future::join_all(sealers).await;
        seal_all(&world.pool).await;
        let verdict = verify(&world.pool, None).await;
        assert_eq!((verdict.finding, verdict.rows), (None, 3));
    })
    .await;
}

/// Rows of a month that is long over, sealed with those of today.
async fn with_an_old_month(world: &World) {
    world
        .execute_as_owner(
            "SELECT ensure_audit_partition('2020-01-15');
             INSERT INTO audit_log (occurred_at, actor, action)
             SELECT '2020-01-15', 'service', 'old' FROM generate_series(1, 5)",
        )
        .await;
    write(&world.pool, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_goes_as_a_whole_once_it_is_sealed_and_the_chain_holds() {
    in_world(async |world| {
        with_an_old_month(world).await;
        let drop = async |before| seal::drop_months(world.database.owner_url(), before).await.unwrap();
        let before = OffsetDateTime::from_unix_timestamp(1_580_515_200).unwrap();
        assert!(drop(before).await.is_empty(), "it is not sealed");
        seal_all(&world.pool).await;
        let too_early = before - Duration::from_hours(48);
        assert!(drop(too_early).await.is_empty(), "it had not ended by then");
        assert_eq!(drop(before).await, ["audit_log_2020_01"]);
        let verdict = verify(&world.pool, None).await;
        assert_eq!((verdict.finding, verdict.rows), (None, 5));
        write(&world.pool, 2).await;
        seal_all(&world.pool).await;
        assert_eq!(verify(&world.pool, None).await.rows, 7);
        world.execute_as_owner("DELETE FROM audit_log WHERE id = 7").await;
        assert_eq!(verify(&world.pool, None).await.finding, Some(Finding::Gone(7)));
    })
    .await;
}
