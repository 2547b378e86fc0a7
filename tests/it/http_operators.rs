//! Erasing, doing again, changing many jobs, and what only operators may do, over HTTP.

use std::time::Duration;

use claimcheck_common::domain::{JobError, JobId, Role, TenantId, WorkerId};
use claimcheck_common::store::models::{self, Seen};
use claimcheck_common::store::settle::{self, Settlement};
use claimcheck_common::store::{Pool, accounts, claim, expire};
use claimcheck_tests::{Gate, Moment, World, eventually};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use time::OffsetDateTime;

use crate::http_face::{MODEL, Session, answer, code, with_api};
use crate::store::{LEASE, count, settle_completed};

pub(crate) fn a_job() -> Value {
    json!({"prompt": "Once upon a time", "metadata": {"order": "17"}})
}

async fn claimed(pool: &Pool, id: &str) -> claimcheck_common::domain::JobKey {
    let id: JobId = id.parse().unwrap();
    claim::claim(pool, WorkerId::new(), vec![id], LEASE).await.unwrap()[0].key
}

pub(crate) async fn complete(pool: &Pool, id: &str) {
    let key = claimed(pool, id).await;
    settle_completed(pool, key, "a text").await;
}

pub(crate) async fn fail(pool: &Pool, id: &str) {
    let key = claimed(pool, id).await;
    let failure = Settlement::failed(key, JobError::server("broken", "It broke."));
    settle::settle_group(pool, vec![failure], "worker:test".to_owned())
        .await
        .unwrap();
}

pub(crate) async fn admin(world: &World, session: Session) -> Session {
    assert!(
        accounts::set_role(&world.pool, &session.username, Role::Admin)
            .await
            .unwrap()
    );
    // Done in the database and not by the API, which hears of it moments later. It refuses the query once it lets the admin in.
    eventually("the API knows the admin", Duration::from_secs(20), async || {
        let (status, _) = answer(session.get("/v1/admin/users?limit=0")).await;
        (status != StatusCode::FORBIDDEN).then_some(())
    })
    .await;
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_job_is_erased_and_done_again_and_a_running_one_is_neither() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let id = ada.submit(&a_job()).await;
        let path = format!("/v1/jobs/{id}");
        for request in [ada.request(Method::DELETE, &path), ada.post(&format!("{path}/retry"))] {
            let (status, body) = answer(request).await;
            assert_eq!((status, code(&body)), (StatusCode::CONFLICT, "job_not_ended"));
        }
        complete(&world.pool, &id).await;
        let (status, again) = answer(ada.post(&format!("{path}/retry"))).await;
        assert_eq!(
            (status, again["retry_of"].as_str()),
            (StatusCode::ACCEPTED, Some(id.as_str()))
        );
        assert_eq!(again["metadata"], json!({"order": "17"}));
        let (status, left) = answer(ada.request(Method::DELETE, &path)).await;
        assert_eq!((status, left["status"].as_str()), (StatusCode::OK, Some("completed")));
        assert!(left["output"].is_null() && left["parameters"].is_null() && left["erased_at"].is_i64());
        let (status, body) = answer(ada.post(&format!("{path}/retry"))).await;
        assert_eq!((status, code(&body)), (StatusCode::CONFLICT, "job_erased"));
        let eve = api.user("eve").await;
        for request in [eve.request(Method::DELETE, &path), eve.post(&format!("{path}/retry"))] {
            assert_eq!(
                answer(request).await.0,
                StatusCode::NOT_FOUND,
                "foreign jobs do not exist"
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_for_an_erased_job_is_known_and_shows_nothing_of_it() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let submit = || ada.post("/v1/jobs").header("idempotency-key", "k").json(&a_job());
        let (_, first) = answer(submit()).await;
        assert_eq!(first["metadata"], json!({"order": "17"}));
        let id = first["id"].as_str().unwrap();
        complete(&world.pool, id).await;
        let path = format!("/v1/jobs/{id}");
        assert_eq!(answer(ada.request(Method::DELETE, &path)).await.0, StatusCode::OK);
        let (status, again) = answer(submit()).await;
        assert_eq!((status, &again["id"]), (StatusCode::ACCEPTED, &first["id"]));
        assert!(again["parameters"].is_null() && again["metadata"] == json!({}));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_priorities_and_classes_are_taken_and_shown_and_contradictions_refused() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let wanted = json!({"prompt": "Once", "class": "batch", "priority": 3, "deadline_at": now + 600,
                            "start_by": now + 300, "max_attempts": 2, "store": false, "ttl": 60});
        let shown = ada.job(&ada.submit(&wanted).await).await;
        for field in ["class", "priority", "deadline_at", "start_by", "max_attempts"] {
            assert_eq!(shown[field], wanted[field], "{field}");
        }
        for (field, bad) in [
            ("class", json!("urgent")),
            ("priority", json!(11)),
            ("deadline_at", json!(now - 1)),
            ("start_by", json!(now + 400 * 24 * 3600)),
            ("max_attempts", json!(0)),
            ("store", json!("no")),
            ("ttl", json!(1)),
        ] {
            let mut body = json!({"prompt": "Once"});
            body[field] = bad;
            let (status, body) = answer(ada.post("/v1/jobs").json(&body)).await;
            assert_eq!(
                (status, body["error"]["param"].as_str()),
                (StatusCode::BAD_REQUEST, Some(field)),
                "{body}"
            );
        }
        let body = json!({"prompt": "Once", "scheduled_at": now + 600, "deadline_at": now + 300});
        let (status, body) = answer(ada.post("/v1/jobs").json(&body)).await;
        assert_eq!(
            (status, body["error"]["param"].as_str()),
            (StatusCode::BAD_REQUEST, Some("deadline_at"))
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_jobs_are_cancelled_and_done_again_by_filter_and_only_ones_own() {
    with_api(async |world, api| {
        let (ada, eve) = (api.user("ada").await, api.user("eve").await);
        let theirs = eve.submit(&a_job()).await;
        let marked = ada.submit(&a_job()).await;
        let running = ada.submit(&a_job()).await;
        let other = ada.submit(&json!({"prompt": "Once"})).await;
        claimed(&world.pool, &running).await;
        let select = json!({"metadata": {"order": "17"}});
        let (status, body) = answer(ada.post("/v1/jobs/cancel").json(&select)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(
            (body["count"].as_u64(), body["has_more"].as_bool()),
            (Some(2), Some(false))
        );
        assert_eq!(ada.job(&marked).await["status"], "cancelled");
        assert_eq!(ada.job(&running).await["status"], "cancelling");
        assert_eq!(ada.job(&other).await["status"], "queued");
        assert_eq!(eve.job(&theirs).await["status"], "queued");
        let (_, body) = answer(ada.post("/v1/jobs/cancel").json(&select)).await;
        assert_eq!(body["count"], 0, "safe to repeat");
        let (_, body) = answer(ada.post("/v1/jobs/retry").json(&json!({"status": "cancelled"}))).await;
        assert_eq!(body["count"], 1);
        let (status, body) = answer(ada.post("/v1/jobs/cancel").json(&json!({"state": "queued"}))).await;
        assert_eq!((status, code(&body)), (StatusCode::BAD_REQUEST, "unknown_field"));
        let tenant = claimcheck_common::domain::TenantId::new().to_string();
        let (status, body) = answer(ada.post("/v1/jobs/cancel").json(&json!({"tenant": tenant}))).await;
        assert_eq!((status, code(&body)), (StatusCode::FORBIDDEN, "admin_only"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_jobs_are_cancelled_from_one_time_of_acceptance_on_and_before_another() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let start = OffsetDateTime::now_utc().unix_timestamp() - 3600;
        let mut ids = Vec::new();
        for at in [start, start + 60, start + 120] {
            let id = ada.submit(&a_job()).await;
            sqlx::query("UPDATE jobs SET created_at = $2 WHERE id = $1")
                .bind(id.parse::<JobId>().unwrap().uuid())
                .bind(OffsetDateTime::from_unix_timestamp(at).unwrap())
                .execute(&world.pool)
                .await
                .unwrap();
            ids.push(id);
        }
        // How many it says it has cancelled, and which are.
        let cancel = async |select: Value| {
            let (status, body) = answer(ada.post("/v1/jobs/cancel").json(&select)).await;
            assert_eq!(status, StatusCode::OK, "{body}");
            let mut cancelled = Vec::new();
            for id in &ids {
                cancelled.push(ada.job(id).await["status"] == "cancelled");
            }
            (body["count"].as_u64(), cancelled)
        };
        let between = json!({"created_after": start + 60, "created_before": start + 120});
        assert_eq!(cancel(between).await, (Some(1), vec![false, true, false]));
        let before = json!({"created_before": start + 60});
        assert_eq!(cancel(before).await, (Some(1), vec![true, true, false]));
        let later = json!({"created_after": start + 121});
        assert_eq!(cancel(later).await, (Some(0), vec![true, true, false]));
        let after = json!({"created_after": start + 120});
        assert_eq!(cancel(after).await, (Some(1), vec![true, true, true]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_cancels_many_jobs_of_the_tenant_that_is_named_and_else_only_ones_own() {
    with_api(async |world, api| {
        let (ada, eve) = (api.user("ada").await, api.user("eve").await);
        let root = admin(world, api.user("root").await).await;
        let (adas, eves) = (ada.submit(&a_job()).await, eve.submit(&a_job()).await);
        let own = root.submit(&a_job()).await;
        let tenant: uuid::Uuid = sqlx::query_scalar("SELECT tenant_id FROM users WHERE username = 'ada'")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        // How many it says it has cancelled, and what becomes of each.
        let cancel = async |select: Value| {
            let (status, body) = answer(root.post("/v1/jobs/cancel").json(&select)).await;
            assert_eq!(status, StatusCode::OK, "{body}");
            let jobs = [ada.job(&adas).await, eve.job(&eves).await, root.job(&own).await];
            (body["count"].as_u64(), jobs.map(|job| job["status"].clone()))
        };
        let (count, states) = cancel(json!({"tenant": TenantId::from_uuid(tenant).to_string()})).await;
        assert_eq!(count, Some(1));
        assert_eq!(states, ["cancelled", "queued", "queued"]);
        let (count, states) = cancel(json!({})).await;
        assert_eq!(count, Some(1));
        assert_eq!(states, ["cancelled", "queued", "cancelled"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_leaves_an_ended_job_as_it_is_however_it_ended() {
    with_api(async |world, api| {
        let pool = &world.pool;
        let ada = api.user("ada").await;
        let soon = OffsetDateTime::now_utc().unix_timestamp() + 600;
        let late = json!({"prompt": "Once", "deadline_at": soon});
        let (completed, failed) = (ada.submit(&a_job()).await, ada.submit(&a_job()).await);
        let (expired, waiting) = (ada.submit(&late).await, ada.submit(&a_job()).await);
        complete(pool, &completed).await;
        fail(pool, &failed).await;
        sqlx::query("UPDATE jobs SET deadline_at = now() - interval '1 second' WHERE deadline_at IS NOT NULL")
            .execute(pool)
            .await
            .unwrap();
        assert_eq!(expire::expire_waiting(pool).await.unwrap(), 1);
        let cancel = async |id: &str| {
            let (status, job) = answer(ada.post(&format!("/v1/jobs/{id}/cancel"))).await;
            assert_eq!(status, StatusCode::OK, "{job}");
            job
        };
        assert_eq!(cancel(&waiting).await["status"], "cancelled");
        for (id, state) in [
            (&completed, "completed"),
            (&failed, "failed"),
            (&expired, "expired"),
            (&waiting, "cancelled"),
        ] {
            let before = ada.job(id).await;
            assert_eq!(before["status"], state);
            assert_eq!(cancel(id).await, before, "{state}");
            assert_eq!(ada.job(id).await, before, "{state}");
            let events: Vec<String> = sqlx::query_scalar("SELECT type FROM events WHERE job_id = $1")
                .bind(id.parse::<JobId>().unwrap().uuid())
                .fetch_all(pool)
                .await
                .unwrap();
            assert_eq!(events, [format!("job.{state}")], "of its end and of nothing after it");
        }
    })
    .await;
}

/// How many rows of a table hold a text, in whatever column.
async fn rows_with(pool: &Pool, table: &str, text: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table} AS kept WHERE strpos(kept::text, $1) > 0");
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(text)
        .fetch_one(pool)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_tells_what_was_done_with_a_job_and_holds_no_text_of_it() {
    with_api(async |world, api| {
        let pool = &world.pool;
        let ada = api.user("ada").await;
        let job = json!({"prompt": "aubergine", "stop": ["turmeric"], "metadata": {"order": "saffron"}});
        let (done, cancelled) = (ada.submit(&job).await, ada.submit(&job).await);
        let key = claimed(pool, &done).await;
        settle_completed(pool, key, "marzipan").await;
        let texts = [
            ("job_inputs", "aubergine"),
            ("job_inputs", "turmeric"),
            ("job_inputs", "saffron"),
            ("job_outputs", "marzipan"),
        ];
        for (table, text) in texts {
            assert!(rows_with(pool, table, text).await > 0, "{text}");
        }
        for request in [
            ada.post(&format!("/v1/jobs/{cancelled}/cancel")),
            ada.post(&format!("/v1/jobs/{done}/retry")),
            ada.request(Method::DELETE, &format!("/v1/jobs/{done}")),
        ] {
            let (status, body) = answer(request).await;
            assert!(status.is_success(), "{body}");
        }
        // Submitted, completed, erased, and named by the row of its retry; submitted and cancelled.
        for (id, rows) in [(&done, 4), (&cancelled, 2)] {
            let uuid = id.parse::<JobId>().unwrap().uuid().to_string();
            assert_eq!(rows_with(pool, "audit_log", &uuid).await, rows);
        }
        for (_, text) in texts {
            assert_eq!(rows_with(pool, "audit_log", text).await, 0, "{text}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_by_their_owner_and_redriven_once_by_an_admin() {
    with_api(async |world, api| {
        let (ada, eve) = (api.user("ada").await, api.user("eve").await);
        let id = ada.submit(&a_job()).await;
        fail(&world.pool, &id).await;
        let (_, page) = answer(ada.get("/v1/dead_letters")).await;
        assert_eq!(page["data"][0]["id"].as_str(), Some(id.as_str()));
        assert_eq!(
            (page["data"][0]["reason"].as_str(), page["data"][0]["attempts"].as_u64()),
            (Some("broken"), Some(1))
        );
        assert_eq!(answer(eve.get("/v1/dead_letters")).await.1["data"], json!([]));
        assert_eq!(
            answer(eve.get("/v1/dead_letters?all=true")).await.0,
            StatusCode::FORBIDDEN
        );
        let select = json!({"reason": "broken", "model": MODEL});
        let (status, _) = answer(ada.post("/v1/dead_letters/redrive").json(&select)).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        let root = admin(world, api.user("root").await).await;
        for wanted in [1, 0] {
            let (status, body) = answer(root.post("/v1/dead_letters/redrive").json(&select)).await;
            assert_eq!((status, body["count"].as_u64()), (StatusCode::OK, Some(wanted)));
        }
        let (_, page) = answer(root.get("/v1/dead_letters?all=true")).await;
        let again = page["data"][0]["redriven_as"].as_str().unwrap();
        assert_eq!(ada.job(again).await["retry_of"].as_str(), Some(id.as_str()));
        let audited: i64 = sqlx::query_scalar("SELECT count(*) FROM audit_log WHERE action = 'job.retried'")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        assert_eq!(audited, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_whose_job_is_just_being_erased_is_not_done_again() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let id = ada.submit(&a_job()).await;
        fail(&world.pool, &id).await;
        let root = admin(world, api.user("root").await).await;
        // The erasing waits before its commit.
        let mut gate = Gate::shut(world, Moment::Commit, "DELETE ON job_inputs", "true").await;
        let erasing = tokio::spawn(ada.request(Method::DELETE, &format!("/v1/jobs/{id}")).send());
        gate.reached().await;
        let redriving = tokio::spawn(root.post("/v1/dead_letters/redrive").json(&json!({})).send());
        eventually(
            "somebody waits for the job's row",
            Duration::from_secs(20),
            async || (count(&world.pool, WAIT_FOR_ROWS).await > 0).then_some(()),
        )
        .await;
        gate.open().await;
        assert!(erasing.await.unwrap().unwrap().status().is_success());
        let redriven: Value = redriving.await.unwrap().unwrap().json().await.unwrap();
        assert_eq!(redriven["count"].as_u64(), Some(0), "{redriven}");
        assert_eq!(count(&world.pool, "SELECT count(*) FROM jobs").await, 1);
    })
    .await;
}

const WAIT_FOR_ROWS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
    AND wait_event IN ('transactionid', 'tuple')";

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_job_has_a_place_by_the_fair_order_and_an_eta_once_there_is_a_pace() {
    with_api(async |world, api| {
        let (ada, eve) = (api.user("ada").await, api.user("eve").await);
        // The relay must not change what is counted here.
        sqlx::query("INSERT INTO pauses (scope, value, created_by) VALUES ('class', 'batch', gen_random_uuid())")
            .execute(&world.pool)
            .await
            .unwrap();
        let batch = json!({"prompt": "Once", "class": "batch"});
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(ada.submit(&batch).await);
        }
        let theirs = eve.submit(&batch).await;
        let urgent = ada
            .submit(&json!({"prompt": "Once", "class": "batch", "priority": 5}))
            .await;
        let place = async |session: &Session, id: &str| answer(session.get(&format!("/v1/jobs/{id}/queue"))).await.1;
        // Ada's urgent one and Eve's only one have the first turn; then Ada's others.
        assert_eq!(place(&ada, &urgent).await["position"], 1);
        assert_eq!(place(&eve, &theirs).await["position"], 1);
        for (id, position) in ids.iter().zip([3, 4, 5]) {
            let shown = place(&ada, id).await;
            assert_eq!(
                (shown["position"].as_u64(), shown["exact"].as_bool()),
                (Some(position), Some(true))
            );
            assert_eq!(shown["waiting_reason"], "paused");
            assert!(shown["eta_p50"].is_null(), "nothing leads out of a pause");
        }
        assert_eq!(
            answer(eve.get(&format!("/v1/jobs/{urgent}/queue"))).await.0,
            StatusCode::NOT_FOUND
        );
        sqlx::query("DELETE FROM pauses").execute(&world.pool).await.unwrap();
        let key = claimed(&world.pool, &urgent).await;
        assert!(
            place(&ada, &urgent).await["position"].is_null(),
            "it does not wait any more"
        );
        claimcheck_common::store::lease::mark_started(&world.pool, vec![(key, std::time::Instant::now())])
            .await
            .unwrap();
        settle_completed(&world.pool, key, "a text").await;
        sqlx::query("UPDATE jobs SET finished_at = finished_at - interval '10 seconds' WHERE finished_at IS NOT NULL")
            .execute(&world.pool)
            .await
            .unwrap();
        let shown = place(&ada, &ids[2]).await;
        let (p50, p90) = (shown["eta_p50"].as_f64().unwrap(), shown["eta_p90"].as_f64().unwrap());
        assert!(p50 > 0.0 && p90 > p50, "{shown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_pauses_and_resumes_and_a_paused_job_says_so() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let root = admin(world, api.user("root").await).await;
        let id = ada.submit(&a_job()).await;
        let tenant: uuid::Uuid = sqlx::query_scalar("SELECT tenant_id FROM jobs")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        let tenant = claimcheck_common::domain::TenantId::from_uuid(tenant);
        for what in [
            "class/interactive".to_owned(),
            format!("model/{MODEL}"),
            format!("tenant/{tenant}"),
        ] {
            let path = format!("/v1/admin/pauses/{what}");
            for _ in 0..2 {
                let set = root.request(Method::PUT, &path).send().await.unwrap();
                assert_eq!(set.status(), StatusCode::NO_CONTENT, "{what}");
            }
            assert_eq!(ada.job(&id).await["waiting_reason"], "paused", "{what}");
            let (_, pauses) = answer(root.get("/v1/admin/pauses")).await;
            let shown = &pauses["data"][0];
            assert_eq!(
                format!(
                    "{}/{}",
                    shown["scope"].as_str().unwrap(),
                    shown["value"].as_str().unwrap()
                ),
                what
            );
            let lifted = root.request(Method::DELETE, &path).send().await.unwrap();
            assert_eq!(lifted.status(), StatusCode::NO_CONTENT);
            assert_eq!(ada.job(&id).await["waiting_reason"], "capacity", "{what}");
        }
        for bad in ["class/urgent", "tenant/ada", "planet/earth"] {
            let path = format!("/v1/admin/pauses/{bad}");
            let (status, body) = answer(root.request(Method::PUT, &path)).await;
            assert_eq!((status, code(&body)), (StatusCode::BAD_REQUEST, "invalid_value"));
            assert_eq!(answer(ada.request(Method::PUT, &path)).await.0, StatusCode::FORBIDDEN);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_hears_of_it_with_its_next_beat_and_starts_that_fail_are_seen() {
    with_api(async |world, api| {
        let root = admin(world, api.user("root").await).await;
        let (_, list) = answer(root.get("/v1/admin/workers")).await;
        assert_eq!(list["data"][0]["state"], "ready");
        let id: WorkerId = list["data"][0]["id"].as_str().unwrap().parse().unwrap();
        assert_eq!(models::seen(&world.pool, id).await.unwrap(), Seen::Working);
        let path = format!("/v1/admin/workers/{id}/drain");
        let drained = root.post(&path).send().await.unwrap();
        assert_eq!(drained.status(), StatusCode::ACCEPTED);
        assert_eq!(models::seen(&world.pool, id).await.unwrap(), Seen::Draining);
        let unknown = format!("/v1/admin/workers/{}/drain", WorkerId::new());
        assert_eq!(answer(root.post(&unknown)).await.0, StatusCode::NOT_FOUND);

        for _ in 0..3 {
            models::starting(&world.pool, WorkerId::new(), "broken").await.unwrap();
        }
        let (_, list) = answer(root.get("/v1/admin/workers")).await;
        assert_eq!(list["crash_looping"], json!([]), "they may still be loading");
        sqlx::query(
            "UPDATE workers SET started_at = started_at - interval '1 minute', last_seen_at = last_seen_at - interval '1 minute'
             WHERE model = 'broken'",
        )
        .execute(&world.pool)
        .await
        .unwrap();
        let (_, list) = answer(root.get("/v1/admin/workers")).await;
        assert_eq!(list["crash_looping"], json!([{"model": "broken", "starts": 3}]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_a_tenant_that_does_not_exist_are_404() {
    with_api(async |world, api| {
        let root = admin(world, api.user("root").await).await;
        for tenant in [
            claimcheck_common::domain::TenantId::new().to_string(),
            "org_x".to_owned(),
        ] {
            let path = format!("/v1/admin/tenants/{tenant}/limits");
            let (status, body) = answer(root.put(&path).json(&json!({"max_queued": 1}))).await;
            assert_eq!(
                (status, code(&body)),
                (StatusCode::NOT_FOUND, "tenant_not_found"),
                "{tenant}"
            );
        }
        let left =
            "SELECT (SELECT count(*) FROM tenant_limits) + count(*) FROM audit_log WHERE action = 'tenant.limited'";
        let left: i64 = sqlx::query_scalar(left).fetch_one(&world.pool).await.unwrap();
        assert_eq!(left, 0);
    })
    .await;
}
