//! Engines whose models do not fit into memory together.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use claimcheck_common::domain::{Completion, JobKey};
use tokio::sync::mpsc;

use super::tests::{LIMIT, PLENTY, complete_all, config, job, model, next_ending, plain_job, run_all_on, start_as};
use super::{Ending, EngineEvent, EngineHandle, EngineJob};
use crate::gpt2::LoadError;
use crate::unloadable::{Memory, Unloadable};

const BYTES: u64 = 1 << 20;

/// An engine in a memory that it shares, and how often its model was loaded.
struct Sharing {
    engine: EngineHandle,
    events: mpsc::Receiver<EngineEvent>,
    loads: Arc<AtomicUsize>,
}

impl Sharing {
    /// Its model can be loaded so many times.
    fn of(memory: &Arc<Memory>, most_loads: usize) -> Self {
        let loads = Arc::<AtomicUsize>::default();
        let counted = loads.clone();
        let load = move || {
            if counted.fetch_add(1, Ordering::Relaxed) == most_loads {
                return Err(LoadError::Device("it is gone".to_owned()));
            }
            Ok(model(PLENTY))
        };
        let place = memory.place(BYTES).unwrap();
        let model = Unloadable::load("a model".to_owned(), place, Box::new(load)).unwrap();
        let (engine, events) = start_as(Box::new(model), config(4, 64));
        Self { engine, events, loads }
    }

    async fn run(&mut self, job: &EngineJob) -> (JobKey, Ending) {
        self.engine.submit(job.clone()).await.unwrap();
        next_ending(&mut self.events).await
    }

    async fn run_all(&mut self, jobs: &[EngineJob]) -> HashMap<JobKey, Completion> {
        complete_all(&self.engine, &mut self.events, jobs).await
    }

    fn loads(&self) -> usize {
        self.loads.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn models_that_take_turns_give_the_same_answers_and_nobody_starves() {
    // More than there is room for at the door: a turn lasts as long as there are jobs inside.
    let jobs: Vec<_> = (0..160).map(job).collect();
    let expected = run_all_on(model(PLENTY), &jobs, config(4, 64)).await;
    let memory = Arc::new(Memory::new(BYTES));
    let [mut first, mut second] = [(); 2].map(|()| Sharing::of(&memory, usize::MAX));
    let both = async { tokio::join!(first.run_all(&jobs), second.run_all(&jobs)) };
    let (of_first, of_second) = tokio::time::timeout(LIMIT, both).await.expect("both come to an end");
    assert_eq!(of_first, expected);
    assert_eq!(of_second, expected);
    // Once at the start, and each had to give way to the other while both had work.
    assert!(
        first.loads() > 2 && second.loads() > 1,
        "{} and {}",
        first.loads(),
        second.loads()
    );
}

#[tokio::test]
async fn a_model_that_nobody_needs_room_of_stays_and_finds_its_cache() {
    let memory = Arc::new(Memory::new(2 * BYTES));
    let [mut first, mut second] = [(); 2].map(|()| Sharing::of(&memory, 1));
    for number in 0..3 {
        for sharing in [&mut first, &mut second] {
            let (_, ending) = sharing.run(&job(number)).await;
            assert!(matches!(ending, Ending::Completed(_)), "{ending:?}");
        }
    }
    assert_eq!((first.loads(), second.loads()), (1, 1));
}

#[tokio::test]
async fn a_job_is_cancelled_while_its_model_waits_for_room_and_holds_up_nobody() {
    let memory = Arc::new(Memory::new(BYTES));
    let mut sharing = Sharing::of(&memory, usize::MAX);
    let mut other = memory.place(BYTES).unwrap();
    while !matches!(other.enter(LIMIT), crate::model_memory::Entered::Room) {}
    let waits = plain_job(1, 8);
    sharing.engine.submit(waits.clone()).await.unwrap();
    while !other.wanted() {
        tokio::task::yield_now().await;
    }
    sharing.engine.cancel(waits.key);
    let (key, ending) = next_ending(&mut sharing.events).await;
    assert!(key == waits.key && matches!(ending, Ending::Stopped(_)), "{ending:?}");
    while other.wanted() {
        tokio::task::yield_now().await;
    }
    other.rest(model(PLENTY));
    let (_, ending) = sharing.run(&plain_job(2, 8)).await;
    assert!(matches!(ending, Ending::Completed(_)), "{ending:?}");
}

#[tokio::test]
async fn an_engine_whose_model_cannot_be_loaded_again_ends() {
    let memory = Arc::new(Memory::new(BYTES));
    let mut first = Sharing::of(&memory, 1);
    let mut second = Sharing::of(&memory, usize::MAX);
    first.engine.submit(job(1)).await.unwrap();
    assert_eq!(
        first.events.recv().await,
        None,
        "its job is nobody's any more, and its lease lapses"
    );
    let stopped = first.engine.stopped();
    tokio::time::timeout(LIMIT, stopped).await.expect("it ends");
    let (_, ending) = second.run(&job(2)).await;
    assert!(
        matches!(ending, Ending::Completed(_)),
        "its room is the other's: {ending:?}"
    );
}
