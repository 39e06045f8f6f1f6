"""The log of every run, on Postgres or SQLite, behind one port."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url

from drangue_client.store.log import SqlLog
from drangue_client.store.port import Log as Store


class InMemoryStore(SqlLog):
    """A log in this process's memory, gone with it."""

    def __init__(self) -> None:
        super().__init__("sqlite://")


class SQLiteStore(SqlLog):
    """A log in one file, shared by the processes of one machine."""

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, str | Path) or not str(path):
            raise TypeError(f"path is {path!r}; it must name a file.")
        super().__init__(URL.create("sqlite", database=str(path)))


class PostgresStore(SqlLog):
    """A log in Postgres; its tables are made by `drangue migrate`."""

    def __init__(self, url: str) -> None:
        if not isinstance(url, str):
            raise TypeError(f"url is {url!r}; it must be text, such as postgresql://user@host/name.")
        if make_url(url).get_backend_name() not in ("postgresql", "postgres"):
            raise ValueError("url is not a Postgres URL; use SQLiteStore(path) for a file.")
        super().__init__(url)


__all__ = ["InMemoryStore", "PostgresStore", "SQLiteStore", "Store"]
