//! Sealing the audit log: a chain of SHA-256 over its rows, in the order of their ids, and looking whether it holds.
//!
//! A row is sealed once no other with a smaller id can come: transactions end within 35 s, so two minutes are twice as long as
//! that can take. `link` is the hash of the link before it and of the row's own hash; whoever notes a link elsewhere (the
//! head that [`verify`] answers) can tell later that nothing up to it was changed, not even by the owner of the tables.

use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};
use time::OffsetDateTime;

use super::audit::{AuditRow, audit_row};
use super::pool::connect_alone;
use super::rescue::CHUNK;
use super::row::{column, get};
use super::{Pool, StoreResult, transaction};

/// Rows become final after so long: twice the longest transaction, and some.
pub const FINAL_AFTER: Duration = Duration::from_mins(2);
/// One sealer at a time.
const LOCK: &str = "SELECT pg_try_advisory_xact_lock(hashtextextended('audit_seal', 0))";
/// Rows that a look reads at once.
const PAGE: i64 = 5000;

/// A place in the chain, to be noted elsewhere and held against it later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Rows that were sealed up to here.
    pub seq: i64,
    /// The link of the last one.
    pub link: Vec<u8>,
}

/// The first thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// A sealed row does not read as it did.
    #[error("row {0} was changed after it was sealed")]
    Changed(i64),
    /// A sealed row is gone.
    #[error("row {0} is gone")]
    Gone(i64),
    /// A row was not there when its neighbours were sealed.
    #[error("row {0} was put in after its neighbours were sealed")]
    PutIn(i64),
    /// Seals are missing.
    #[error("the seal of place {0} is gone")]
    SealGone(i64),
    /// A seal does not follow from the one before it.
    #[error("the seal of row {row} (place {seq}) was changed or moved")]
    SealChanged {
        /// Its place in the chain.
        seq: i64,
        /// The row that it seals.
        row: i64,
    },
    /// The chain does not have the head that was noted.
    #[error("the chain is not the one whose head was noted at place {0}: its end was cut off or it was made anew")]
    OtherHead(i64),
}

/// What a look at the whole chain found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The first thing that is wrong, if anything is.
    pub finding: Option<Finding>,
    /// The end of the chain as far as it holds; `None` before anything is sealed.
    pub head: Option<Head>,
    /// Rows that were looked at.
    pub rows: u64,
}

/// Seals one chunk of rows that are older than `final_after`. Answers how many; 0 also while another process seals.
pub async fn seal(pool: &Pool, final_after: Duration) -> StoreResult<u64> {
    transaction(pool, move |connection| {
        Box::pin(async move {
            if !sqlx::query_scalar::<_, bool>(LOCK).fetch_one(&mut *connection).await? {
                return Ok(0);
            }
            let last = sqlx::query("SELECT seq, audit_id, link FROM audit_seals ORDER BY seq DESC LIMIT 1")
                .fetch_optional(&mut *connection)
                .await?;
            let (seq, audit_id, link) = match &last {
                Some(row) => (get(row, "seq")?, get(row, "audit_id")?, get(row, "link")?),
                None => (0, 0, Vec::new()),
            };
            // Up to the first row that is not final yet: what is written later has a greater id than all that is sealed.
            let rows = sqlx::query(
                "SELECT *, details::text AS details_text, occurred_at <= now() - $2::interval AS final
                 FROM audit_log WHERE id > $1 ORDER BY id LIMIT $3",
            )
            .bind::<i64>(audit_id)
            .bind(final_after)
            .bind(CHUNK)
            .fetch_all(&mut *connection)
            .await?;
            append(connection, &rows, seq, link).await
        })
    })
    .await
}

async fn append(connection: &mut PgConnection, rows: &[PgRow], seq: i64, mut link: Vec<u8>) -> StoreResult<u64> {
    let mut seals: Vec<(AuditRow, [u8; 32], Vec<u8>)> = Vec::new();
    for row in rows {
        if !get::<bool, _>(row, "final")? {
            break;
        }
        let (row, details) = (audit_row(row)?, get(row, "details_text")?);
        let hash = row_hash(&row, details);
        link = next_link(&link, &hash);
        seals.push((row, hash, link.clone()));
    }
    if seals.is_empty() {
        return Ok(0);
    }
    sqlx::query(
        "INSERT INTO audit_seals (seq, audit_id, occurred_at, row_sha256, link)
         SELECT $1 + ordinality, audit_id, occurred_at, row_sha256, link
         FROM unnest($2::bigint[], $3::timestamptz[], $4::bytea[], $5::bytea[])
             WITH ORDINALITY AS new (audit_id, occurred_at, row_sha256, link, ordinality)",
    )
    .bind(seq)
    .bind(column(&seals, |(row, _, _)| row.id))
    .bind(column(&seals, |(row, _, _)| row.occurred_at))
    .bind(column(&seals, |(_, hash, _)| hash.to_vec()))
    .bind(column(&seals, |(_, _, link)| link.clone()))
    .execute(connection)
    .await?;
    Ok(seals.len() as u64)
}

fn next_link(before: &[u8], row_sha256: &[u8]) -> Vec<u8> {
    Sha256::new()
        .chain_update(before)
        .chain_update(row_sha256)
        .finalize()
        .to_vec()
}

/// The hash of everything that a row says. Each value stands behind its name and its length, and absent ones are left out, so
/// that no two rows read the same and a column that comes later changes no hash.
///
/// `details` are as the database writes them, whose keys have one order.
fn row_hash(row: &AuditRow, details: Option<&str>) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut add = |name: &str, value: Option<&[u8]>| {
        if let Some(value) = value {
            hash.update(name);
            hash.update((value.len() as u64).to_be_bytes());
            hash.update(value);
        }
    };
    add("id", Some(&row.id.to_be_bytes()));
    // As fine as the database keeps it.
    let micros = (row.occurred_at.unix_timestamp_nanos() / 1000) as i64;
    add("occurred_at", Some(&micros.to_be_bytes()));
    add("tenant_id", row.tenant_id.as_ref().map(|id| id.as_bytes().as_slice()));
    add("actor", Some(row.actor.as_bytes()));
    add("credential", row.credential.as_deref().map(str::as_bytes));
    add("address", row.address.as_deref().map(str::as_bytes));
    add("request_id", row.request_id.as_deref().map(str::as_bytes));
    add("action", Some(row.action.as_bytes()));
    add("subject", row.subject.as_ref().map(|id| id.as_bytes().as_slice()));
    add("outcome", Some(row.outcome.as_bytes()));
    add("details", details.map(str::as_bytes));
    hash.finalize().into()
}

/// Reads the whole chain beside the whole log, up to the first thing that is wrong. `noted` is a head of earlier.
pub async fn verify(pool: &Pool, noted: Option<&Head>) -> StoreResult<Verdict> {
    let dropped: i64 = sqlx::query_scalar("SELECT coalesce(max(last_seq), 0) FROM audit_drops")
        .fetch_one(pool)
        .await?;
    let mut verdict = Verdict {
        finding: None,
        head: None,
        rows: 0,
    };
    loop {
        let after = verdict.head.as_ref().map_or(0, |head| head.seq);
        let rows = sqlx::query(
            "SELECT s.seq, s.audit_id, s.row_sha256, s.link, a.*, a.details::text AS details_text
             FROM audit_seals s
             LEFT JOIN audit_log a ON a.id = s.audit_id AND a.occurred_at = s.occurred_at
             WHERE s.seq > $1 ORDER BY s.seq LIMIT $2",
        )
        .bind(after)
        .bind(PAGE)
        .fetch_all(pool)
        .await?;
        for row in &rows {
            verdict.finding = look(row, &mut verdict.head, dropped, noted)?;
            if verdict.finding.is_some() {
                return Ok(verdict);
            }
            verdict.rows += 1;
        }
        if rows.len() < PAGE as usize {
            break;
        }
    }
    verdict.finding = match noted {
        Some(noted) if verdict.head.as_ref().is_none_or(|head| head.seq < noted.seq) => {
            Some(Finding::OtherHead(noted.seq))
        }
        _ => put_in(pool).await?.map(Finding::PutIn),
    };
    Ok(verdict)
}

/// Looks at one seal and its row. What is in order becomes the head.
fn look(row: &PgRow, head: &mut Option<Head>, dropped: i64, noted: Option<&Head>) -> StoreResult<Option<Finding>> {
    let (seq, audit_id): (i64, i64) = (get(row, "seq")?, get(row, "audit_id")?);
    let (row_sha256, link): (Vec<u8>, Vec<u8>) = (get(row, "row_sha256")?, get(row, "link")?);
    let before = head.take().unwrap_or(Head {
        seq: 0,
        link: Vec::new(),
    });
    let follows = seq == before.seq + 1;
    if !follows && seq - 1 > dropped {
        let missing = before.seq + 1;
        *head = (before.seq > 0).then_some(before);
        return Ok(Some(Finding::SealGone(missing)));
    }
    let is_there = row.try_get::<Option<i64>, _>("id")?.is_some();
    let finding = if !is_there {
        (seq > dropped).then_some(Finding::Gone(audit_id))
    } else if row_hash(&audit_row(row)?, get(row, "details_text")?).as_slice() != row_sha256 {
        Some(Finding::Changed(audit_id))
    } else {
        None
    };
    let chained = !follows || next_link(&before.link, &row_sha256) == link;
    let finding = finding.or_else(|| (!chained).then_some(Finding::SealChanged { seq, row: audit_id }));
    let finding = finding.or_else(|| {
        let other = noted.is_some_and(|noted| noted.seq == seq && noted.link != link);
        other.then_some(Finding::OtherHead(seq))
    });
    *head = if finding.is_none() {
        Some(Head { seq, link })
    } else {
        (before.seq > 0).then_some(before)
    };
    Ok(finding)
}

/// The first row that has no seal although a later one has.
async fn put_in(pool: &Pool) -> StoreResult<Option<i64>> {
    // It reads the whole log, which may take longer than a statement of a service may.
    let mut transaction = pool
        .begin_with("BEGIN READ ONLY; SET LOCAL statement_timeout = 0")
        .await?;
    let row = sqlx::query_scalar(
        "SELECT min(a.id) FROM audit_log a WHERE a.id < (SELECT max(audit_id) FROM audit_seals)
             AND a.occurred_at >= coalesce((SELECT max(before) FROM audit_drops), '-infinity')
             AND NOT EXISTS (SELECT FROM audit_seals s WHERE s.audit_id = a.id)",
    )
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(row)
}

/// Lets every month go that ended by `before`, as the owner of the tables at `url`, with its rows and their seals. A month with
/// a row that is not sealed yet stays. Answers the partitions that went.
pub async fn drop_months(url: &str, before: OffsetDateTime) -> StoreResult<Vec<String>> {
    let mut connection = connect_alone(url).await?;
    let months = sqlx::query(
        "SELECT name, month, month + interval '1 month' AS ends FROM (
             SELECT c.relname::text AS name, to_date(substring(c.relname FROM '[0-9_]+$'), '_YYYY_MM')::timestamptz AS month
             FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
             WHERE i.inhparent = 'audit_log'::regclass AND c.relname ~ '^audit_log_[0-9]{4}_[0-9]{2}$'
         ) months WHERE month + interval '1 month' <= $1 ORDER BY month",
    )
    .bind(before)
    .fetch_all(&mut connection)
    .await?;
    let mut gone = Vec::new();
    for month in &months {
        let (name, ends): (String, OffsetDateTime) = (get(month, "name")?, get(month, "ends")?);
        if drop_month(&mut connection, &name, ends).await? {
            gone.push(name);
        }
    }
    Ok(gone)
}

async fn drop_month(connection: &mut PgConnection, name: &str, ends: OffsetDateTime) -> StoreResult<bool> {
    let mut transaction = connection.begin().await?;
    let unsealed: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM audit_log a WHERE a.occurred_at < $1
             AND NOT EXISTS (SELECT FROM audit_seals s WHERE s.audit_id = a.id))",
    )
    .bind(ends)
    .fetch_one(&mut *transaction)
    .await?;
    if unsealed {
        return Ok(false);
    }
    sqlx::query(
        "INSERT INTO audit_drops (before, last_seq)
         SELECT $1, coalesce((SELECT max(seq) FROM audit_seals WHERE occurred_at < $1), 0)",
    )
    .bind(ends)
    .execute(&mut *transaction)
    .await?;
    sqlx::query("DELETE FROM audit_seals WHERE occurred_at < $1")
        .bind(ends)
        .execute(&mut *transaction)
        .await?;
    // The name was read from the catalogue by its pattern.
    sqlx::query(sqlx::AssertSqlSafe(format!("DROP TABLE {name}")))
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_move_to_another_column_unseen() {
        let row = AuditRow {
            id: 1,
            occurred_at: OffsetDateTime::UNIX_EPOCH,
            tenant_id: None,
            actor: "service".to_owned(),
            credential: Some("a".to_owned()),
            address: None,
            request_id: None,
            action: "job.submitted".to_owned(),
            subject: None,
            outcome: "ok".to_owned(),
            details: None,
        };
        let moved = AuditRow {
            credential: None,
            address: Some("a".to_owned()),
            ..row.clone()
        };
        assert_ne!(row_hash(&row, None), row_hash(&moved, None));
        assert_ne!(row_hash(&row, None), row_hash(&row, Some("{}")));
    }
}
