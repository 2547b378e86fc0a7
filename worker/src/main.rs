//! `claimcheck-worker`: reads the command line and runs what it names.

use std::process::ExitCode;

use claimcheck_worker::cli::Cli;
use clap::Parser;
use mimalloc::MiMalloc;

/// A step takes megabytes and gives them back: an allocator that hands those to the machine each time spends more on clean
/// pages than the step computes.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    Cli::parse().execute().await
}
