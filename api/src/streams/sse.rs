//! Streams over HTTP: server-sent events (the HTML standard, section 9.2), with room for so many at a time.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use futures::StreamExt;
use tokio::sync::OwnedSemaphorePermit;

use crate::app::AppState;
use crate::error::ApiError;

/// A comment is sent after so long a silence, for proxies that close what is silent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Tells nginx to pass events on as they come.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// A place among the open streams, for as long as it is held.
pub struct Room {
    _place: OwnedSemaphorePermit,
}

impl Room {
    /// Takes a place, or refuses.
    pub fn take(state: &AppState) -> Result<Self, ApiError> {
        let place =
            state.streams.clone().try_acquire_owned().map_err(|_| {
                ApiError::busy("The service is at its limit of open streams; try again in a moment.", 2)
            })?;
        metrics::gauge!("claimcheck_http_streams").increment(1);
        Ok(Self { _place: place })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        metrics::gauge!("claimcheck_http_streams").decrement(1);
    }
}

/// Answers with events until they end or the client hangs up.
pub fn answer(room: Room, events: impl Stream<Item = Event> + Send + 'static) -> Response {
    let events = events.map(move |event| {
        let _held = &room;
        Ok::<_, Infallible>(event)
    });
    let mut response = Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// An event whose data is JSON.
pub fn event(data: &impl serde::Serialize) -> Event {
    // Every body has a JSON form, and JSON on one line has no line break.
    Event::default().data(serde_json::to_string(data).unwrap_or_default())
}
