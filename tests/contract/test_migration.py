"""The migrations: safe to repeat and to run at once, and leading to the very tables that the code declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any
from urllib.parse import quote

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from drangue_client.errors import DatabaseUnavailable
from drangue_client.store.database import Database
from drangue_client.store.log import SqlLog
from drangue_client.store.migrate import MIGRATIONS, VERSION_TABLE, migrate, newest
from drangue_client.store.tables import metadata
from tests.contract.log_scenes import forked, sql, start

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
            connection, opts={"compare_type": True, "compare_server_default": True, "version_table": VERSION_TABLE}
        )
        return list(compare_metadata(context, metadata))

    assert run(url, differences) == []


def test_a_migration_can_be_taken_back_and_made_again(empty: Callable[[str], str]) -> None:
    """A release that is rolled back takes its tables along, and the next attempt starts clean."""
    url = empty("contract_down")
    migrate(url)
    before = description(url)

    def down(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.downgrade(config, "base")

    run(url, down)
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
