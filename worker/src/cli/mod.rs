//! The command line, one file a subcommand.

mod run;

use clap::{Parser, Subcommand};

use self::run::RunArgs;

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
}

impl Cli {
    /// Runs what the command line names.
    pub async fn execute(self) -> anyhow::Result<()> {
        match self.command.unwrap_or(Command::Run(self.run)) {
            Command::Run(args) => run::run(args).await,
        }
    }
}
