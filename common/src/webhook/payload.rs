//! What an event says, in a webhook's body and in the feed.
//!
//! Made from the stored event and its job each time. Both never change, so every attempt says the same, unless the job's
//! texts were erased meanwhile.

use serde::Serialize;
use serde_json::{Map, Value};
use time::format_description::well_known::Rfc3339;
use url::Url;
use utoipa::ToSchema;

use crate::store::events::Event;
use crate::store::jobs::JobView;
use crate::view::JobBody;

/// Larger bodies leave the job out (Standard Webhooks asks for less than 20 kB).
pub const BODY_MAX: usize = 20_000;

/// An event.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Event)]
pub struct EventBody {
    /// `evt_…`, which is also the `webhook-id`: the same in every attempt and for every endpoint.
    pub id: String,
    /// Always `event`.
    pub object: &'static str,
    /// `job.completed`, for example.
    #[serde(rename = "type")]
    pub kind: String,
    /// When it happened.
    pub created_at: i64,
    /// The same by RFC 3339, as Standard Webhooks has it.
    pub timestamp: String,
    /// What it is about: `id`, `object`, `status`, `url`. A full payload has the whole `job` as well, or says why not in
    /// `omitted`.
    #[schema(value_type = Object)]
    pub data: Value,
}

impl EventBody {
    /// The event with what it is about. `links` is what relative URLs are completed with.
    pub fn new(event: &Event, links: Option<&Url>) -> Self {
        Self {
            id: event.id.to_string(),
            object: "event",
            kind: event.kind.clone(),
            created_at: event.created_at.unix_timestamp(),
            timestamp: event.created_at.format(&Rfc3339).unwrap_or_default(),
            data: data(event, links).into(),
        }
    }
}

/// A webhook's body. With `full` it shows the job, while that is not too large.
pub fn body(event: &Event, full: Option<&JobView>, links: Option<&Url>) -> Result<Vec<u8>, serde_json::Error> {
    let mut thin = EventBody::new(event, links);
    let Some(job) = full else {
        return serde_json::to_vec(&thin);
    };
    thin.data["job"] = serde_json::to_value(JobBody::from(job))?;
    let body = serde_json::to_vec(&thin)?;
    if body.len() <= BODY_MAX {
        return Ok(body);
    }
    thin.data["job"] = Value::Null;
    thin.data["omitted"] = "too_large".into();
    serde_json::to_vec(&thin)
}

/// What the event is about.
pub fn data(event: &Event, links: Option<&Url>) -> Map<String, Value> {
    let mut data = Map::new();
    if let Some(job) = event.job {
        let state = event.kind.strip_prefix("job.").unwrap_or_default();
        let status = if state == "started" { "in_progress" } else { state };
        data.insert("id".to_owned(), job.to_string().into());
        data.insert("object".to_owned(), "job".into());
        data.insert("status".to_owned(), status.into());
        data.insert("url".to_owned(), format!("/v1/jobs/{job}").into());
    }
    if let Some(Value::Object(more)) = &event.data {
        data.extend(more.clone());
    }
    if let (Some(links), Some(Value::String(url))) = (links, data.get_mut("url"))
        && let Some(path) = url.strip_prefix('/')
    {
        *url = format!("{}/{path}", links.as_str().trim_end_matches('/'));
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{EventId, JobId};
    use serde_json::json;
    use time::OffsetDateTime;

    fn event(kind: &str, job: Option<JobId>, data: Option<Value>) -> Event {
        Event {
            id: EventId::new(),
            kind: kind.to_owned(),
            job,
            data,
            created_at: OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap(),
        }
    }

    #[test]
    fn a_job_s_event_names_the_job_its_state_and_where_it_is() {
        let job = JobId::new();
        let event = event("job.completed", Some(job), None);
        let body: Value = serde_json::from_slice(&body(&event, None, None).unwrap()).unwrap();
        assert_eq!(
            body,
            json!({"id": event.id.to_string(), "object": "event", "type": "job.completed", "created_at": 1_800_000_000,
                "timestamp": "2027-01-15T08:00:00Z",
                "data": {"id": job.to_string(), "object": "job", "status": "completed", "url": format!("/v1/jobs/{job}")}})
        );
    }

    #[test]
    fn other_events_say_what_they_were_written_with_and_links_are_made_whole() {
        let data = json!({"id": "batch_1", "object": "batch", "url": "/v1/batches/batch_1"});
        let links = Url::parse("https://claimcheck.example.org/api/").unwrap();
        let shown = EventBody::new(&event("batch.completed", None, Some(data)), Some(&links));
        assert_eq!(
            shown.data["url"],
            "https://claimcheck.example.org/api/v1/batches/batch_1"
        );
        assert_eq!(shown.data["object"], "batch");
    }
}
