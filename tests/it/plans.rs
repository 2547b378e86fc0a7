//! What the store's statements cost does not grow with the number of jobs: their plans and pages at a thousand and at a
//! million jobs. With `CLAIMCHECK_PLANS` set to a file, that file gets the plans (docs/benchmarks/store-plans.md).

mod data;
mod explain;

use std::fmt::Write as _;
use std::time::Duration;

use claimcheck_common::domain::{Class, JobId, JobKey, JobStatus, ProjectId, QueueName, WorkerId};
use claimcheck_common::store::jobs::{JobFilter, Page};
use claimcheck_common::store::outbox::{Look, OutboxRow};
use claimcheck_common::store::settle::{self, Settlement};
use claimcheck_common::store::{self, Pool, claim, jobs, lease, outbox, place};
use claimcheck_tests::{World, in_world};

use crate::store::{alone, completion};
use data::{CLAIMED, Looked, MODEL, OTHER_MODEL, RELEASED, job_id};
use explain::{Explained, Explainer, Mode};

const FEW: u64 = 1_000;
/// Most statements are planned when a service is young.
const FEWEST: u64 = 300;
const MANY: u64 = 1_000_000;
/// So many that a tenant has more than 1,000 of them waiting: a look at a job's place goes through no more.
const FULL: u64 = 40_000;
/// So many that wait, of all tenants, are older than the job whose place is looked at.
const OLDER: u64 = 1_500;
/// A claim, a beat or a page of this many jobs.
const GROUP: u64 = 20;
const TAKEN: u32 = 100;
const LEASE: Duration = Duration::from_secs(10);
const ATTEMPT: Duration = Duration::from_mins(10);
/// Room for the deeper trees of larger indexes; what reads a share of the table costs a thousand times as much.
const GROWTH: u64 = 3;
const LEAST_PAGES: u64 = 20;

#[tokio::test]
async fn claim_poll_list_and_relay_cost_the_same_at_a_million_jobs_as_at_a_thousand() {
    let (mut few, mut full, mut many) = (Vec::new(), Vec::new(), Vec::new());
    in_world(async |world| few = plans(world, FEW, Looked::Now).await).await;
    in_world(async |world| full = plans(world, FULL, Looked::Now).await).await;
    in_world(async |world| many = plans(world, MANY, Looked::Now).await).await;
    write_down(&few, &many);
    for ((small, full), large) in few.iter().zip(&full).zip(&many) {
        // At a thousand jobs the list that a place is looked up in is far shorter than what is looked at of a long one.
        let (small, jobs) = if PLACE.contains(&large.name) {
            (full, FULL)
        } else {
            (small, FEW)
        };
        let allowed = GROWTH * small.plan.pages.max(LEAST_PAGES);
        assert!(
            large.plan.pages <= allowed,
            "{} ({:?}) touches {} pages at {MANY} jobs and {} at {jobs}:\n{}",
            large.name,
            large.mode,
            large.plan.pages,
            small.plan.pages,
            large.plan.tree
        );
        assert!(
            large.plan.scanned.is_empty(),
            "{} reads all of {:?}:\n{}",
            large.name,
            large.plan.scanned,
            large.plan.tree
        );
    }
}

#[tokio::test]
async fn plans_that_were_made_in_a_quiet_hour_are_good_in_a_busy_one() {
    in_world(async |world| {
        for Explained { name, plan, .. } in kept_plans(world, Looked::Before).await {
            // Something that is done for each row of a group is done for all of them each time.
            assert!(
                plan.handled <= FEWEST,
                "{name} handles {} rows:\n{}",
                plan.handled,
                plan.tree
            );
        }
    })
    .await;
}

#[tokio::test]
async fn plans_that_were_made_for_the_first_jobs_are_good_when_there_are_many() {
    for ended in [0, 30, 100] {
        in_world(async |world| {
            kept_plans(world, Looked::Young(ended)).await;
        })
        .await;
    }
}

/// The kept plans, none of which reads a table or an index from end to end.
async fn kept_plans(world: &World, looked: Looked) -> Vec<Explained> {
    let mut explained = plans(world, FEWEST, looked).await;
    explained.retain(|statement| statement.mode == Mode::Generic);
    for Explained { name, plan, .. } in &explained {
        let whole = [&plan.scanned[..], &plan.strayed].concat();
        assert!(
            whole.is_empty(),
            "{name} ({looked:?}) reads all of {whole:?}:\n{}",
            plan.tree
        );
    }
    explained
}

/// Fills the world with `jobs` jobs, runs the store's functions and explains the statements that they ran.
async fn plans(world: &World, jobs: u64, looked: Looked) -> Vec<Explained> {
    let project = data::fill(world, jobs, looked).await;
    let mut database = world.database.clone();
    // One connection: what the store prepares on it can be explained on it.
    database.pool_size = 1;
    let pool = store::connect(&database).unwrap();
    let mut explainer = Explainer::new(pool.clone(), world.pool.clone(), matches!(looked, Looked::Young(_))).await;
    claiming(&mut explainer, &pool, jobs).await;
    if !explainer.empty {
        beating(&mut explainer, &pool, jobs).await;
    }
    settling(&mut explainer, &pool, jobs).await;
    if looked == Looked::Now {
        reading(&mut explainer, &pool, project, jobs).await;
        placing(&mut explainer, &pool, project, jobs).await;
    }
    relaying(&mut explainer, &pool, jobs).await;
    pool.close().await;
    explainer.explained
}

fn ids(first: u64) -> impl Iterator<Item = JobId> {
    (first..first + GROUP).map(job_id)
}

/// Those of running jobs.
fn keys(first: u64) -> Vec<JobKey> {
    ids(first).map(|id| JobKey { id, fence: 1 }).collect()
}

/// A value for each of a group.
fn all(value: &str) -> String {
    format!("'{{{}}}'", vec![value; GROUP as usize].join(","))
}

async fn claiming(explainer: &mut Explainer, pool: &Pool, jobs: u64) {
    let first = jobs - CLAIMED - RELEASED + 1;
    let worker = WorkerId::new();
    explainer.forget().await;
    // One that is not there has it look for what still waits.
    let delivered = ids(first).chain([JobId::new()]).collect();
    let claimed = claim::claim(pool, worker, delivered, LEASE).await.unwrap();
    assert_eq!(claimed.len() as u64, explainer.there(GROUP));
    let next: Vec<_> = ids(first + GROUP).collect();
    let arguments = format!("{}, '{}', '10 seconds', '{{}}'", array(&next), worker.uuid());
    explainer
        .explain("claim 20 jobs: begin", "claimed AS", &arguments, GROUP)
        .await;
    if !claimed.is_empty() {
        explainer
            .explain("claim 20 jobs: recall", "DELETE FROM released", &array(&next), 0)
            .await;
    }
    explainer
        .explain("claim 20 jobs: what still waits", "FOR UPDATE", &array(&next), GROUP)
        .await;
}

async fn beating(explainer: &mut Explainer, pool: &Pool, jobs: u64) {
    let first = jobs - GROUP + 1;
    explainer.forget().await;
    assert_eq!(
        lease::heartbeat(pool, &keys(first), LEASE, ATTEMPT).await.unwrap().lost,
        []
    );
    let arguments = format!(
        "{}, {}, '10 seconds', '10 minutes'",
        array(&ids(first).collect::<Vec<_>>()),
        all("1")
    );
    explainer
        .explain("heartbeat of 20 jobs", "beat AS", &arguments, 0)
        .await;
}

async fn settling(explainer: &mut Explainer, pool: &Pool, jobs: u64) {
    explainer.forget().await;
    let completed = |key: &JobKey| Settlement::completed(*key, completion("a text"));
    let stray = JobKey {
        id: JobId::new(),
        fence: 1,
    };
    // One that is not there has it look how its job may end.
    let endings = keys(jobs - 2 * GROUP + 1)
        .iter()
        .map(completed)
        .chain([completed(&stray)])
        .collect();
    let settled = settle::settle_group(pool, endings, "worker:test".to_owned())
        .await
        .unwrap();
    assert_eq!(settled.len() as u64, explainer.there(GROUP));
    let held: Vec<_> = ids(jobs - GROUP + 1).collect();
    let (held, fences) = (array(&held), all("1"));
    let arguments = format!("{held}, {fences}");
    explainer
        .explain("settle 20 jobs: lock", "AS attempts_left", &arguments, GROUP)
        .await;
    let events: Vec<_> = (0..GROUP).map(|_| JobId::new()).collect();
    let none = all("NULL");
    let arguments = format!(
        "{held}, {fences}, {}, {none}, {}, {none}, {}, {}, '1 day', 'worker:test', NULL, NULL, NULL, false",
        all("completed"),
        all("0"),
        array(&events),
        // From the start on: nothing was measured.
        [none.as_str(); 10].join(", "),
    );
    explainer
        .explain("settle 20 jobs: end", "ending AS MATERIALIZED", &arguments, GROUP)
        .await;
}

async fn reading(explainer: &mut Explainer, pool: &Pool, project: ProjectId, jobs: u64) {
    let middle = job_id(jobs / 2);
    explainer.forget().await;
    assert!(jobs::get(pool, project, middle).await.unwrap().is_some());
    let arguments = format!("'{}', '{}'", middle.uuid(), project.uuid());
    explainer.explain("poll a job", "WHERE j.id = $1", &arguments, 1).await;

    let (status, model) = (Some(JobStatus::Failed), Some(MODEL));
    for (name, status, model, after, rows) in [
        ("list, newest", None, None, None, GROUP),
        ("list, after the middle", None, None, Some(middle), GROUP),
        ("list by status, after the middle", status, None, Some(middle), GROUP),
        (
            "list by a status that no job has",
            Some(JobStatus::Expired),
            None,
            None,
            0,
        ),
        ("list by model", None, model, None, GROUP),
        ("list by status and model", status, model, None, GROUP),
        (
            "list by status and model that never meet",
            status,
            Some(OTHER_MODEL),
            None,
            0,
        ),
    ] {
        let filter = JobFilter {
            status,
            model: model.map(str::to_owned),
        };
        let page = Page {
            after,
            limit: u32::try_from(GROUP).unwrap(),
        };
        explainer.forget().await;
        let listed = jobs::list(pool, project, &filter, page).await.unwrap();
        assert_eq!(listed.jobs.len() as u64, rows, "{name}");
        let quoted = |text: Option<String>| text.map_or("NULL".to_owned(), |text| format!("'{text}'"));
        let arguments = format!(
            "'{}', {}, {}, {GROUP}",
            project.uuid(),
            quoted(model.map(str::to_owned)),
            quoted(after.map(|id| id.uuid().to_string())),
        );
        explainer.explain_last(name, &arguments, rows).await;
    }
}

/// What a look at a job's place asks.
const PLACE: [&str; 2] = ["a job's place: those ahead", "a job's place: the pace"];

async fn placing(explainer: &mut Explainer, pool: &Pool, project: ProjectId, jobs: u64) {
    let older = OLDER.min(jobs / 20);
    let near = data::first_waiting(jobs) + older;
    // Of six jobs in a row two are the project's and of the model: one that is even and no multiple of three.
    let id = job_id(near - near % 6 + 2);
    explainer.forget().await;
    let place = place::find(pool, project, id).await.unwrap().unwrap().unwrap();
    assert!(
        place.exact && place.ahead >= older / 3 && place.pace.is_some(),
        "{place:?}"
    );
    let arguments = format!("'{}', 1000", id.uuid());
    explainer.explain(PLACE[0], "turn AS MATERIALIZED", &arguments, 1).await;
    let arguments = format!("'{MODEL}', 'interactive', 200, 600");
    explainer.explain(PLACE[1], ") newest", &arguments, 1).await;
}

async fn relaying(explainer: &mut Explainer, pool: &Pool, jobs: u64) {
    explainer.forget().await;
    let queues = outbox::queues(pool).await.unwrap();
    assert_eq!(queues.len() as u64, explainer.there(2));
    explainer
        .explain("relay: the queues", "WITH RECURSIVE queue", "", 2)
        .await;

    let queue = QueueName {
        model: MODEL.to_owned(),
        class: Class::Interactive,
    };
    let window = TAKEN + u32::try_from(RELEASED).unwrap();
    explainer.forget().await;
    let rows = take(pool, &queue, Look::All, window).await;
    let taken = rows.len() as u64;
    assert!(taken >= explainer.there((jobs / 20).min(TAKEN.into())));
    let arguments = format!("'{MODEL}', 'interactive', {window}, {TAKEN}");
    explainer
        .explain("relay: take 100 rows", "inside AS", &arguments, taken)
        .await;
    explainer.forget().await;
    let first = rows.iter().map(|row| row.id).min().unwrap_or(1);
    let new = take(pool, &queue, Look::From(first), window).await;
    assert_eq!(new.len() as u64, taken);
    explainer
        .explain(
            "relay: take 100 new rows",
            "new AS MATERIALIZED",
            &format!("{arguments}, {first}"),
            taken,
        )
        .await;

    let sent = alone(&rows);
    explainer.forget().await;
    let mut connection = pool.acquire().await.unwrap();
    let mut transaction = outbox::begin(&mut connection).await.unwrap();
    outbox::confirm(&mut transaction, &sent).await.unwrap();
    transaction.rollback().await.unwrap();
    drop(connection);
    let ids: Vec<_> = rows.iter().map(|row| row.id.to_string()).collect();
    let jobs: Vec<_> = rows.iter().map(|row| row.job_id).collect();
    // Each went in a message of its own.
    let arguments = format!("'{{{}}}', {jobs}, {jobs}", ids.join(","), jobs = array(&jobs));
    explainer
        .explain("relay: confirm 100 rows", "gone AS", &arguments, 0)
        .await;
}

/// What the relay would take, which stays.
async fn take(pool: &Pool, queue: &QueueName, look: Look, window: u32) -> Vec<OutboxRow> {
    let mut connection = pool.acquire().await.unwrap();
    let mut transaction = outbox::begin(&mut connection).await.unwrap();
    let taken = outbox::take(&mut transaction, queue, look, window, TAKEN)
        .await
        .unwrap();
    transaction.rollback().await.unwrap();
    taken.rows
}

fn array(ids: &[JobId]) -> String {
    let ids: Vec<_> = ids.iter().map(|id| id.uuid().to_string()).collect();
    format!("'{{{}}}'", ids.join(","))
}

fn write_down(few: &[Explained], many: &[Explained]) {
    #[allow(
        clippy::disallowed_methods,
        reason = "the harness's own settings are no configuration of a service"
    )]
    let Ok(path) = std::env::var("CLAIMCHECK_PLANS") else {
        return;
    };
    let mut page = format!("| statement | pages at {FEW} jobs | pages at {MANY} jobs |\n|---|---|---|\n");
    for (small, large) in few.iter().zip(many) {
        let name = large.title();
        writeln!(page, "| {name} | {} | {} |", small.plan.pages, large.plan.pages).unwrap();
    }
    for large in many {
        let name = large.title();
        write!(page, "\n{name}, at {MANY} jobs:\n\n```\n{}```\n", large.plan.tree).unwrap();
    }
    std::fs::write(path, page).unwrap();
}
