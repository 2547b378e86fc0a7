"""What a job costs where a thousand jobs are in the database and where a million are: two installations, in alternation."""
import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg

from installation import Installation, at, fresh_database

DATABASE = "bench_intake_{rows}"
SMALL = 1000
# A connection tells of the pages that it looked at once a second while it is busy, and of the last ones when it rested for ten.
PAGES_TOLD = 11

Load = Callable[[Installation, str, asyncpg.Connection, argparse.Namespace], Awaitable[dict]]


class Grown:
    """An installation whose database holds so many jobs that have ended. Nothing is vacuumed there by itself: a vacuum, whose cost many
    more jobs share than a round has, would be counted to whichever round it falls into."""

    def __init__(self, install: Callable[[Path, str], Installation], folder: Path, rows: int):
        self.rows, self.database = rows, DATABASE.format(rows=rows)
        fresh_database(self.database)
        (folder / self.database).mkdir()
        self.ours = install(folder / self.database, self.database)

    async def ready(self, stack: AsyncExitStack) -> None:
        stack.enter_context(self.ours.api)
        stack.enter_context(self.ours.worker)
        self.token = self.ours.token()
        self.db = await asyncpg.connect(at(os.environ["DATABASE_OWNER_URL"], self.database))
        stack.push_async_callback(self.db.close)
        await fill(self.db, self.rows)
        tables = await self.db.fetch(
            "SELECT oid::regclass::text AS name FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
        for table in tables:
            await self.db.execute(f"ALTER TABLE {table['name']} SET (autovacuum_enabled = off)")

    async def round(self, load: Load, wanted: argparse.Namespace) -> dict:
        """One load, and the vacuum of what it left."""
        result = await load(self.ours, self.token, self.db, wanted)
        before = await pages(self.db)
        await self.db.execute("VACUUM", timeout=600)
        result["vacuum_pages"] = await pages(self.db) - before
        await self.db.execute("ANALYZE", timeout=600)
        return result


async def measure(
    install: Callable[[Path, str], Installation], folder: Path, load: Load, wanted: argparse.Namespace, rows: int,
) -> dict[int, list[dict]]:
    """The results of the rounds by how many rows there were: `SMALL`, and `rows`."""
    grown = [Grown(install, folder, number) for number in (SMALL, rows)]
    found: dict[int, list[dict]] = {one.rows: [] for one in grown}
    async with AsyncExitStack() as stack:
        for one in grown:
            await one.ready(stack)
            await one.round(load, argparse.Namespace(**vars(wanted) | {"seconds": 3}))
        for number in range(wanted.rounds):
            for one in grown if number % 2 == 0 else reversed(grown):
                found[one.rows].append(await one.round(load, wanted))
    return found


async def fill(db: asyncpg.Connection, rows: int) -> None:
    """So many jobs that ended: like those that the bench makes, spread over the past month."""
    await db.execute(
        """INSERT INTO jobs (id, tenant_id, project_id, user_id, model, model_revision, class, status, prompt_tokens,
                             completion_tokens, attempt, fence, created_at, started_at, finished_at)
           SELECT (lpad(to_hex((extract(epoch FROM t) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3)
                   || 'a' || substr(md5(n::text), 4, 15))::uuid,
               u.tenant_id, u.project_id, u.id, 'noop', 'r', 'interactive', 'completed', 12, 1, 1, 1, t, t, t
           FROM users u, generate_series(1, $1::int) n,
               LATERAL (SELECT now() - interval '30 days' * random() - interval '1 hour' AS t) at
           WHERE u.username = 'bench'""",
        rows, timeout=1800,
    )
    for statement in (
        "INSERT INTO job_inputs (job_id, prompt, parameters) SELECT id, '\"hi\"', '{}' FROM jobs",
        "INSERT INTO job_outputs (job_id, choices) SELECT id, '[]' FROM jobs",
        "VACUUM ANALYZE",
    ):
        await db.execute(statement, timeout=1800)


async def pages(db: asyncpg.Connection) -> int:
    """Pages of the database that were looked at so far, as far as their connections told of them: `db` tells now. Without those of
    the seals, which are made two minutes after a job's audit rows, whatever is measured then."""
    await db.execute("SELECT pg_stat_force_next_flush()")
    await db.execute("SELECT pg_stat_clear_snapshot()")
    return await db.fetchval(
        """SELECT blks_hit + blks_read
               - (SELECT heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read FROM pg_statio_user_tables
                  WHERE relname = 'audit_seals')
           FROM pg_stat_database WHERE datname = current_database()""")
