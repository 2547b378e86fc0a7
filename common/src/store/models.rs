//! What workers serve: registered models, the names that lead to them, and the workers themselves.

use std::time::Duration;

use sqlx::{PgExecutor, Row};

use super::row::{get, unsigned};
use super::{Pool, StoreResult, transaction};
use crate::domain::{ModelRef, WorkerId};
use crate::validate::job::ModelLimits;

/// A model as a worker announces it.
#[derive(Debug, Clone)]
pub struct NewModel {
    /// Name and revision.
    pub model: ModelRef,
    /// Most tokens of prompt and output together.
    pub context_length: u32,
    /// Token ids are below this.
    pub vocabulary_size: u32,
    /// The arithmetic it is served in (`f32`).
    pub dtype: String,
    /// Hexadecimal digest of its weights.
    pub weights_sha256: String,
    /// The bytes of `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// Their digest in hexadecimal: what the API keys its cache by.
    pub tokenizer_sha256: String,
}

/// A model as a request finds it.
#[derive(Debug, Clone)]
pub struct ServedModel {
    /// Name and revision.
    pub model: ModelRef,
    /// Most tokens of prompt and output together.
    pub context_length: u32,
    /// Token ids are below this.
    pub vocabulary_size: u32,
    /// The arithmetic it is served in (`f32`).
    pub dtype: String,
    /// Hexadecimal digest of its tokenizer.
    pub tokenizer_sha256: String,
    /// When it was first announced.
    pub registered_at: time::OffsetDateTime,
    /// Workers that were heard of within the last half minute.
    pub workers: u32,
    /// The name that operators gave, if it was found by such a one and not by its own.
    pub alias: Option<String>,
}

impl ServedModel {
    /// What a job of it must keep within.
    pub const fn limits(&self) -> ModelLimits {
        ModelLimits {
            context_length: self.context_length,
            vocab_size: self.vocabulary_size,
        }
    }
}

/// Announces a worker and its model, and points the model's name at this revision. Safe to repeat.
pub async fn announce(pool: &Pool, worker: WorkerId, prefetch: u16, model: NewModel) -> StoreResult<()> {
    transaction(pool, move |connection| {
        let model = model.clone();
        Box::pin(async move {
            sqlx::query(
                "INSERT INTO models (name, revision, context_length, vocabulary_size, dtype, tokenizer, tokenizer_sha256,
                                     weights_sha256)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
                 ON CONFLICT (name, revision) DO UPDATE SET context_length = excluded.context_length,
                     vocabulary_size = excluded.vocabulary_size, dtype = excluded.dtype,
                     tokenizer = excluded.tokenizer, tokenizer_sha256 = excluded.tokenizer_sha256,
                     weights_sha256 = excluded.weights_sha256
                 WHERE (models.tokenizer_sha256, models.context_length, models.dtype, models.weights_sha256)
                     IS DISTINCT FROM (excluded.tokenizer_sha256, excluded.context_length, excluded.dtype,
                                       excluded.weights_sha256)",
            )
            .bind(&model.model.name)
            .bind(&model.model.revision)
            .bind(model.context_length.cast_signed())
            .bind(model.vocabulary_size.cast_signed())
            .bind(&model.dtype)
            .bind(&model.tokenizer)
            .bind(&model.tokenizer_sha256)
            .bind(&model.weights_sha256)
            .execute(&mut *connection)
            .await?;
            sqlx::query(
                "INSERT INTO model_aliases (alias, name, revision) VALUES ($1, $1, $2)
                 ON CONFLICT (alias) DO UPDATE SET name = excluded.name, revision = excluded.revision
                 WHERE (model_aliases.name, model_aliases.revision) IS DISTINCT FROM (excluded.name, excluded.revision)",
            )
            .bind(&model.model.name)
            .bind(&model.model.revision)
            .execute(&mut *connection)
            .await?;
            sqlx::query(
                "INSERT INTO workers (id, model, model_revision, prefetch, ready_at) VALUES ($1, $2, $3, $4, now())
                 ON CONFLICT (id) DO UPDATE SET model = excluded.model, model_revision = excluded.model_revision,
                     prefetch = excluded.prefetch, last_seen_at = now(), ready_at = coalesce(workers.ready_at, now())",
            )
            .bind(worker.uuid())
            .bind(&model.model.name)
            .bind(&model.model.revision)
            .bind(i32::from(prefetch))
            .execute(connection)
            .await?;
            Ok(())
        })
    })
    .await
}

/// A worker has started and is about to load its model: one that dies of it leaves a trace.
pub async fn starting(executor: impl PgExecutor<'_>, worker: WorkerId, model: &str) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO workers (id, model, model_revision, prefetch) VALUES ($1, $2, '', 0) ON CONFLICT (id) DO NOTHING",
    )
    .bind(worker.uuid())
    .bind(model)
    .execute(executor)
    .await?;
    Ok(())
}

/// A worker ends as it was told to.
pub async fn leave(executor: impl PgExecutor<'_>, worker: WorkerId) -> StoreResult<()> {
    sqlx::query("DELETE FROM workers WHERE id = $1")
        .bind(worker.uuid())
        .execute(executor)
        .await?;
    Ok(())
}

/// What the database says to a worker that lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Go on.
    Working,
    /// Take no more jobs.
    Draining,
    /// Nobody knows it (forgotten, or another database): it has to announce itself again.
    Unknown,
}

/// A worker still lives. Beaten along with its leases.
pub async fn seen(executor: impl PgExecutor<'_>, worker: WorkerId) -> StoreResult<Seen> {
    let draining: Option<bool> =
        sqlx::query_scalar("UPDATE workers SET last_seen_at = now() WHERE id = $1 RETURNING draining")
            .bind(worker.uuid())
            .fetch_optional(executor)
            .await?;
    Ok(match draining {
        Some(false) => Seen::Working,
        Some(true) => Seen::Draining,
        None => Seen::Unknown,
    })
}

/// Forgets workers that were not heard of for that long.
pub async fn forget_workers(executor: impl PgExecutor<'_>, silent_for: Duration) -> StoreResult<u64> {
    let done = sqlx::query("DELETE FROM workers WHERE last_seen_at < now() - $1::interval")
        .bind(silent_for)
        .execute(executor)
        .await?;
    Ok(done.rows_affected())
}

/// Each name with each model that it leads to. A name that operators gave goes before a model that is called the same.
const SERVED: &str = "WITH names AS (
         SELECT alias, model, weight, true AS given FROM alias_targets
         UNION ALL
         SELECT alias, alias, 1, false FROM model_aliases own
         WHERE NOT EXISTS (SELECT FROM aliases a WHERE a.alias = own.alias)
     )
     SELECT n.alias, n.weight, n.given, m.name, m.revision, m.context_length, m.vocabulary_size, m.dtype,
         m.tokenizer_sha256, m.registered_at,
         (SELECT count(*)::int FROM workers w WHERE w.model = m.name AND w.model_revision = m.revision
              AND w.last_seen_at > now() - interval '30 seconds') AS workers
     FROM names n JOIN model_aliases o ON o.alias = n.model
         JOIN models m ON (m.name, m.revision) = (o.name, o.revision)
     ORDER BY n.alias, n.weight DESC, m.name";

/// A name that requests may use.
#[derive(Debug, Clone)]
pub struct Alias {
    /// The name.
    pub name: String,
    /// Whether operators gave it; otherwise it is a model's own.
    pub given: bool,
    /// What it leads to, at least one, with their weights; the heaviest first.
    pub targets: Vec<(ServedModel, u32)>,
}

impl Alias {
    /// The model that a draw, any number, falls to.
    pub fn drawn(&self, draw: u32) -> &ServedModel {
        let all: u64 = self.targets.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut place = (u64::from(draw) * all) >> u32::BITS;
        for (served, weight) in &self.targets {
            match place.checked_sub(u64::from(*weight)) {
                Some(rest) => place = rest,
                None => return served,
            }
        }
        self.heaviest()
    }

    /// The model that gets most of its jobs.
    pub fn heaviest(&self) -> &ServedModel {
        &self.targets[0].0
    }
}

/// All that can be asked for, by name.
pub async fn aliases(executor: impl PgExecutor<'_>) -> StoreResult<Vec<Alias>> {
    let rows = sqlx::query(SERVED).fetch_all(executor).await?;
    let mut all: Vec<Alias> = Vec::new();
    for row in &rows {
        let (name, given): (String, bool) = (get(row, "alias")?, get(row, "given")?);
        let target = (served(row, given.then(|| name.clone()))?, unsigned(row, "weight")?);
        match all.last_mut() {
            Some(last) if last.name == name => last.targets.push(target),
            _ => all.push(Alias {
                name,
                given,
                targets: vec![target],
            }),
        }
    }
    Ok(all)
}

/// The bytes of a model's `tokenizer.json`.
pub async fn tokenizer(executor: impl PgExecutor<'_>, model: &ModelRef) -> StoreResult<Option<Vec<u8>>> {
    Ok(
        sqlx::query_scalar("SELECT tokenizer FROM models WHERE name = $1 AND revision = $2")
            .bind(&model.name)
            .bind(&model.revision)
            .fetch_optional(executor)
            .await?,
    )
}

fn served(row: &sqlx::postgres::PgRow, alias: Option<String>) -> StoreResult<ServedModel> {
    Ok(ServedModel {
        model: ModelRef {
            name: get(row, "name")?,
            revision: get(row, "revision")?,
        },
        context_length: unsigned(row, "context_length")?,
        vocabulary_size: unsigned(row, "vocabulary_size")?,
        dtype: get(row, "dtype")?,
        tokenizer_sha256: get(row, "tokenizer_sha256")?,
        registered_at: row.try_get("registered_at")?,
        workers: unsigned(row, "workers")?,
        alias,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias(weights: &[u32]) -> Alias {
        let served = |revision: usize| ServedModel {
            model: ModelRef {
                name: "m".to_owned(),
                revision: revision.to_string(),
            },
            context_length: 1,
            vocabulary_size: 1,
            dtype: "f32".to_owned(),
            tokenizer_sha256: String::new(),
            registered_at: time::OffsetDateTime::UNIX_EPOCH,
            workers: 0,
            alias: Some("a".to_owned()),
        };
        let targets = weights.iter().enumerate();
        Alias {
            name: "a".to_owned(),
            given: true,
            targets: targets.map(|(place, weight)| (served(place), *weight)).collect(),
        }
    }

    #[test]
    fn each_target_gets_the_part_of_all_draws_that_its_weight_is() {
        let alias = alias(&[90, 9, 1]);
        let mut counts = [0; 3];
        // All draws, evenly thinned out.
        for draw in 0..100_000_u32 {
            let place: usize = alias.drawn(draw * 42_949).model.revision.parse().unwrap();
            counts[place] += 1;
        }
        for (count, wanted) in counts.into_iter().zip([90_000_i32, 9_000, 1_000]) {
            assert!(wanted.abs_diff(count) <= 2, "{counts:?}");
        }
    }

    #[test]
    fn the_first_and_the_last_draw_fall_to_somebody() {
        assert_eq!(alias(&[1]).drawn(u32::MAX).model.revision, "0");
        let two = alias(&[1000, 1000]);
        assert_eq!(two.drawn(0).model.revision, "0");
        assert_eq!(two.drawn(u32::MAX).model.revision, "1");
    }
}
