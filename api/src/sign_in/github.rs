//! GitHub: OAuth 2 with PKCE, and who somebody is from its API. There is no ID token; the answer comes from GitHub itself, by
//! TLS, to the bearer of a token that it has just given us.

use axum::http::{Method, header};
use claimcheck_common::config::ProviderConfig;
use oauth2::basic::BasicClient;
use oauth2::{
    AccessToken, AuthType, AuthUrl, AuthorizationCode, ClientId, ClientSecret, EndpointNotSet, EndpointSet,
    HttpRequest, PkceCodeChallenge, RedirectUrl, Scope, TokenResponse, TokenUrl,
};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::http::Http;
use super::{Identity, SignInError, Ticket, exchange_failed};

/// The version of the API that the answers below are of.
const API_VERSION: &str = "2022-11-28";
/// Reads the addresses; all else that is asked for is public.
const SCOPE: &str = "user:email";

type Client = BasicClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

pub(super) struct GitHub {
    issuer: String,
    client: Client,
    api: String,
}

/// `GET /user`.
#[derive(Deserialize)]
struct User {
    id: u64,
    login: String,
}

/// An element of `GET /user/emails`.
#[derive(Deserialize)]
struct Address {
    email: String,
    primary: bool,
    verified: bool,
}

impl GitHub {
    pub(super) fn new(
        config: &ProviderConfig,
        url: &Url,
        api: &Url,
        redirect: RedirectUrl,
    ) -> Result<Self, oauth2::url::ParseError> {
        let [issuer, api] = [url, api].map(|url| url.as_str().trim_end_matches('/').to_owned());
        let client = BasicClient::new(ClientId::new(config.client_id.clone()))
            .set_client_secret(ClientSecret::new(config.client_secret.expose_secret().to_owned()))
            .set_auth_type(AuthType::RequestBody)
            .set_auth_uri(AuthUrl::new(format!("{issuer}/login/oauth/authorize"))?)
            .set_token_uri(TokenUrl::new(format!("{issuer}/login/oauth/access_token"))?)
            .set_redirect_uri(redirect);
        Ok(Self { issuer, client, api })
    }

    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(super) fn authorize(&self, ticket: &Ticket) -> Url {
        let state = ticket.state();
        let request = self.client.authorize_url(|| state);
        let challenge = PkceCodeChallenge::from_code_verifier_sha256(&ticket.verifier());
        request
            .add_scope(Scope::new(SCOPE.to_owned()))
            .set_pkce_challenge(challenge)
            .url()
            .0
    }

    pub(super) async fn identify(&self, http: &Http, ticket: &Ticket, code: String) -> Result<Identity, SignInError> {
        let answer = self
            .client
            .exchange_code(AuthorizationCode::new(code))
            .set_pkce_verifier(ticket.verifier())
            .request_async(http)
            .await
            .map_err(exchange_failed)?;
        let user: User = self.get(http, answer.access_token(), "/user").await?;
        let mut emails: Vec<Address> = self
            .get(http, answer.access_token(), "/user/emails?per_page=100")
            .await?;
        emails.retain(|email| email.verified);
        emails.sort_by_key(|email| !email.primary);
        Ok(Identity {
            issuer: self.issuer.clone(),
            // Logins change hands, numbers do not.
            subject: user.id.to_string(),
            emails: emails.into_iter().map(|email| email.email).collect(),
            name: Some(user.login),
        })
    }

    async fn get<T: DeserializeOwned>(&self, http: &Http, token: &AccessToken, path: &str) -> Result<T, SignInError> {
        let away = |what: String| SignInError::Away(format!("{path}: {what}"));
        let request: HttpRequest = axum::http::Request::builder()
            .method(Method::GET)
            .uri(format!("{}{path}", self.api))
            .header(header::AUTHORIZATION, format!("Bearer {}", token.secret()))
            .header(header::ACCEPT, "application/vnd.github+json")
            .header("x-github-api-version", API_VERSION)
            .body(Vec::new())
            .map_err(|error| away(error.to_string()))?;
        let answer = http.send(request).await?;
        if !answer.status().is_success() {
            return Err(away(format!("is answered with {}", answer.status())));
        }
        serde_json::from_slice(answer.body()).map_err(|error| away(error.to_string()))
    }
}
