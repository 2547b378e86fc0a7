//! The real binaries as child processes, to be killed, frozen and started again.
//!
//! They are taken from `CLAIMCHECK_BIN_DIR`, else from the release folder of the build. A process ends with its value,
//! and says what it logged when its test fails.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use claimcheck_common::config::WebhookConfig;
use secrecy::ExposeSecret;
use tempfile::TempDir;

use crate::{World, eventually, save_tiny_model};

/// The name of the model that workers of an [`Installation`] serve.
pub const TINY: &str = "tiny";
const LOG_LINES: usize = 60;
const LIMIT: Duration = Duration::from_mins(1);

/// A world's environment for the binaries, and the model's folder.
pub struct Installation {
    folder: TempDir,
    environment: Vec<(String, String)>,
}

impl Installation {
    /// Configures processes to use the world's servers, queue names and times, as they are now.
    ///
    /// # Panics
    /// If the model cannot be written.
    pub fn of(world: &World) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        save_tiny_model(&folder.path().join(TINY), 1);
        let millis = |duration: Duration| format!("{}ms", duration.as_millis());
        let delivery = &world.delivery;
        let environment = [
            ("DATABASE_URL", world.database.url.clone()),
            ("DATABASE_OWNER_URL", world.database.owner_url().to_owned()),
            ("AMQP_URL", world.broker.url.clone()),
            ("REDIS_URL", world.redis.url.clone()),
            ("CLAIMCHECK_QUEUE_PREFIX", world.broker.queue_prefix.clone()),
            ("CLAIMCHECK_LEASE", millis(delivery.lease)),
            ("CLAIMCHECK_HEARTBEAT", millis(delivery.heartbeat)),
            ("CLAIMCHECK_RELAY_INTERVAL", millis(delivery.relay_interval)),
            ("CLAIMCHECK_MAINTENANCE_INTERVAL", millis(delivery.maintenance_interval)),
            ("CLAIMCHECK_REEMIT_AFTER", millis(delivery.reemit_after)),
            ("CLAIMCHECK_HANGUP_GRACE", millis(delivery.hangup_grace)),
            ("CLAIMCHECK_FILES", world.files.place.clone()),
            ("CLAIMCHECK_RELEASE_WINDOW", delivery.release_window.to_string()),
            ("CLAIMCHECK_WEBHOOK_KEY", key(&world.webhooks)),
            ("CLAIMCHECK_WEBHOOK_ALLOW", networks(&world.webhooks)),
            ("CLAIMCHECK_WEBHOOK_TIMEOUT", millis(world.webhooks.timeout)),
            ("CLAIMCHECK_WEBHOOK_INTERVAL", millis(world.webhooks.interval)),
            (
                "CLAIMCHECK_JWT_SECRET",
                "a secret of at least thirty-two bytes".to_owned(),
            ),
            ("CLAIMCHECK_TOKEN_TTL", "1h".to_owned()),
            ("CLAIMCHECK_PLAN", "unlimited".to_owned()),
            ("CLAIMCHECK_LOGIN_RATE", "unlimited".to_owned()),
            ("CLAIMCHECK_LOGIN_ADDRESS_RATE", "unlimited".to_owned()),
            ("CLAIMCHECK_MODEL", folder.path().join(TINY).display().to_string()),
            ("CLAIMCHECK_MODEL_NAME", TINY.to_owned()),
            // Nothing of a test outlives it.
            ("CLAIMCHECK_WEIGHTS_CACHE", String::new()),
        ];
        Self {
            environment: environment.map(|(name, value)| (name.to_owned(), value)).into(),
            folder,
        }
    }

    /// What makes a worker serve one more model of the same shape, with weights of its own, beside [`TINY`].
    pub fn serving_also(&self, name: &str) -> [(&'static str, String); 2] {
        let folder = self.folder.path().join(name);
        save_tiny_model(&folder, 2);
        let tiny = self.folder.path().join(TINY);
        let both = format!("{TINY}={},{name}={}", tiny.display(), folder.display());
        [("CLAIMCHECK_MODEL", both), ("CLAIMCHECK_MODEL_NAME", String::new())]
    }

    /// An API, ready to answer.
    pub async fn api(&self) -> Process {
        self.api_with("claimcheck-api", []).await
    }

    /// An API with a name of its own in the logs and `more` in its environment.
    pub async fn api_with<const N: usize>(&self, name: &str, more: [(&str, String); N]) -> Process {
        let address = free_address();
        let mut api = self.prepare("claimcheck-api", name, &[], more, address);
        api.environment
            .push(("CLAIMCHECK_HTTP_ADDR".to_owned(), address.to_string()));
        api.start();
        api.answers("/readyz").await;
        api
    }

    /// The balancer of `compose/haproxy.cfg`, in front of two APIs that are ready: the process, which tells of itself at its
    /// address, and where it listens.
    ///
    /// # Panics
    /// If it is not installed.
    pub async fn balancer(&self, apis: [&Process; 2]) -> (Process, SocketAddr) {
        let (address, stats) = (free_address(), free_address());
        let configuration = concat!(env!("CARGO_MANIFEST_DIR"), "/../compose/haproxy.cfg");
        let more = [
            ("CLAIMCHECK_PROXY_ADDR", address.to_string()),
            ("CLAIMCHECK_PROXY_STATS_ADDR", stats.to_string()),
            ("CLAIMCHECK_API_1", apis[0].address.to_string()),
            ("CLAIMCHECK_API_2", apis[1].address.to_string()),
        ];
        let mut balancer = self.prepare("haproxy", "haproxy", &["-db", "-f", configuration], more, stats);
        balancer.binary = "/usr/sbin/haproxy".into();
        balancer.start();
        balancer.answers("/metrics").await;
        (balancer, address)
    }

    /// A worker with all its roles, ready to run jobs. `name` tells the logs apart, `more` is added to its environment.
    pub async fn worker<const N: usize>(&self, name: &str, more: [(&str, String); N]) -> Process {
        self.worker_of(name, &[], more).await
    }

    /// A worker that runs jobs and looks after none.
    pub async fn generator<const N: usize>(&self, name: &str, more: [(&str, String); N]) -> Process {
        self.worker_of(name, &["--role", "generate"], more).await
    }

    /// A worker that sends webhooks and runs no jobs.
    pub async fn dispatcher(&self, name: &str) -> Process {
        self.worker_of(name, &["--role", "dispatch"], []).await
    }

    /// A worker that looks after jobs and runs none.
    pub async fn maintainer(&self) -> Process {
        self.worker_of("maintainer", &["--role", "maintain"], []).await
    }

    async fn worker_of<const N: usize>(&self, name: &str, roles: &[&str], more: [(&str, String); N]) -> Process {
        let address = free_address();
        let arguments = [&["run"], roles].concat();
        let mut worker = self.prepare("claimcheck-worker", name, &arguments, more, address);
        worker
            .environment
            .push(("CLAIMCHECK_WORKER_HTTP_ADDR".to_owned(), address.to_string()));
        worker.start();
        worker.answers("/readyz").await;
        worker
    }

    fn prepare<const N: usize>(
        &self,
        binary: &str,
        name: &str,
        arguments: &[&str],
        more: [(&str, String); N],
        address: SocketAddr,
    ) -> Process {
        let own = more.map(|(name, value)| (name.to_owned(), value));
        Process {
            binary: binaries().join(binary),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            environment: self.environment.iter().cloned().chain(own).collect(),
            folder: self.folder.path().to_owned(),
            log: self.folder.path().join(format!("{name}.log")),
            address,
            child: None,
        }
    }
}

/// One of the binaries, running or not.
pub struct Process {
    binary: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    folder: PathBuf,
    log: PathBuf,
    /// Where it serves HTTP, the same after each start.
    pub address: SocketAddr,
    child: Option<Child>,
}

impl Process {
    /// Starts it, and does not wait until it is ready.
    ///
    /// # Panics
    /// If the binary is not built.
    pub fn start(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("a log file");
        let child = Command::new(&self.binary)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            // No `.env` file is found from here.
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", self.binary.display()));
        self.child = Some(child);
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is our child");
            child.wait().expect("it is our child");
        }
    }

    /// Sends it a signal by name: `STOP`, `CONT`, `TERM`.
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal(&self, signal: &str) {
        let child = self.child.as_ref().expect("a running process");
        let sent = Command::new("kill")
            .args([format!("-{signal}"), child.id().to_string()])
            .status();
        assert!(sent.is_ok_and(|status| status.success()), "{signal} could not be sent");
    }

    /// Freezes it: when this answers, none of its threads runs any more.
    ///
    /// # Panics
    /// If it does not run.
    pub async fn freeze(&self) {
        self.signal("STOP");
        let id = self.child.as_ref().expect("a running process").id();
        // The signal stops one thread, which then stops the others: until then they go on.
        eventually("every thread has stopped", LIMIT, async || {
            let threads = std::fs::read_dir(format!("/proc/{id}/task")).ok()?;
            let mut stopped = threads.map(|thread| {
                let said = std::fs::read_to_string(thread?.path().join("stat"))?;
                // Behind the name, which stands in parentheses.
                std::io::Result::Ok(said.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
            });
            stopped.all(|stopped| stopped.unwrap_or(false)).then_some(())
        })
        .await;
    }

    /// Waits until it ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("a running process");
        let status = eventually("the process ends", LIMIT, async || {
            child.try_wait().expect("it is our child")
        })
        .await;
        self.child = None;
        status
    }

    /// Waits until `path` answers 200.
    pub async fn answers(&self, path: &str) {
        eventually(
            &format!("{} answers {path}", self.binary.display()),
            LIMIT,
            async || {
                let answer = client().get(self.url(path)).send().await.ok()?;
                answer.status().is_success().then_some(())
            },
        )
        .await;
    }

    /// The sum of a metric's series, 0 if there is none. The name is the whole name, such as `x_total` or `x_count`.
    pub async fn metric(&self, name: &str) -> f64 {
        let answer = client()
            .get(self.url("/metrics"))
            .send()
            .await
            .expect("metrics are served");
        let lines = answer.text().await.expect("metrics are text");
        lines
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// The address of `path`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _already_ended = child.kill();
            let _reaped = child.wait();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
            eprintln!("--- {} ---\n{}", self.log.display(), last.join("\n"));
        }
    }
}

fn key(webhooks: &WebhookConfig) -> String {
    let key = webhooks.key.as_ref().map(ExposeSecret::expose_secret);
    key.unwrap_or_default().to_owned()
}

fn networks(webhooks: &WebhookConfig) -> String {
    let networks: Vec<_> = webhooks.allow.iter().map(ToString::to_string).collect();
    networks.join(",")
}

fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(5))
        .build()
        .expect("a client")
}

/// A port that is free now, and stays the process's over its restarts.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
}

/// Where a binary of the build is.
pub fn binary(name: &str) -> PathBuf {
    binaries().join(name)
}

fn binaries() -> PathBuf {
    if let Some(folder) = setting("CLAIMCHECK_BIN_DIR") {
        return folder.into();
    }
    if let Some(target) = setting("CARGO_TARGET_DIR") {
        return Path::new(&target).join("release");
    }
    let home = setting("HOME").expect("HOME is set");
    Path::new(&home).join(".cache/claimcheck/target/release")
}

/// A setting of the harness, such as where the tests find what they start. The services never read variables this way.
#[allow(
    clippy::disallowed_methods,
    reason = "the harness's own settings are no configuration of a service"
)]
pub fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
