//! `claimcheck`: the command line of the service.
//!
//! A client like any other: all that it knows of the service is its HTTP face. `args.rs` is the grammar, `client.rs` the way to
//! the service, and each command is a file. Results go to standard output, everything else to standard error, and the exit code
//! says how it ended (`failure.rs`).

mod account;
mod args;
mod batch;
mod client;
mod credentials;
mod failure;
mod jobs;
mod output;
mod progress;
mod stream;
mod webhook;

use std::path::PathBuf;
use std::process::ExitCode;

use claimcheck_common::config::ClientConfig;
use clap::{CommandFactory, Parser};
use secrecy::ExposeSecret;
use serde_json::json;

use args::{Cli, Command};
use client::Client;
use credentials::Credentials;
use failure::{Failure, Outcome};
use output::Output;

/// Where a service on this machine listens.
const DEFAULT_URL: &str = "http://127.0.0.1:8080";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.json);
    match run(cli, output).await {
        Ok(outcome) => outcome.into(),
        Err(failure) => {
            if output.is_json() {
                eprintln!(
                    "{}",
                    json!({"error": {"code": failure.code(), "message": failure.to_string()}})
                );
            } else {
                eprintln!("claimcheck: {failure}");
            }
            ExitCode::from(&failure)
        }
    }
}

async fn run(cli: Cli, output: Output) -> Result<Outcome, Failure> {
    match &cli.command {
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "claimcheck", &mut text);
            return output::page(&text);
        }
        Command::Man => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut text)?;
            return output::page(&text);
        }
        Command::Batch(args::Batch::Validate(input)) => return batch::validate(input, output),
        Command::Webhook(args::Webhook::Verify(args)) => return webhook::verify(args, output),
        _ => {}
    }
    let config = ClientConfig::from_env().map_err(|error| Failure::Usage(error.to_string()))?;
    let file = config.credentials_file();
    let known_file = || file.clone().ok_or_else(|| Failure::Usage("HOME is not set".to_owned()));
    if let Command::Logout = cli.command {
        return account::logout(&known_file()?, output);
    }
    let kept = file.as_deref().map(Credentials::read).transpose()?.flatten();
    let kept_url = kept.as_ref().map(|kept| kept.url.clone());
    let url = cli.url.or(config.api_url.clone()).or(kept_url);
    let url = url.unwrap_or_else(|| DEFAULT_URL.to_owned());
    if let Command::Login(args) = cli.command {
        let nobody = Credentials {
            url,
            ..Credentials::default()
        };
        let client = Client::new(nobody, None, cli.patience)?;
        return account::login(args, &client, &known_file()?, output).await;
    }
    let (credentials, file) = credentials(&config, kept, url, file)?;
    let client = Client::new(credentials, file, cli.patience)?;
    match cli.command {
        Command::Keys(command) => account::keys(command, &client, output).await,
        Command::Run(args) => jobs::run(args, &client, output).await,
        Command::Jobs(command) => jobs::jobs(command, &client, output).await,
        Command::Batch(command) => batch::batch(command, &client, output).await,
        Command::Webhook(command) => webhook::webhook(command, &client, output).await,
        Command::Usage(args) => jobs::usage(args, &client, output).await,
        Command::Login(_) | Command::Logout | Command::Completions { .. } | Command::Man => Ok(Outcome::Done),
    }
}

/// Those of the environment, else those of the last login; and the file that a changed one is kept in.
fn credentials(
    config: &ClientConfig,
    kept: Option<Credentials>,
    url: String,
    file: Option<PathBuf>,
) -> Result<(Credentials, Option<PathBuf>), Failure> {
    if let Some(key) = &config.api_key {
        let secret = key.expose_secret().to_owned();
        let given = Credentials {
            url,
            secret,
            ..Credentials::default()
        };
        return Ok((given, None));
    }
    // What was given for one service is shown to no other.
    let kept = kept.filter(|kept| kept.url == url);
    let kept = kept.ok_or_else(|| Failure::Usage(format!("log in to {url} first, or set CLAIMCHECK_API_KEY")))?;
    Ok((kept, file))
}
