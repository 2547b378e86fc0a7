//! Where one job's events go, and which. URLs are checked by `common/src/webhook/target.rs`, which knows the networks that are
//! open.

use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use utoipa::ToSchema;

use super::text::Text;
use crate::domain::{EventType, PayloadKind};

/// Where one job's events go: a URL, or an object with one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobHook {
    /// Where deliveries go.
    pub url: Text<1, 2048>,
    /// Which events.
    pub events: Option<Events>,
    /// How much a body holds.
    pub payload: Option<PayloadKind>,
}

/// A URL, or what else is to be said.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only describes `JobHook` in the OpenAPI document")]
pub enum JobHookSchema {
    /// Where deliveries go.
    Url(String),
    /// The same with more.
    More {
        /// Where deliveries go.
        url: String,
        /// Which events; all of jobs but `job.started` unless given.
        events: Option<Vec<String>>,
        /// `thin` or `full`.
        payload: Option<String>,
    },
}

impl<'de> Deserialize<'de> for JobHook {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, expecting = "a URL, or an object with `url`")]
        struct More {
            url: Text<1, 2048>,
            events: Option<Events>,
            payload: Option<PayloadKind>,
        }
        struct HookVisitor;
        impl<'de> Visitor<'de> for HookVisitor {
            type Value = JobHook;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a URL, or an object with `url`")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<JobHook, E> {
                Ok(JobHook {
                    url: Text::parse(text).map_err(E::custom)?,
                    events: None,
                    payload: None,
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<JobHook, A::Error> {
                let More { url, events, payload } = More::deserialize(MapAccessDeserializer::new(map))?;
                Ok(JobHook { url, events, payload })
            }
        }
        deserializer.deserialize_any(HookVisitor)
    }
}

/// Kinds of events, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Events(pub Vec<EventType>);

impl<'de> Deserialize<'de> for Events {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EventsVisitor;
        impl<'de> Visitor<'de> for EventsVisitor {
            type Value = Events;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                let known = EventType::ALL.map(EventType::as_str).join(", ");
                write!(f, "an array of {known}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Events, A::Error> {
                let mut events = Vec::new();
                while let Some(name) = items.next_element::<String>()? {
                    let kind = name.parse().map_err(|wrong: String| A::Error::custom(wrong))?;
                    if !events.contains(&kind) {
                        events.push(kind);
                    }
                }
                Ok(Events(events))
            }
        }
        deserializer.deserialize_any(EventsVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_str;

    #[test]
    fn a_job_s_hook_is_a_url_or_an_object_with_one() {
        let plain: JobHook = from_str(r#""https://example.org/""#).unwrap();
        let more: JobHook = from_str(r#"{"url": "https://example.org/", "payload": "full"}"#).unwrap();
        assert_eq!((plain.url.as_str(), plain.payload), ("https://example.org/", None));
        assert_eq!(
            (more.url.as_str(), more.payload),
            ("https://example.org/", Some(PayloadKind::Full))
        );
        for bad in [
            "5",
            "[]",
            "{}",
            r#"{"url": "x", "secret": "y"}"#,
            r#"{"url": "x", "events": ["job.done"]}"#,
        ] {
            assert!(from_str::<JobHook>(bad).is_err(), "{bad}");
        }
    }
}
