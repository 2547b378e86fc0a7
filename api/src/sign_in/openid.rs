//! OpenID Connect Core 1.0, section 3.1: the authorization code flow, with what the provider says of itself (Discovery 1.0).

use std::time::{Duration, Instant};

use claimcheck_common::config::ProviderConfig;
use openidconnect::core::{
    CoreAuthDisplay, CoreAuthenticationFlow, CoreClaimName, CoreClaimType, CoreClient, CoreClientAuthMethod,
    CoreGrantType, CoreIdToken, CoreIdTokenClaims, CoreIdTokenVerifier, CoreJsonWebKey,
    CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm, CoreJwsSigningAlgorithm, CoreResponseMode,
    CoreResponseType, CoreSubjectIdentifierType, CoreTokenResponse, CoreUserInfoClaims,
};
use openidconnect::{
    AccessTokenHash, AdditionalProviderMetadata, AuthType, AuthorizationCode, ClaimsVerificationError, ClientId,
    ClientSecret, DiscoveryError, EndpointMaybeSet, EndpointNotSet, EndpointSet, IssuerUrl, OAuth2TokenResponse,
    PkceCodeChallenge, ProviderMetadata, RedirectUrl, Scope, SignatureVerificationError, TokenResponse, UserInfoError,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use url::Url;

use super::http::{Http, HttpError};
use super::{Identity, SignInError, Ticket, exchange_failed};

/// What a provider says of itself is believed for so long.
const KNOWN_FOR: Duration = Duration::from_mins(10);
/// One that did not answer is not asked again before this, nor is one whose keys have just been read.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Signatures that are believed: with a key of the provider's that nobody else has. Neither `none` nor a shared secret
/// (RFC 8725, section 3.1).
const SIGNATURES: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

type Metadata = ProviderMetadata<
    Further,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

/// What later specifications let a provider say of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Further {
    /// RFC 9207, section 3: answers without `iss` are not its own.
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
    /// RFC 8414, section 2.
    code_challenge_methods_supported: Option<Vec<String>>,
}

impl AdditionalProviderMetadata for Further {}

type Client =
    CoreClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointMaybeSet, EndpointMaybeSet>;

/// A provider, and what it said of itself last.
pub(super) struct OpenId {
    issuer: IssuerUrl,
    client_id: ClientId,
    client_secret: SecretString,
    redirect: RedirectUrl,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    metadata: Option<Metadata>,
    asked: Option<Instant>,
    failure: Option<String>,
}

impl OpenId {
    pub(super) fn new(
        config: &ProviderConfig,
        issuer: &str,
        redirect: RedirectUrl,
    ) -> Result<Self, openidconnect::url::ParseError> {
        Ok(Self {
            issuer: IssuerUrl::new(issuer.to_owned())?,
            client_id: ClientId::new(config.client_id.clone()),
            client_secret: config.client_secret.clone(),
            redirect,
            known: Mutex::default(),
        })
    }

    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(super) async fn authorize(&self, http: &Http, ticket: &Ticket) -> Result<Url, SignInError> {
        let metadata = self.metadata(http, KNOWN_FOR).await?;
        let (state, nonce) = (ticket.state(), ticket.nonce());
        let client = self.client(metadata);
        let (url, ..) = client
            .authorize_url(CoreAuthenticationFlow::AuthorizationCode, || state, || nonce)
            .add_scopes(["email", "profile"].map(|scope| Scope::new(scope.to_owned())))
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&ticket.verifier()))
            .url();
        Ok(url)
    }

    pub(super) async fn identify(
        &self,
        http: &Http,
        ticket: &Ticket,
        code: String,
        iss: Option<&str>,
    ) -> Result<Identity, SignInError> {
        let metadata = self.metadata(http, KNOWN_FOR).await?;
        // Another provider's code is not for this one to see (RFC 9700, section 4.4).
        let must_say = metadata
            .additional_metadata()
            .authorization_response_iss_parameter_supported;
        if iss.map_or(must_say, |iss| iss != self.issuer()) {
            return Err(refused("the answer is not from this issuer"));
        }
        let mut client = self.client(metadata);
        let answer = client
            .exchange_code(AuthorizationCode::new(code))
            .map_err(away)?
            .set_pkce_verifier(ticket.verifier())
            .request_async(http)
            .await
            .map_err(exchange_failed)?;
        let token = answer.id_token().ok_or_else(|| refused("there is no ID token"))?;
        let mut claims = token.claims(&verifier(&client), &ticket.nonce());
        let unknown = SignatureVerificationError::NoMatchingKey;
        if claims.as_ref().err() == Some(&ClaimsVerificationError::SignatureVerification(unknown)) {
            // The provider may have new keys.
            client = self.client(self.metadata(http, ASK_AGAIN).await?);
            claims = token.claims(&verifier(&client), &ticket.nonce());
        }
        let claims = claims.map_err(refused)?;
        check_access_token(&answer, token, claims, &verifier(&client))?;
        let mut identity = self.identity(claims);
        if identity.emails.is_empty()
            && let Ok(asked) = client.user_info(answer.access_token().clone(), Some(claims.subject().clone()))
        {
            let told: CoreUserInfoClaims = asked.request_async(http).await.map_err(user_info_failed)?;
            identity.emails = verified(told.email().map(|email| email.as_str()), told.email_verified());
            identity.name = identity
                .name
                .or_else(|| told.preferred_username().map(|name| name.to_string()));
        }
        Ok(identity)
    }

    fn identity(&self, claims: &CoreIdTokenClaims) -> Identity {
        Identity {
            issuer: self.issuer.to_string(),
            subject: claims.subject().to_string(),
            emails: verified(claims.email().map(|email| email.as_str()), claims.email_verified()),
            name: claims.preferred_username().map(|name| name.to_string()),
        }
    }

    /// What the provider says of itself, not older than `age`. Whoever comes while it is asked waits for the answer, and one
    /// that did not answer is left alone for a while.
    async fn metadata(&self, http: &Http, age: Duration) -> Result<Metadata, SignInError> {
        let mut known = self.known.lock().await;
        let asked = |known: &Known, age| known.asked.is_some_and(|asked| asked.elapsed() < age);
        match (&known.metadata, &known.failure) {
            (Some(metadata), None) if asked(&known, age) => return Ok(metadata.clone()),
            (_, Some(failure)) if asked(&known, ASK_AGAIN) => return Err(SignInError::Away(failure.clone())),
            _ => {}
        }
        let told = Metadata::discover_async(self.issuer.clone(), http).await;
        known.asked = Some(Instant::now());
        match told.map_err(discovery_failure).and_then(with_pkce) {
            Ok(metadata) => {
                known.failure = None;
                Ok(known.metadata.insert(metadata).clone())
            }
            Err(failure) => {
                known.failure = Some(failure.clone());
                Err(SignInError::Away(failure))
            }
        }
    }

    fn client(&self, metadata: Metadata) -> Client {
        let secret = ClientSecret::new(self.client_secret.expose_secret().to_owned());
        // Basic is what there is where nothing is said (Discovery 1.0, section 3).
        let basic = metadata
            .token_endpoint_auth_methods_supported()
            .is_none_or(|methods| methods.contains(&CoreClientAuthMethod::ClientSecretBasic));
        let by = if basic {
            AuthType::BasicAuth
        } else {
            AuthType::RequestBody
        };
        CoreClient::from_provider_metadata(metadata, self.client_id.clone(), Some(secret))
            .set_auth_type(by)
            .set_redirect_uri(self.redirect.clone())
    }
}

fn verifier(client: &Client) -> CoreIdTokenVerifier<'_> {
    client.id_token_verifier().set_allowed_algs(SIGNATURES)
}

/// An access token that came with another ID token speaks for somebody else (OpenID Connect Core, section 3.1.3.8).
fn check_access_token(
    answer: &CoreTokenResponse,
    token: &CoreIdToken,
    claims: &CoreIdTokenClaims,
    verifier: &CoreIdTokenVerifier<'_>,
) -> Result<(), SignInError> {
    let Some(stated) = claims.access_token_hash() else {
        return Ok(());
    };
    let (algorithm, key) = (
        token.signing_alg().map_err(refused)?,
        token.signing_key(verifier).map_err(refused)?,
    );
    let is = AccessTokenHash::from_token(answer.access_token(), algorithm, key).map_err(refused)?;
    if is == *stated {
        Ok(())
    } else {
        Err(refused("the access token is another one's"))
    }
}

fn verified(email: Option<&str>, is_verified: Option<bool>) -> Vec<String> {
    email
        .filter(|_| is_verified == Some(true))
        .map(str::to_owned)
        .into_iter()
        .collect()
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(why: impl ToString) -> SignInError {
    SignInError::Refused(why.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn away(why: impl ToString) -> SignInError {
    SignInError::Away(why.to_string())
}

/// A provider that says it knows no S256 would take a code from anybody (RFC 9700, section 2.1.1).
fn with_pkce(metadata: Metadata) -> Result<Metadata, String> {
    let methods = metadata.additional_metadata().code_challenge_methods_supported.as_ref();
    if methods.is_none_or(|methods| methods.iter().any(|method| method == "S256")) {
        Ok(metadata)
    } else {
        Err("it does not know PKCE with S256".to_owned())
    }
}

fn discovery_failure(error: DiscoveryError<HttpError>) -> String {
    match error {
        DiscoveryError::Request(error) => error.to_string(),
        DiscoveryError::Response(status, ..) => format!("its metadata are answered with {status}"),
        error => format!("its metadata do not hold: {error}"),
    }
}

fn user_info_failed(error: UserInfoError<HttpError>) -> SignInError {
    match error {
        UserInfoError::ClaimsVerification(error) => refused(error),
        UserInfoError::Request(error) => error.into(),
        UserInfoError::Response(status, ..) => away(format!("who this is, is answered with {status}")),
        error => away(error),
    }
}
