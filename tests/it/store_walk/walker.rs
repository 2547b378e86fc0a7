//! Takes each step at the real store and at the model, and compares what both answer and what both then hold.

use std::time::Duration;

use claimcheck_common::config::Prices;
use claimcheck_common::domain::{
    ApiKeyId, Budget, Class, JobError, JobId, JobKey, JobStatus, Price, QueueName, UserId, WorkerId,
};
use claimcheck_common::store::accounts::Account;
use claimcheck_common::store::erase::Erased;
use claimcheck_common::store::idempotency::{Answer, Before, Claim, ClaimedBy};
use claimcheck_common::store::jobs::JobView;
use claimcheck_common::store::once::Once;
use claimcheck_common::store::operators::{PauseScope, TenantLimits};
use claimcheck_common::store::outbox::Look;
use claimcheck_common::store::quota::Refusal;
use claimcheck_common::store::retry::{Asker, Purpose, Retried};
use claimcheck_common::store::selection::{Chunk, Selection};
use claimcheck_common::store::settle::Settlement;
use claimcheck_common::store::submit::{JobOptions, NewJob, Submitted};
use claimcheck_common::store::{
    Pool, cancels, claim, dead_letters, erase, expire, lease, operators, outbox, rescue, retry, schedule, settle,
    submit,
};
use claimcheck_tests::{World, promises};
use sqlx::AssertSqlSafe;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::model::{Job, Model, Outcome, Sent, Verdict, output};
use super::steps::{Ending, Order, Pause, Pick, Step, TENANTS};
use crate::store::{account, alone, completion, new_job};

const ACTOR: &str = "worker:walk";
const HALF_AN_HOUR: Duration = Duration::from_mins(30);
const LEASE: Duration = Duration::from_mins(90);
const ATTEMPT: Duration = Duration::from_mins(160);
const KEEP_KEY: Duration = Duration::from_mins(150);
const REEMIT_AFTER: Duration = Duration::from_mins(40);
const BUDGET_PERIOD: Duration = Duration::from_hours(5);
const PRICE: Price = Price {
    prompt: 2,
    completion: 3,
};
/// More than a walk ever has: shares and windows are other tests' matter.
const WINDOW: u32 = 10_000;
/// Rounds after which every job has ended: three attempts, and a lost message before each.
const ROUNDS: usize = 12;

/// A walk of one store.
pub(crate) struct Walker<'a> {
    world: &'a World,
    pool: &'a Pool,
    accounts: [Account; TENANTS],
    key: ApiKeyId,
    model: Model,
    ids: Vec<JobId>,
}

/// A job as the tables show it, and as the model has it.
#[allow(
    clippy::struct_excessive_bools,
    reason = "what is there and what is not, side by side"
)]
#[derive(Debug, PartialEq, Eq, sqlx::FromRow)]
struct Seen {
    id: Uuid,
    status: String,
    attempt: i32,
    fence: i64,
    lapses: i32,
    leased: bool,
    outbox: i64,
    released: bool,
    dispatches: i32,
    erased: bool,
    to_be_erased: bool,
    error: Option<String>,
    last_error: Option<String>,
    output: Option<String>,
    retry_of: Option<Uuid>,
    reason: Option<String>,
    redriven_as: Option<Uuid>,
}

const SEEN: &str = "
    SELECT j.id, j.status, j.attempt, j.fence, j.lapses, j.lease_expires_at IS NOT NULL AS leased,
        (SELECT count(*) FROM outbox o WHERE o.job_id = j.id) AS outbox, EXISTS (SELECT FROM released r WHERE r.job_id = j.id) AS released,
        j.dispatches, j.erased_at IS NOT NULL AS erased, j.erase_at IS NOT NULL AS to_be_erased, j.error ->> 'code' AS error,
        j.last_error ->> 'code' AS last_error, o.choices -> 0 ->> 'text' AS output, j.retry_of, d.reason, d.redriven_as
    FROM jobs j LEFT JOIN job_outputs o ON o.job_id = j.id LEFT JOIN dead_letters d ON d.job_id = j.id ORDER BY j.id";

impl<'a> Walker<'a> {
    /// Begins with an empty store.
    pub(crate) async fn begin(world: &'a World) -> Self {
        world
            .execute_as_owner(
                "TRUNCATE jobs, job_inputs, job_outputs, job_history, outbox, released, events, audit_log, idempotency_keys, pauses, tenant_limits, budgets, receipts
                     CASCADE",
            )
            .await;
        let walker = Self {
            world,
            pool: &world.pool,
            accounts: [account(&world.pool).await, account(&world.pool).await],
            key: ApiKeyId::new(),
            model: Model::default(),
            ids: Vec::new(),
        };
        walker.give_budgets().await;
        walker
    }

    /// Greater ones than a walk can use: what is promised of them is their sums. The first tenant's jobs come by an API key.
    async fn give_budgets(&self) {
        for tenant in 0..TENANTS {
            self.limit(tenant, None).await;
        }
        sqlx::query(
            "INSERT INTO budgets (id, tenant_id, max_tokens, max_cost) VALUES ($1, $2, 1000000000, 1000000000)",
        )
        .bind(self.key.uuid())
        .bind(self.accounts[0].tenant_id.uuid())
        .execute(self.pool)
        .await
        .unwrap();
    }

    async fn limit(&self, tenant: usize, max_queued: Option<u32>) {
        let limits = TenantLimits {
            max_queued,
            budget: Some(Budget {
                tokens: Some(1_000_000_000),
                cost: None,
                period: Some(BUDGET_PERIOD),
            }),
            ..TenantLimits::default()
        };
        let tenant = self.accounts[tenant].tenant_id;
        operators::set_limits(self.pool, tenant, limits, UserId::new())
            .await
            .unwrap();
    }

    /// Takes all steps, and then lets every job come to its end. The first thing that is not as it should be is the error.
    pub(crate) async fn walk(&mut self, steps: &[Step]) -> Result<(), String> {
        for (number, step) in steps.iter().enumerate() {
            self.step(step)
                .await
                .map_err(|wrong| format!("at step {number}, {step:?}: {wrong}"))?;
        }
        self.finish()
            .await
            .map_err(|wrong| format!("after the last step: {wrong}"))
    }

    /// Nothing is lost: with nobody in the way every job ends, by messages that the broker has and by nothing else.
    async fn finish(&mut self) -> Result<(), String> {
        let pauses = Class::ALL
            .map(Pause::Class)
            .into_iter()
            .chain((0..TENANTS).map(Pause::Tenant))
            .chain([Pause::Model]);
        for what in pauses {
            self.step(&Step::Pause(what, false)).await?;
        }
        for _ in 0..ROUNDS {
            if self.model.jobs.iter().all(|job| job.status.is_terminal()) {
                return Ok(());
            }
            for step in [
                Step::Hours(200),
                Step::Rescue,
                Step::Expire,
                Step::Promote,
                Step::Reemit,
                Step::Relay { recorded: true },
            ] {
                self.step(&step).await?;
            }
            while !self.model.broker.is_empty() {
                self.step(&Step::Deliver {
                    message: 0,
                    acked: true,
                })
                .await?;
            }
            for place in 0..self.model.claims.len() {
                let (job, fence) = self.model.claims[place];
                if self.model.jobs[job].fence == fence && self.model.jobs[job].runs() {
                    self.step(&Step::Settle(vec![(place as Pick, Ending::Completed)]))
                        .await?;
                }
            }
        }
        Err("some job does not come to an end".to_owned())
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        let real = self.perform(step).await;
        let meant = self.model.apply(step);
        if real != meant {
            return Err(format!("the store answers {real:?}, the model {meant:?}"));
        }
        let rows: Vec<Seen> = sqlx::query_as(SEEN)
            .fetch_all(self.pool)
            .await
            .map_err(|error| error.to_string())?;
        let mut meant: Vec<Seen> = self
            .model
            .jobs
            .iter()
            .enumerate()
            .map(|(place, job)| self.seen(place, job))
            .collect();
        meant.sort_by_key(|seen| seen.id);
        if rows != meant {
            let different: Vec<_> = rows.iter().zip(&meant).filter(|(row, job)| row != job).collect();
            return Err(format!(
                "{} rows, {} jobs; the store's and the model's: {different:#?}",
                rows.len(),
                meant.len()
            ));
        }
        let broken = promises::broken(self.pool).await;
        if broken.is_empty() {
            Ok(())
        } else {
            Err(broken.join("; "))
        }
    }

    fn seen(&self, place: usize, job: &Job) -> Seen {
        let id = |place: usize| self.ids.get(place).map(|id| id.uuid());
        Seen {
            id: id(place).unwrap_or_default(),
            status: job.status.as_str().to_owned(),
            attempt: job.attempt.cast_signed(),
            fence: job.fence,
            lapses: job.lapses.cast_signed(),
            leased: job.runs(),
            outbox: job.outbox.len() as i64,
            released: job.released_at.is_some(),
            dispatches: job.dispatches,
            erased: job.erased,
            to_be_erased: job.erase_at.is_some(),
            error: job.error.clone(),
            last_error: job.last_error.clone(),
            output: job.output.clone(),
            retry_of: job.retry_of.and_then(id),
            reason: job.reason.clone(),
            redriven_as: job.redriven_as.and_then(id),
        }
    }

    async fn perform(&mut self, step: &Step) -> Outcome {
        match step {
            Step::Submit(order) => Outcome::Sent(self.submit(order).await),
            Step::Relay { recorded } => Outcome::Relayed(self.relay(*recorded).await),
            Step::Deliver { message, .. } => match self.model.message(*message) {
                None => Outcome::Nothing,
                Some(message) => {
                    let id = self.ids[self.model.broker[message]];
                    let claimed = claim::claim(self.pool, WorkerId::new(), vec![id], LEASE).await.unwrap();
                    Outcome::Claimed(claimed.first().map(|job| job.key.fence))
                }
            },
            Step::Beat(pick) => match self.key(*pick) {
                None => Outcome::Nothing,
                Some(key) => Outcome::Beat(self.beat(key).await),
            },
            Step::Settle(picks) => Outcome::Settled(self.settle(picks).await),
            Step::Release(pick) => match self.key(*pick) {
                None => Outcome::Nothing,
                Some(key) => Outcome::Count(lease::release(self.pool, vec![key]).await.unwrap()),
            },
            Step::Cancel(pick) => match self.model.job(*pick) {
                None => Outcome::Nothing,
                Some(job) => {
                    let project = self.account(job).project_id;
                    let view = cancels::request_cancel(self.pool, project, self.ids[job], ACTOR)
                        .await
                        .unwrap();
                    Outcome::Now(view.expect("the project's job").status)
                }
            },
            Step::CancelAll(tenant) => {
                let chunk = cancels::cancel_selected(self.pool, self.of(*tenant), ACTOR.to_owned())
                    .await
                    .unwrap();
                Outcome::Count(chunk.count)
            }
            Step::Retry(pick) => match self.model.job(*pick) {
                None => Outcome::Nothing,
                Some(job) => self.retry(job).await,
            },
            Step::RetryAll(tenant) => {
                retry::retry_selected(self.pool, self.of(*tenant), asker(), chunk_answer)
                    .await
                    .unwrap();
                Outcome::Made(self.learn_new().await)
            }
            Step::Redrive => {
                let all = dead_letters::RedriveFilter::default();
                dead_letters::redrive(self.pool, all, asker(), chunk_answer)
                    .await
                    .unwrap();
                Outcome::Made(self.learn_new().await)
            }
            Step::Erase(pick) => match self.model.job(*pick) {
                None => Outcome::Nothing,
                Some(job) => {
                    let project = self.account(job).project_id;
                    match erase::erase(self.pool, project, self.ids[job], ACTOR.to_owned())
                        .await
                        .unwrap()
                    {
                        Erased::Done => Outcome::Refused("done"),
                        Erased::Running => Outcome::Refused("running"),
                        Erased::Unknown => Outcome::Refused("unknown"),
                    }
                }
            },
            other => self.keep_house(other).await,
        }
    }

    /// What operators and the maintenance do.
    async fn keep_house(&self, step: &Step) -> Outcome {
        let pool = self.pool;
        match step {
            Step::Fetch(pick) => {
                if let Some(job) = self.model.job(*pick) {
                    erase::delivered(pool, self.ids[job]).await.unwrap();
                }
            }
            Step::Pause(what, on) => {
                let (scope, value) = match what {
                    Pause::Tenant(tenant) => (PauseScope::Tenant, self.accounts[*tenant].tenant_id.uuid().to_string()),
                    Pause::Class(class) => (PauseScope::Class, class.as_str().to_owned()),
                    Pause::Model => (PauseScope::Model, "m".to_owned()),
                };
                operators::set_pause(pool, scope, value, *on, UserId::new())
                    .await
                    .unwrap();
            }
            Step::Limit(tenant, most) => self.limit(*tenant, *most).await,
            Step::Hours(hours) => self.pass(*hours).await,
            Step::Promote => return Outcome::Count(schedule::promote_due(pool).await.unwrap()),
            Step::Expire => return Outcome::Count(expire::expire_waiting(pool).await.unwrap()),
            Step::EraseDue => return Outcome::Count(erase::erase_due(pool).await.unwrap()),
            Step::Rescue => {
                let rescued = rescue::rescue_lapsed(pool).await.unwrap();
                return Outcome::Rescued(rescued.requeued, rescued.ended);
            }
            Step::Reemit => {
                let mut written = 0;
                for class in Class::ALL {
                    let sent = rescue::reemit(pool, queue(class), WINDOW.into(), REEMIT_AFTER).await;
                    written += sent.unwrap();
                }
                return Outcome::Count(written);
            }
            _ => {}
        }
        Outcome::Nothing
    }

    fn account(&self, job: usize) -> &Account {
        &self.accounts[self.model.jobs[job].tenant]
    }

    fn of(&self, tenant: usize) -> Selection {
        Selection {
            tenant: Some(self.accounts[tenant].tenant_id),
            ..Selection::default()
        }
    }

    fn key(&self, pick: Pick) -> Option<JobKey> {
        let (job, fence) = self.model.claim(pick)?;
        Some(JobKey {
            id: self.ids[job],
            fence,
        })
    }

    fn place(&self, id: JobId) -> usize {
        self.ids.iter().position(|known| *known == id).expect("a known job")
    }

    async fn submit(&mut self, order: &Order) -> Sent {
        let account = &self.accounts[order.tenant];
        // Half an hour before the hour at which the model has it come due.
        let at = |hours: Option<i32>| {
            hours.map(|hours| OffsetDateTime::now_utc() + time::Duration::hours(hours.into()) - HALF_AN_HOUR)
        };
        let job = NewJob {
            api_key_id: (order.tenant == 0).then_some(self.key),
            price: PRICE,
            class: order.class,
            scheduled_at: at(order.scheduled_in),
            options: JobOptions {
                priority: order.priority,
                deadline_at: at(order.deadline_in),
                start_by: at(order.start_in),
                max_attempts: order.max_attempts,
                store: order.store,
                ttl: order.ttl.then_some(LEASE),
                ..JobOptions::default()
            },
            ..new_job(account)
        };
        let claim = order.key.map(|(key, body)| Claim {
            user_id: account.user_id,
            project_id: account.project_id,
            request_sha256: [u8::from(body); 32],
            by: ClaimedBy::Key(key.to_string(), KEEP_KEY),
        });
        match submit::submit(self.pool, job, claim, answer).await.unwrap() {
            Submitted::Accepted(view, _) => {
                self.ids.push(view.key.id);
                Sent::Accepted
            }
            Submitted::Before(Before::Replayed(answer)) => {
                let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
                Sent::Replayed(self.place(body["id"].as_str().unwrap().parse().unwrap()))
            }
            Submitted::Before(Before::Reused) => Sent::Reused,
            Submitted::Refused(Refusal::Queue(limit)) => Sent::OverQuota(limit),
            other => panic!("nobody else is here: {other:?}"),
        }
    }

    async fn relay(&self, recorded: bool) -> Vec<usize> {
        let mut taken = Vec::new();
        for class in Class::ALL {
            let mut transaction = self.pool.begin().await.unwrap();
            let rows = outbox::take(&mut transaction, &queue(class), Look::All, WINDOW, WINDOW)
                .await
                .unwrap()
                .rows;
            taken.extend(rows.iter().map(|row| self.place(row.job_id)));
            if recorded {
                outbox::confirm(&mut transaction, &alone(&rows)).await.unwrap();
                transaction.commit().await.unwrap();
            } else {
                transaction.rollback().await.unwrap();
            }
        }
        taken.sort_unstable();
        taken
    }

    async fn beat(&self, key: JobKey) -> Verdict {
        let beat = lease::heartbeat(self.pool, &[key], LEASE, ATTEMPT).await.unwrap();
        if beat.lost == [key] {
            Verdict::Lost
        } else if beat.cancelled == [key] {
            Verdict::Cancelled
        } else if beat.expired == [key] {
            Verdict::Expired
        } else if beat.overdue == [key] {
            Verdict::Overdue
        } else {
            Verdict::Kept
        }
    }

    async fn settle(&self, picks: &[(Pick, Ending)]) -> Vec<(usize, i64, JobStatus)> {
        let settlement = |(job, fence, ending)| {
            let key = JobKey {
                id: self.ids[job],
                fence,
            };
            let text = completion(&output(fence));
            match ending {
                Ending::Completed => Settlement::completed(key, text),
                Ending::Failed => Settlement::failed(key, JobError::invalid("bad_prompt", "It cannot be done.")),
                Ending::AttemptFailed => Settlement::attempt_failed(key, JobError::server("engine_error", "It broke.")),
                Ending::Cancelled => Settlement::cancelled_with(key, text),
                Ending::Expired => Settlement::expired_with(key, text),
            }
        };
        let group = self.model.group(picks).into_iter().map(settlement).collect();
        let settled = settle::settle_group(self.pool, group, ACTOR.to_owned()).await.unwrap();
        let mut settled: Vec<_> = settled
            .iter()
            .map(|one| (self.place(one.key.id), one.key.fence, one.status))
            .collect();
        settled.sort_by_key(|(job, fence, _)| (*job, *fence));
        settled
    }

    async fn retry(&mut self, job: usize) -> Outcome {
        let project = self.account(job).project_id;
        let once = retry::retry(self.pool, project, self.ids[job], Purpose::Retry, asker(), answer).await;
        let Once::Done(retried) = once.unwrap() else {
            panic!("there is no key that it could come again with")
        };
        match retried {
            Retried::Accepted(_) => Outcome::Made(self.learn_new().await),
            Retried::Running => Outcome::Refused("running"),
            Retried::Erased => Outcome::Refused("erased"),
            Retried::NoTokens => Outcome::Refused("without tokens"),
            Retried::Unknown => Outcome::Refused("unknown"),
            Retried::Refused(_) => Outcome::Refused("over quota"),
        }
    }

    /// The jobs that came by themselves, by those that they do again.
    async fn learn_new(&mut self) -> Vec<usize> {
        let known: Vec<_> = self.ids.iter().map(|id| id.uuid()).collect();
        let new: Vec<(Uuid, Uuid)> = sqlx::query_as("SELECT retry_of, id FROM jobs WHERE id <> ALL($1)")
            .bind(known)
            .fetch_all(self.pool)
            .await
            .unwrap();
        let mut new: Vec<_> = new
            .into_iter()
            .map(|(old, id)| (self.place(JobId::from_uuid(old)), JobId::from_uuid(id)))
            .collect();
        new.sort_unstable();
        self.ids.extend(new.iter().map(|(_, id)| *id));
        new.into_iter().map(|(old, _)| old).collect()
    }

    /// Moves all that is to come nearer, as if so much time had passed.
    async fn pass(&self, hours: i32) {
        let sql = format!(
            "UPDATE jobs SET available_at = available_at - step, deadline_at = deadline_at - step, start_by = start_by - step,
                 lease_expires_at = lease_expires_at - step, claimed_at = claimed_at - step
                 FROM make_interval(hours => {hours}) AS step WHERE finished_at IS NULL;
             UPDATE jobs SET erase_at = erase_at - make_interval(hours => {hours}) WHERE erase_at IS NOT NULL;
             UPDATE released SET released_at = released_at - make_interval(hours => {hours});
             UPDATE outbox SET available_at = available_at - make_interval(hours => {hours});
             UPDATE idempotency_keys SET expires_at = expires_at - make_interval(hours => {hours})"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(self.pool).await.unwrap();
        // Nobody else may move what receipts say.
        let sql = format!(
            "UPDATE receipts SET finished_at = finished_at - make_interval(hours => {hours});
             UPDATE budgets SET period_began_at = period_began_at - make_interval(hours => {hours})"
        );
        self.world.execute_as_owner(&sql).await;
    }
}

fn queue(class: Class) -> QueueName {
    QueueName {
        model: "m".to_owned(),
        class,
    }
}

fn asker() -> Asker {
    Asker {
        by: ACTOR.into(),
        queue_limit: None,
        prices: Prices::default(),
        api_key_id: None,
        claim: None,
    }
}

fn chunk_answer(_: &Chunk) -> Answer {
    Answer::default()
}

fn answer(view: &JobView) -> Answer {
    Answer {
        status: 202,
        body: Json(serde_json::json!({ "id": view.key.id })).0.to_string(),
        ..Answer::default()
    }
}
