//! A job's text as it is generated: server-sent events (WHATWG HTML, section 9.2), gone on with after each interruption.

use serde_json::Value;
use tokio::time::{Duration, sleep};

use crate::client::Client;
use crate::failure::{Failure, Outcome};
use crate::jobs::outcome;
use crate::output::{Output, cell, text};

/// Before a stream that broke off is taken up again.
const PAUSE: Duration = Duration::from_millis(500);

/// Prints a job's text piece by piece, and answers how the job ended.
pub(crate) async fn print(client: &Client, id: &str, output: Output) -> Result<Outcome, Failure> {
    let path = format!("/v1/jobs/{id}/events");
    let mut last = String::new();
    loop {
        let mut answer = client.open(&path, &[("last-event-id", last.clone())]).await?;
        let mut events = Events::default();
        // What broke off is taken up behind the last event that came.
        while let Ok(Some(piece)) = answer.chunk().await {
            events.take(&piece);
            while let Some(event) = events.next() {
                if let Some(ended) = show(&event, output)? {
                    return Ok(ended);
                }
                if !event.id.is_empty() {
                    last = event.id;
                }
            }
        }
        sleep(PAUSE).await;
    }
}

/// `Some` at the end.
fn show(event: &Event, output: Output) -> Result<Option<Outcome>, Failure> {
    match event.name.as_str() {
        "delta" => {
            let data: Value = serde_json::from_str(&event.data)?;
            if let Some(piece) = data["text"].as_str() {
                text(piece)?;
            }
        }
        "reset" => text("\n[the text begins anew]\n")?,
        "gone" => return Err(Failure::Other("the text is erased".to_owned())),
        "end" => {
            text("\n")?;
            let job: Value = serde_json::from_str(&event.data)?;
            if job["status"] != "completed" {
                output.note(&format!("{}: {}", cell(&job["status"]), cell(&job["error"]["message"])));
            }
            return Ok(Some(outcome(&job)));
        }
        _ => {}
    }
    Ok(None)
}

/// One event.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    id: String,
    name: String,
    data: String,
}

/// Cuts a stream of bytes into events.
#[derive(Default)]
struct Events(Vec<u8>);

impl Events {
    fn take(&mut self, bytes: &[u8]) {
        self.0.extend(bytes.iter().filter(|byte| **byte != b'\r'));
    }

    /// The next event that is there as a whole.
    fn next(&mut self) -> Option<Event> {
        let end = self.0.windows(2).position(|pair| pair == b"\n\n")?;
        let block: Vec<u8> = self.0.drain(..end + 2).collect();
        let mut event = Event::default();
        for line in String::from_utf8_lossy(&block).lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => value.clone_into(&mut event.id),
                "event" => value.clone_into(&mut event.name),
                "data" if event.data.is_empty() => value.clone_into(&mut event.data),
                "data" => event.data = format!("{}\n{value}", event.data),
                // Comments keep the connection alive.
                _ => {}
            }
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_whole_however_the_bytes_come() {
        let text = ": alive\n\nid: a~1\nevent: delta\ndata: {\"text\": \"h\u{e9}\"}\n\nevent: x\r\ndata: 1\r\ndata: 2\r\n\r\nid: cut";
        let mut events = Events::default();
        let mut seen = Vec::new();
        for byte in text.bytes() {
            events.take(&[byte]);
            seen.extend(std::iter::from_fn(|| events.next()));
        }
        let [alive, delta, two] = &seen[..] else {
            panic!("{seen:?}")
        };
        assert_eq!(*alive, Event::default());
        assert_eq!((delta.id.as_str(), delta.name.as_str()), ("a~1", "delta"));
        assert_eq!(delta.data, "{\"text\": \"h\u{e9}\"}");
        assert_eq!((two.name.as_str(), two.data.as_str()), ("x", "1\n2"));
    }
}
