//! The whole promise at once: everything is killed in turn while jobs pour in.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use claimcheck_tests::{Installation, Process, Server, Stack, eventually, in_world_on};
use futures::future::join_all;
use tokio::sync::watch;

use super::{COMPLETED, Caller, LIMIT, assert_each_settled_once, count, hurry, job, until_count};

const JOBS: usize = 2000;
const CALLERS: usize = 6;

/// What is killed, in this order, each in the middle of a share of the jobs.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Worker,
    Api,
    Server(Server),
}

const VICTIMS: [Victim; 6] = [
    Victim::Worker,
    Victim::Api,
    Victim::Server(Server::RabbitMq),
    Victim::Server(Server::Redis),
    Victim::Server(Server::Postgres),
    Victim::Worker,
];
/// Each share's second half is submitted during and after a kill, and so is the first half of the next.
const SHARE: usize = JOBS / (VICTIMS.len() + 1);

/// Submits every sixth job as far as `open` lets it, and answers the ids: all were accepted.
async fn submit_share(
    caller: Caller,
    first: usize,
    mut open: watch::Receiver<usize>,
    accepted: &AtomicUsize,
) -> Vec<String> {
    let mut ids = Vec::new();
    for number in (first..JOBS).step_by(CALLERS) {
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

async fn kill_and_restart(victim: Victim, stack: &Stack, api: &mut Process, worker: &mut Process) {
    match victim {
        Victim::Worker => {
            worker.kill();
            worker.start();
        }
        Victim::Api => {
            api.kill();
            api.start();
        }
        Victim::Server(server) => {
            stack.kill(server).await;
            stack.start(server).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_jobs_survive_the_death_of_every_part_and_each_settles_once() {
    let stack = Stack::up().await;
    in_world_on(stack.servers(), async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let mut api = installation.api().await;
        let mut worker = installation.worker("worker", []).await;
        let _other = installation.worker("other", []).await;
        let mut callers = Vec::new();
        for number in 0..CALLERS {
            callers.push(Caller::of(&api, &format!("user-{number}")).await);
        }
        let (open, accepted) = (watch::Sender::new(SHARE), AtomicUsize::new(0));
        let shares = callers
            .into_iter()
            .enumerate()
            .map(|(first, caller)| submit_share(caller, first, open.subscribe(), &accepted));
        let kills = async {
            for (share, victim) in VICTIMS.into_iter().enumerate() {
                eventually(&format!("share {share} is half accepted"), LIMIT, async || {
                    (accepted.load(Ordering::Relaxed) >= share * SHARE + SHARE / 2).then_some(())
                })
                .await;
                let last = share + 1 == VICTIMS.len();
                open.send_replace(if last { JOBS } else { (share + 2) * SHARE });
                kill_and_restart(victim, &stack, &mut api, &mut worker).await;
            }
        };
        let (shares, ()) = tokio::join!(join_all(shares), kills);
        let ids: HashSet<String> = shares.into_iter().flatten().collect();
        assert_eq!(ids.len(), JOBS, "one id for each job");
        until_count(world, JOBS, COMPLETED).await;
        assert_each_settled_once(world, JOBS).await;
        let attempts = count(world, "SELECT count(*) FROM jobs WHERE attempt > 1").await;
        let lapses = count(world, "SELECT count(*) FROM jobs WHERE lapses > 0").await;
        eprintln!("{attempts} jobs were claimed more than once, {lapses} after a lapse");
    })
    .await;
}
