//! The whole promise at once: everything is killed, frozen and emptied in turn while jobs pour in.
//!
//! One piece of code in two sizes: a short run with every kind of blow among the tests, and `tests/chaos` for a long one
//! whose blows are drawn from a seed.

mod recovery;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use claimcheck_common::domain::{Class, QueueName};
use claimcheck_tests::{Process, Receiver, Server, Stack, TINY, World, eventually, in_world_on, promises, setting};
use futures::future::join_all;
use lapin::options::QueuePurgeOptions;
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use reqwest::StatusCode;
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::watch;

use self::recovery::Suffered;
use super::{COMPLETED, Caller, LIMIT, Wires, assert_each_settled_once, count, hurry, job, wired};

const CALLERS: usize = 6;

/// What is done to the installation, each time in the middle of a share of the jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    /// `kill -9` of the first or the second worker.
    Worker(usize),
    /// `kill -9`.
    Api,
    /// `kill -9`.
    Server(Server),
    /// A server stands still for half a lease, its connections standing.
    Stall(Server),
    /// A worker sleeps through its leases and wakes again.
    Freeze(usize),
    /// The broker loses what is in the queue.
    Purge,
    /// Every connection of every process to Postgres and RabbitMQ is reset.
    Cut,
}

/// How much of it.
struct Plan {
    jobs: usize,
    blows: Vec<Blow>,
}

impl Plan {
    /// Every kind once, and a worker again.
    fn short() -> Self {
        let blows = vec![
            Blow::Worker(0),
            Blow::Api,
            Blow::Server(Server::RabbitMq),
            Blow::Purge,
            Blow::Server(Server::Redis),
            Blow::Stall(Server::Postgres),
            Blow::Freeze(1),
            Blow::Server(Server::Postgres),
            Blow::Stall(Server::RabbitMq),
            Blow::Worker(0),
            Blow::Stall(Server::Redis),
            Blow::Cut,
        ];
        Self { jobs: 2000, blows }
    }

    /// As many as `tests/chaos` was asked for.
    fn long() -> Self {
        let number = |name: &str, default: usize| {
            setting(name).map_or(default, |text| {
                text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number"))
            })
        };
        let mut random = ChaCha8Rng::seed_from_u64(number("CHAOS_SEED", 1) as u64);
        let kinds = [
            Blow::Worker(0),
            Blow::Worker(1),
            Blow::Api,
            Blow::Server(Server::RabbitMq),
            Blow::Server(Server::Redis),
            Blow::Server(Server::Postgres),
            Blow::Stall(Server::RabbitMq),
            Blow::Stall(Server::Redis),
            Blow::Stall(Server::Postgres),
            Blow::Freeze(0),
            Blow::Freeze(1),
            Blow::Purge,
            Blow::Cut,
        ];
        let blows = (0..number("CHAOS_KILLS", 50))
            .map(|_| *kinds.choose(&mut random).expect("some kinds"))
            .collect();
        Self {
            jobs: number("CHAOS_JOBS", 25_000),
            blows,
        }
    }

    /// Each share's second half is submitted during and after a blow, and so is the first half of the next.
    fn share(&self) -> usize {
        self.jobs / (self.blows.len() + 1)
    }
}

/// The processes under the blows.
struct Victims<'a> {
    world: &'a World,
    stack: &'a Stack,
    wires: Wires,
    api: Process,
    workers: [Process; 2],
    /// What was done to them.
    suffered: Vec<Suffered>,
}

impl Victims<'_> {
    async fn suffer(&mut self, blow: Blow) {
        if let Blow::Freeze(number) = blow {
            self.workers[number].answers("/readyz").await;
        }
        let began = OffsetDateTime::now_utc();
        match blow {
            Blow::Worker(number) => {
                self.workers[number].kill();
                self.workers[number].start();
            }
            Blow::Api => {
                self.api.kill();
                self.api.start();
            }
            Blow::Server(server) => {
                self.stack.kill(server).await;
                self.stack.start(server).await;
            }
            Blow::Stall(server) => {
                self.stack.freeze(server).await;
                passed(self.world.delivery.lease / 2).await;
                self.stack.thaw(server).await;
            }
            Blow::Freeze(number) => {
                self.workers[number].signal("STOP");
                // Its leases have run out then.
                passed(self.world.delivery.lease * 2).await;
                self.workers[number].signal("CONT");
            }
            Blow::Cut => {
                self.wires.database.cut();
                self.wires.broker.cut();
            }
            Blow::Purge => eventually("the queue is purged", LIMIT, async || self.purge().await.ok()).await,
        }
        let ended = OffsetDateTime::now_utc();
        self.suffered.push(Suffered { blow, began, ended });
    }

    async fn purge(&self) -> Result<(), Box<dyn std::error::Error>> {
        let broker = self.world.broker();
        let name = broker.queue(&QueueName {
            model: TINY.to_owned(),
            class: Class::Interactive,
        });
        let connection = broker.connect("test").await?;
        let channel = connection.create_channel().await?;
        channel.queue_purge(name.into(), QueuePurgeOptions::default()).await?;
        Ok(())
    }
}

async fn passed(time: Duration) {
    let began = Instant::now();
    let what = format!("{time:?} have passed");
    eventually(&what, LIMIT, async || (began.elapsed() > time).then_some(())).await;
}

/// Submits every sixth job as far as `open` lets it, and answers the ids: all were accepted.
async fn submit_share(
    caller: Caller,
    first: usize,
    jobs: usize,
    mut open: watch::Receiver<usize>,
    accepted: &AtomicUsize,
) -> Vec<String> {
    let mut ids = Vec::new();
    for number in (first..jobs).step_by(CALLERS) {
        open.wait_for(|open| number < *open).await.unwrap();
        ids.push(
            caller
                .submit(&format!("job-{number}"), &job(number, 4 + number % 9))
                .await,
        );
        accepted.fetch_add(1, Ordering::Relaxed);
    }
    ids
}

/// Submits the plan's jobs under its blows, waits for the end of all and holds the tables against the promise.
async fn run(plan: &Plan) {
    let stack = Stack::up().await;
    in_world_on(stack.servers(), async |world| {
        hurry(world);
        recovery::watch(world).await;
        let began = Instant::now();
        let (installation, wires) = wired(world).await;
        let api = installation.api().await;
        let workers = [
            installation.worker("worker", []).await,
            installation.worker("other", []).await,
        ];
        let mut callers = Vec::new();
        for number in 0..CALLERS {
            callers.push(Caller::of(&api, &format!("user-{number}")).await);
        }
        // What is reserved and spent must add up whatever is killed.
        sqlx::query("INSERT INTO budgets (id, tenant_id, max_tokens) SELECT id, id, 1000000000 FROM organizations")
            .execute(&world.pool)
            .await
            .unwrap();
        let receiver = Receiver::start().await;
        for caller in &callers {
            let endpoint = json!({"url": receiver.url("/"), "events": ["job.completed"]});
            let made = caller
                .post("/v1/webhook_endpoints")
                .json(&endpoint)
                .send()
                .await
                .unwrap();
            assert_eq!(made.status(), StatusCode::CREATED);
        }
        let mut victims = Victims {
            world,
            stack: &stack,
            wires,
            api,
            workers,
            suffered: Vec::new(),
        };
        let (open, accepted) = (watch::Sender::new(plan.share()), AtomicUsize::new(0));
        let shares = callers
            .into_iter()
            .enumerate()
            .map(|(first, caller)| submit_share(caller, first, plan.jobs, open.subscribe(), &accepted));
        let blows = async {
            for (number, blow) in plan.blows.iter().enumerate() {
                eventually(&format!("share {number} is half accepted"), LIMIT, async || {
                    (accepted.load(Ordering::Relaxed) >= number * plan.share() + plan.share() / 2).then_some(())
                })
                .await;
                let last = number + 1 == plan.blows.len();
                open.send_replace(if last { plan.jobs } else { (number + 2) * plan.share() });
                victims.suffer(*blow).await;
                eprintln!("{:>5.0} s: {blow:?}", began.elapsed().as_secs_f64());
            }
        };
        let (shares, ()) = tokio::join!(join_all(shares), blows);
        let ids: HashSet<String> = shares.into_iter().flatten().collect();
        assert_eq!(ids.len(), plan.jobs, "one id for each job");
        until_all_completed(world, plan.jobs).await;
        report(&victims, plan, began).await;
        assert_each_settled_once(world, plan.jobs).await;
        assert_eq!(promises::broken(&world.pool).await, [""; 0]);
        assert_each_told(&receiver, &ids).await;
    })
    .await;
}

/// Every job's end was told, under one id each, however often.
async fn assert_each_told(receiver: &Receiver, jobs: &HashSet<String>) {
    let told: HashSet<(String, String)> = eventually("every job was told", LIMIT, async || {
        let told: HashSet<_> = receiver
            .received()
            .iter()
            .map(|one| {
                let job = one.json()["data"]["id"].as_str().unwrap().to_owned();
                (one.header("webhook-id").to_owned(), job)
            })
            .collect();
        (told.len() >= jobs.len()).then_some(told)
    })
    .await;
    let (ids, named): (HashSet<_>, HashSet<_>) = told.into_iter().unzip();
    eprintln!("| webhooks for {} jobs | {} |", named.len(), receiver.received().len());
    assert_eq!((ids.len(), &named), (jobs.len(), jobs));
}

/// Waits as long as it goes on: a long run's backlog may take longer than any one limit.
async fn until_all_completed(world: &World, jobs: usize) {
    let mut completed = 0;
    while completed < jobs as i64 {
        completed = eventually("more jobs are completed", LIMIT, async || {
            let now: i64 = sqlx::query_scalar(COMPLETED).fetch_one(&world.pool).await.ok()?;
            (now > completed).then_some(now)
        })
        .await;
    }
}

/// What the tables say, on one page.
async fn report(victims: &Victims<'_>, plan: &Plan, began: Instant) {
    let world = victims.world;
    let lost = plan.jobs as i64 - count(world, COMPLETED).await;
    let twice = count(
        world,
        "SELECT count(*) FROM (SELECT FROM events WHERE type = 'job.completed' GROUP BY job_id HAVING count(*) > 1) twice",
    )
    .await;
    let mut refused = 0.0;
    for worker in &victims.workers {
        refused += worker.metric("claimcheck_settle_refused_total").await;
    }
    let attempts: Vec<(i32, i64)> =
        sqlx::query_as("SELECT attempt, count(*) FROM jobs GROUP BY attempt ORDER BY attempt")
            .fetch_all(&world.pool)
            .await
            .unwrap();
    eprintln!("| accepted | {} |", plan.jobs);
    eprintln!("|---|---|");
    eprintln!("| blows | {} |", plan.blows.len());
    eprintln!("| lost | {lost} |");
    eprintln!("| settled twice | {twice} |");
    eprintln!("| stale settles refused (by the workers that live at the end) | {refused} |");
    for (attempt, jobs) in attempts {
        eprintln!("| jobs with {attempt} attempt(s) | {jobs} |");
    }
    recovery::report(world, &victims.suffered).await;
    eprintln!("| time | {:.0} s |", began.elapsed().as_secs_f64());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_jobs_survive_blows_to_every_part_and_each_settles_once() {
    run(&Plan::short()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the long run: tests/chaos"]
async fn as_many_jobs_as_asked_for_survive_blows_drawn_from_a_seed() {
    run(&Plan::long()).await;
}
