//! `webhook`: what helps to write a receiver. `listen` reads the feed of events, so that a receiver on this machine needs no address
//! that the service can reach; `verify` looks at a delivery that was saved; `resend` has one sent again.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use claimcheck_common::domain::EventId;
use claimcheck_common::webhook::SigningSecret;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::time::sleep;

use crate::args::{Listen, Verify, Webhook};
use crate::client::{Client, chain};
use crate::failure::{Failure, Outcome};
use crate::output::{Output, cell};

/// Between two looks at the feed.
const PAUSE: Duration = Duration::from_millis(500);
const PAGE: &str = "100";
/// As long as the service waits for a receiver.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// What needs the service.
pub(crate) async fn webhook(command: Webhook, client: &Client, output: Output) -> Result<Outcome, Failure> {
    match command {
        Webhook::Listen(args) => tokio::select! {
            ended = listen(args, client, output) => ended,
            _ = tokio::signal::ctrl_c() => Ok(Outcome::Done),
        },
        Webhook::Resend { endpoint, event } => {
            let path = format!("/v1/webhook_endpoints/{endpoint}/deliveries/{event}/resend");
            let sent: Value = client.act(&path).await?;
            output.print(&sent, |sent| {
                format!("{event} is on its way: {}.", cell(&sent["status"]))
            })?;
            Ok(Outcome::Done)
        }
        Webhook::Verify(args) => verify(&args, output),
    }
}

async fn listen(args: Listen, client: &Client, output: Output) -> Result<Outcome, Failure> {
    let forward = args.forward.map(Forward::to).transpose()?;
    if let Some(forward) = &forward {
        output.note(&format!(
            "Deliveries to {} are signed with {}",
            forward.url,
            forward.secret.shown()
        ));
    }
    let mut after = match args.after {
        Some(after) => after,
        None => now(client).await?.to_string(),
    };
    let mut left = args.count;
    loop {
        let page: Value = client.get("/v1/events", &[("limit", PAGE), ("after", &after)]).await?;
        for event in page["data"].as_array().unwrap_or(&Vec::new()) {
            if !args.types.is_empty() && !args.types.iter().any(|kind| event["type"] == **kind) {
                continue;
            }
            let answer = match &forward {
                Some(forward) => Some(forward.send(event).await),
                None => None,
            };
            let shown = json!({"event": event, "answer": answer});
            output.print(&shown, |_| told(event, answer.as_deref()))?;
            if let Some(left) = &mut left {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    return Ok(Outcome::Done);
                }
            }
        }
        if let Some(last) = page["last_id"].as_str() {
            last.clone_into(&mut after);
        }
        if page["has_more"] != true {
            sleep(PAUSE).await;
        }
    }
}

/// An id that no event has, drawn at the service's time: the feed goes on from that time, less a minute.
async fn now(client: &Client) -> Result<EventId, Failure> {
    let answer = client.open("/v1/events?limit=1", &[]).await?;
    let date = answer
        .headers()
        .get(reqwest::header::DATE)
        .and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| OffsetDateTime::parse(date, &Rfc2822).ok());
    let seconds = date.unwrap_or_else(OffsetDateTime::now_utc).unix_timestamp();
    let at = uuid::Timestamp::from_unix(uuid::NoContext, seconds.unsigned_abs(), 0);
    Ok(EventId::from_uuid(uuid::Uuid::new_v7(at)))
}

fn told(event: &Value, answer: Option<&str>) -> String {
    let answer = answer.map_or_else(String::new, |answer| format!("  -> {answer}"));
    let [id, kind, url] = [&event["id"], &event["type"], &event["data"]["url"]].map(cell);
    format!("{id}  {kind}  {url}{answer}")
}

/// A receiver on this machine, or wherever it is.
struct Forward {
    url: url::Url,
    http: reqwest::Client,
    /// This run's own: the service's secrets are not known here.
    secret: SigningSecret,
}

impl Forward {
    fn to(url: url::Url) -> Result<Self, Failure> {
        let http = reqwest::Client::builder()
            .timeout(ANSWER_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| Failure::Other(chain(&error)))?;
        let secret = SigningSecret::draw().map_err(|error| Failure::Other(error.to_string()))?;
        Ok(Self { url, http, secret })
    }

    /// The receiver's status, or why there is none.
    async fn send(&self, event: &Value) -> String {
        let body = event.to_string();
        let (id, now) = (cell(&event["id"]), OffsetDateTime::now_utc().unix_timestamp());
        let request = self
            .http
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", now)
            .header("webhook-signature", self.secret.sign(&id, now, body.as_bytes()))
            .body(body);
        match request.send().await {
            Ok(answer) => answer.status().as_u16().to_string(),
            Err(error) => chain(&error),
        }
    }
}

/// A delivery as it was saved: an HTTP request's headers, a blank line and its body.
struct Delivery {
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Delivery {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (mut headers, mut rest) = (Vec::new(), bytes);
        loop {
            let end = rest.iter().position(|byte| *byte == b'\n')?;
            let line = std::str::from_utf8(&rest[..end]).ok()?.trim_end();
            rest = &rest[end + 1..];
            if line.is_empty() {
                break;
            }
            // The request's line is no header.
            if let Some((name, value)) = line.split_once(':').filter(|(name, _)| !name.contains(' ')) {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        let mut delivery = Self {
            headers,
            body: rest.to_vec(),
        };
        // What an editor put behind it was not sent.
        if let Some(length) = delivery.header("content-length").and_then(|length| length.parse().ok()) {
            delivery.body.truncate(length);
        }
        Some(delivery)
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Whether a saved delivery is by whom its receiver has the key of.
pub(crate) fn verify(args: &Verify, output: Output) -> Result<Outcome, Failure> {
    let bytes = read(&args.file)?;
    let no_delivery = |what: &str| Failure::Other(format!("{}: {what}", args.file));
    let delivery = Delivery::read(&bytes)
        .ok_or_else(|| no_delivery("no delivery: headers, a blank line and the body are expected"))?;
    let header = |name| {
        delivery
            .header(name)
            .ok_or_else(|| no_delivery(&format!("the header {name} is missing")))
    };
    let (id, timestamp) = (header("webhook-id")?, header("webhook-timestamp")?);
    let genuine = args
        .key
        .signed(id, timestamp, &delivery.body, header("webhook-signature")?);
    let age = timestamp
        .parse::<i64>()
        .ok()
        .map(|at| OffsetDateTime::now_utc().unix_timestamp() - at);
    let recent = args
        .max_age
        .is_none_or(|most| age.is_some_and(|age| age.unsigned_abs() <= most.as_secs()));
    let shown =
        json!({"genuine": genuine, "recent": recent, "id": id, "age_seconds": age, "version": args.key.version()});
    output.print(&shown, |_| match (genuine, recent) {
        (false, _) => format!(
            "FORGED, or for another key: no {} signature of {id} is by this key.",
            args.key.version()
        ),
        (true, false) => format!(
            "OLD: {id} is genuine, and was signed {} s ago.",
            cell(&shown["age_seconds"])
        ),
        (true, true) => format!("Genuine: {id}, signed {} s ago.", cell(&shown["age_seconds"])),
    })?;
    Ok(if genuine && recent {
        Outcome::Done
    } else {
        Outcome::Failed
    })
}

fn read(file: &str) -> Result<Vec<u8>, Failure> {
    if file != "-" {
        return std::fs::read(file).map_err(|error| Failure::file(Path::new(file), error));
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_request_is_read_with_and_without_its_first_line() {
        for head in ["", "POST /hook HTTP/1.1\r\n"] {
            let text = format!("{head}Webhook-Id: evt_1\r\ncontent-length: 2\r\n\r\n{{}}\n");
            let delivery = Delivery::read(text.as_bytes()).unwrap();
            assert_eq!(delivery.header("webhook-id"), Some("evt_1"));
            assert_eq!(delivery.body, b"{}", "as much as was sent");
        }
        assert!(Delivery::read(b"webhook-id: evt_1\n{}").is_none(), "no blank line");
    }
}
