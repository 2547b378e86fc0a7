//! A gate in the database: whoever does a certain thing waits in the middle of it until the test opens.
//!
//! It is a trigger that waits for an advisory lock which the test holds, so that a process can be killed exactly there. Nothing
//! of it is in the services.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{World, eventually};

/// Advisory locks are each database's own.
const KEY: i32 = 4711;
const LIMIT: Duration = Duration::from_mins(1);

/// Where in a transaction the gate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// In the statement: who is killed there has changed nothing. Where the statement is a transaction by itself, it ends all the same,
    /// whether the client lives or not, unless the connection is ended first ([`Gate::end_the_dead`]).
    Statement,
    /// In the commit, which the client has asked for already: it comes whether the client lives or not.
    Commit,
}

/// A gate that is shut until [`Gate::open`].
pub struct Gate {
    held: PgConnection,
}

impl Gate {
    /// Shuts a gate before every `event` (`UPDATE ON jobs`) for which `condition` holds (SQL over `OLD` and `NEW`).
    ///
    /// # Panics
    /// If the trigger cannot be made.
    pub async fn shut(world: &World, moment: Moment, event: &str, condition: &str) -> Self {
        let trigger = match moment {
            Moment::Statement => format!("CREATE TRIGGER gate BEFORE {event} FOR EACH ROW"),
            Moment::Commit => {
                format!("CREATE CONSTRAINT TRIGGER gate AFTER {event} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW")
            }
        };
        let mut held = PgConnection::connect(world.database.owner_url())
            .await
            .expect("Postgres is up");
        let sql = format!(
            "SELECT pg_advisory_lock({KEY});
             DROP FUNCTION IF EXISTS gate() CASCADE;
             CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql SET lock_timeout TO 0 AS $$ BEGIN
                 PERFORM pg_catalog.pg_advisory_xact_lock_shared({KEY});
                 IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
                 RETURN NEW;
             END $$;
             {trigger} WHEN ({condition}) EXECUTE FUNCTION gate();"
        );
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut held)
            .await
            .expect("a valid trigger");
        Self { held }
    }

    /// How many wait for an advisory lock: this gate's, or another in front of it.
    pub async fn waiting(&mut self) -> usize {
        self.waiting_at("true").await.len()
    }

    /// Waits until somebody stands at the gate.
    pub async fn reached(&mut self) {
        eventually("somebody is at the gate", LIMIT, async || {
            (!self.at_the_gate().await.is_empty()).then_some(())
        })
        .await;
    }

    /// Opens, and waits until the connections that stood here have ended: those of a process that was killed meanwhile.
    pub async fn open_for_the_dead(mut self) {
        let dead = self.at_the_gate().await;
        self.unlock().await;
        self.gone(dead).await;
    }

    /// As [`Gate::open_for_the_dead`], but the database notices the death while they stand here.
    pub async fn end_the_dead(mut self, world: &World) {
        let dead = self.at_the_gate().await;
        // Who is connected as they are may end them.
        sqlx::query("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid")
            .bind(&dead)
            .execute(&world.pool)
            .await
            .expect("Postgres is up");
        self.gone(dead).await;
        self.unlock().await;
    }

    async fn gone(&mut self, mut dead: Vec<i32>) {
        eventually("the database has noticed the death", LIMIT, async || {
            dead = sqlx::query_scalar("SELECT pid FROM pg_stat_activity WHERE pid = ANY($1)")
                .bind(&dead)
                .fetch_all(&mut self.held)
                .await
                .expect("Postgres is up");
            dead.is_empty().then_some(())
        })
        .await;
    }

    /// Opens, and everybody goes on.
    pub async fn open(mut self) {
        self.unlock().await;
    }

    async fn unlock(&mut self) {
        // The lock first: dropping the trigger waits for those who stand in it.
        for sql in [
            format!("SELECT pg_advisory_unlock({KEY})"),
            "DROP FUNCTION gate() CASCADE".to_owned(),
        ] {
            sqlx::raw_sql(AssertSqlSafe(sql))
                .execute(&mut self.held)
                .await
                .expect("Postgres is up");
        }
    }

    async fn at_the_gate(&mut self) -> Vec<i32> {
        self.waiting_at(&format!("objid = {KEY} AND classid = 0")).await
    }

    async fn waiting_at(&mut self, lock: &str) -> Vec<i32> {
        let sql = format!(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND {lock}
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        );
        sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_all(&mut self.held)
            .await
            .expect("Postgres is up")
    }
}
