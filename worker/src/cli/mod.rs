//! The command line, one file a subcommand.
//!
//! A worker that cannot go on exits with 1; a tool (`generate`, `bench`) that refuses its arguments or its model exits
//! with 2, as the parser of the arguments does. Either way there is one line on standard error.

mod bench;
mod generate;
mod number;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::bench::BenchArgs;
use self::generate::GenerateArgs;
use self::run::RunArgs;

const REFUSED: u8 = 2;

/// Claimcheck's worker: takes jobs from the queue, runs the model, settles the results.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the worker process until SIGTERM or SIGINT (the default).
    Run(RunArgs),
    /// Continues one prompt with the worker's engine, without any server.
    Generate(GenerateArgs),
    /// Measures the model alone: tokens a second when reading prompts and when writing.
    Bench(BenchArgs),
}

impl Cli {
    /// Runs what the command line names, and says on standard error why it could not.
    pub async fn execute(self) -> ExitCode {
        let (outcome, code) = match self.command.unwrap_or(Command::Run(self.run)) {
            Command::Run(args) => (run::run(args).await, ExitCode::FAILURE),
            Command::Generate(args) => (generate::run(args).await, ExitCode::from(REFUSED)),
            Command::Bench(args) => (bench::run(args).await, ExitCode::from(REFUSED)),
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // One line, whatever RUST_BACKTRACE says: a supervisor shows it to somebody.
                eprintln!("claimcheck-worker: {error:#}");
                code
            }
        }
    }
}
