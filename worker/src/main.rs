//! `claimcheck-worker`: reads the command line and runs what it names.

use std::process::ExitCode;

use claimcheck_worker::cli::Cli;
use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    Cli::parse().execute().await
}
