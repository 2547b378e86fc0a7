//! `claimcheck-api`: composes and waits.

use anyhow::Context;
use claimcheck_api::auth::{Seal, tokens::new_key};
use claimcheck_api::{App, Config};
use claimcheck_common::config::{ApiConfig, DatabaseConfig, TelemetryConfig, load_dotenv};
use claimcheck_common::domain::Role;
use claimcheck_common::store::signing_keys;
use claimcheck_common::{shutdown, store, telemetry};
use clap::{Parser, Subcommand};
use tikv_jemallocator::Jemalloc;

/// A request makes and drops some hundreds of small values, on whichever thread comes first.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

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
    /// The keys that sign access tokens.
    #[command(subcommand)]
    Keys(KeysCommand),
}

/// `publish` makes a key known to all replicas, `sign` lets it sign, `retire` ends the one before. Running services follow
/// within ten seconds.
#[derive(Subcommand)]
enum KeysCommand {
    /// Show the keys, the one that signs first.
    List,
    /// Make a key; it is accepted and shown in the JWKS at once, and signs later.
    Publish {
        /// Let it sign from so many seconds later on, without a further command.
        #[arg(long)]
        sign_after: Option<u32>,
    },
    /// Let a published key sign from now on.
    Sign {
        /// The key's name.
        kid: String,
    },
    /// Accept nothing more that this key signed. Another one must have taken over.
    Retire {
        /// The key's name.
        kid: String,
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
        Command::Keys(command) => keys(command).await,
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

async fn keys(command: KeysCommand) -> anyhow::Result<()> {
    let pool = store::connect(&DatabaseConfig::from_env()?)?;
    match command {
        KeysCommand::List => {
            for key in signing_keys::list(&pool, true).await? {
                let state = match (key.retired_at, key.may_sign, key.signs_from) {
                    (Some(at), ..) => format!("retired {at}"),
                    (None, true, Some(from)) => format!("signs or has signed since {from}"),
                    (None, _, Some(from)) => format!("will sign from {from}"),
                    (None, _, None) => "published".to_owned(),
                };
                println!("{}  made {}  {state}", key.kid, key.created_at);
            }
        }
        KeysCommand::Publish { sign_after } => {
            let seal = Seal::new(&ApiConfig::from_env()?.jwt_secret)?;
            let (kid, sealed) = new_key(&seal)?;
            signing_keys::publish(&pool, kid.clone(), sealed, sign_after).await?;
            println!("{kid}");
        }
        KeysCommand::Sign { kid } => {
            let known = signing_keys::sign_with(&pool, kid.clone()).await?;
            anyhow::ensure!(known, "there is no key {kid} that is not retired");
        }
        KeysCommand::Retire { kid } => {
            let retired = signing_keys::retire(&pool, kid.clone()).await?;
            anyhow::ensure!(retired, "there is no key {kid} that another one has taken over from");
        }
    }
    Ok(())
}
