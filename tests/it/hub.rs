//! Models by name: from a hub (here a small server laid out like one) into the cache, and out of it when there is no hub.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::time::SystemTime;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use claimcheck_common::config::HubConfig;
use claimcheck_worker::gpt2::{LoadError, ModelFiles, hub};
use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;

use crate::parity::fixtures;

const MODEL: &str = "acme/plain";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Default)]
struct Served {
    /// Sends the weights without their second half, and does not say so.
    cuts: AtomicBool,
    /// Whole files that were asked for.
    downloads: AtomicUsize,
    /// Answers everything with this status, unless it is 0.
    refuses: AtomicU16,
}

struct Hub {
    served: Arc<Served>,
    server: AbortOnDropHandle<()>,
    home: TempDir,
    config: HubConfig,
}

impl Hub {
    async fn start() -> Self {
        let state = Arc::new(Served::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new()
            .route("/{owner}/{name}/resolve/{revision}/{file}", axum::routing::get(resolve))
            .with_state(state.clone());
        let server = AbortOnDropHandle::new(tokio::spawn(async move {
            axum::serve(listener, app).await.unwrap();
        }));
        let home = tempfile::tempdir().unwrap();
        let config = HubConfig {
            endpoint: Some(endpoint),
            home: Some(home.path().to_owned()),
            offline: false,
        };
        Self {
            served: state,
            server,
            home,
            config,
        }
    }

    fn offline(&self) -> HubConfig {
        HubConfig {
            offline: true,
            ..self.config.clone()
        }
    }

    /// What is known of the model's revisions.
    fn refs(&self) -> PathBuf {
        self.home.path().join("hub/models--acme--plain/refs")
    }

    fn downloads(&self) -> usize {
        self.served.downloads.load(Ordering::SeqCst)
    }
}

async fn fetch(model: &'static str, config: &HubConfig) -> Result<ModelFiles, LoadError> {
    let config = config.clone();
    tokio::task::spawn_blocking(move || hub::fetch(model, None, &config))
        .await
        .unwrap()
}

fn answer(status: StatusCode) -> Response<Body> {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

/// Answers a range of a file, as the hub does.
async fn resolve(
    State(served): State<Arc<Served>>,
    UrlPath((owner, name, revision, file)): UrlPath<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    if let Ok(status) = StatusCode::from_u16(served.refuses.load(Ordering::SeqCst)) {
        return answer(status);
    }
    if format!("{owner}/{name}") != MODEL || !["main", COMMIT].contains(&revision.as_str()) {
        return answer(StatusCode::NOT_FOUND);
    }
    let Some(whole) = content(&file) else {
        return answer(StatusCode::NOT_FOUND);
    };
    let range = headers[header::RANGE].to_str().unwrap().strip_prefix("bytes=").unwrap();
    let (from, to) = range.split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let mut end = to.parse().map_or(whole.len(), |last: usize| last + 1);
    if to.is_empty() {
        served.downloads.fetch_add(1, Ordering::SeqCst);
        if file == "model.safetensors" && served.cuts.load(Ordering::SeqCst) {
            end = whole.len() / 2;
        }
    }
    Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header("x-repo-commit", COMMIT)
        .header(header::ETAG, format!("\"etag-of-{file}\""))
        .header(
            header::CONTENT_RANGE,
            format!("bytes {from}-{}/{}", end - 1, whole.len()),
        )
        .body(Body::from(whole[from..end].to_vec()))
        .unwrap()
}

fn content(file: &str) -> Option<Vec<u8>> {
    match file {
        "tokenizer.json" => Some(b"{}".to_vec()),
        "config.json" | "model.safetensors" => Some(std::fs::read(fixtures().join("parity/plain").join(file)).unwrap()),
        _ => None,
    }
}

fn assert_same(path: &Path, file: &str) {
    assert_eq!(std::fs::read(path).unwrap(), content(file).unwrap(), "{file}");
}

#[tokio::test]
async fn a_model_is_downloaded_once_and_found_offline_afterwards() {
    let hub = Hub::start().await;
    let files = fetch(MODEL, &hub.config).await.unwrap();
    assert_eq!((files.name.as_str(), files.commit.as_deref()), (MODEL, Some(COMMIT)));
    assert!(files.config.starts_with(hub.home.path()));
    assert_same(&files.config, "config.json");
    assert_same(&files.weights, "model.safetensors");
    assert_same(&files.tokenizer, "tokenizer.json");
    assert_eq!(hub.downloads(), 3);

    fetch(MODEL, &hub.config).await.unwrap();
    assert_eq!(hub.downloads(), 3, "the second time the cache has it");

    let offline = fetch(MODEL, &hub.offline()).await.unwrap();
    assert_eq!(
        (offline.commit.as_deref(), &offline.weights),
        (Some(COMMIT), &files.weights)
    );
}

#[tokio::test]
async fn a_hub_out_of_reach_costs_nothing_once_the_model_is_cached() {
    let hub = Hub::start().await;
    fetch(MODEL, &hub.config).await.unwrap();
    let Hub {
        server, home, config, ..
    } = hub;
    server.abort();
    let _ = server.await;
    assert_eq!(fetch(MODEL, &config).await.unwrap().commit.as_deref(), Some(COMMIT));
    drop(home);
    let error = fetch(MODEL, &config).await.unwrap_err().to_string();
    assert!(error.contains(MODEL), "{error}");
}

#[tokio::test]
async fn what_another_client_put_into_the_cache_is_not_downloaded_again() {
    let hub = Hub::start().await;
    fetch(MODEL, &hub.config).await.unwrap();
    // Others refer to a branch alone, not to the commit that it is.
    std::fs::remove_file(hub.refs().join(COMMIT)).unwrap();
    let files = fetch(MODEL, &hub.config).await.unwrap();
    assert_eq!(files.commit.as_deref(), Some(COMMIT));
    assert_same(&files.weights, "model.safetensors");
    assert_eq!(hub.downloads(), 3);
}

#[tokio::test]
async fn a_cache_that_is_only_to_be_read_is_taken_as_it_is() {
    let hub = Hub::start().await;
    let config = fetch(MODEL, &hub.config).await.unwrap().config;
    let main = hub.refs().join("main");
    let before = SystemTime::UNIX_EPOCH;
    std::fs::File::options()
        .write(true)
        .open(&main)
        .unwrap()
        .set_modified(before)
        .unwrap();
    fetch(MODEL, &hub.config).await.unwrap();
    let written = main.metadata().unwrap().modified().unwrap();
    assert_eq!(written, before, "what stands there is not written again");

    // Nobody can write below a file, root neither.
    std::fs::remove_dir_all(hub.refs()).unwrap();
    std::fs::write(hub.refs(), "").unwrap();
    assert_eq!(fetch(MODEL, &hub.config).await.unwrap().config, config);
    assert_eq!(hub.downloads(), 3);
    std::fs::remove_file(config).unwrap();
    assert!(fetch(MODEL, &hub.config).await.is_err(), "it has to be written");
}

#[tokio::test]
async fn a_hub_that_has_too_much_to_do_costs_nothing_once_the_model_is_cached() {
    let hub = Hub::start().await;
    let with = async |status: u16| {
        hub.served.refuses.store(status, Ordering::SeqCst);
        let files = fetch(MODEL, &hub.config).await;
        files.map(|files| files.commit).map_err(|error| error.to_string())
    };
    let complaint = with(429).await.unwrap_err();
    assert!(complaint.contains(MODEL) && complaint.contains("429"), "{complaint}");
    with(0).await.unwrap();
    for status in [408, 429, 503] {
        assert_eq!(with(status).await.unwrap().as_deref(), Some(COMMIT), "{status}");
    }
    assert!(with(403).await.is_err(), "that is an answer");
}

#[tokio::test]
async fn offline_and_not_cached_is_said_so() {
    let hub = Hub::start().await;
    let error = fetch(MODEL, &hub.offline()).await.unwrap_err().to_string();
    assert!(error.contains(MODEL) && error.contains("HF_HUB_OFFLINE"), "{error}");
    assert_eq!(hub.downloads(), 0);
}

#[tokio::test]
async fn an_unknown_model_is_named_with_the_revision() {
    let hub = Hub::start().await;
    let error = fetch("acme/nothing", &hub.config).await.unwrap_err().to_string();
    assert!(
        error.contains("acme/nothing at revision main") && error.contains("404"),
        "{error}"
    );
}

#[tokio::test]
async fn weights_cut_on_the_way_are_refused_and_fetched_again() {
    let hub = Hub::start().await;
    hub.served.cuts.store(true, Ordering::SeqCst);
    let error = fetch(MODEL, &hub.config).await.unwrap_err().to_string();
    assert!(
        error.contains("model.safetensors") && error.contains("announced"),
        "{error}"
    );
    assert!(
        fetch(MODEL, &hub.offline()).await.is_err(),
        "nothing cut stays in the cache"
    );

    hub.served.cuts.store(false, Ordering::SeqCst);
    let files = fetch(MODEL, &hub.config).await.unwrap();
    assert_same(&files.weights, "model.safetensors");
}
