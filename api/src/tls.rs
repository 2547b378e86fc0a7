//! TLS for the connections of the API: the certificate from files, read again when they change, without a restart.
//!
//! Connections that are open go on with what they began with. A new certificate that does not read, does not fit its key or does not
//! hold today changes nothing: the log says so, and new connections get the one before. By ALPN (RFC 7301) a client gets HTTP/2 or
//! HTTP/1.1. Protocol versions and cipher suites are the library's: TLS 1.2 and 1.3 with forward secrecy (OWASP ASVS 5.0, 12.1).

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use claimcheck_common::config::CertificateFiles;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// The files are looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How ALPN names the protocols, the preferred one first.
pub const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is no PEM.
    #[error("{file} does not read as PEM: {cause}", file = .0.display(), cause = .1)]
    Pem(PathBuf, rustls::pki_types::pem::Error),
    /// There is nothing in it.
    #[error("{} holds no certificate", .0.display())]
    Empty(PathBuf),
    /// The certificate is none, the key is of a kind that is not known, or they are not each other's.
    #[error("the certificate and the key cannot be used together: {0}")]
    Unfit(#[from] rustls::Error),
    /// It is no X.509.
    #[error("the certificate does not read: {0}")]
    Unreadable(String),
    /// Today lies outside of its validity.
    #[error("the certificate holds from {from} to {until} only")]
    NotToday {
        /// Its begin.
        from: OffsetDateTime,
        /// Its end.
        until: OffsetDateTime,
    },
}

/// What new connections are shown. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current {
    files: CertificateFiles,
    /// How the files were when they were first read.
    seen: Changed,
    key: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Tls {
    /// Reads the certificate. One that has expired is shown all the same, and the log says so: it may be renewed while the process runs.
    pub fn open(files: CertificateFiles) -> Result<Self, TlsError> {
        // Before they are read: a change from then on is not missed.
        let seen = changed_at(&files);
        let read = read(&files)?;
        if let Err(error) = read.holds(OffsetDateTime::now_utc()) {
            tracing::error!(%error, "clients will refuse the certificate");
        }
        read.tell();
        let current = Arc::new(Current {
            files,
            seen,
            key: RwLock::new(read.key),
        });
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = [H2, HTTP1].map(<[u8]>::to_vec).into();
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            current,
        })
    }

    /// Accepts handshakes.
    pub const fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }

    /// Reads the files again whenever they change or `hangups` says so, until `stop`.
    pub async fn watch(self, mut hangups: mpsc::Receiver<()>, stop: CancellationToken) {
        let files = &self.current.files;
        let mut seen = self.current.seen;
        let looks = async {
            loop {
                let asked = tokio::select! {
                    Some(()) = hangups.recv() => true,
                    () = tokio::time::sleep(LOOK_AGAIN) => false,
                };
                let looked = files.clone();
                let now = tokio::task::spawn_blocking(move || changed_at(&looked)).await;
                let now = now.unwrap_or(seen);
                if asked || now != seen {
                    seen = now;
                    self.renew().await;
                }
            }
        };
        let _stopped: Option<()> = stop.run_until_cancelled(looks).await;
    }

    async fn renew(&self) {
        let files = self.current.files.clone();
        let read = tokio::task::spawn_blocking(move || {
            let read = read(&files)?;
            read.holds(OffsetDateTime::now_utc())?;
            Ok::<_, TlsError>(read)
        });
        match read.await {
            Ok(Ok(read)) => {
                read.tell();
                *self.current.key.write().unwrap_or_else(PoisonError::into_inner) = read.key;
                tracing::info!(until = %read.until, "the TLS certificate was read anew");
            }
            Ok(Err(error)) => {
                metrics::counter!("claimcheck_tls_reloads_failed_total").increment(1);
                tracing::error!(%error, "the new TLS certificate cannot be used; the one before stays");
            }
            Err(error) => tracing::error!(%error, "the TLS certificate could not be looked at"),
        }
    }
}

/// A certificate with its key, and when it holds.
struct Read {
    key: Arc<CertifiedKey>,
    from: OffsetDateTime,
    until: OffsetDateTime,
}

impl Read {
    fn holds(&self, now: OffsetDateTime) -> Result<(), TlsError> {
        let Self { from, until, .. } = *self;
        if (from..=until).contains(&now) {
            Ok(())
        } else {
            Err(TlsError::NotToday { from, until })
        }
    }

    fn tell(&self) {
        metrics::gauge!("claimcheck_tls_certificate_expiry_timestamp_seconds").set(self.until.unix_timestamp() as f64);
    }
}

fn read(files: &CertificateFiles) -> Result<Read, TlsError> {
    let of = |file: &Path| {
        let file = file.to_owned();
        move |error| TlsError::Pem(file, error)
    };
    let chain = CertificateDer::pem_file_iter(&files.chain).map_err(of(&files.chain))?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(of(&files.chain))?;
    let leaf = chain.first().ok_or_else(|| TlsError::Empty(files.chain.clone()))?;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(leaf).map_err(|error| TlsError::Unreadable(error.to_string()))?;
    let validity = parsed.validity();
    let (from, until) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(of(&files.key))?;
    // Refuses a key that is not the certificate's.
    let key = CertifiedKey::from_der(chain, key, &ring::default_provider())?;
    Ok(Read {
        key: Arc::new(key),
        from,
        until,
    })
}

/// When the files were written, and how long they are.
type Changed = [Option<(SystemTime, u64)>; 2];

fn changed_at(files: &CertificateFiles) -> Changed {
    let of = |file: &Path| {
        let known = std::fs::metadata(file).ok()?;
        Some((known.modified().ok()?, known.len()))
    };
    [of(&files.chain), of(&files.key)]
}
