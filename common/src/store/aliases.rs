//! Names that operators give: each leads to one model or, by weights, to several. What requests make of them: `models.rs`.

use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use super::audit::{self, By, Entry};
use super::row::{get, unsigned};
use super::{Pool, StoreResult, transaction};

/// A model that a name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The model's own name.
    pub model: String,
    /// Its part of the jobs, beside the other targets' weights; at least 1.
    pub weight: u32,
}

/// A name with its targets.
#[derive(Debug, Clone)]
pub struct AliasTargets {
    /// The name.
    pub name: String,
    /// When it was set to them.
    pub changed_at: OffsetDateTime,
    /// The heaviest first.
    pub targets: Vec<Target>,
}

/// What became of setting a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Set {
    /// It leads there from now on, since this time.
    Done(OffsetDateTime),
    /// No worker has ever announced the model of this place in the list.
    Unknown(usize),
    /// The model of this place counts tokens by another tokenizer than the first one.
    OtherTokenizer(usize),
}

/// Makes a name lead to these models and to no others, for every job that is submitted after it, and writes it down. Safe
/// to repeat.
pub async fn set(pool: &Pool, name: String, targets: Vec<Target>, by: impl Into<By>) -> StoreResult<Set> {
    let by = by.into();
    transaction(pool, move |connection| {
        let (name, targets, by) = (name.clone(), targets.clone(), by.clone());
        Box::pin(async move {
            if let Some(refused) = refusal(connection, &targets).await? {
                return Ok(refused);
            }
            // Its row first: of two operators one waits here for the other.
            let changed_at = sqlx::query_scalar(
                "INSERT INTO aliases (alias) VALUES ($1) ON CONFLICT (alias) DO UPDATE SET changed_at = now()
                 RETURNING changed_at",
            )
            .bind(&name)
            .fetch_one(&mut *connection)
            .await?;
            let before = targets_of(connection, &name).await?;
            sqlx::query("DELETE FROM alias_targets WHERE alias = $1")
                .bind(&name)
                .execute(&mut *connection)
                .await?;
            let (models, weights): (Vec<_>, Vec<_>) = targets
                .iter()
                .map(|target| (target.model.as_str(), target.weight.cast_signed()))
                .unzip();
            sqlx::query(
                "INSERT INTO alias_targets (alias, model, weight)
                 SELECT $1, model, weight FROM unnest($2::text[], $3::integer[]) AS target (model, weight)",
            )
            .bind(&name)
            .bind(models)
            .bind(weights)
            .execute(&mut *connection)
            .await?;
            let details = serde_json::json!({"alias": name, "before": shown(&before), "after": shown(&targets)});
            let entry = Entry::done(None, "alias.set", None).with(details);
            audit::record(connection, &by, entry).await?;
            Ok(Set::Done(changed_at))
        })
    })
    .await
}

/// Takes a name away, and writes it down. `false` if there is none.
pub async fn remove(pool: &Pool, name: String, by: impl Into<By>) -> StoreResult<bool> {
    let by = by.into();
    transaction(pool, move |connection| {
        let (name, by) = (name.clone(), by.clone());
        Box::pin(async move {
            let before = targets_of(connection, &name).await?;
            let done = sqlx::query("DELETE FROM aliases WHERE alias = $1")
                .bind(&name)
                .execute(&mut *connection)
                .await?;
            if done.rows_affected() == 0 {
                return Ok(false);
            }
            let details = serde_json::json!({"alias": name, "before": shown(&before)});
            let entry = Entry::done(None, "alias.removed", None).with(details);
            audit::record(connection, &by, entry).await?;
            Ok(true)
        })
    })
    .await
}

/// All of them, by name.
pub async fn list(executor: impl PgExecutor<'_>) -> StoreResult<Vec<AliasTargets>> {
    let rows = sqlx::query(
        "SELECT a.alias, a.changed_at, t.model, t.weight FROM aliases a JOIN alias_targets t ON t.alias = a.alias
         ORDER BY a.alias, t.weight DESC, t.model",
    )
    .fetch_all(executor)
    .await?;
    let mut all: Vec<AliasTargets> = Vec::new();
    for row in &rows {
        let name: String = get(row, "alias")?;
        let target = Target {
            model: get(row, "model")?,
            weight: unsigned(row, "weight")?,
        };
        match all.last_mut() {
            Some(last) if last.name == name => last.targets.push(target),
            _ => all.push(AliasTargets {
                name,
                changed_at: get(row, "changed_at")?,
                targets: vec![target],
            }),
        }
    }
    Ok(all)
}

/// What is wrong with the targets, if anything: a prompt is counted before anybody knows which of them will read it.
async fn refusal(connection: &mut PgConnection, targets: &[Target]) -> StoreResult<Option<Set>> {
    let names: Vec<_> = targets.iter().map(|target| target.model.as_str()).collect();
    let tokenizers: Vec<Option<String>> = sqlx::query_scalar(
        "SELECT m.tokenizer_sha256 FROM unnest($1::text[]) WITH ORDINALITY AS target (model, place)
         LEFT JOIN model_aliases o ON o.alias = target.model
         LEFT JOIN models m ON (m.name, m.revision) = (o.name, o.revision) ORDER BY target.place",
    )
    .bind(names)
    .fetch_all(connection)
    .await?;
    let unknown = tokenizers.iter().position(Option::is_none).map(Set::Unknown);
    let other = tokenizers.iter().position(|one| Some(one) != tokenizers.first());
    Ok(unknown.or_else(|| other.map(Set::OtherTokenizer)))
}

async fn targets_of(connection: &mut PgConnection, name: &str) -> StoreResult<Vec<Target>> {
    let rows = sqlx::query("SELECT model, weight FROM alias_targets WHERE alias = $1 ORDER BY weight DESC, model")
        .bind(name)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Target {
                model: get(row, "model")?,
                weight: unsigned(row, "weight")?,
            })
        })
        .collect()
}

fn shown(targets: &[Target]) -> serde_json::Value {
    let targets = targets
        .iter()
        .map(|target| serde_json::json!({"model": target.model, "weight": target.weight}));
    targets.collect()
}
