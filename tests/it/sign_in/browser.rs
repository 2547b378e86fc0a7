//! A browser: it keeps cookies and goes where it is sent. The API's public URL leads it to the API under test.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use reqwest::{Response, StatusCode, header};
use serde_json::Value;
use url::Url;

use crate::http_face::{Api, answer};

/// Where browsers reach the API, as it is configured.
pub(super) const PUBLIC: &str = "https://api.example.org";
/// The cookie of a sign-in.
pub(super) const COOKIE: &str = "__Host-claimcheck-sign-in";
const HOPS: usize = 10;

/// One user's browser.
pub(super) struct Browser {
    client: reqwest::Client,
    /// By origin and name.
    jar: Mutex<HashMap<(String, String), String>>,
}

impl Browser {
    pub(super) fn new() -> Self {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        Self {
            client: client.build().unwrap(),
            jar: Mutex::default(),
        }
    }

    /// Begins to sign in; answers the provider's URL.
    pub(super) async fn start(&self, api: &Api, provider: &str) -> Url {
        let url = format!("{PUBLIC}/v1/auth/{provider}/start").parse().unwrap();
        let response = self.at(api, &url).await;
        assert_eq!(response.status(), StatusCode::SEE_OTHER);
        location(&url, &response)
    }

    /// The same with a host of the caller's own in the headers that proxies write.
    pub(super) async fn start_by_way_of(&self, api: &Api, host: &str) -> Url {
        let public: Url = PUBLIC.parse().unwrap();
        let request = self.client.get(format!("{}/v1/auth/company/start", api.base));
        let forwarded = format!("host={host}");
        let request = request.header("x-forwarded-host", host).header("forwarded", forwarded);
        location(&public, &self.fetch(request, &public).await)
    }

    /// Says at the provider to be `name` and agrees to everything; answers where it is sent back to.
    pub(super) async fn agree(&self, url: Url, name: &str) -> Url {
        let mut here = url;
        for _ in 0..HOPS {
            if here.as_str().starts_with(PUBLIC) {
                return here;
            }
            let page = self.fetch(self.client.get(here.clone()), &here).await;
            let response = if page.status().is_redirection() {
                page
            } else {
                let status = page.status();
                let text = page.text().await.unwrap();
                assert!(status.is_success(), "{here}: {text}");
                let is_login = text.contains("name=\"login\"");
                let form = if is_login {
                    vec![("prompt", "login"), ("login", name), ("password", "any")]
                } else {
                    vec![("prompt", "consent")]
                };
                self.fetch(self.client.post(here.clone()).form(&form), &here).await
            };
            here = location(&here, &response);
        }
        panic!("the provider sends the browser in circles");
    }

    /// Comes back to the API.
    pub(super) async fn come_back(&self, api: &Api, url: &Url) -> (StatusCode, Value) {
        let response = self.at(api, url).await;
        (response.status(), response.json().await.unwrap())
    }

    /// Signs in with the provider `company` as `name`.
    pub(super) async fn sign_in(&self, api: &Api, name: &str) -> (StatusCode, Value) {
        let url = self.start(api, "company").await;
        let back = self.agree(url, name).await;
        self.come_back(api, &back).await
    }

    /// Links the provider `company`, as whose user it is `name`, to the account of `token`.
    pub(super) async fn link(&self, api: &Api, token: &str, name: &str) -> (StatusCode, Value) {
        let url = self.ask_to_link(api, token).await;
        let back = self.agree(url, name).await;
        self.come_back(api, &back).await
    }

    /// Asks for a link; answers the provider's URL.
    pub(super) async fn ask_to_link(&self, api: &Api, token: &str) -> Url {
        let path = "/v1/auth/company/link";
        let public: Url = PUBLIC.parse().unwrap();
        let response = self.fetch(api.post(path).bearer_auth(token), &public).await;
        assert_eq!(response.status(), StatusCode::OK);
        let body: Value = response.json().await.unwrap();
        body["url"].as_str().unwrap().parse().unwrap()
    }

    /// Fetches a URL of the API's.
    pub(super) async fn at(&self, api: &Api, url: &Url) -> Response {
        let path = url.as_str().strip_prefix(PUBLIC).expect("a URL of the API's");
        self.fetch(self.client.get(format!("{}{path}", api.base)), url).await
    }

    /// Its cookie of the API's.
    pub(super) fn ticket(&self) -> Option<String> {
        let jar = self.jar.lock().unwrap_or_else(PoisonError::into_inner);
        jar.get(&(PUBLIC.to_owned(), COOKIE.to_owned())).cloned()
    }

    async fn fetch(&self, request: reqwest::RequestBuilder, url: &Url) -> Response {
        let origin = url.origin().ascii_serialization();
        let cookies: Vec<String> = {
            let jar = self.jar.lock().unwrap_or_else(PoisonError::into_inner);
            let mine = jar.iter().filter(|((of, _), _)| *of == origin);
            mine.map(|((_, name), value)| format!("{name}={value}")).collect()
        };
        let response = request.header(header::COOKIE, cookies.join("; ")).send().await.unwrap();
        let mut jar = self.jar.lock().unwrap_or_else(PoisonError::into_inner);
        for given in response.headers().get_all(header::SET_COOKIE) {
            let pair = given.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            let key = (origin.clone(), name.to_owned());
            if value.is_empty() {
                jar.remove(&key);
            } else {
                jar.insert(key, value.to_owned());
            }
        }
        response
    }
}

fn location(from: &Url, response: &Response) -> Url {
    let to = response.headers()[header::LOCATION].to_str().unwrap();
    from.join(to).unwrap()
}

/// A URL with one parameter given another value, or none.
pub(super) fn with(url: &Url, name: &str, value: Option<&str>) -> Url {
    let pairs: Vec<(String, String)> = url
        .query_pairs()
        .into_owned()
        .filter(|(known, _)| known != name)
        .collect();
    let mut altered = url.clone();
    altered.query_pairs_mut().clear().extend_pairs(pairs);
    if let Some(value) = value {
        altered.query_pairs_mut().append_pair(name, value);
    }
    altered
}

/// A parameter of a URL.
pub(super) fn parameter(url: &Url, name: &str) -> String {
    let found = url.query_pairs().find(|(known, _)| known == name);
    found.unwrap_or_else(|| panic!("no `{name}` in {url}")).1.into_owned()
}

/// Whose token it is.
pub(super) async fn subject(api: &Api, signed_in: &Value) -> Value {
    let token = signed_in["access_token"]
        .as_str()
        .unwrap_or_else(|| panic!("{signed_in}"));
    let (status, _) = answer(api.get("/v1/jobs").bearer_auth(token)).await;
    assert_eq!(status, StatusCode::OK);
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::Engine::decode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, claims).unwrap();
    serde_json::from_slice::<Value>(&claims).unwrap()["sub"].clone()
}
