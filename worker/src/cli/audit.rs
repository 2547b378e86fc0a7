//! `claimcheck-worker audit`: whether the audit log is as it was written, and letting its old months go.

use anyhow::Context;
use claimcheck_common::config::{DatabaseConfig, load_dotenv};
use claimcheck_common::store;
use claimcheck_common::store::seal::{self, Head};
use clap::{Args, Subcommand};
use time::macros::format_description;
use time::{Date, OffsetDateTime};

#[derive(Debug, Clone, Args)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum AuditCommand {
    /// Reads the whole chain of seals beside the log and names the first row that was changed, moved or cut off.
    Verify {
        /// The head that an earlier look printed, so that an end that was cut off with its seals is noticed.
        #[arg(long, value_name = "PLACE:LINK", value_parser = parse_head)]
        head: Option<Head>,
    },
    /// Lets every month go that had ended by a day, as the owner of the tables (`DATABASE_OWNER_URL`).
    Drop {
        /// The day, as 2026-01-31.
        #[arg(long, value_parser = parse_day)]
        before: OffsetDateTime,
    },
}

/// An error if anything is wrong.
pub(super) async fn run(args: AuditArgs) -> anyhow::Result<()> {
    load_dotenv()?;
    let database = DatabaseConfig::from_env()?;
    match args.command {
        AuditCommand::Verify { head } => verify(&database, head).await,
        AuditCommand::Drop { before } => drop_months(&database, before).await,
    }
}

async fn verify(database: &DatabaseConfig, noted: Option<Head>) -> anyhow::Result<()> {
    let verdict = seal::verify(&store::connect(database)?, noted.as_ref())
        .await
        .context("the audit log cannot be read")?;
    if let Some(finding) = verdict.finding {
        anyhow::bail!(
            "{finding}; {} sealed rows before it are as they were written",
            verdict.rows
        );
    }
    match verdict.head {
        None => println!("nothing is sealed yet"),
        Some(Head { seq, link }) => println!(
            "{} sealed rows are as they were written; head {seq}:{}",
            verdict.rows,
            hex::encode(link)
        ),
    }
    Ok(())
}

async fn drop_months(database: &DatabaseConfig, before: OffsetDateTime) -> anyhow::Result<()> {
    let gone = seal::drop_months(database.owner_url(), before)
        .await
        .context("the months could not be dropped")?;
    match gone.as_slice() {
        [] => println!("no month that is sealed had ended by then"),
        months => println!("gone: {}", months.join(", ")),
    }
    Ok(())
}

fn parse_head(text: &str) -> Result<Head, String> {
    let read = || {
        let (seq, link) = text.split_once(':')?;
        let link = hex::decode(link).ok().filter(|link| link.len() == 32)?;
        Some(Head {
            seq: seq.parse().ok()?,
            link,
        })
    };
    read().ok_or_else(|| "a head is a number, a colon and 64 hexadecimal digits".to_owned())
}

fn parse_day(text: &str) -> Result<OffsetDateTime, String> {
    let day = Date::parse(text, format_description!("[year]-[month]-[day]"));
    day.map(|day| day.midnight().assume_utc())
        .map_err(|_| "a day is written as 2026-01-31".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_days_read_as_they_are_printed() {
        let link = "ab".repeat(32);
        assert_eq!(parse_head(&format!("17:{link}")).unwrap().seq, 17);
        for bad in ["17", "x:ab", "17:ab", &format!("17:{link}0")] {
            assert!(parse_head(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_day("2026-01-31").unwrap().unix_timestamp(), 1_769_817_600);
        for bad in ["2026-02-30", "yesterday", "31.1.2026"] {
            assert!(parse_day(bad).is_err(), "{bad}");
        }
    }
}
