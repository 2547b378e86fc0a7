//! TLS of the API itself: certificates that are read again, protocols, handshakes that come to nothing, and the way from HTTP.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use claimcheck_api::serve::{ServeLimits, serve};
use claimcheck_api::tls::Tls;
use claimcheck_api::{App, Config};
use claimcheck_common::config::CertificateFiles;
use claimcheck_tests::{World, eventually, in_world};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use reqwest::StatusCode;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::http_face::config;

const LIMIT: Duration = Duration::from_secs(30);
const GET: &[u8] = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// An authority of a test's own, and the files that the service reads.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("root.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn files(&self) -> CertificateFiles {
        CertificateFiles {
            chain: self.at("chain.pem"),
            key: self.at("key.pem"),
        }
    }

    /// A new certificate for `localhost` that holds until a day from now plus `days`, and the texts of its chain and its key.
    fn make(&self, days: i64) -> (CertificateDer<'static>, [String; 2]) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = OffsetDateTime::now_utc() - time::Duration::days(30);
        params.not_after = OffsetDateTime::now_utc() + time::Duration::days(days);
        let key = KeyPair::generate().unwrap();
        let issued = params.signed_by(&key, &self.issuer).unwrap();
        (issued.der().clone(), [issued.pem(), key.serialize_pem()])
    }

    /// Writes a new certificate for `localhost` that holds until a day from now plus `days`.
    fn issue(&self, days: i64) -> CertificateDer<'static> {
        let (issued, [chain, key]) = self.make(days);
        replace(&self.files().key, &key);
        replace(&self.files().chain, &chain);
        issued
    }

    /// The same, into files whose time and length tell of no change.
    fn issue_unnoticed(&self, days: i64) -> CertificateDer<'static> {
        let (issued, texts) = self.make(days);
        let CertificateFiles { chain, key } = self.files();
        for (file, text) in [chain, key].iter().zip(texts) {
            let new = file.with_extension("new");
            std::fs::write(&new, format!("{text:\n<4096}")).unwrap();
            let opened = std::fs::File::options().append(true).open(&new).unwrap();
            opened.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
            std::fs::rename(new, file).unwrap();
        }
        issued
    }

    fn connector(&self, alpn: &[&[u8]]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    async fn connect(&self, address: SocketAddr, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        self.connector(alpn).connect(name, stream).await.unwrap()
    }

    /// What a new connection is shown.
    async fn shown(&self, address: SocketAddr) -> CertificateDer<'static> {
        let stream = self.connect(address, &[]).await;
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    }

    /// Asks by curl and answers what it wrote of the answer.
    async fn curl(&self, url: String, write: &'static str) -> String {
        let mut command = Command::new("curl");
        command
            .args([
                "--silent",
                "--show-error",
                "--noproxy",
                "*",
                "--http2",
                "--output",
                "/dev/null",
            ])
            .args(["--write-out", write, "--cacert"])
            .arg(self.at("root.pem"))
            .arg(url);
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// As certificate managers do: nobody ever sees half of a file.
fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, file).unwrap();
}

struct Running {
    address: SocketAddr,
    redirects: Option<SocketAddr>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(world: &World, authority: &Authority) -> Self {
        let app = App::build(secured(world, authority)).await.unwrap();
        let stop = CancellationToken::new();
        Self {
            address: app.address(),
            redirects: app.redirect_address(),
            task: tokio::spawn(app.run_until_stopped(stop.clone())),
            stop,
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn secured(world: &World, authority: &Authority) -> Config {
    let mut config = config(world);
    config.transport.tls = Some(authority.files());
    config.transport.redirect_addr = Some(([127, 0, 0, 1], 0).into());
    config
}

/// Asks on an open connection of HTTP/1.1.
async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
    stream.write_all(GET).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(LIMIT, stream.read(&mut answer))
        .await
        .unwrap()
        .unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_shown_to_new_connections_and_open_ones_go_on() {
    in_world(async |world| {
        let authority = Authority::new();
        let first = authority.issue(30);
        let api = Running::start(world, &authority).await;
        assert_eq!(authority.shown(api.address).await, first);
        let mut open = authority.connect(api.address, &[b"http/1.1"]).await;
        assert!(ask(&mut open).await.starts_with("HTTP/1.1 200"));
        let second = authority.issue(60);
        eventually("the new certificate is shown", LIMIT, async || {
            (authority.shown(api.address).await == second).then_some(())
        })
        .await;
        assert!(
            ask(&mut open).await.starts_with("HTTP/1.1 200"),
            "the open connection was cut"
        );
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_has_the_certificate_read_again_also_when_nothing_tells_of_a_change() {
    in_world(async |world| {
        let authority = Authority::new();
        let first = authority.issue_unnoticed(30);
        let api = Running::start(world, &authority).await;
        let second = authority.issue_unnoticed(60);
        assert_eq!(authority.shown(api.address).await, first);
        let sent = Command::new("kill")
            .args(["-HUP", &std::process::id().to_string()])
            .status();
        assert!(sent.is_ok_and(|status| status.success()));
        eventually("the new certificate is shown", LIMIT, async || {
            (authority.shown(api.address).await == second).then_some(())
        })
        .await;
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_no_good_changes_nothing_and_is_told() {
    in_world(async |world| {
        let authority = Authority::new();
        let good = authority.issue(30);
        let api = Running::start(world, &authority).await;
        let failures = async || {
            let mut stream = authority.connect(api.address, &[b"http/1.1"]).await;
            let asked = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            stream.write_all(asked).await.unwrap();
            let mut text = Vec::new();
            let _closed = stream.read_to_end(&mut text).await;
            let text = String::from_utf8_lossy(&text).into_owned();
            let line = text
                .lines()
                .find(|line| line.starts_with("claimcheck_tls_reloads_failed_total"));
            line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        };
        let bad: [(&str, &dyn Fn()); 4] = [
            ("expired", &|| {
                authority.issue(-1);
            }),
            ("garbled", &|| {
                replace(
                    &authority.files().chain,
                    "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                );
            }),
            ("empty", &|| replace(&authority.files().chain, "")),
            ("somebody else's", &|| {
                authority.issue(30);
                replace(&authority.files().key, &KeyPair::generate().unwrap().serialize_pem());
            }),
        ];
        for (what, write) in bad {
            let before = failures().await;
            write();
            eventually(what, LIMIT, async || (failures().await > before).then_some(())).await;
            assert_eq!(authority.shown(api.address).await, good, "{what}");
        }
        let better = authority.issue(90);
        eventually("one that is good again", LIMIT, async || {
            (authority.shown(api.address).await == better).then_some(())
        })
        .await;
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_http_2_or_1_as_it_asks_and_nothing_in_the_clear() {
    in_world(async |world| {
        let authority = Authority::new();
        authority.issue(30);
        let api = Running::start(world, &authority).await;
        for (asked, got) in [
            (&[b"h2" as &[u8], b"http/1.1"] as &[&[u8]], Some(b"h2" as &[u8])),
            (&[b"http/1.1"], Some(b"http/1.1")),
            (&[], None),
        ] {
            let stream = authority.connect(api.address, asked).await;
            assert_eq!(stream.get_ref().1.alpn_protocol(), got);
        }
        let url = format!("https://localhost:{}/version", api.address.port());
        assert_eq!(authority.curl(url, "%{http_version} %{http_code}").await, "2 200");
        let mut plain = TcpStream::connect(api.address).await.unwrap();
        plain.write_all(GET).await.unwrap();
        let mut answer = Vec::new();
        let _reset = tokio::time::timeout(LIMIT, plain.read_to_end(&mut answer))
            .await
            .unwrap();
        assert!(!answer.starts_with(b"HTTP"), "it answered in the clear");
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_sent_to_https_and_a_body_is_told_not_to_come_that_way() {
    in_world(async |world| {
        let authority = Authority::new();
        authority.issue(30);
        let api = Running::start(world, &authority).await;
        let plain = format!("http://{}", api.redirects.unwrap());
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        let sent = client
            .get(format!("{plain}/v1/jobs?limit=3"))
            .header("host", "api.example.org:80")
            .send()
            .await
            .unwrap();
        assert_eq!(sent.status(), StatusCode::PERMANENT_REDIRECT);
        assert_eq!(sent.headers()["location"], "https://api.example.org/v1/jobs?limit=3");
        let told = client.post(format!("{plain}/v1/jobs")).body("{}").send().await.unwrap();
        assert_eq!(told.status(), StatusCode::FORBIDDEN);
        assert!(told.text().await.unwrap().contains("https_required"));
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_come_to_nothing_hold_nobody_up_and_are_given_up() {
    let authority = Authority::new();
    authority.issue(30);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = ServeLimits {
        head: Duration::from_secs(2),
        connections: 100,
        drain: LIMIT,
    };
    let stop = CancellationToken::new();
    let router = axum::Router::new().route("/version", axum::routing::get(async || "1"));
    let tls = Tls::open(authority.files()).unwrap();
    let task = tokio::spawn(serve(listener, router, limits, Some(tls), stop.clone()));
    let mut silent = Vec::new();
    for number in 0..60 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The first bytes of a ClientHello, or nothing at all.
        let half: &[u8] = if number % 2 == 0 { &[0x16, 3, 1, 2, 0, 1] } else { &[] };
        stream.write_all(half).await.unwrap();
        silent.push(stream);
    }
    let began = Instant::now();
    let mut good = authority.connect(address, &[b"http/1.1"]).await;
    assert!(ask(&mut good).await.starts_with("HTTP/1.1 200"));
    assert!(began.elapsed() < limits.head, "it waited for the others");
    for mut stream in silent {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "a handshake was held");
    }
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_does_not_read_stops_the_start_and_names_the_variable() {
    in_world(async |world| {
        let authority = Authority::new();
        let error = App::build(secured(world, &authority))
            .await
            .err()
            .expect("there are no files");
        assert!(format!("{error:#}").contains("CLAIMCHECK_TLS_CERT"), "{error:#}");
    })
    .await;
}
