"""A web application as a server process of its own, people who use it, and readers of its server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2


@dataclass(frozen=True, slots=True)
class Sent:
    """One server-sent event; a comment has no `event`."""

    id: str | None
    event: str
    data: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


@dataclass(frozen=True, slots=True)
class Site:
    """A server that answers at `http`, with the id of its process."""

    http: httpx2.Client
    pid: int

    @property
    def threads(self) -> int:
        """How many threads its process has now, by the kernel's count."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    @contextmanager
    def events(self, path: str, after: int | None = None) -> Iterator[Iterator[Sent]]:
        """What is sent, as it is sent; leaving the block hangs up."""
        headers = {"X-User": "ann"} | ({} if after is None else {"Last-Event-ID": str(after)})
        own = httpx2.Client(base_url=self.http.base_url, timeout=60)  # whose connection ends with the block
        with own, own.stream("GET", f"{path}/events", headers=headers) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield read_events(answer.iter_lines())


def read_events(lines: Iterator[str]) -> Iterator[Sent]:
    """Server-sent events by the lines of their format, comments with them."""
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if line and not name:
            yield Sent(None, "", value.strip())
        elif line:
            found[name] = value.removeprefix(" ")
        elif found:
            yield Sent(found.get("id"), found["event"], found["data"])
            found = {}
    assert not found, f"cut in the middle of {found}"


@dataclass(frozen=True)
class Web:
    """Somebody who uses one of the applications, which `takes` "json" or the "data" of a form."""

    site: Site
    takes: str

    def post(self, path: str, user: str = "ann", **given: str) -> httpx2.Response:
        headers = {"X-User": user} if user else {}
        return self.site.http.post(path, **{self.takes: given}, headers=headers)  # type: ignore[arg-type]

    def ticket(self, text: str, user: str = "ann") -> str:
        """A new ticket's path."""
        created = self.post("/tickets", user, text=f"{text} ({self.takes})")
        assert created.status_code == 201, created.text
        return str(created.headers["location"])

    def look(self, path: str) -> dict[str, Any]:
        told: dict[str, Any] = self.site.http.get(path, headers={"X-User": "ann"}).json()
        return told

    def watch(self, path: str, after: int | None = None) -> list[Sent]:
        """All that is sent to the end, comments left out."""
        with self.site.events(path, after) as sent:
            return [one for one in sent if one.event]


def run_of(path: str) -> str:
    return path.rpartition("/")[2]
