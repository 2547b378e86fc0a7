//! The plans of the very statements that the store prepared on a connection.

use claimcheck_common::store::Pool;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Row};
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

/// Tables that do not grow with the jobs (`released` no further than the windows): reading them whole is the quickest way.
const FEW_ROWS: [&str; 5] = ["workers", "pauses", "tenant_limits", "budgets", "released"];

/// A statement as it was executed.
pub(super) struct Explained {
    /// What it does.
    pub name: &'static str,
    pub mode: Mode,
    pub plan: Plan,
}

/// For what a plan is made: the server itself chooses the one or the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// One execution.
    Custom,
    /// All executions.
    Generic,
}

/// What the executor did.
pub(super) struct Plan {
    /// Pages found in the cache or read, the same one as often as it was asked for.
    pub pages: u64,
    /// Tables that were read from end to end.
    pub scanned: Vec<String>,
    /// Indexes that were read from end to end: the condition says nothing of their first column.
    pub strayed: Vec<String>,
    /// Rows that the busiest node gave out, over all of its loops.
    pub handled: u64,
    /// The nodes, indented, with rows and pages.
    pub tree: String,
}

impl Explained {
    pub(super) fn title(&self) -> String {
        match self.mode {
            Mode::Custom => self.name.to_owned(),
            Mode::Generic => format!("{}, by a kept plan", self.name),
        }
    }
}

/// Explains on a pool of one connection.
pub(super) struct Explainer {
    pool: Pool,
    pid: i32,
    /// Sees what the other one runs.
    witness: Pool,
    /// The first column of each index that holds all rows of its table.
    leading: HashMap<String, String>,
    /// The jobs that are looked for are not there: nothing answers with rows.
    pub empty: bool,
    pub explained: Vec<Explained>,
}

impl Explainer {
    pub(super) async fn new(pool: Pool, witness: Pool, empty: bool) -> Self {
        assert_eq!(pool.options().get_max_connections(), 1);
        let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&pool).await;
        let leading = sqlx::query_as(
            "SELECT c.relname::text, pg_get_indexdef(i.indexrelid, 1, true) FROM pg_index i
             JOIN pg_class c ON c.oid = i.indexrelid
             WHERE i.indpred IS NULL AND c.relnamespace = 'public'::regnamespace",
        );
        let leading: Vec<(String, String)> = leading.fetch_all(&witness).await.unwrap();
        Self {
            pool,
            pid: pid.unwrap(),
            witness,
            leading: leading.into_iter().collect(),
            empty,
            explained: Vec::new(),
        }
    }

    /// So many of these rows are there to be found.
    pub(super) const fn there(&self, rows: u64) -> u64 {
        if self.empty { 0 } else { rows }
    }

    /// Forgets what was prepared, so that the next call of the store leaves only its own statements.
    pub(super) async fn forget(&self) {
        let mut connection = self.pool.acquire().await.unwrap();
        connection.clear_cached_statements().await.unwrap();
    }

    /// Runs the prepared statement that has `marker` in its text again and rolls it back. `rows` is what it
    /// must answer where there are jobs. A plan that the store had made for all executions is the one that is explained.
    pub(super) async fn explain(&mut self, name: &'static str, marker: &str, arguments: &str, rows: u64) {
        let statement: String =
            sqlx::query_scalar("SELECT name FROM pg_prepared_statements WHERE strpos(statement, $1) > 0")
                .bind(marker)
                .fetch_one(&self.pool)
                .await
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        for mode in [Mode::Custom, Mode::Generic] {
            self.explain_as(mode, name, &statement, arguments, rows).await;
        }
    }

    /// As `explain`, for what the store ran last and did not keep: it is planned for one execution.
    pub(super) async fn explain_last(&mut self, name: &'static str, arguments: &str, rows: u64) {
        let text: String = sqlx::query_scalar("SELECT query FROM pg_stat_activity WHERE pid = $1")
            .bind(self.pid)
            .fetch_one(&self.witness)
            .await
            .unwrap();
        for sql in ["DEALLOCATE ALL", &format!("PREPARE last AS {text}")] {
            let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await;
            done.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        self.explain_as(Mode::Custom, name, "last", arguments, rows).await;
    }

    async fn explain_as(&mut self, mode: Mode, name: &'static str, statement: &str, arguments: &str, rows: u64) {
        let mut transaction = self.pool.begin().await.unwrap();
        sqlx::query(match mode {
            Mode::Custom => "SET LOCAL plan_cache_mode = force_custom_plan",
            Mode::Generic => "SET LOCAL plan_cache_mode = force_generic_plan",
        })
        .execute(&mut *transaction)
        .await
        .unwrap();
        let call = if arguments.is_empty() {
            statement.to_owned()
        } else {
            format!("{statement}({arguments})")
        };
        // A scan for each row of a join that is thought to be short costs the same; only a just-in-time compiler
        // would add its own time.
        let sql = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {call}");
        let row = sqlx::raw_sql(AssertSqlSafe(sql))
            .fetch_one(&mut *transaction)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        transaction.rollback().await.unwrap();
        let text: String = row.try_get_unchecked(0).unwrap();
        let explained: Value = serde_json::from_str(&text).unwrap();
        let root = &explained[0]["Plan"];
        let rows = self.there(rows) as f64;
        assert_eq!(root["Actual Rows"].as_f64(), Some(rows), "{name}: {explained:#}");
        let mut plan = Plan {
            pages: pages(root) + pages_beside(root),
            scanned: Vec::new(),
            strayed: Vec::new(),
            handled: 0,
            tree: String::new(),
        };
        plan.walk(root, 0, &self.leading);
        self.explained.push(Explained { name, mode, plan });
    }
}

impl Plan {
    fn walk(&mut self, node: &Value, depth: usize, leading: &HashMap<String, String>) {
        let text = |key: &str| node[key].as_str();
        let kind = text("Node Type").unwrap_or_default();
        let table = text("Relation Name");
        if let ("Seq Scan", Some(table)) = (kind, table)
            && !FEW_ROWS.contains(&table)
        {
            self.scanned.push(table.to_owned());
        }
        if let Some(index) = text("Index Name")
            && let Some(first) = leading.get(index)
            && let Some(condition) = text("Index Cond").or(text("Filter").map(|_| ""))
            && !table.is_some_and(|table| FEW_ROWS.contains(&table))
            && !condition
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == first)
        {
            self.strayed.push(index.to_owned());
        }
        let index = text("Index Name").map_or(String::new(), |index| format!(" by {index}"));
        let of = table
            .or(text("CTE Name"))
            .map_or(String::new(), |name| format!(" of {name}"));
        let role = text("Subplan Name").map_or(String::new(), |name| format!("{name}: "));
        let (rows, loops) = (&node["Actual Rows"], &node["Actual Loops"]);
        let handled = rows.as_f64().unwrap_or_default() * loops.as_f64().unwrap_or_default();
        self.handled = self.handled.max(handled as u64);
        let _ = writeln!(
            self.tree,
            "{:indent$}{role}{kind}{of}{index}: {rows} rows × {loops}, {} pages",
            "",
            pages(node),
            indent = 2 * depth,
        );
        for child in node["Plans"].as_array().into_iter().flatten() {
            self.walk(child, depth + 1, leading);
        }
    }
}

/// Pages of the writing CTEs that nothing reads: they run after the rest, and no other node counts them.
fn pages_beside(root: &Value) -> u64 {
    let (mut nodes, mut next) = (vec![root], 0);
    while let Some(node) = nodes.get(next) {
        nodes.extend(node["Plans"].as_array().into_iter().flatten());
        next += 1;
    }
    let read: HashSet<_> = nodes.iter().filter_map(|node| node["CTE Name"].as_str()).collect();
    let beside = nodes.iter().filter(|node| {
        let name = node["Subplan Name"].as_str().and_then(|name| name.strip_prefix("CTE "));
        name.is_some_and(|name| !read.contains(name))
    });
    beside.map(|node| pages(node)).sum()
}

fn pages(node: &Value) -> u64 {
    ["Shared Hit Blocks", "Shared Read Blocks"]
        .iter()
        .filter_map(|key| node[key].as_u64())
        .sum()
}
