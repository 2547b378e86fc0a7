//! `GET /openapi.json`: the document, rendered once.

use axum::Router;
use axum::http::header;
use axum::routing::get;
use bytes::Bytes;

/// Serves `document`.
pub fn router<S: Clone + Send + Sync + 'static>(document: &utoipa::openapi::OpenApi) -> Router<S> {
    let body = Bytes::from(document.to_json().expect("the document is plain data"));
    let answer = move || {
        let body = body.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], body) }
    };
    Router::new().route("/openapi.json", get(answer))
}
