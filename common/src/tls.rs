//! One TLS in the tree: rustls with ring. Clients that are not told which provider to use ask for the process's own.

/// Makes ring the process's provider, unless it has one. Safe to repeat.
pub(crate) fn install_default() {
    let _there_is_one = rustls::crypto::ring::default_provider().install_default();
}
