//! How many jobs a tenant or a project may have waiting and how much they may use, kept within the transaction that adds to them.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;
use uuid::Uuid;

use super::StoreResult;
use super::budgets::{self, OverBudget, Reservation};
use super::row::get;
use crate::domain::{ApiKeyId, BudgetStanding, JobId, Price, ProjectId, TenantId, Tokens};

/// Of a tenant's limit of waiting jobs so much is left to single submits: a batch alone never makes them refused.
const LEFT_TO_OTHERS: u32 = 4;

/// A new job that asks for room.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) job: JobId,
    pub(super) tenant: TenantId,
    pub(super) project: ProjectId,
    pub(super) key: Option<ApiKeyId>,
    /// Most jobs of a tenant that may wait, if it has no limit of its own.
    pub(super) queue_limit: Option<u32>,
    /// The most that it may use.
    pub(super) tokens: Tokens,
    pub(super) price: Price,
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The tenant or the project has so many jobs waiting, as many as it may.
    Queue(u32),
    /// A budget has too little left.
    Budget(OverBudget),
}

/// What becomes of jobs after the first that has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// Each is looked at.
    GoOn,
    /// They have none either.
    Stop,
}

/// Who gets room. What was decided holds until the transaction ends; what is reserved by it is written by [`budgets::reserve`].
#[derive(Debug)]
pub(super) struct Decision {
    /// For each job in its place, the budget with the fewest tokens left, or why it has no room.
    pub(super) verdicts: Vec<Result<Option<BudgetStanding>, Refusal>>,
    pub(super) reserved: Vec<Reservation>,
}

/// A tenant's or a project's limit of waiting jobs.
#[derive(Debug, Clone, Copy)]
struct Line {
    tenant: Uuid,
    /// `None`: all of the tenant's.
    project: Option<Uuid>,
    limit: u32,
}

/// The limits of the tenants and projects and the budgets that jobs count against.
#[derive(Debug, Default)]
struct Limits {
    /// By the id of whoever has the limit.
    queued: BTreeMap<Uuid, Line>,
    batch_tokens: BTreeMap<Uuid, u64>,
    budgets: budgets::Locked,
}

/// Decides which new jobs have room.
///
/// Submits of a tenant that has a limit or a budget stand in line here until each other's commit, so that a thousand at once let in
/// exactly as many as there is room for; a tenant without either never waits.
pub(super) async fn decide(connection: &mut PgConnection, asked: &[Asked], after: After) -> StoreResult<Decision> {
    let mut limits = limits(connection, asked).await?;
    let mut rooms = BTreeMap::new();
    // In the order of their ids: two groups never wait for each other.
    for (id, line) in &limits.queued {
        stand_in_line(connection, *id).await?;
        rooms.insert(*id, room(connection, *line).await?);
    }
    let refused = |rooms: &BTreeMap<Uuid, u32>, one: &Asked| {
        let full = lines(one).into_iter().find(|id| rooms.get(id) == Some(&0))?;
        Some(Refusal::Queue(limits.queued.get(&full)?.limit))
    };
    Ok(walk(asked, after, &mut limits.budgets, &mut rooms, refused))
}

/// Decides which of a batch's lines have room now; the others wait. `limit` is for tenants that have none of their own.
pub(super) async fn decide_for_batch(
    connection: &mut PgConnection,
    asked: &[Asked],
    batch_tokens: Option<u64>,
) -> StoreResult<Decision> {
    let Some(tenant) = asked.first().map(|one| one.tenant.uuid()) else {
        return Ok(Decision {
            verdicts: Vec::new(),
            reserved: Vec::new(),
        });
    };
    let mut limits = limits(connection, asked).await?;
    let most = limits.batch_tokens.get(&tenant).copied().or(batch_tokens);
    let counted: BTreeSet<Uuid> = limits.queued.keys().copied().chain(most.map(|_| tenant)).collect();
    for id in &counted {
        stand_in_line(connection, *id).await?;
    }
    let mut rooms = BTreeMap::new();
    for (id, line) in &limits.queued {
        let limit = line.limit - line.limit / LEFT_TO_OTHERS;
        rooms.insert(*id, room(connection, Line { limit, ..*line }).await?);
    }
    let mut waiting = match most {
        Some(_) => waiting_batch_tokens(connection, tenant).await?,
        None => 0,
    };
    let refused = |rooms: &BTreeMap<Uuid, u32>, one: &Asked| {
        // A line beyond the whole quota goes when no other waits.
        let full = most.is_some_and(|most| waiting > 0 && waiting + one.tokens.prompt > most);
        waiting += one.tokens.prompt;
        (full || lines(one).iter().any(|id| rooms.get(id) == Some(&0))).then_some(Refusal::Queue(0))
    };
    Ok(walk(asked, After::Stop, &mut limits.budgets, &mut rooms, refused))
}

fn walk(
    asked: &[Asked],
    after: After,
    budgets: &mut budgets::Locked,
    rooms: &mut BTreeMap<Uuid, u32>,
    mut refused: impl FnMut(&BTreeMap<Uuid, u32>, &Asked) -> Option<Refusal>,
) -> Decision {
    let (mut verdicts, mut reserved) = (Vec::with_capacity(asked.len()), Vec::new());
    let mut stopped = None;
    for one in asked {
        let no_room = stopped.or_else(|| refused(rooms, one));
        let taken = match no_room {
            Some(refusal) => Err(refusal),
            None => budgets.take(one).map_err(Refusal::Budget),
        };
        match taken {
            Err(refusal) => {
                if after == After::Stop {
                    stopped = Some(refusal);
                }
                verdicts.push(Err(refusal));
            }
            Ok(made) => {
                for id in lines(one) {
                    if let Some(room) = rooms.get_mut(&id) {
                        *room -= 1;
                    }
                }
                reserved.extend(made);
                verdicts.push(Ok(budgets.nearest(one)));
            }
        }
    }
    Decision { verdicts, reserved }
}

/// Reads the limits and locks the budgets, in one round trip.
async fn limits(connection: &mut PgConnection, asked: &[Asked]) -> StoreResult<Limits> {
    let ids = |one: &Asked| (one.project.uuid(), one.tenant.uuid());
    let projects: BTreeMap<_, _> = asked.iter().map(ids).collect();
    let rows = sqlx::query(concat!(
        "WITH budget AS MATERIALIZED (
             SELECT * FROM budgets WHERE id = ANY($2) ORDER BY id FOR NO KEY UPDATE
         )
         SELECT ",
        budgets::columns_now!(),
        ", NULL::integer AS max_queued, NULL::bigint AS max_batch_tokens, true AS is_budget FROM budget
         UNION ALL
         SELECT tenant_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, max_queued, max_batch_tokens, false
         FROM tenant_limits WHERE tenant_id = ANY($1)
         UNION ALL
         SELECT project_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, max_queued, NULL, false
         FROM project_limits WHERE project_id = ANY($3)"
    ))
    .bind(projects.values().copied().collect::<Vec<_>>())
    .bind(holders(asked.iter().copied()))
    .bind(projects.keys().copied().collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let mut limits = Limits::default();
    for one in asked {
        if let Some(limit) = one.queue_limit {
            let (tenant, project) = (one.tenant.uuid(), None);
            limits.queued.insert(tenant, Line { tenant, project, limit });
        }
    }
    for row in &rows {
        if get(row, "is_budget")? {
            limits.budgets.add(row)?;
            continue;
        }
        let id: Uuid = get(row, "id")?;
        if let Some(limit) = get::<Option<i32>, _>(row, "max_queued")? {
            let (tenant, project) = projects.get(&id).map_or((id, None), |tenant| (*tenant, Some(id)));
            let limit = limit.cast_unsigned();
            limits.queued.insert(id, Line { tenant, project, limit });
        }
        if let Some(limit) = get::<Option<i64>, _>(row, "max_batch_tokens")? {
            limits.batch_tokens.insert(id, limit.cast_unsigned());
        }
    }
    Ok(limits)
}

/// Whose limits and budgets jobs count against, each once.
pub(super) fn holders(asked: impl Iterator<Item = Asked>) -> Vec<Uuid> {
    let mut ids: Vec<_> = asked.flat_map(|one| budgets::holders(&one)).map(|(_, id)| id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Whether one of the holders `$ids` has a limit of waiting jobs or a budget, as SQL. It is asked once a statement.
macro_rules! is_limited {
    ($ids:literal) => {
        concat!(
            "(EXISTS (SELECT FROM budgets WHERE id = ANY(",
            $ids,
            "::uuid[])) OR EXISTS (SELECT FROM tenant_limits WHERE tenant_id = ANY(",
            $ids,
            "::uuid[])) OR EXISTS (SELECT FROM project_limits WHERE project_id = ANY(",
            $ids,
            "::uuid[])))"
        )
    };
}
pub(super) use is_limited;

/// Whose limits of waiting jobs one counts against.
fn lines(asked: &Asked) -> [Uuid; 2] {
    [asked.tenant.uuid(), asked.project.uuid()]
}

/// Submits of this tenant or project that count come one after the other until the transaction ends.
async fn stand_in_line(connection: &mut PgConnection, whose: Uuid) -> StoreResult<()> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('quota:' || $1::text, 0))")
        .bind(whose)
        .execute(connection)
        .await?;
    Ok(())
}

/// How many jobs wait in the projects `p` for which `$condition` holds, counted no further than `$most`, as SQL. One project after the
/// other: a plan that is kept is not to read what all tenants have waiting.
macro_rules! waiting {
    ($condition:literal, $most:literal) => {
        concat!(
            "(SELECT count(*) FROM (
                 SELECT FROM projects p CROSS JOIN LATERAL (
                     SELECT FROM jobs WHERE project_id = p.id AND finished_at IS NULL AND status IN ('scheduled', 'queued') LIMIT ",
            $most,
            "
                 ) waiting WHERE ",
            $condition,
            " LIMIT ",
            $most,
            "
             ) counted)"
        )
    };
}
pub(super) use waiting;

/// How many more jobs of a tenant or a project may wait. Whoever asks stands in its line: nobody else changes it until the transaction
/// ends.
async fn room(connection: &mut PgConnection, line: Line) -> StoreResult<u32> {
    // A statement of its own, after the lock: it sees what those before have committed.
    let waiting: i64 = sqlx::query_scalar(concat!(
        "SELECT ",
        waiting!("p.organization_id = $1 AND p.id = coalesce($3, p.id)", "$2")
    ))
    .bind(line.tenant)
    .bind(i64::from(line.limit))
    .bind(line.project)
    .fetch_one(connection)
    .await?;
    Ok(line.limit.saturating_sub(u32::try_from(waiting).unwrap_or(u32::MAX)))
}

/// Tokens of the prompts of a tenant's waiting lines of batches. Whoever asks stands in its line.
async fn waiting_batch_tokens(connection: &mut PgConnection, tenant: Uuid) -> StoreResult<u64> {
    let waiting: i64 = sqlx::query_scalar(
        "SELECT coalesce(sum(waiting.tokens), 0)::bigint FROM projects p CROSS JOIN LATERAL (
             SELECT sum(prompt_tokens) AS tokens FROM jobs
             WHERE project_id = p.id AND finished_at IS NULL AND status IN ('scheduled', 'queued') AND class = 'batch'
         ) waiting WHERE p.organization_id = $1",
    )
    .bind(tenant)
    .fetch_one(connection)
    .await?;
    Ok(waiting.cast_unsigned())
}
