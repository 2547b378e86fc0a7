//! Clients that never finish what they say.

use std::time::Duration;

use claimcheck_tests::eventually;
use futures::future::join_all;
use reqwest::StatusCode;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::http_face::{answer, with_api};

const HALF_SENT: usize = 1000;
/// Far beyond what an idle service takes, far below the time after which a half-sent head is given up.
const PROMPT: Duration = Duration::from_secs(5);
/// The drain of these tests' API (5 s) and what comes after it.
const STOPPED: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_half_sent_requests_keep_nobody_waiting_and_do_not_hold_up_the_stop() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let address = api.base.strip_prefix("http://").unwrap();
        let half_sent = join_all((0..HALF_SENT).map(|_| async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream
                .write_all(b"POST /v1/jobs HTTP/1.1\r\nhost: here\r\n")
                .await
                .unwrap();
            stream
        }))
        .await;
        let request = ada.post("/v1/jobs").timeout(PROMPT).json(&json!({"prompt": "Once"}));
        assert_eq!(answer(request).await.0, StatusCode::ACCEPTED);
        api.begin_stop();
        eventually("it has stopped", STOPPED, async || api.has_stopped().then_some(())).await;
        assert_eq!(half_sent.len(), HALF_SENT);
    })
    .await;
}
