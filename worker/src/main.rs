//! `claimcheck-worker`: reads the command line and runs what it names.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    claimcheck_worker::cli::Cli::parse().execute().await
}
