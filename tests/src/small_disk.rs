//! A PostgreSQL of a test's own on a disk that the test can fill: a small file system in memory, mounted in a user and mount namespace
//! where nobody else sees it. No root is needed, and the machine's disks are not touched.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use claimcheck_common::config::DatabaseConfig;
use tempfile::TempDir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../compose/local");
const PORT_BASE: &str = "23110";

/// Runs in the namespace, and does what its input says until that ends. A server that ended for want of room is started again when
/// there is some, as a service manager would.
const SHELL: &str = r#"
    mount -t tmpfs -o size=192m claimcheck "$DISK" || exit
    "$SCRIPT" up >&2 || exit
    echo up
    while read -r command; do
        case $command in
            fill) dd if=/dev/zero of="$DISK/ballast" oflag=append conv=notrunc bs=4k 2>/dev/null ;;
            free) rm "$DISK/ballast" && "$SCRIPT" start postgres >&2 ;;
        esac
        echo "$command"
    done
    "$SCRIPT" down >&2
"#;

/// The disk with the server on it, until the value is dropped.
pub struct SmallDisk {
    shell: Child,
    /// Until the shell is to end.
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    _folder: TempDir,
}

impl SmallDisk {
    /// Starts the server.
    ///
    /// # Panics
    /// If the system allows no such namespaces, or the server does not start.
    pub fn mount() -> Self {
        // Postgres refuses to be root, and the first process of a namespace may mount whoever it is.
        let namespace = [
            "--user",
            "--map-user=1000",
            "--map-group=1000",
            "--mount",
            "--keep-caps",
        ];
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut shell = Command::new("unshare")
            .args(namespace)
            .args(["bash", "-c", SHELL])
            .env("SCRIPT", SCRIPT)
            .env("DISK", folder.path())
            .env("CLAIMCHECK_DATA", folder.path().join("data"))
            .env("CLAIMCHECK_PORT_BASE", PORT_BASE)
            // The other servers are those of the environment, and stay what they are.
            .env_remove("DATABASE_URL")
            .env_remove("DATABASE_OWNER_URL")
            .env_remove("CLAIMCHECK_LOCAL_URLS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let commands = shell.stdin.take();
        let answers = BufReader::new(shell.stdout.take().expect("a pipe"));
        let mut disk = Self {
            shell,
            commands,
            answers,
            _folder: folder,
        };
        disk.answered("up");
        disk
    }

    /// Where the server is.
    pub fn database(&self) -> DatabaseConfig {
        let url = |role: &str| format!("postgres://{role}:claimcheck@127.0.0.1:{PORT_BASE}/claimcheck");
        DatabaseConfig {
            url: url("claimcheck_app"),
            owner_url: Some(url("claimcheck_owner")),
            pool_size: 8,
        }
    }

    /// Fills what is left of the disk, to the last block.
    pub fn fill(&mut self) {
        self.order("fill");
    }

    /// Makes room again.
    pub fn free(&mut self) {
        self.order("free");
    }

    fn order(&mut self, command: &str) {
        let commands = self.commands.as_mut().expect("the shell runs");
        writeln!(commands, "{command}").expect("the shell listens");
        self.answered(command);
    }

    fn answered(&mut self, wanted: &str) {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the shell's words are text");
        assert_eq!(line.trim_end(), wanted, "the server on the small disk failed");
    }
}

impl Drop for SmallDisk {
    /// The server ends before its disk does: with the folder goes what is mounted there.
    fn drop(&mut self) {
        drop(self.commands.take());
        let _stopped_as_far_as_it_goes = self.shell.wait();
    }
}
