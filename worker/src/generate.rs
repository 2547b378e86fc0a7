//! The role `generate` for one model: load it, start the engine, announce, take jobs; at a stop drain, hand back, leave.
//!
//! A process that serves several runs as many of these, each a worker of its own to the database and to the broker.
//! Owns the order in which its parts start and stop, and nothing of what they do. Deliveries enter by `consumer.rs`, go by
//! `feeder.rs` into `engine/` and leave by `results.rs`, with `heartbeat.rs` keeping their leases
//! and `cancels.rs` stopping them all the while.

use std::sync::Arc;
use std::time::Duration;

use claimcheck_common::config::{DeliveryConfig, WorkerConfig};
use claimcheck_common::deltas::DeltaPublisher;
use claimcheck_common::domain::{ModelSource, Runtime, WorkerId};
use claimcheck_common::policy::Rules;
use claimcheck_common::queue::Broker;
use claimcheck_common::redis::Redis;
use claimcheck_common::store::{Lane, Pool, models};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::announce::Announcement;
use crate::cancels::Cancels;
use crate::consumer::Consumer;
use crate::engine::{Deltas, Engine, EngineConfig, EngineStopped, Followed};
use crate::feeder::Feeder;
use crate::followers::Followers;
use crate::health::ModelHealth;
use crate::heartbeat::Heartbeat;
use crate::in_flight::InFlight;
use crate::results::Results;
use crate::served_model::{LoadedModel, ModelChoice, ServeError, ServedModel};
use crate::unloadable::Memory;

/// Events that wait for `results.rs`. More than two for each job in flight: the engine waits only for a lost database.
const EVENTS: usize = 1024;
/// Pieces of text that wait to be published. What finds no room comes with the next piece.
const PIECES: usize = 1024;
/// How long finished results may wait for the database after the drain; then their leases lapse.
const LAST_COMMIT_LIMIT: Duration = Duration::from_secs(5);

/// How long the worker's own row may keep its end waiting; one that stays is forgotten later.
const LAST_WORD_LIMIT: Duration = Duration::from_secs(2);

/// Why a generating worker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// There is no model, or its files are not what they should be.
    #[error(transparent)]
    Load(#[from] ServeError),
    /// The engine's thread ended: a bug, or a device that failed. Its jobs' leases lapse and others take them.
    #[error("this worker cannot go on")]
    Engine(#[from] EngineStopped),
    /// A step does not end. Its jobs are given up, and the process has to end: nothing stops the thread.
    #[error("a step of the model has not ended for {0:?}: the device hangs, this worker cannot go on")]
    Hung(Duration),
    /// A part of the worker panicked.
    #[error("the {0} stopped, this worker cannot go on")]
    Part(&'static str),
}

/// What the role needs.
pub struct Generate {
    /// Where jobs live.
    pub pool: Pool,
    /// Where deliveries come from.
    pub broker: Broker,
    /// What may be lost, and may be away at any time.
    pub redis: Redis,
    /// What finished texts are held against.
    pub policy: Rules,
    /// Lease and beat.
    pub delivery: DeliveryConfig,
    /// How many slots, how long to drain.
    pub config: WorkerConfig,
    /// Which model.
    pub model: ModelSource,
    /// What it shares with the other models of the process, if that is limited.
    pub memory: Option<Arc<Memory>>,
    /// Who claims.
    pub worker: WorkerId,
    /// Hears how far it has come.
    pub health: ModelHealth,
}

impl Generate {
    /// Generates until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), GenerateError> {
        // A drain ends this role alone.
        let stop = stop.child_token();
        let (pool, worker) = (self.pool.clone(), self.worker);
        let noted = self.note_start();
        let outcome = self.load_and_serve(stop).await;
        // A worker that could not start leaves its trace, one that ends in order leaves none.
        let _ = tokio::time::timeout(LAST_WORD_LIMIT, noted).await;
        if outcome.is_ok() {
            let _ = tokio::time::timeout(LAST_WORD_LIMIT, models::leave(&pool, worker)).await;
        }
        outcome
    }

    /// Beside the loading, since neither waits for the other: the database may be away.
    fn note_start(&self) -> JoinHandle<()> {
        let (pool, worker) = (self.pool.clone(), self.worker);
        let model = self.model.clone();
        tokio::spawn(async move {
            if let Err(error) = models::starting(&pool, worker, model.label()).await {
                tracing::debug!(%error, "the start could not be noted");
            }
        })
    }

    async fn load_and_serve(self, stop: CancellationToken) -> Result<(), GenerateError> {
        let Some(ServedModel { loaded, announced }) = stop
            .run_until_cancelled(ModelChoice::of(self.model.clone(), &self.config).load_to_serve(self.memory.clone()))
            .await
            .transpose()?
        else {
            return Ok(());
        };
        self.health.loaded();
        let announcement = Announcement {
            pool: self.pool.clone(),
            worker: self.worker,
            prefetch: prefetch(self.config.slots),
            model: announced,
        };
        if !announcement.until_known(&stop).await {
            return Ok(());
        }
        self.health.announced();
        self.serve(loaded, announcement, stop).await
    }

    async fn serve(
        self,
        model: LoadedModel,
        announcement: Announcement,
        stop: CancellationToken,
    ) -> Result<(), GenerateError> {
        let name = announcement.model.model.name.clone();
        let (event_sender, events) = mpsc::channel(EVENTS);
        let engine = Engine::start(
            model.model,
            model.tokenizer.clone(),
            EngineConfig {
                slots: usize::from(self.config.slots),
                ..EngineConfig::default()
            },
            event_sender,
        );
        let in_flight = Arc::new(InFlight::default());
        let (piece_sender, pieces) = mpsc::channel(PIECES);
        let followers = Followers {
            publisher: DeltaPublisher::new(self.redis.clone()),
            in_flight: in_flight.clone(),
            followed: Followed::default(),
            policy: self.policy.clone(),
        };
        engine.tell(Deltas {
            followed: followers.followed.clone(),
            pieces: piece_sender,
        });
        let served = &announcement.model;
        let runtime = Runtime::of_this_build(served.weights_sha256.clone(), served.dtype.clone());
        let policy = self.policy.clone();
        let results = Results::new(self.pool.clone(), in_flight.clone(), policy, self.worker, runtime);
        let feeder = Feeder {
            pool: self.pool.clone(),
            tokenizer: model.tokenizer,
            in_flight: in_flight.clone(),
            engine: engine.clone(),
            results: results.clone(),
        };
        let stop_beating = CancellationToken::new();
        let heartbeat = Heartbeat {
            pool: self.pool.clone(),
            config: self.delivery.clone(),
            announcement,
            in_flight: in_flight.clone(),
            engine: engine.clone(),
            drain: stop.clone(),
        };
        let cancels = Cancels {
            pool: self.pool.clone(),
            in_flight: in_flight.clone(),
            engine: engine.clone(),
        };
        let _followers = AbortOnDropHandle::new(tokio::spawn(followers.run(pieces, stop_beating.clone())));
        let cancels = AbortOnDropHandle::new(tokio::spawn(cancels.run(stop_beating.clone())));
        let mut heart = AbortOnDropHandle::new(tokio::spawn(heartbeat.run(stop_beating.clone())));
        let mut recorder = AbortOnDropHandle::new(tokio::spawn(results.record(events)));
        let consumer = Consumer {
            lane: Lane::new(&self.pool),
            broker: self.broker,
            delivery: self.delivery,
            worker: self.worker,
            model: name,
            prefetch: prefetch(self.config.slots),
            in_flight: in_flight.clone(),
            feeder: feeder.clone(),
            health: self.health,
            feeding: Mutex::default(),
        };
        let outcome = tokio::select! {
            outcome = work(consumer, &in_flight, &stop) => outcome,
            _ = &mut recorder => Err(EngineStopped.into()),
            _ = &mut heart => Err(GenerateError::Part("heartbeat")),
            () = engine.hung(self.config.step_limit) => Err(GenerateError::Hung(self.config.step_limit)),
            () = drained(&stop, self.config.drain) => {
                tracing::warn!(drain = ?self.config.drain, "not all jobs ended in time");
                Ok(())
            }
        };
        match &outcome {
            Ok(()) => feeder.hand_back(in_flight.unfinished()).await,
            Err(GenerateError::Hung(_)) => {
                let given_up = feeder.results.give_up(in_flight.unfinished());
                let _ = tokio::time::timeout(LAST_COMMIT_LIMIT, given_up).await;
            }
            Err(_) => {}
        }
        stop_beating.cancel();
        if !heart.is_finished() {
            let _ = heart.await;
        }
        let _ = cancels.await;
        // The last handles of the engine: it ends, and the recorder after it.
        drop((feeder, engine));
        if !recorder.is_finished() && tokio::time::timeout(LAST_COMMIT_LIMIT, recorder).await.is_err() {
            tracing::warn!(
                jobs = in_flight.held().len(),
                "left without the last commits: their leases will lapse"
            );
        }
        outcome
    }
}

/// Takes jobs until `stop`, then waits for those in flight.
async fn work(consumer: Consumer, in_flight: &InFlight, stop: &CancellationToken) -> Result<(), GenerateError> {
    consumer.run(stop.clone()).await?;
    in_flight.empty().await;
    Ok(())
}

/// Completes when a stop was asked for `limit` ago.
async fn drained(stop: &CancellationToken, limit: Duration) {
    stop.cancelled().await;
    tokio::time::sleep(limit).await;
}

/// Deliveries in hand for each queue.
fn prefetch(slots: u16) -> u16 {
    u16::try_from(EngineConfig::in_hand(usize::from(slots))).unwrap_or(u16::MAX)
}
