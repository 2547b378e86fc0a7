//! The command line's grammar. What stands here is also its help, its completions and its man page.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use claimcheck_common::webhook::ReceiverKey;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Hand prompts to a Claimcheck service and collect what comes of them.
///
/// Exit codes: 0 all is done, 2 wrong usage, 3 some lines of a batch failed, 4 failed, 5 cancelled or expired, 6 a limit was met.
#[derive(Parser)]
#[command(name = "claimcheck", version, about)]
pub(crate) struct Cli {
    /// Where the service is (that of the last login) [env: `CLAIMCHECK_API_URL`]
    #[arg(long, global = true)]
    pub(crate) url: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// For so many seconds a service that does not answer is asked again
    #[arg(long, global = true, value_parser = seconds, default_value = "60")]
    pub(crate) patience: Duration,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Log in, and keep the credentials in a file of yours
    Login(Login),
    /// Forget the credentials
    Logout,
    /// API keys for programs
    #[command(subcommand)]
    Keys(Keys),
    /// Run one prompt and print its text
    Run(Run),
    /// Jobs
    #[command(subcommand)]
    Jobs(Jobs),
    /// Batches: files with many prompts
    #[command(subcommand)]
    Batch(Batch),
    /// What helps to write a receiver of webhooks
    #[command(subcommand)]
    Webhook(Webhook),
    /// What was used, by day, API key and model
    Usage(Usage),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the man page
    Man,
}

#[derive(Args)]
pub(crate) struct Login {
    /// The user's name
    #[arg(long, short)]
    pub(crate) username: Option<String>,
    /// Make the account first, with this address
    #[arg(long, value_name = "EMAIL")]
    pub(crate) register: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
    /// Keep an API key, read from standard input, instead of a user's session
    #[arg(long, conflicts_with_all = ["username", "register", "password_stdin"])]
    pub(crate) api_key_stdin: bool,
}

#[derive(Subcommand)]
pub(crate) enum Keys {
    /// List them
    List,
    /// Make one; it is shown this once
    Create {
        /// What it is for
        name: String,
        /// What it may do, more than once for more (jobs:read, jobs:write and batches)
        #[arg(long = "scope", default_values_t = ["jobs:read".to_owned(), "jobs:write".to_owned(), "batches".to_owned()])]
        scopes: Vec<String>,
    },
    /// Give one a new secret; the old one holds for a while
    Rotate {
        /// `key_…`
        id: String,
    },
    /// End one at once
    Revoke {
        /// `key_…`
        id: String,
    },
}

/// How a text is generated.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Generation {
    /// The model (the only one, while there is one)
    #[arg(long, short)]
    pub(crate) model: Option<String>,
    /// Most new tokens
    #[arg(long)]
    pub(crate) max_tokens: Option<u32>,
    /// 0 takes the likeliest token each time
    #[arg(long)]
    pub(crate) temperature: Option<f64>,
    /// Share of probability that is sampled from
    #[arg(long)]
    pub(crate) top_p: Option<f64>,
    /// Fixes the text
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) seed: Option<i64>,
    /// The text ends before this; more than once for more
    #[arg(long)]
    pub(crate) stop: Vec<String>,
}

#[derive(Args)]
pub(crate) struct Run {
    /// The prompt; `-` reads it from standard input
    pub(crate) prompt: String,
    #[command(flatten)]
    pub(crate) generation: Generation,
    /// Print the text while it is generated
    #[arg(long, conflicts_with = "json")]
    pub(crate) stream: bool,
}

#[derive(Subcommand)]
pub(crate) enum Jobs {
    /// List them, the newest first
    List {
        /// Only those in this state
        #[arg(long)]
        status: Option<String>,
        /// Only those of this model
        #[arg(long)]
        model: Option<String>,
        /// So many at most
        #[arg(long, default_value_t = 20)]
        limit: usize,
        /// Only those older than this one
        #[arg(long)]
        after: Option<String>,
    },
    /// Show one
    Get {
        /// `job_…`
        id: String,
        /// Wait for its end
        #[arg(long)]
        wait: bool,
    },
    /// Stop some
    Cancel {
        /// `job_…`
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Do one again
    Retry {
        /// `job_…`
        id: String,
    },
    /// Show what one cost, signed
    Receipt {
        /// `job_…`
        id: String,
    },
    /// Do one again and tell whether it draws the same tokens
    Replay {
        /// `job_…`
        id: String,
    },
}

#[derive(Args)]
pub(crate) struct Usage {
    /// The first day, as 2026-11-01
    #[arg(long)]
    pub(crate) from: Option<String>,
    /// The last day
    #[arg(long)]
    pub(crate) to: Option<String>,
    /// Only of this model
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Only of this API key
    #[arg(long)]
    pub(crate) key: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum Batch {
    /// Upload a file, run it and write what came of each line
    Run(BatchRun),
    /// Check a file without sending it
    Validate(Input),
    /// Show a batch
    Status {
        /// `batch_…`
        id: String,
        /// Go on until it has ended
        #[arg(long)]
        watch: bool,
    },
    /// Print what came of a batch's lines
    Results {
        /// `batch_…`
        id: String,
        /// Go on until it has ended
        #[arg(long)]
        follow: bool,
    },
    /// Stop a batch; what is done stays
    Cancel {
        /// `batch_…`
        id: String,
    },
    /// Do the failed lines of an ended batch again, as a new batch
    RetryFailed {
        /// `batch_…`
        id: String,
    },
    /// List batches, the newest first
    List {
        /// So many at most
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
}

#[derive(Subcommand)]
pub(crate) enum Webhook {
    /// Print events as they happen, and hand them to a receiver on this machine
    Listen(Listen),
    /// Look whether a saved delivery is genuine
    Verify(Verify),
    /// Have a delivery sent again
    Resend {
        /// `whe_…`, or `jobs` for the URLs that jobs brought
        endpoint: String,
        /// `evt_…`
        event: String,
    },
}

#[derive(Args)]
pub(crate) struct Listen {
    /// A receiver that each event is posted to, signed with a secret of this run's own
    #[arg(long, value_name = "URL")]
    pub(crate) forward: Option<url::Url>,
    /// Only events of this type; more than once for more
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) types: Vec<String>,
    /// Begin behind this event (with those of the last minute)
    #[arg(long, value_name = "EVENT")]
    pub(crate) after: Option<String>,
    /// Stop after so many events
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

#[derive(Args)]
pub(crate) struct Verify {
    /// The delivery: its headers, a blank line and its body; `-` is standard input
    #[arg(value_name = "DELIVERY")]
    pub(crate) file: String,
    /// What the receiver holds: the endpoint's secret (`whsec_…`) or its public key (`whpk_…`)
    #[arg(long, value_parser = receiver_key)]
    pub(crate) key: Arc<ReceiverKey>,
    /// Seconds that it may be old; any age unless given
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) max_age: Option<Duration>,
}

/// A file with many prompts.
#[derive(Debug, Clone, Args)]
pub(crate) struct Input {
    /// The file; `-` is standard input
    #[arg(value_name = "INPUT")]
    pub(crate) file: String,
    /// What a line is (by the file's name, else `batch`)
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// The column with the prompts, of a CSV file
    #[arg(long, value_name = "NAME")]
    pub(crate) column: Option<String>,
    #[command(flatten)]
    pub(crate) generation: Generation,
}

/// What the lines of an input are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Requests of the Batch API: `{custom_id, method, url, body}`
    Batch,
    /// A prompt each
    Text,
    /// Rows with a prompt in one column
    Csv,
}

#[derive(Args)]
pub(crate) struct BatchRun {
    #[command(flatten)]
    pub(crate) input: Input,
    /// Where what came of each line goes, answers and errors alike
    #[arg(long, short)]
    pub(crate) output: PathBuf,
    /// Go on where an earlier run of the same command was cut off
    #[arg(long)]
    pub(crate) resume: bool,
    /// By when it is to be done
    #[arg(long, default_value = "24h")]
    pub(crate) window: String,
    /// Lines of one batch at most; a longer input becomes several
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub(crate) shard_lines: u32,
}

fn receiver_key(text: &str) -> Result<Arc<ReceiverKey>, String> {
    Ok(Arc::new(text.parse()?))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "is no number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "is no number of seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_holds_together() {
        Cli::command().debug_assert();
    }
}
