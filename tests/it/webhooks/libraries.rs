//! Standard Webhooks' libraries of other languages take our deliveries, and nothing that was changed on the way.
//!
//! Neither library knows the asymmetric signature `v1a`; the script beside them asks Node's own Ed25519 about that one.

use std::process::{Command, Stdio};

use claimcheck_tests::Receiver;
use serde_json::json;

use super::{Dispatching, completed, endpoint};
use crate::http_face::with_api;
use crate::sdk::{FOLDER, libraries};

#[tokio::test(flavor = "multi_thread")]
async fn the_standards_libraries_of_other_languages_verify_a_delivery_and_refuse_forged_ones() {
    let libraries = tokio::task::spawn_blocking(libraries).await.unwrap();
    with_api(async |world, api| {
        let receiver = Receiver::start().await;
        let ada = api.user("ada").await;
        let made = endpoint(&ada, &receiver.url("/"), json!({})).await;
        let dispatching = Dispatching::start(world);
        completed(world, &ada).await;
        let came = &receiver.wait_for(1).await[0];
        dispatching.stop().await;
        let headers: serde_json::Map<_, _> = ["webhook-id", "webhook-timestamp", "webhook-signature"]
            .into_iter()
            .map(|name| (name.to_owned(), came.header(name).into()))
            .collect();
        let delivery = json!({
            "secret": made["secret"], "public_key": made["public_key"],
            "headers": headers, "body": std::str::from_utf8(&came.body).unwrap(),
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), delivery.to_string()).unwrap();
        let python = libraries.join("python-webhooks/bin/python");
        let mut scripts = [Command::new(python), Command::new("node")];
        scripts[0].arg(format!("{FOLDER}/webhook.py"));
        scripts[1]
            .arg(format!("{FOLDER}/webhook.mjs"))
            .arg(libraries.join("npm-webhooks"));
        for mut script in scripts {
            let output = script.arg(file.path()).stdin(Stdio::null()).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), "job.completed\n", "{output:?}");
        }
    })
    .await;
}
