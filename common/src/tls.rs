//! One TLS in the tree: rustls with ring. Clients that are not told which provider to use ask for the process's own.

use std::sync::Arc;

use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

/// Makes ring the process's provider, unless it has one. Safe to repeat.
pub fn install_default() {
    let _there_is_one = ring::default_provider().install_default();
}

/// A client's TLS, which trusts the roots of the public web and shows no certificate.
///
/// # Errors
/// None that is not a bug: the protocol versions and the provider are fixed.
pub fn of_the_web() -> Result<ClientConfig, rustls::Error> {
    let roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
