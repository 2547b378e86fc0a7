//! `claimcheck-api`: composes and waits.

use anyhow::Context;
use claimcheck_api::{App, Config};
use claimcheck_common::config::{DatabaseConfig, TelemetryConfig, load_dotenv};
use claimcheck_common::domain::Role;
use claimcheck_common::{shutdown, store, telemetry};
use clap::{Parser, Subcommand};

/// The HTTP face of Claimcheck and its relay. Configured by the environment and a `.env` file.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT (the default).
    Serve,
    /// Bring the database's schema up to date, as its owner, and end.
    Migrate,
    /// Give a user another role, and end.
    Role {
        /// The user's name.
        username: String,
        /// What they may do.
        #[arg(value_parser = str::parse::<Role>)]
        role: Role,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    load_dotenv()?;
    telemetry::init(&TelemetryConfig::from_env()?);
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => serve().await,
        Command::Migrate => migrate().await,
        Command::Role { username, role } => set_role(&username, role).await,
    }
}

async fn serve() -> anyhow::Result<()> {
    let stop = shutdown::on_signal().context("signals cannot be received")?;
    let app = App::build(Config::from_env()?).await?;
    tracing::info!(address = %app.address(), "claimcheck-api is listening");
    app.run_until_stopped(stop).await;
    tracing::info!("claimcheck-api has stopped");
    Ok(())
}

async fn migrate() -> anyhow::Result<()> {
    let database = DatabaseConfig::from_env()?;
    store::migrate(database.owner_url())
        .await
        .context("the migrations did not run")?;
    tracing::info!("the schema is up to date");
    Ok(())
}

async fn set_role(username: &str, role: Role) -> anyhow::Result<()> {
    let pool = store::connect(&DatabaseConfig::from_env()?)?;
    let known = store::accounts::set_role(&pool, username, role).await?;
    anyhow::ensure!(known, "there is no user {username}");
    tracing::info!(username, %role, "the role is changed");
    Ok(())
}
