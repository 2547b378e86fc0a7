//! Uploading, reading, listing and deleting files over HTTP.

use std::time::Duration;

use claimcheck_api::app::StateParts;
use claimcheck_common::config::JwtAlgorithm;
use claimcheck_tests::{World, eventually};
use futures::StreamExt;
use reqwest::{Body, Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::batches::Worker;
use crate::http_face::{Api, Session, answer, code, config, with_api};

const BOUNDARY: &str = "the-boundary";
const LIMIT: Duration = Duration::from_secs(20);

/// A form of text parts, as curl writes it; the part `file` has a name of its own.
pub(crate) fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, text) in parts {
        let filename = if *name == "file" { "; filename=\"in.jsonl\"" } else { "" };
        let head = format!("--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"{filename}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(text);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

pub(crate) async fn post_form(session: &Session, body: impl Into<Body>) -> (StatusCode, Value) {
    let media = format!("multipart/form-data; boundary={BOUNDARY}");
    answer(session.post("/v1/files").header("content-type", media).body(body)).await
}

/// Uploads a batch's input and answers the file's id.
pub(crate) async fn upload(session: &Session, text: &str) -> String {
    let (status, file) = post_form(session, form(&[("purpose", b"batch"), ("file", text.as_bytes())])).await;
    assert_eq!(status, StatusCode::OK, "{file}");
    file["id"].as_str().unwrap().to_owned()
}

pub(crate) async fn content(session: &Session, id: &str) -> String {
    let response = session.get(&format!("/v1/files/{id}/content")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    response.text().await.unwrap()
}

async fn delete(session: &Session, id: &str) -> (StatusCode, Value) {
    answer(session.request(Method::DELETE, &format!("/v1/files/{id}"))).await
}

/// Neither an object nor a row.
async fn nothing_is_left(world: &World) {
    eventually("nothing is left of the upload", LIMIT, async || {
        let objects = std::fs::read_dir(&world.files.place).unwrap().count();
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM files")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        (objects == 0 && rows == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_uploaded_read_listed_and_deleted() {
    with_api(async |world, api| {
        let (ada, bob) = (api.user("ada").await, api.user("bob").await);
        // By hand the parts may come in any order; the official library sends the purpose first.
        let text = "{\"a\": \"ä\"}\n\n{}".repeat(20_000);
        let parts: [(&str, &[u8]); 4] = [
            ("file", text.as_bytes()),
            ("expires_after[anchor]", b"created_at"),
            ("expires_after[seconds]", b"3600"),
            ("purpose", b"batch"),
        ];
        let (status, file) = post_form(&ada, form(&parts)).await;
        assert_eq!(status, StatusCode::OK, "{file}");
        let id = file["id"].as_str().unwrap();
        assert!(id.starts_with("file-"), "{id}");
        let wanted = json!({"id": id, "object": "file", "bytes": text.len(), "created_at": file["created_at"],
            "expires_at": file["created_at"].as_i64().unwrap() + 3600, "filename": "in.jsonl", "purpose": "batch",
            "status": "processed", "status_details": null, "lines": 20_001});
        assert_eq!(file, wanted);
        assert_eq!(
            answer(ada.get(&format!("/v1/files/{id}"))).await,
            (StatusCode::OK, wanted)
        );
        assert_eq!(content(&ada, id).await, text);
        for path in [format!("/v1/files/{id}"), format!("/v1/files/{id}/content")] {
            let (status, body) = answer(bob.get(&path)).await;
            assert_eq!(
                (status, code(&body)),
                (StatusCode::NOT_FOUND, "file_not_found"),
                "{path}"
            );
        }
        assert_eq!(delete(&bob, id).await.0, StatusCode::NOT_FOUND);
        let gone = json!({"id": id, "object": "file", "deleted": true});
        assert_eq!(delete(&ada, id).await, (StatusCode::OK, gone));
        assert_eq!(delete(&ada, id).await.0, StatusCode::NOT_FOUND);
        nothing_is_left(world).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_listed_by_cursor_in_either_order() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(upload(&ada, "{}").await);
        }
        let list = async |query: &str| {
            let (status, page) = answer(ada.get(&format!("/v1/files?{query}"))).await;
            assert_eq!(status, StatusCode::OK, "{page}");
            let data = page["data"].as_array().unwrap();
            let found: Vec<_> = data
                .iter()
                .map(|file| file["id"].as_str().unwrap().to_owned())
                .collect();
            (found, page["has_more"].as_bool().unwrap())
        };
        assert_eq!(list("order=asc&limit=2").await, (ids[..2].to_vec(), true));
        assert_eq!(
            list(&format!("order=asc&after={}", ids[1])).await,
            (ids[2..].to_vec(), false)
        );
        ids.reverse();
        assert_eq!(list("purpose=batch").await, (ids.clone(), false));
        assert_eq!(list("purpose=batch_output").await, (Vec::new(), false));
        for bad in ["order=up", "purpose=assistants", "limit=0", "after=17", "page=2"] {
            let (status, body) = answer(ada.get(&format!("/v1/files?{bad}"))).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{bad}");
            assert!(
                bad.starts_with(body["error"]["param"].as_str().unwrap()),
                "{bad}: {body}"
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_upload_of_every_kind_is_refused_by_name_and_leaves_nothing() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let batch: (&str, &[u8]) = ("purpose", b"batch");
        let cut = form(&[batch, ("file", &b"{}\n".repeat(4 << 20))]);
        let cases: Vec<(&str, Vec<u8>, &str, Option<&str>)> = vec![
            ("truncated", cut[..cut.len() / 2].to_vec(), "invalid_body", None),
            ("no form", b"{}".to_vec(), "invalid_body", None),
            (
                "binary",
                form(&[batch, ("file", b"{}\n\x1f\x8b\x08\0\0")]),
                "not_text",
                Some("file"),
            ),
            (
                "binary at the end",
                form(&[batch, ("file", &[b"{}\n".repeat(4 << 20), vec![0xff]].concat())]),
                "not_text",
                Some("file"),
            ),
            ("empty", form(&[batch, ("file", b"\n\n")]), "empty_file", Some("file")),
            (
                "one long line",
                form(&[batch, ("file", &vec![b'x'; 2 << 20])]),
                "line_too_long",
                Some("file"),
            ),
            ("no purpose", form(&[("file", b"{}")]), "missing_field", Some("purpose")),
            ("no file", form(&[batch]), "missing_field", Some("file")),
            (
                "two files",
                form(&[batch, ("file", b"{}"), ("file", b"{}")]),
                "duplicate_field",
                Some("file"),
            ),
            (
                "another purpose",
                form(&[("purpose", b"assistants"), ("file", b"{}")]),
                "invalid_value",
                Some("purpose"),
            ),
            (
                "a long purpose",
                form(&[("purpose", &[b'x'; 100]), ("file", b"{}")]),
                "invalid_value",
                Some("purpose"),
            ),
            (
                "an unknown part",
                form(&[batch, ("more", b"1"), ("file", b"{}")]),
                "unknown_field",
                Some("more"),
            ),
            (
                "two anchors",
                form(&[
                    batch,
                    ("expires_after[anchor]", b"created_at"),
                    ("expires_after[anchor]", b"created_at"),
                    ("file", b"{}"),
                ]),
                "duplicate_field",
                Some("expires_after[anchor]"),
            ),
            (
                "half an expiry",
                form(&[batch, ("file", b"{}"), ("expires_after[seconds]", b"3600")]),
                "invalid_value",
                Some("expires_after"),
            ),
            (
                "a short expiry",
                form(&[batch, ("expires_after[seconds]", b"5"), ("file", b"{}")]),
                "invalid_value",
                Some("expires_after[seconds]"),
            ),
        ];
        for (what, body, wanted, param) in cases {
            let (status, answered) = post_form(&ada, body).await;
            assert_eq!(
                (status, code(&answered)),
                (StatusCode::BAD_REQUEST, wanted),
                "{what}: {answered}"
            );
            assert_eq!(answered["error"]["param"].as_str(), param, "{what}: {answered}");
        }
        let (status, body) = answer(ada.post("/v1/files").json(&json!({"purpose": "batch"}))).await;
        assert_eq!(
            (status, code(&body)),
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type")
        );
        nothing_is_left(world).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_beyond_the_limit_is_refused_and_leaves_nothing() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let head = form(&[("purpose", b"batch"), ("file", b"")]);
        let head = head[..head.len() - format!("\r\n--{BOUNDARY}--\r\n").len()].to_vec();
        let piece = "{}\n".repeat(1 << 20);
        let pieces = (0..70).map(move |_| Ok::<_, std::io::Error>(piece.clone().into_bytes()));
        let body = Body::wrap_stream(futures::stream::iter([Ok(head)].into_iter().chain(pieces)));
        let media = format!("multipart/form-data; boundary={BOUNDARY}");
        let sent = ada
            .post("/v1/files")
            .header("content-type", media)
            .body(body)
            .send()
            .await
            .unwrap();
        assert_eq!(sent.status(), StatusCode::PAYLOAD_TOO_LARGE);
        nothing_is_left(world).await;
    })
    .await;
}

/// An API of the same world whose uploads have a moment to come, and a user of it.
async fn brief(world: &World) -> Session {
    let mut config = config(world);
    config.api.jwt_algorithm = JwtAlgorithm::Hs256;
    let api = Api::start_with(config.clone()).await;
    let ada = api.user("ada").await;
    api.stop().await;
    let parts = StateParts::new(&config).unwrap();
    let uploads = parts.uploads.clone().within(Duration::from_millis(300));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let router = claimcheck_api::router::router(StateParts { uploads, ..parts }.into());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Session { base, ..ada }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_goes_on_too_long_is_given_up_and_leaves_nothing() {
    with_api(async |world, _| {
        let ada = brief(world).await;
        let mut body = form(&[("purpose", b"batch"), ("file", b"{}\n")]);
        body.truncate(body.len() - format!("\r\n--{BOUNDARY}--\r\n").len());
        // Each piece comes in time, for three seconds.
        let pieces = futures::stream::unfold(0, |number| async move {
            tokio::time::sleep(Duration::from_millis(30)).await;
            (number < 100).then(|| (Ok::<_, std::io::Error>(b"{}\n".to_vec()), number + 1))
        });
        let body = Body::wrap_stream(futures::stream::iter([Ok(body)]).chain(pieces));
        let (status, answered) = post_form(&ada, body).await;
        assert_eq!(
            (status, code(&answered)),
            (StatusCode::REQUEST_TIMEOUT, "request_timeout")
        );
        nothing_is_left(world).await;
    })
    .await;
}

/// Begins an upload and hangs up in the middle of it.
async fn hang_up(api: &Api, ada: &Session) {
    let address = api.base.strip_prefix("http://").unwrap();
    let body = form(&[("purpose", b"batch"), ("file", &b"{}\n".repeat(4 << 20))]);
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\
         content-type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n",
        ada.token,
        body.len()
    );
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body[..body.len() - 100_000]).await.unwrap();
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_hangs_up_in_the_middle_leaves_nothing() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        hang_up(api, &ada).await;
        nothing_is_left(world).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_goes_when_its_time_is_over_and_an_upload_that_was_given_up_with_it() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let (kept, expired, given_up) = (
            upload(&ada, "{}").await,
            upload(&ada, "{}").await,
            upload(&ada, "{}").await,
        );
        for (id, change) in [
            (&expired, "expires_at = now() - interval '1 second'"),
            (
                &given_up,
                "status = 'uploading', created_at = now() - interval '3 hours'",
            ),
        ] {
            let uuid = id.parse::<claimcheck_common::domain::FileId>().unwrap().uuid();
            world
                .execute_as_owner(&format!("UPDATE files SET {change} WHERE id = '{uuid}'"))
                .await;
            assert_eq!(
                answer(ada.get(&format!("/v1/files/{id}"))).await.0,
                StatusCode::NOT_FOUND
            );
        }
        let worker = Worker::start(world, 8);
        eventually("two objects are swept", LIMIT, async || {
            let objects = std::fs::read_dir(&world.files.place).unwrap().count();
            (objects == 1).then_some(())
        })
        .await;
        worker.stop().await;
        assert_eq!(content(&ada, &kept).await, "{}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_cleared_away_do_not_keep_the_others() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let good = upload(&ada, "{}").await;
        // More than one look finds, and all older.
        world
            .execute_as_owner(
                "UPDATE files SET status = 'deleted';
                 INSERT INTO files (id, tenant_id, project_id, purpose, filename, status, created_at)
                 SELECT gen_random_uuid(), tenant_id, project_id, purpose, filename, status, created_at - interval '1 hour'
                 FROM files, generate_series(1, 150)",
            )
            .await;
        let place = std::path::Path::new(&world.files.place);
        let ids: Vec<uuid::Uuid> = sqlx::query_scalar("SELECT id FROM files").fetch_all(&world.pool).await.unwrap();
        for id in ids {
            let object = claimcheck_common::domain::FileId::from_uuid(id).to_string();
            // A folder is no object that could be removed.
            if object != good {
                std::fs::create_dir(place.join(object)).unwrap();
            }
        }
        let worker = Worker::start(world, 8);
        eventually("the newest is cleared away, and the others will be tried again", LIMIT, async || {
            let left: i64 = sqlx::query_scalar("SELECT count(*) FROM files").fetch_one(&world.pool).await.unwrap();
            (left == 150 && !place.join(&good).exists()).then_some(())
        })
        .await;
        worker.stop().await;
    })
    .await;
}
