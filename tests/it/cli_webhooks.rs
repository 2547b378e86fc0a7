//! The command line's help for receivers of webhooks, against the real service.

use std::process::Stdio;
use std::time::Duration;

use claimcheck_tests::{Received, Receiver};
use reqwest::StatusCode;
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::cli::{Ended, Terminal, with_a_terminal};

const LIMIT: Duration = Duration::from_secs(30);

/// A delivery as somebody would save it.
fn saved(came: &Received) -> String {
    let headers: Vec<_> = came
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    let (headers, body) = (headers.join("\n"), String::from_utf8_lossy(&came.body));
    format!("POST {} HTTP/1.1\n{headers}\n\n{body}\n", came.path)
}

async fn a_job(ada: &Terminal) -> String {
    let job = ada.run(&["--json", "run", "Once", "--max-tokens", "2"]).await.json();
    job["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_printed_and_handed_to_a_receiver_that_can_verify_them() {
    with_a_terminal(async |_, ada| {
        let receiver = Receiver::answering(StatusCode::ACCEPTED).await;
        let forward = receiver.url("/hook");
        let arguments = [
            "webhook",
            "listen",
            "--forward",
            &forward,
            "--type",
            "job.completed",
            "--count",
            "2",
        ];
        let mut command = ada.command(&arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut notes = BufReader::new(child.stderr.take().unwrap()).lines();
        let note = tokio::time::timeout(LIMIT, notes.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let secret = note.rsplit(' ').next().unwrap();
        let first = a_job(ada).await;
        let second = a_job(ada).await;
        let ended = Ended::of(child.wait_with_output().await.unwrap());
        let shown: Vec<_> = ended.out.lines().collect();
        assert_eq!((ended.code, shown.len()), (Some(0), 2), "{ended:?}");
        for ((shown, id), came) in shown.iter().zip([&first, &second]).zip(receiver.received()) {
            assert!(
                shown.starts_with("evt_") && shown.ends_with(&format!("job.completed  /v1/jobs/{id}  -> 202")),
                "{shown}"
            );
            Webhook::new(secret).unwrap().verify(&came.body, &came.headers).unwrap();
            assert_eq!(came.json()["data"]["id"], **id);
        }
        // From an event on, and as JSON.
        let event = shown[0].split("  ").next().unwrap();
        let again = ada
            .run(&["--json", "webhook", "listen", "--after", event, "--count", "1"])
            .await
            .json();
        assert_eq!(
            (&again["event"]["data"]["id"], &again["answer"]),
            (&json!(second), &Value::Null)
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_delivery_is_verified_and_one_is_sent_again() {
    with_a_terminal(async |_, ada| {
        let receiver = Receiver::start().await;
        let made = ada.endpoint(&receiver.url("/hook")).await;
        a_job(ada).await;
        let came = &receiver.wait_for(1).await[0];
        std::fs::write(ada.path("delivery.txt"), saved(came)).unwrap();
        let secret = made["secret"].as_str().unwrap();
        for key in [secret, made["public_key"].as_str().unwrap()] {
            let said = ada
                .run(&["webhook", "verify", "delivery.txt", "--key", key, "--max-age", "300"])
                .await
                .good();
            assert!(said.starts_with("Genuine: evt_"), "{said}");
            let forged = saved(came).replace("completed", "failed");
            let refused = ada.run_with(&["webhook", "verify", "-", "--key", key], &forged).await;
            assert_eq!(refused.code, Some(4), "{refused:?}");
            assert!(refused.out.starts_with("FORGED"), "{refused:?}");
        }
        let old = ada
            .run(&[
                "--json",
                "webhook",
                "verify",
                "delivery.txt",
                "--key",
                secret,
                "--max-age",
                "0",
            ])
            .await;
        let said: Value = serde_json::from_str(&old.out).unwrap();
        if said["age_seconds"] != 0 {
            assert_eq!(
                (old.code, &said["genuine"], &said["recent"]),
                (Some(4), &json!(true), &json!(false))
            );
        }
        assert_eq!(
            ada.run(&["webhook", "verify", "delivery.txt", "--key", "whsec_"])
                .await
                .code,
            Some(2)
        );
        let headless = ada
            .run_with(&["webhook", "verify", "-", "--key", secret], "a: b\n\n{}")
            .await;
        assert_eq!(headless.code, Some(4), "{headless:?}");

        let (endpoint, event) = (made["id"].as_str().unwrap(), came.header("webhook-id").to_owned());
        ada.run(&["webhook", "resend", endpoint, &event]).await.good();
        let came = receiver.wait_for(2).await;
        assert_eq!(came[1].header("webhook-id"), event);
        let unknown = ada.run(&["webhook", "resend", endpoint, "evt_unknown"]).await;
        assert_eq!(unknown.code, Some(4), "{unknown:?}");
    })
    .await;
}
