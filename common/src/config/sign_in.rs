//! With whom users may sign in besides their password: OpenID Connect providers and GitHub.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

use super::{ConfigError, Environment, from_env};

/// The providers, and where they send users back to.
#[derive(Debug, Clone, Default)]
pub struct SignInConfig {
    /// `CLAIMCHECK_SIGN_IN`: their names, by commas (`company,github`), each of `a-z 0-9`. Each has variables of its own. Unset: none.
    pub providers: Vec<ProviderConfig>,
    /// `CLAIMCHECK_PUBLIC_URL`: where browsers reach the API. A provider sends users back to `/v1/auth/NAME/callback` under it,
    /// which is the redirect URI to register there, exactly.
    pub public_url: Option<Url>,
}

/// One provider. Its variables begin with `CLAIMCHECK_SIGN_IN_NAME_`.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// What routes call it.
    pub name: String,
    /// `…_LABEL`: what people call it (its name).
    pub label: String,
    /// What is spoken there.
    pub kind: ProviderKind,
    /// `…_CLIENT_ID`: what the provider calls us.
    pub client_id: String,
    /// `…_CLIENT_SECRET`, or `…_CLIENT_SECRET_FILE` with a file that holds it.
    pub client_secret: SecretString,
}

/// What a provider speaks, and where it is. `…_KIND`: `openid` (default) or `github`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderKind {
    /// OpenID Connect.
    OpenId {
        /// `…_ISSUER`: exactly as the provider's own metadata say it.
        issuer: String,
    },
    /// GitHub's OAuth, which is no OpenID Connect.
    GitHub {
        /// `…_URL`: where users sign in (`https://github.com`).
        url: Url,
        /// `…_API_URL`: where its API is (`https://api.github.com`).
        api_url: Url,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    OpenId,
    GitHub,
}

#[derive(Deserialize)]
struct Variables {
    kind: Option<Kind>,
    label: Option<String>,
    issuer: Option<String>,
    url: Option<Url>,
    api_url: Option<Url>,
    client_id: String,
    client_secret: Option<SecretString>,
    client_secret_file: Option<PathBuf>,
}

impl SignInConfig {
    /// Reads `CLAIMCHECK_SIGN_IN`, `CLAIMCHECK_SIGN_IN_*` and `CLAIMCHECK_PUBLIC_URL`.
    pub fn from_env() -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Own {
            sign_in: Option<String>,
            public_url: Option<String>,
        }
        let own: Own = from_env("CLAIMCHECK_")?;
        let names = own.sign_in.unwrap_or_default();
        let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
        let providers = names.map(ProviderConfig::from_env).collect::<Result<Vec<_>, _>>()?;
        let public_url = own.public_url.filter(|url| !url.is_empty());
        let public_url = public_url
            .map(|url| url.parse())
            .transpose()
            .map_err(|error| ConfigError::Invalid(format!("CLAIMCHECK_PUBLIC_URL is no URL: {error}")))?;
        Ok(Self { providers, public_url })
    }

    /// Whether the parts fit each other, and in production, whether all go by TLS.
    pub fn check(&self, env: Environment) -> Result<(), ConfigError> {
        let Some(public) = self.public_url.as_ref().filter(|url| url.has_host()) else {
            return match self.providers.first() {
                None => Ok(()),
                Some(_) => Err(ConfigError::Invalid(
                    "CLAIMCHECK_SIGN_IN needs CLAIMCHECK_PUBLIC_URL, where providers send users back to".to_owned(),
                )),
            };
        };
        for (place, one) in self.providers.iter().enumerate() {
            if self.providers[..place].iter().any(|other| other.name == one.name) {
                return Err(ConfigError::Invalid(format!(
                    "CLAIMCHECK_SIGN_IN names {} twice",
                    one.name
                )));
            }
            let plain = one.kind.urls().iter().any(|url| !url.starts_with("https://"));
            if env == Environment::Production && (plain || public.scheme() != "https") {
                return Err(ConfigError::Invalid(format!(
                    "CLAIMCHECK_ENV is production: the URLs of the provider {} and CLAIMCHECK_PUBLIC_URL must begin with https://",
                    one.name
                )));
            }
        }
        Ok(())
    }
}

impl ProviderConfig {
    fn from_env(name: &str) -> Result<Self, ConfigError> {
        let plain = |name: &str| {
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        // `/v1/auth/identities/…` is a route.
        if !plain(name) || name.len() > 32 || name == "identities" {
            return Err(ConfigError::Invalid(format!(
                "CLAIMCHECK_SIGN_IN: `{name}` cannot name a provider; use up to 32 of a-z 0-9, and not `identities`"
            )));
        }
        let prefix = format!("CLAIMCHECK_SIGN_IN_{}_", name.to_uppercase());
        let read: Variables = from_env(&prefix)?;
        let secret = match (read.client_secret, read.client_secret_file) {
            (Some(secret), None) => secret,
            (None, Some(file)) => std::fs::read_to_string(&file)
                .map_err(|error| {
                    ConfigError::Invalid(format!(
                        "{prefix}CLIENT_SECRET_FILE: {} does not read: {error}",
                        file.display()
                    ))
                })?
                .trim()
                .to_owned()
                .into(),
            _ => {
                return Err(ConfigError::Invalid(format!(
                    "set {prefix}CLIENT_SECRET or {prefix}CLIENT_SECRET_FILE, one of them"
                )));
            }
        };
        if secret.expose_secret().is_empty() || read.client_id.is_empty() {
            return Err(ConfigError::Invalid(format!(
                "{prefix}CLIENT_ID or its secret is empty"
            )));
        }
        let kind = match read.kind.unwrap_or(Kind::OpenId) {
            Kind::OpenId => ProviderKind::OpenId {
                issuer: read
                    .issuer
                    .filter(|issuer| Url::parse(issuer).is_ok_and(|url| url.has_host()))
                    .ok_or_else(|| {
                        ConfigError::Invalid(format!("{prefix}ISSUER must be the URL of an OpenID Connect issuer"))
                    })?,
            },
            Kind::GitHub => ProviderKind::GitHub {
                url: read.url.map_or_else(|| fixed("https://github.com"), Ok)?,
                api_url: read.api_url.map_or_else(|| fixed("https://api.github.com"), Ok)?,
            },
        };
        Ok(Self {
            name: name.to_owned(),
            label: read.label.unwrap_or_else(|| name.to_owned()),
            kind,
            client_id: read.client_id,
            client_secret: secret,
        })
    }
}

impl ProviderKind {
    fn urls(&self) -> Vec<&str> {
        match self {
            Self::OpenId { issuer } => vec![issuer],
            Self::GitHub { url, api_url } => vec![url.as_str(), api_url.as_str()],
        }
    }
}

fn fixed(url: &str) -> Result<Url, ConfigError> {
    url.parse()
        .map_err(|error| ConfigError::Invalid(format!("{url} is no URL: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(issuer: &str, public: Option<&str>) -> SignInConfig {
        let provider = ProviderConfig {
            name: "company".to_owned(),
            label: "Company".to_owned(),
            kind: ProviderKind::OpenId {
                issuer: issuer.to_owned(),
            },
            client_id: "claimcheck".to_owned(),
            client_secret: "secret".to_owned().into(),
        };
        SignInConfig {
            providers: vec![provider],
            public_url: public.map(|url| url.parse().unwrap()),
        }
    }

    #[test]
    fn in_production_users_are_sent_to_and_fro_by_tls_alone() {
        let good = with("https://id.example.org", Some("https://api.example.org"));
        assert!(good.check(Environment::Production).is_ok());
        for bad in [
            with("http://id.example.org", Some("https://api.example.org")),
            with("https://id.example.org", Some("http://api.example.org")),
        ] {
            assert!(bad.check(Environment::Production).is_err(), "{bad:?}");
            assert!(bad.check(Environment::Development).is_ok(), "{bad:?}");
        }
        let homeless = with("https://id.example.org", None);
        assert!(homeless.check(Environment::Development).is_err());
        assert!(SignInConfig::default().check(Environment::Production).is_ok());
    }

    #[test]
    fn two_providers_of_one_name_and_names_of_routes_are_refused() {
        let mut twice = with("https://id.example.org", Some("https://api.example.org"));
        twice.providers.push(twice.providers[0].clone());
        assert!(twice.check(Environment::Development).is_err());
        for name in ["identities", "Company", "a/b", "a-b"] {
            assert!(ProviderConfig::from_env(name).is_err(), "{name}");
        }
    }
}
