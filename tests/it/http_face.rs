//! The API process in a test's own world, and its clients.

use claimcheck_api::{App, Config};
use claimcheck_common::config::{
    ApiConfig, JwtAlgorithm, LimitsConfig, PolicyConfig, Prices, SignInConfig, TransportConfig,
};
use claimcheck_common::domain::{ModelRef, WorkerId};
use claimcheck_common::store::models::{self, NewModel};
use claimcheck_tests::{World, in_world};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use std::time::Duration;

/// The one model of these tests: its tokens are bytes.
pub(crate) const MODEL: &str = "bytes";
pub(crate) const CONTEXT: u32 = 512;
pub(crate) const VOCABULARY: u32 = 256;

/// A running API.
pub(crate) struct Api {
    pub(crate) base: String,
    pub(crate) client: reqwest::Client,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// A user with a token.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) base: String,
    pub(crate) client: reqwest::Client,
    pub(crate) username: String,
    pub(crate) token: String,
}

/// Runs a test against an API with one model, in a world of its own.
pub(crate) async fn with_api(test: impl AsyncFnOnce(&mut World, &Api)) {
    in_world(async |world| {
        announce(world, MODEL).await;
        let api = Api::start(world).await;
        test(world, &api).await;
        api.stop().await;
    })
    .await;
}

/// Registers a model whose tokens are bytes.
pub(crate) async fn announce(world: &World, name: &str) {
    let model = NewModel {
        model: ModelRef {
            name: name.to_owned(),
            revision: "r1".to_owned(),
        },
        context_length: CONTEXT,
        vocabulary_size: VOCABULARY,
        dtype: "f32".to_owned(),
        weights_sha256: "0".repeat(64),
        tokenizer: byte_tokenizer().into_bytes(),
        tokenizer_sha256: "bytes".to_owned(),
    };
    models::announce(&world.pool, WorkerId::new(), 1, model).await.unwrap();
}

/// GPT-2's alphabet of bytes, without merges.
fn byte_tokenizer() -> String {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let rest = (0..256)
        .filter(|byte| !printable(*byte))
        .zip(256..)
        .map(|(_, shown)| shown);
    let vocabulary: serde_json::Map<String, Value> = (0..256)
        .filter(|byte| printable(*byte))
        .chain(rest)
        .zip(0..)
        .map(|(shown, id): (u32, u32)| (char::from_u32(shown).unwrap().to_string(), json!(id)))
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": []},
    })
    .to_string()
}

pub(crate) fn config(world: &World) -> Config {
    Config {
        api: ApiConfig {
            http_addr: ([127, 0, 0, 1], 0).into(),
            jwt_secret: "a secret of at least thirty-two bytes".to_owned().into(),
            receipt_secret: None,
            jwt_algorithm: JwtAlgorithm::EdDsa,
            token_ttl: Duration::from_mins(10),
            session_ttl: Duration::from_hours(1),
            max_queued: None,
            prices: Prices::default(),
            stop_notice: Duration::ZERO,
            drain: Duration::from_secs(5),
        },
        database: world.database.clone(),
        broker: world.broker.clone(),
        redis: world.redis.clone(),
        delivery: world.delivery.clone(),
        webhooks: world.webhooks.clone(),
        files: world.files.clone(),
        limits: LimitsConfig::unlimited(),
        policy: PolicyConfig::default(),
        transport: TransportConfig::default(),
        sign_in: SignInConfig::default(),
    }
}

impl Api {
    pub(crate) async fn start(world: &World) -> Self {
        Self::start_with(config(world)).await
    }

    pub(crate) async fn start_with(config: Config) -> Self {
        let app = App::build(config).await.unwrap();
        let base = format!("http://{}", app.address());
        let stop = CancellationToken::new();
        let task = tokio::spawn(app.run_until_stopped(stop.clone()));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self {
            base,
            client,
            stop,
            task,
        }
    }

    /// Stops it as SIGTERM would, and waits for its end.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("the process ends without a panic");
    }

    /// Whether it has ended.
    pub(crate) fn has_stopped(&self) -> bool {
        self.task.is_finished()
    }

    /// Asks it to stop and goes on.
    pub(crate) fn begin_stop(&self) {
        self.stop.cancel();
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.base))
    }

    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.base))
    }

    /// A new user of that name.
    pub(crate) async fn user(&self, username: &str) -> Session {
        let registered = self.register(username).await;
        assert_eq!(registered.status(), StatusCode::CREATED);
        let (status, body) = answer(self.token(username, PASSWORD)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        Session {
            base: self.base.clone(),
            client: self.client.clone(),
            username: username.to_owned(),
            token: body["access_token"].as_str().unwrap().to_owned(),
        }
    }

    pub(crate) async fn register(&self, username: &str) -> Response {
        let body = json!({"username": username, "email": format!("{username}@example.org"), "password": PASSWORD});
        self.post("/v1/auth/register").json(&body).send().await.unwrap()
    }

    pub(crate) fn token(&self, username: &str, password: &str) -> RequestBuilder {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs([
                ("grant_type", "password"),
                ("username", username),
                ("password", password),
            ])
            .finish();
        self.post("/v1/auth/token")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form)
    }
}

pub(crate) const PASSWORD: &str = "correct horse";

impl Session {
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.anonymous(method, path).bearer_auth(&self.token)
    }

    /// A request without a credential.
    pub(crate) fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    /// The same user with another credential.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self {
            token: token.to_owned(),
            ..self.clone()
        }
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.request(Method::POST, path)
    }

    pub(crate) fn put(&self, path: &str) -> RequestBuilder {
        self.request(Method::PUT, path)
    }

    /// The same user at another process.
    pub(crate) fn at(&self, api: &Api) -> Self {
        Self {
            base: api.base.clone(),
            ..self.clone()
        }
    }

    /// Submits a job and answers its id.
    pub(crate) async fn submit(&self, body: &Value) -> String {
        let (status, body) = answer(self.post("/v1/jobs").json(body)).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn job(&self, id: &str) -> Value {
        let (status, body) = answer(self.get(&format!("/v1/jobs/{id}"))).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }
}

/// Sends, and reads the answer as JSON.
pub(crate) async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status} without JSON: {text}"));
    (status, body)
}

/// The error's code, after a look at the envelope.
pub(crate) fn code(body: &Value) -> &str {
    for field in ["message", "type", "param", "code"] {
        assert!(body["error"].get(field).is_some(), "no `{field}` in {body}");
    }
    body["error"]["code"].as_str().unwrap()
}
