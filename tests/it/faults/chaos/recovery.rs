//! How soon a silent worker's jobs run again: triggers note each step from the rescue to the next claim, and each such way is
//! held against the blows.

use std::collections::HashMap;
use std::time::Duration;

use claimcheck_tests::{Server, World};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Blow;

/// Written for rescued jobs only, so that they cost the others nothing.
const STEPS: &str = "
    CREATE TABLE steps (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, job_id uuid NOT NULL, what text NOT NULL, worker uuid,
        lease_expired_at timestamptz, at timestamptz NOT NULL DEFAULT clock_timestamp());
    GRANT SELECT ON steps TO PUBLIC;
    CREATE FUNCTION note_step() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
        CASE TG_ARGV[0]
            WHEN 'rescued' THEN INSERT INTO steps (job_id, what, worker, lease_expired_at)
                VALUES (NEW.id, 'rescued', OLD.worker_id, OLD.lease_expires_at);
            WHEN 'claimed' THEN INSERT INTO steps (job_id, what, worker) VALUES (NEW.id, 'claimed', NEW.worker_id);
            ELSE INSERT INTO steps (job_id, what) VALUES (NEW.job_id, 'sent');
        END CASE;
        RETURN NULL;
    END $$;
    CREATE TRIGGER rescued AFTER UPDATE ON jobs FOR EACH ROW WHEN (NEW.lapses > OLD.lapses)
        EXECUTE FUNCTION note_step('rescued');
    CREATE TRIGGER claimed AFTER UPDATE ON jobs FOR EACH ROW WHEN (NEW.lapses > 0 AND NEW.fence > OLD.fence)
        EXECUTE FUNCTION note_step('claimed');
    CREATE TRIGGER sent AFTER INSERT OR UPDATE ON released FOR EACH ROW WHEN (NEW.rescued)
        EXECUTE FUNCTION note_step('sent');";

/// A blow, from its beginning to its end: a server is back then, a frozen worker awake.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suffered {
    pub(super) blow: Blow,
    pub(super) began: OffsetDateTime,
    pub(super) ended: OffsetDateTime,
}

/// One job's way from its worker's silence to the next claim.
struct Recovery {
    silence: Suffered,
    lapsed: OffsetDateTime,
    rescued: OffsetDateTime,
    sent: Vec<OffsetDateTime>,
    claimed: OffsetDateTime,
    /// Whether the silent worker itself claimed it again, when it had woken.
    by_itself: bool,
}

/// A step in the table.
#[derive(sqlx::FromRow)]
struct Step {
    job_id: Uuid,
    what: String,
    worker: Option<Uuid>,
    lease_expired_at: Option<OffsetDateTime>,
    at: OffsetDateTime,
}

/// Lets the world's database note the steps.
pub(super) async fn watch(world: &World) {
    world.execute_as_owner(STEPS).await;
}

impl Recovery {
    fn took(&self) -> Duration {
        self.after_silence(self.claimed)
    }

    fn after_silence(&self, at: OffsetDateTime) -> Duration {
        Duration::try_from(at - self.silence.began).unwrap_or_default()
    }

    /// Whether a server was away at some time of it, or for `longer` before.
    fn was_away(&self, server: Server, suffered: &[Suffered], longer: Duration) -> bool {
        suffered.iter().any(|one| {
            one.blow == Blow::Server(server) && one.began < self.claimed && one.ended + longer > self.silence.began
        })
    }

    fn tell(&self) -> String {
        let seconds = |at| format!("{:.1}", self.after_silence(at).as_secs_f64());
        let sent: Vec<_> = self.sent.iter().map(|at| seconds(*at)).collect();
        format!(
            "{:?}: lapsed {}, rescued {}, sent {}, claimed {} by {}",
            self.silence.blow,
            seconds(self.lapsed),
            seconds(self.rescued),
            sent.join(" "),
            seconds(self.claimed),
            if self.by_itself { "the same worker" } else { "another" }
        )
    }
}

/// The ways that the table tells of, and how many jobs lapsed though no worker of theirs was silent.
async fn recoveries(world: &World, suffered: &[Suffered]) -> (Vec<Recovery>, usize) {
    let steps: Vec<Step> = sqlx::query_as("SELECT job_id, what, worker, lease_expired_at, at FROM steps ORDER BY id")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    let mut jobs: HashMap<Uuid, Vec<Step>> = HashMap::new();
    for step in steps {
        jobs.entry(step.job_id).or_default().push(step);
    }
    let (mut ways, mut unexplained) = (Vec::new(), 0);
    for steps in jobs.values() {
        for (before, claimed) in steps
            .split(|step| step.what == "claimed")
            .zip(steps.iter().filter(|step| step.what == "claimed"))
        {
            // A worker that was killed before the commit of its claim leaves one that was not preceded by a rescue.
            let Some(rescued) = before.iter().find(|step| step.what == "rescued") else {
                continue;
            };
            let lapsed = rescued.lease_expired_at.unwrap();
            // The first silence after the lease was given.
            let given = lapsed - world.delivery.lease;
            let silence = suffered.iter().find(|one| {
                matches!(one.blow, Blow::Worker(_) | Blow::Freeze(_))
                    && one.began > given - Duration::from_millis(100)
                    && one.began < lapsed
            });
            match silence {
                Some(silence) => ways.push(Recovery {
                    silence: *silence,
                    lapsed,
                    rescued: rescued.at,
                    sent: before
                        .iter()
                        .filter(|step| step.what == "sent")
                        .map(|step| step.at)
                        .collect(),
                    claimed: claimed.at,
                    by_itself: claimed.worker == rescued.worker,
                }),
                None => unexplained += 1,
            }
        }
    }
    ways.sort_by_key(Recovery::took);
    (ways, unexplained)
}

/// Prints rows of the report: how long it took, by the kind of silence, and the way of each job that was late.
pub(super) async fn report(world: &World, suffered: &[Suffered]) {
    let (ways, unexplained) = recoveries(world, suffered).await;
    let target = world.delivery.lease + Duration::from_secs(2);
    // Nobody is rescued until Postgres has been back for a lease.
    let (without, ways): (Vec<_>, Vec<_>) = ways
        .into_iter()
        .partition(|way| way.was_away(Server::Postgres, suffered, world.delivery.lease));
    let (without_rabbit, with_all): (Vec<_>, Vec<_>) = ways
        .iter()
        .partition(|way| way.was_away(Server::RabbitMq, suffered, Duration::ZERO));
    for (ways, meanwhile) in [(with_all, ""), (without_rabbit, ", RabbitMQ away meanwhile")] {
        for (kind, frozen) in [("killed", false), ("frozen", true)] {
            let ways: Vec<_> = ways
                .iter()
                .filter(|way| matches!(way.silence.blow, Blow::Freeze(_)) == frozen)
                .collect();
            let quantile = |share: f64| {
                let place = ((ways.len() as f64 * share) as usize).min(ways.len() - 1);
                ways[place].took().as_secs_f64()
            };
            if ways.is_empty() {
                continue;
            }
            eprintln!(
                "| from a {kind} worker's silence to the next claim of its {} job(s){meanwhile}: p50 / p99 / max | {:.1} s / {:.1} s / {:.1} s |",
                ways.len(),
                quantile(0.5),
                quantile(0.99),
                quantile(1.0)
            );
        }
    }
    eprintln!(
        "| jobs whose worker fell silent when Postgres was away | {} |",
        without.len()
    );
    eprintln!("| jobs that lapsed though their worker was not silent | {unexplained} |");
    for way in ways.iter().filter(|way| way.took() > target) {
        eprintln!("| later than {target:?} | {} |", way.tell());
    }
}
