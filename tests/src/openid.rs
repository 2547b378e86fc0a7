//! A real OpenID Connect provider, started by a test: `compose/provider`.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../compose/provider");

/// A provider with one client, on a port of its own, until it is dropped.
pub struct OpenIdProvider {
    /// Its URL.
    pub issuer: String,
    child: Child,
    /// It says more than its URL, and ends if nobody is there to hear it.
    _output: ChildStdout,
}

impl OpenIdProvider {
    /// What it calls the client.
    pub const CLIENT_ID: &str = "claimcheck";
    /// The client's secret.
    pub const CLIENT_SECRET: &str = "a secret of the client's";

    /// Starts it. Users are sent back to `redirect_uri` and nowhere else.
    ///
    /// # Panics
    /// If Node or the provider's package cannot be had.
    pub fn start(redirect_uri: &str) -> Self {
        let prepared = Command::new(format!("{FOLDER}/prepare"))
            .output()
            .expect("it can be run");
        let said = String::from_utf8_lossy(&prepared.stderr);
        assert!(prepared.status.success(), "{said}");
        let packages = String::from_utf8(prepared.stdout).expect("a folder's name");
        let mut child = Command::new("node")
            .args([&format!("{FOLDER}/provider.mjs"), packages.trim(), "0", redirect_uri])
            .arg(Self::CLIENT_ID)
            .env("CLIENT_SECRET", Self::CLIENT_SECRET)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Node is installed");
        let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut lines = output.by_ref().lines().map_while(Result::ok);
        let issuer = lines.find(|line| line.starts_with("http://"));
        Self {
            issuer: issuer.expect("the provider listens"),
            child,
            _output: output.into_inner(),
        }
    }
}

impl Drop for OpenIdProvider {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
