"""The migrations: safe to repeat and to run at once, and leading to the very tables that the code declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from drangue_client.errors import DatabaseUnavailable
from drangue_client.store.database import Database
from drangue_client.store.log import SqlLog
from drangue_client.store.migrate import MIGRATIONS, VERSION_TABLE, migrate, newest
from drangue_client.store.tables import metadata
from tests.contract.log_scenes import (
    LEASE_S,
    ask,
    at_once,
    claim,
    decision,
    elapse,
    fan_out,
    forked,
    open_rows,
    result,
    sql,
    start,
    whole,
    write,
)

TABLES = {"runs", "events", "steps", "agents"}

# All that a table is, whatever made it. An index's definition names its schema and is compared without.
DESCRIPTION = """
select c.relname, 'column', a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull
       || ' ' || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
  from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
 where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r'
union all
select t.relname, 'index', replace(pg_get_indexdef(i.indexrelid), current_schema() || '.', '')
  from pg_index i join pg_class t on t.oid = i.indrelid where t.relnamespace = current_schema()::regnamespace
union all
select t.relname, 'constraint', n.conname || ' ' || pg_get_constraintdef(n.oid)
  from pg_constraint n join pg_class t on t.oid = n.conrelid where t.relnamespace = current_schema()::regnamespace
union all
select relname, 'options', array_to_string(reloptions, ',') from pg_class
 where relnamespace = current_schema()::regnamespace and relkind = 'r'
order by 1, 2, 3
"""


@pytest.fixture
def empty(postgres: SqlLog, addresses: Any) -> Iterator[Callable[[str], str]]:
    """Make empty schemas, each as good as a database of its own; dropped after the test."""
    made: list[str] = []

    def make(name: str) -> str:
        sql(postgres, f"drop schema if exists {name} cascade")
        sql(postgres, f"create schema {name}")
        made.append(name)
        return f"{addresses.database_url}?options={quote(f'-csearch_path={name}')}"

    yield make
    for name in made:
        sql(postgres, f"drop schema {name} cascade")


def run(url: str, work: Callable[[Connection], Any]) -> Any:
    with closing(Database(url, pool_size=1)) as database:
        return database.run(work)


def description(url: str) -> list[tuple[str, str, str]]:
    rows = run(url, lambda c: [tuple(row) for row in c.execute(text(DESCRIPTION))])
    return [row for row in rows if row[0] != "drangue_version"]


def tables(url: str) -> set[str]:
    return {name for name, _, _ in description(url)}


def config_for(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def test_migrating_makes_all_tables(empty: Callable[[str], str]) -> None:
    """`drangue migrate` on an empty database is the whole installation."""
    url = empty("contract_fresh")
    assert migrate(url) == (None, newest())
    assert tables(url) == TABLES
    with closing(SqlLog(url)) as log:
        start(log)
        assert log.look("r").row.status == "running"


def test_migrating_again_changes_nothing(empty: Callable[[str], str]) -> None:
    """Every deploy runs it; runs that are under way must not notice."""
    url = empty("contract_twice")
    migrate(url)
    with closing(SqlLog(url)) as log:
        start(log)
        before = description(url)
        assert migrate(url) == (newest(), newest())
        assert description(url) == before
        assert log.look("r").row.status == "running"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_migrations_started_at_once_wait_for_each_other(empty: Callable[[str], str]) -> None:
    """Three replicas come up with the same release, each told to migrate first; one does it, all succeed."""
    url = empty("contract_at_once")
    with ExitStack() as children:
        started = [children.enter_context(forked(lambda: migrate(url))) for _ in range(3)]
        answers = [answer() for answer in started]
    assert sorted(answers, key=str) == sorted([(None, newest()), *[(newest(), newest())] * 2], key=str)
    assert tables(url) == TABLES


def test_the_migrated_tables_are_the_declared_ones(empty: Callable[[str], str]) -> None:
    """Tests and SQLite use the declaration, production the migrations: a difference is a bug seen only there."""
    migrated, declared = empty("contract_migrated"), empty("contract_declared")
    migrate(migrated)
    run(declared, metadata.create_all)
    assert description(migrated) == description(declared)


def test_alembic_finds_nothing_left_to_migrate(empty: Callable[[str], str]) -> None:
    """Whoever changes a table and forgets its migration is told here."""
    url = empty("contract_compared")
    migrate(url)

    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "version_table": VERSION_TABLE,
                # Alembic does not read a collation back; the descriptions above are compared with it.
                "include_object": lambda _, name, *__: name != "ix_steps_attempted",
            },
        )
        return list(compare_metadata(context, metadata))

    assert run(url, differences) == []


def test_a_migration_can_be_taken_back_and_made_again(empty: Callable[[str], str]) -> None:
    """A release that is rolled back takes its tables along, and the next attempt starts clean."""
    url = empty("contract_down")
    migrate(url)
    before = description(url)

    run(url, lambda c: command.downgrade(config_for(c), "base"))
    assert tables(url) == set()
    assert migrate(url) == (None, newest())
    assert description(url) == before


def test_a_migration_that_fails_leaves_nothing_behind(empty: Callable[[str], str]) -> None:
    """It is one transaction: half a set of tables could neither be used nor migrated."""
    url = empty("contract_failing")
    run(url, lambda c: c.execute(text("create table steps (mine int)")))
    with pytest.raises(Exception, match="steps"):
        migrate(url)
    assert tables(url) == {"steps"}


def test_migrating_a_database_that_is_away_says_so() -> None:
    """It is the first command anybody types, often before the server is up."""
    with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1:1 "):
        migrate("postgresql://drangue:secret@127.0.0.1:1/drangue")


class TestRunsUnderWay:
    """A deploy migrates the tables that hold the runs of the day; none of them may be lost or done twice."""

    @pytest.fixture
    def old(self, empty: Callable[[str], str]) -> Iterator[SqlLog]:
        """A log whose tables are the first release's, with a run whose model asked for two calls, one of them held."""
        url = empty("contract_old")
        with closing(SqlLog(url)) as log:
            migrate(url)
            fan_out(log)
            claim(log, step=2)
            log.db.run(lambda c: command.downgrade(config_for(c), "0001"))
            yield log

    def test_a_migration_leaves_rows_as_they_were_and_gives_the_new_columns_their_defaults(self, old: SqlLog) -> None:
        """Nothing is known of what an older program's attempts had lost."""
        columns = "run_id, step, kind, name, attempt, claim, worker, lease_until, outcome"
        query = text(f"select {columns} from steps order by step")
        before = old.db.run(lambda c: c.execute(query).all())
        assert len(before) == 2
        assert migrate(url_of(old)) == ("0001", newest())
        assert old.db.run(lambda c: c.execute(query).all()) == before
        assert [(row["tries"], row["lost"]) for row in open_rows(old).values()] == [(None, 0)] * 2

    def test_steps_from_before_the_migration_go_on(self, old: SqlLog) -> None:
        """The held one by its holder's end, the free one at once."""
        migrate(url_of(old))
        free = claim(old, step=3)
        assert (free.attempt, free.tries, free.lost) == (1, (), 0)
        assert old.claim([ask(step=2)], LEASE_S) == [None]
        elapse(old, LEASE_S + 1)
        taken_over = claim(old, step=2, worker="w2")
        assert (taken_over.attempt, taken_over.crashes, taken_over.lost) == (2, 1, 1)
        write(old, "r", result(3), claim=free.ask)
        assert old.look("r").run == whole(old)

    def test_an_older_program_still_opens_steps_after_the_migration(self, old: SqlLog) -> None:
        """In a deploy both are at work, and it names no column it does not know."""
        migrate(url_of(old))
        sql(
            old,
            "insert into steps (run_id, step, kind, priority, attempt, failures, crashes, available_at, sent_at, sends)"
            " values ('r', 4, 'model', 5, 0, 0, 0, now(), now(), 0)",
        )
        assert claim(old, step=4).lost == 0


# What the first release wrote, word for word.
FIRST_STATE = """{"v": 1, "turn": 1, "last": 3, "decision": 1, "decision_seq": 1, "answer": null, "turn_models": 1,
 "models": 1, "calls": [["read_logs", 0, 0], ["read_logs", 0, 0]], "ended": null, "reason": null}"""


class TestSnapshotsOfAnOlderProgram:
    @pytest.fixture
    def log(self, log: SqlLog) -> SqlLog:
        """A run whose model asked for two calls, as the first release left it."""
        fan_out(log)
        sql(log, "update runs set state = :state", state=FIRST_STATE)
        return log

    def test_they_are_not_believed(self, log: SqlLog) -> None:
        """They know nothing of what was used: the log does."""
        assert log.look("r").run == whole(log)
        claimed = claim(log, step=3)
        assert claimed.look.run == whole(log)
        assert claimed.decision == log.events("r")[1]
        write(log, "r", result(3), claim=claimed.ask)
        assert log.look("r").run == whole(log)

    def test_they_are_replaced_by_the_next_write(self, log: SqlLog) -> None:
        """Else each step of a run from before the deploy folds its whole log, to the run's end."""
        write(log, "r", result(2), claim=claim(log, step=2).ask)
        state = log.db.run(lambda c: c.execute(text("select state_seq from runs")).scalar())
        assert state == 2


class TestFiles:
    """SQLite files are not migrated: opening one makes what it lacks."""

    @pytest.fixture
    def old(self, file_url: str) -> str:
        """The file of a program from before the second migration, with a run in it."""
        with closing(SqlLog(file_url)) as log:
            fan_out(log)
            for column in ("tries", "lost"):
                sql(log, f"alter table steps drop column {column}")
        return file_url

    def test_a_file_of_an_older_program_gets_the_columns_it_lacks(self, old: str, tmp_path: Path) -> None:
        """And is then as a new one is, but for the order of its columns."""
        with closing(SqlLog(old)) as log, closing(SqlLog(f"sqlite:///{tmp_path / 'new.db'}")) as new:
            assert columns_of(log) == columns_of(new)
            assert [(row["tries"], row["lost"]) for row in open_rows(log).values()] == [(None, 0)] * 2
            log.release_worker(claim(log, step=2).ask.worker)
            assert claim(log, step=2).lost == 1

    def test_a_file_is_brought_up_once_however_many_open_it_at_once(self, old: str) -> None:
        """Several processes of one machine start with the same release."""
        logs = at_once(*[lambda: SqlLog(old)] * 4)
        for log in logs:
            with closing(log):
                assert [row["lost"] for row in open_rows(log).values()] == [0, 0]

    def test_a_file_of_today_is_opened_as_it_is(self, file_url: str) -> None:
        """Every process that opens it looks; none may change it."""
        with closing(SqlLog(file_url)) as log:
            start(log)
            before = log.db.run(lambda c: c.execute(text("select sql from sqlite_master order by name")).all())
        with closing(SqlLog(file_url)) as log:
            assert log.db.run(lambda c: c.execute(text("select sql from sqlite_master order by name")).all()) == before
            write(log, "r", decision(1, "read_logs"), claim=claim(log).ask)


def url_of(log: SqlLog) -> str:
    return log.db.url.render_as_string(hide_password=False)


def columns_of(log: SqlLog) -> dict[str, dict[str, tuple[str, bool, Any]]]:
    """Every column of every table: its type, whether it may be null, its default."""

    def read(connection: Connection) -> dict[str, dict[str, tuple[str, bool, Any]]]:
        return {
            table: {
                column["name"]: (str(column["type"]), column["nullable"], column["default"])
                for column in inspect(connection).get_columns(table)
            }
            for table in TABLES
        }

    return log.db.run(read)
