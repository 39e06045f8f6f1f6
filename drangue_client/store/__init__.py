"""The log of every run, on Postgres or SQLite, behind one port."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from drangue_client import checks
from drangue_client.store.log import SqlLog
from drangue_client.store.port import Log as Store


class InMemoryStore(SqlLog):
    """A log in this process's memory, gone with it."""

    def __init__(self) -> None:
        super().__init__("sqlite://")


class SQLiteStore(SqlLog):
    """A log in one file, shared by the processes of one machine."""

    def __init__(self, path: str | Path) -> None:
        checks.kind("path", path, (str, Path), "the path of a file")
        checks.text("path", str(path), "the path of a file", blank=False)
        super().__init__(URL.create("sqlite", database=str(path)))


class PostgresStore(SqlLog):
    """A log in Postgres; its tables are made by `drangue migrate`."""

    def __init__(self, url: str) -> None:
        checks.text("url", url, "a Postgres URL, such as postgresql://user@host/name", hidden=True)
        try:
            backend = make_url(url).get_backend_name()
        except ArgumentError:  # its text quotes the address, and that holds a password
            backend = ""
        if backend not in ("postgresql", "postgres"):
            raise ValueError(
                "url is no Postgres URL; it must be one, such as postgresql://user@host/name. "
                "Use SQLiteStore(path) for a file."
            )
        super().__init__(url)


__all__ = ["InMemoryStore", "PostgresStore", "SQLiteStore", "Store"]
