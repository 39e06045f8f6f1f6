"""Bring a Postgres database to the newest tables. Repeating is safe; two at once wait for each other."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from drangue_client.errors import DatabaseUnavailable
from drangue_client.store.database import Database

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "drangue_version"  # the application beside us may keep its own in Alembic's usual table
DUPLICATE_TABLE = "42P07"
LOCK = 0x6472616E  # "dran": one migration at a time, whoever starts it


def migrate(url: str) -> tuple[str | None, str]:
    """Upgrade the tables at `url`; returns the revisions before and after. Raises DatabaseUnavailable."""
    database = Database(url, pool_size=1)

    def work(connection: Connection) -> tuple[str | None, str]:
        connection.exec_driver_sql(f"select pg_advisory_xact_lock({LOCK})")
        before = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return before, newest()

    try:
        return database.run(work)
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", "") != DUPLICATE_TABLE:
            raise
        raise DatabaseUnavailable(
            f"the database at {database.where} holds a table that is not drangue's but has its name "
            f"({str(error.orig).splitlines()[0]}). Give drangue a database, or a schema, of its own."
        ) from error
    finally:
        database.close()


def current(url: str) -> str | None:
    """The revision that the tables at `url` are at; None where there are none. Raises DatabaseUnavailable."""
    database = Database(url, pool_size=1)
    options = {"version_table": VERSION_TABLE}
    try:
        return database.run(lambda c: MigrationContext.configure(c, opts=options).get_current_revision())
    finally:
        database.close()


def newest() -> str:
    """The revision that this program's tables are at."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config
