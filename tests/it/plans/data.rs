//! A service with a past: as many jobs as wanted, made in SQL from one job that went through the store.

use std::time::Duration;

use claimcheck_common::domain::{
    Choice, Class, Completion, FinishReason, GenerationParams, JobId, ModelRef, Price, ProjectId, Prompt, Usage,
    WorkerId,
};
use claimcheck_common::store::accounts::{Account, NewUser};
use claimcheck_common::store::audit::Origin;
use claimcheck_common::store::idempotency::Answer;
use claimcheck_common::store::settle::Settlement;
use claimcheck_common::store::submit::{JobOptions, NewJob};
use claimcheck_common::store::{Pool, accounts, claim, settle, submit};
use claimcheck_tests::World;
use uuid::Uuid;

use crate::http_face::announce;

/// The model of two thirds of the jobs.
pub(super) const MODEL: &str = "m";
/// The model of the others, none of which failed.
pub(super) const OTHER_MODEL: &str = "other";
/// The newest jobs run; so many fit into the workers, whatever waits.
pub(super) const CLAIMED: u64 = 60;
/// The next ones were released to the broker; the window bounds them.
pub(super) const RELEASED: u64 = 100;

/// The id of the `n`th job: a version 7 UUID, older than any that is drawn today.
pub(super) fn job_id(n: u64) -> JobId {
    JobId::from_uuid(Uuid::from_u128((0x7000_8000 << 48) | u128::from(n)))
}

/// The first of the jobs that wait in the outbox.
pub(super) const fn first_waiting(jobs: u64) -> u64 {
    jobs - CLAIMED - RELEASED + 1 - jobs / 10
}

/// When the planner last looked at the jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looked {
    Now,
    /// In a quiet hour: nothing waited.
    Before,
    /// After so many jobs, all of which have ended; there are no others yet.
    Young(u64),
}

/// Two tenants with half of the jobs each. A tenth of all waits in the outbox, the rest is history: ten ended each
/// second, up to now. Answers the project that has the even jobs.
pub(super) async fn fill(world: &World, jobs: u64, looked: Looked) -> ProjectId {
    let (ours, theirs) = (account(&world.pool, "ours").await, account(&world.pool, "theirs").await);
    one_that_ended(&world.pool, &ours).await;
    for model in [MODEL, OTHER_MODEL, "a model that no job has"] {
        announce(world, model).await;
    }
    world
        .execute_as_owner(&format!(
            "CREATE TEMP TABLE kept AS
                 SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname) AS drop_it,
                        format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname,
                               pg_get_constraintdef(oid)) AS make_it
                 FROM pg_constraint WHERE contype = 'f'
                     AND conrelid IN ('jobs'::regclass, 'job_inputs'::regclass, 'job_outputs'::regclass)
                 UNION ALL
                 SELECT format('DROP INDEX %I', indexname), indexdef FROM pg_indexes
                 WHERE schemaname = 'public' AND tablename IN ('jobs', 'outbox')
                     AND NOT EXISTS (SELECT FROM pg_constraint WHERE conname = indexname);
             {WITHOUT_INDEXES}
             {FILL}
             {WITH_INDEXES}",
            FILL = statements(jobs, &ours, &theirs),
        ))
        .await;
    match looked {
        Looked::Now => {}
        Looked::Before => world.execute_as_owner(LOOK_BEFORE).await,
        Looked::Young(ended) => world.execute_as_owner(&without_those_after(ended)).await,
    }
    if looked != Looked::Before {
        world
            .execute_as_owner("VACUUM ANALYZE jobs, job_inputs, job_outputs, outbox, released")
            .await;
    }
    ours.project_id
}

const LOOK_BEFORE: &str = "CREATE TEMP TABLE waiting AS SELECT id FROM jobs WHERE status = 'queued';
     CREATE TEMP TABLE messages AS SELECT * FROM outbox;
     CREATE TEMP TABLE sent AS SELECT * FROM released;
     UPDATE jobs SET status = 'completed', finished_at = now() WHERE status = 'queued';
     DELETE FROM outbox;
     DELETE FROM released;
     ANALYZE;
     UPDATE jobs SET status = 'queued', finished_at = NULL WHERE id IN (SELECT id FROM waiting);
     INSERT INTO outbox OVERRIDING SYSTEM VALUE SELECT * FROM messages;
     INSERT INTO released SELECT * FROM sent";

fn without_those_after(job: u64) -> String {
    let made = format!(
        "'{}' AND '{}'",
        job_id(job + 1).uuid(),
        job_id(u64::from(u32::MAX)).uuid()
    );
    format!(
        "DELETE FROM outbox;
         DELETE FROM released;
         -- Their texts go with them.
         DELETE FROM jobs WHERE id BETWEEN {made}"
    )
}

/// A million rows are sooner written without indexes and foreign keys; these come back as the migrations made them.
const WITHOUT_INDEXES: &str = "DO $$ DECLARE statement text; BEGIN
         FOR statement IN SELECT drop_it FROM kept LOOP EXECUTE statement; END LOOP;
     END $$;";
const WITH_INDEXES: &str = "DO $$ DECLARE statement text; BEGIN
         FOR statement IN SELECT make_it FROM kept LOOP EXECUTE statement; END LOOP;
     END $$";

fn statements(jobs: u64, ours: &Account, theirs: &Account) -> String {
    let claimed_from = jobs - CLAIMED + 1;
    let released_from = claimed_from - RELEASED;
    let waiting_from = first_waiting(jobs);
    format!(
        "CREATE TEMP TABLE sample AS SELECT j.*, i.prompt, i.parameters, i.metadata, o.choices
             FROM jobs j JOIN job_inputs i ON i.job_id = j.id JOIN job_outputs o ON o.job_id = j.id;
         CREATE TEMP TABLE made AS
             SELECT n, ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid AS id,
                 CASE WHEN n >= {claimed_from} THEN 'in_progress' WHEN n >= {waiting_from} THEN 'queued'
                      WHEN n % 10 = 0 AND n % 3 <> 0 THEN 'failed' ELSE 'completed' END AS status,
                 CASE WHEN n % 3 = 0 THEN '{OTHER_MODEL}' ELSE '{MODEL}' END AS model,
                 now() - ({jobs} - n) * interval '1 second' AS created_at
             FROM generate_series(1, {jobs}) n;
         INSERT INTO jobs (id, tenant_id, project_id, user_id, model, model_revision, class, status, attempt, fence,
                 worker_id, lease_expires_at, available_at, prompt_tokens,
                 completion_tokens, created_at, started_at, finished_at)
             SELECT m.id, CASE WHEN n % 2 = 0 THEN '{ours}' ELSE '{theirs}' END::uuid,
                 CASE WHEN n % 2 = 0 THEN '{our_project}' ELSE '{their_project}' END::uuid, s.user_id, m.model,
                 s.model_revision, s.class, m.status, (m.status <> 'queued')::int, (m.status <> 'queued')::int,
                 CASE WHEN m.status <> 'queued' THEN s.worker_id END,
                 CASE m.status WHEN 'in_progress' THEN now() + interval '1 hour' END, m.created_at,
                 s.prompt_tokens, s.completion_tokens, m.created_at,
                 CASE WHEN m.status <> 'queued' THEN m.created_at END,
                 CASE WHEN n < {waiting_from} THEN now() - ({waiting_from} - n) * interval '100 milliseconds' END
             FROM made m CROSS JOIN sample s ORDER BY n;
         INSERT INTO released (job_id, model, class, tenant_id)
             SELECT id, model, class, tenant_id FROM jobs WHERE id IN (SELECT id FROM made
                 WHERE n >= {released_from} AND n < {claimed_from}) ORDER BY id;
         INSERT INTO job_inputs SELECT m.id, s.prompt, s.parameters, s.metadata FROM made m CROSS JOIN sample s ORDER BY n;
         INSERT INTO job_outputs SELECT m.id, s.choices FROM made m CROSS JOIN sample s
             WHERE m.status = 'completed' ORDER BY n;
         INSERT INTO outbox (job_id, model, class, available_at, tenant_id)
             SELECT m.id, m.model, s.class, m.created_at, j.tenant_id
             FROM made m CROSS JOIN sample s JOIN jobs j ON j.id = m.id WHERE n >= {waiting_from} AND n < {released_from} ORDER BY n;",
        ours = ours.tenant_id.uuid(),
        theirs = theirs.tenant_id.uuid(),
        our_project = ours.project_id.uuid(),
        their_project = theirs.project_id.uuid(),
    )
}

async fn account(pool: &Pool, name: &str) -> Account {
    let user = NewUser {
        username: name.to_owned(),
        email: format!("{name}@example.org"),
        password_hash: "hash".to_owned(),
    };
    accounts::register(pool, user, Origin::default()).await.unwrap()
}

/// Submits, claims and settles a job: the pattern of all others.
async fn one_that_ended(pool: &Pool, account: &Account) {
    let job = NewJob {
        id: JobId::new(),
        tenant_id: account.tenant_id,
        project_id: account.project_id,
        user_id: account.user_id,
        model: ModelRef {
            name: MODEL.to_owned(),
            revision: "r".to_owned(),
        },
        requested_model: None,
        class: Class::Interactive,
        prompt: Prompt::Text("Once upon a time there was a queue".to_owned()),
        prompt_tokens: 8,
        encoded: None,
        params: GenerationParams {
            max_tokens: 16,
            temperature: 0.7,
            top_p: 1.0,
            top_k: None,
            n: 1,
            stop: Vec::new(),
            seed: 1,
            ..GenerationParams::default()
        },
        api_key_id: None,
        metadata: None,
        scheduled_at: None,
        options: JobOptions::default(),
        queue_limit: None,
        price: Price::default(),
        traceparent: None,
        webhook: None,
        origin: Origin::default(),
        hits: Vec::new(),
    };
    let id = job.id;
    submit::submit(pool, job, None, |_| Answer::default()).await.unwrap();
    let claimed = claim::claim(pool, WorkerId::new(), vec![id], Duration::from_secs(10))
        .await
        .unwrap();
    let choice = Choice {
        text: " and it never grew long.".to_owned(),
        index: 0,
        finish_reason: Some(FinishReason::Stop),
        logprobs: None,
        tokens: Vec::new(),
    };
    let completion = Completion {
        choices: vec![choice],
        usage: Usage::new(8, 6),
    };
    let ending = Settlement::completed(claimed[0].key, completion);
    let settled = settle::settle_group(pool, vec![ending], "worker:test".to_owned()).await;
    assert_eq!(settled.unwrap().len(), 1);
}
