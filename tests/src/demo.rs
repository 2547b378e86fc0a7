//! The README's demo, as `compose/demo` runs it, in a world of a test's own.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::{World, setting};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The service, started by the README's own command; stopped when it is dropped.
pub struct Demo {
    folder: TempDir,
    environment: Vec<(&'static str, String)>,
    /// Where its API is.
    pub url: String,
    /// What the command said on standard output.
    pub said: String,
}

impl Demo {
    /// Runs `command` from the project's root, with the world's servers in the place of the local stack.
    ///
    /// # Panics
    /// If it fails.
    pub async fn start(world: &World, command: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (port, worker_port) = (free_port(), free_port());
        let environment = vec![
            ("CLAIMCHECK_DATA", folder.path().display().to_string()),
            ("CLAIMCHECK_PORT", port.to_string()),
            ("CLAIMCHECK_WORKER_PORT", worker_port.to_string()),
            ("CLAIMCHECK_QUEUE_PREFIX", world.broker.queue_prefix.clone()),
            ("DATABASE_URL", world.database.url.clone()),
            ("DATABASE_OWNER_URL", world.database.owner_url().to_owned()),
            ("AMQP_URL", world.broker.url.clone()),
            ("REDIS_URL", world.redis.url.clone()),
        ];
        let mut demo = Self {
            folder,
            environment,
            url: format!("http://127.0.0.1:{port}"),
            said: String::new(),
        };
        let mut shell = demo.shell(command);
        let ran = tokio::task::spawn_blocking(move || shell.output()).await;
        let output = ran.expect("it does not panic").expect("bash runs");
        assert!(output.status.success(), "{command}: {}", told(&output));
        demo.said = String::from_utf8_lossy(&output.stdout).into_owned();
        demo
    }

    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("bash");
        shell.args(["-c", command]).current_dir(ROOT).stdin(Stdio::null());
        // What the test's runner sets for the test is not for the build that the demo begins with.
        shell.env_clear();
        for name in ["PATH", "HOME", "USER", "CARGO_HOME", "RUSTUP_HOME", "CARGO_TARGET_DIR"] {
            if let Some(value) = setting(name) {
                shell.env(name, value);
            }
        }
        shell.envs(self.environment.iter().map(|(name, value)| (name, value)));
        shell
    }

    /// A folder of the demo's own, for a home.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let stopped = self.shell("./compose/demo down").output().expect("bash runs");
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("demo/api.log")).unwrap_or_default();
            eprintln!("{log}");
        } else {
            assert!(stopped.status.success(), "{}", told(&stopped));
        }
    }
}

fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}
