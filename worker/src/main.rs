//! `claimcheck-worker`: reads the command line and runs what it names.

use std::process::ExitCode;

use claimcheck_worker::cli::Cli;
use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().execute().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever RUST_BACKTRACE says: a supervisor shows it to somebody.
            eprintln!("claimcheck-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}
