//! How the API is reached: from which pages, under which names, and whether it is meant for the open internet.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, from_env};

/// What the API demands of connections and requests.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct TransportConfig {
    /// `CLAIMCHECK_ENV`: `development` (default) or `production`, where secrets must be good ones and plain HTTP is sent to HTTPS.
    pub env: Environment,
    /// `CLAIMCHECK_CORS_ORIGINS`: web pages that may call the API from a browser, by origin (`https://app.example.org`). Unset
    /// allows none.
    pub cors_origins: Vec<String>,
    /// `CLAIMCHECK_ALLOWED_HOSTS`: the names in `Host` that are answered to, without port. Unset answers to any. Probes are always
    /// answered.
    pub allowed_hosts: Vec<String>,
    /// Where the API's certificate is; `None`: it is spoken to in the clear, by a proxy that ends TLS.
    #[serde(skip)]
    pub tls: Option<CertificateFiles>,
    /// `CLAIMCHECK_REDIRECT_ADDR`: where plain HTTP is listened to besides and sent to HTTPS (`0.0.0.0:80`). Unset: nowhere.
    pub redirect_addr: Option<SocketAddr>,
}

/// A certificate and its key, as PEM files. They are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// `CLAIMCHECK_TLS_CERT`: the certificate, followed by those between it and its root.
    pub chain: PathBuf,
    /// `CLAIMCHECK_TLS_KEY`: its private key (PKCS #8, PKCS #1 or SEC 1).
    pub key: PathBuf,
}

/// What an installation is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// Somebody's own machine.
    #[default]
    Development,
    /// The open internet.
    Production,
}

impl TransportConfig {
    /// Reads `CLAIMCHECK_*`.
    pub fn from_env() -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Files {
            tls_cert: Option<PathBuf>,
            tls_key: Option<PathBuf>,
        }
        let (config, files): (Self, Files) = (from_env("CLAIMCHECK_")?, from_env("CLAIMCHECK_")?);
        let set = |file: Option<PathBuf>| file.filter(|file| !file.as_os_str().is_empty());
        let tls = match (set(files.tls_cert), set(files.tls_key)) {
            (Some(chain), Some(key)) => Some(CertificateFiles { chain, key }),
            (None, None) => None,
            _ => {
                let message = "CLAIMCHECK_TLS_CERT and CLAIMCHECK_TLS_KEY belong together: set both or none";
                return Err(ConfigError::Invalid(message.to_owned()));
            }
        };
        Ok(Self { tls, ..config })
    }
}

/// Words that stand in examples and defaults.
const SAMPLES: [&str; 8] = [
    "secret of at least",
    "change",
    "example",
    "default",
    "password",
    "claimcheck",
    "0123456789",
    "abcdefgh",
];
const SECRET_BYTES: usize = 32;
/// A secret drawn at random has more different bytes than this, written in hexadecimal too.
const DIFFERENT_BYTES: usize = 8;

/// Why a signing secret is not fit for production, if it is not.
pub fn weakness(secret: &str) -> Option<&'static str> {
    let lower = secret.to_lowercase();
    let different: std::collections::BTreeSet<u8> = secret.bytes().collect();
    if secret.is_empty() {
        Some("is missing")
    } else if secret.len() < SECRET_BYTES {
        Some("is shorter than 32 bytes")
    } else if SAMPLES.iter().any(|sample| lower.contains(sample)) || different.len() <= DIFFERENT_BYTES {
        Some("is an example, not a random secret")
    } else {
        None
    }
}

/// Why the password in a server's URL is not fit for production, if it is not.
pub fn weak_password(url: &str) -> Option<&'static str> {
    let login = url.split_once("://")?.1.split_once('@')?.0;
    match login.split_once(':') {
        Some((_, "claimcheck" | "postgres" | "guest" | "password" | "")) => Some("has a default password"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_and_short_secrets_are_not_fit_for_production() {
        for bad in [
            "",
            "short",
            "a secret of at least thirty-two bytes",
            "changemechangemechangemechangeme",
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "01234567890123456789012345678901",
        ] {
            assert!(weakness(bad).is_some(), "{bad}");
        }
        assert_eq!(weakness("d3b0f2c4a9178e6655aa01f9c27be843"), None);
        assert!(weak_password("postgres://claimcheck_app:claimcheck@db/claimcheck").is_some());
        assert!(weak_password("amqp://guest:guest@mq").is_some());
        assert_eq!(weak_password("postgres://app:Jk29dmsLq@db/claimcheck"), None);
        assert_eq!(weak_password("postgres:///claimcheck?host=/run"), None);
    }
}
