"""Waiting for a run, until it has stopped or event by event, and for all that waits for people.

By the log alone; Redis makes it quicker, not truer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drangue_client import checks
from drangue_client.errors import WaitTimeout
from drangue_client.events import Event
from drangue_client.folding import fold
from drangue_client.result import pending_requests
from drangue_client.run import MOVING
from drangue_client.store.port import Log
from drangue_client.store.values import RunRow
from drangue_client.wire.signals import APPROVALS_POLL_S, POLL_S, Doorbell
from drangue_client.wire.tokens import BEGINNING, TokenStream

STREAM_POLL_S = 0.2  # how often a stream looks at first; then half as often each time, down to POLL_S
MOST_ASKED = 10_000  # runs that a watch looks at, the newest first
KEPT = 10_000  # runs beyond those that wait now of which a watch knows what it has told
CONTENT = ("arguments", "asked_arguments", "reasoning", "text")  # may be long; arguments_hash stands for the first two
PATIENCE = "a number of seconds, or None to wait without end"


def until_stopped(log: Log, doorbell: Doorbell, run_id: str, timeout: float | None) -> list[Event]:
    """Wait until the run has ended or waits for a person; returns its log as it was then. Raises WaitTimeout after
    `timeout` seconds (None: never)."""
    patience = Patience(run_id, timeout)
    row = log.look(run_id).row
    if row.status in MOVING:  # else nothing is asked that could wait for Redis
        with doorbell.listen(run_id) as listener:
            while (row := log.look(run_id).row).status in MOVING:
                listener.wait(patience.left_s(row.status))
    return log_of(log, row)


@dataclass(frozen=True, slots=True)
class Grown:
    """Asks for (the status of a run that moves, "" of one that has stopped; its events behind `after`)."""

    after: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """Asks for (pieces of answers behind `place`, the place behind them), waiting for the first up to `wait_s`."""

    place: str
    wait_s: float = 0.0


def following(run_id: str, after: int, timeout: float | None) -> Generator[Grown | Pieces | Event, Any, None]:
    """What `follow` does, without doing it: what is yielded is to be asked and its answer sent, or is to be shown.

    So that waiting on a thread and waiting on an event loop are one piece of code.
    """
    patience = Patience(run_id, timeout)
    decided = 0
    if after >= 0:
        _, log = yield Grown(-1)
        decided = max((one.step or 0 for one in log if one.seq <= after and one.type == "model_decision"), default=0)
    pieces, place, quiet_s, writing = list[Event](), BEGINNING, STREAM_POLL_S, 0
    while True:
        status, events = yield Grown(after)
        # After the events: an answer is shown before it is recorded, so the pieces of these are there.
        more, place = yield Pieces(place)
        while more:
            pieces += more
            more, place = yield Pieces(place)
        for event in events:
            if event.type == "model_decision":
                step = event.step or 0
                yield from _between(decided, step, pieces)
                decided = step
            yield event
            after = event.seq
        yield from _between(decided, math.inf, pieces)
        if not status:
            return
        quiet_s = STREAM_POLL_S if events or pieces else min(2 * quiet_s, POLL_S)
        writing = pieces[-1].step or 0 if pieces else writing
        # The log is looked at when nothing comes any more, or what comes is of another step. While a decision is being
        # written nothing else is recorded, but for a cancel: that is seen within POLL_S.
        pieces, wait_s, looked_at = [], quiet_s, time.monotonic()
        while not pieces and wait_s > 0:
            more, place = yield Pieces(place, min(wait_s, patience.left_s(status)))
            if not more:
                break
            if writing <= decided or any(piece.step != writing for piece in more):
                pieces = more
            else:
                yield from more
            quiet_s, wait_s = STREAM_POLL_S, min(STREAM_POLL_S, looked_at + POLL_S - time.monotonic())


def follow(log: Log, tokens: TokenStream, run_id: str, after: int, timeout: float | None) -> Iterator[Event]:
    """The events behind the place `after` as they are written, and the pieces of answers before the decisions they
    belong to, until the run has stopped. Raises WaitTimeout after `timeout` seconds (None: never)."""
    asking = following(run_id, after, timeout)
    answer: Any = None
    while True:
        try:
            asked = asking.send(answer)
        except StopIteration:
            return
        match asked:
            case Grown(place):
                answer = grown(log, run_id, place)
            case Pieces(place, wait_s):
                answer = tokens.read(run_id, place, wait_s)
            case event:
                answer = None
                yield event


def grown(log: Log, run_id: str, after: int) -> tuple[str, list[Event]]:
    """The answer to Grown: the run and its log at one moment, whatever is written meanwhile."""
    row = log.look(run_id).row
    return row.status if row.status in MOVING else "", log_of(log, row, after)


def log_of(log: Log, row: RunRow, after: int = -1) -> list[Event]:
    """The events behind a place as they were when a run's row was read: what a person decides right afterwards is not
    among them, so that a run which was paused then reads as paused."""
    events = log.events(row.run_id, after) if row.head_seq > after else []
    return [event for event in events if event.seq <= row.head_seq]


def _between(decided: int, step: float, pieces: Sequence[Event]) -> list[Event]:
    """The pieces of steps up to `step`; those of a step that is decided come too late to be shown."""
    return [piece for piece in pieces if decided < (piece.step or 0) <= step]


class Patience:
    """How long somebody waits for a run."""

    def __init__(self, run_id: str, timeout: float | None) -> None:
        self._run_id = checks.text("run_id", run_id)
        self._limit_s = math.inf if timeout is None else checks.number("timeout", timeout, PATIENCE)
        self._began = time.monotonic()

    def left_s(self, status: str) -> float:
        """The seconds that are left, above 0. Raises WaitTimeout, with the run's `status`, when there are none."""
        left = self._limit_s - (time.monotonic() - self._began)
        if left <= 0:
            raise WaitTimeout(self._run_id, status, self._limit_s)
        return left


class Told:
    """What of the requests that wait has been told, so that each is told once, and again when it has changed in what
    whoever decides must know: who is asked, who has granted it, until when, and for which arguments. Pure."""

    def __init__(self) -> None:
        self._runs: dict[str, tuple[int, dict[int, dict[str, Any]]]] = {}  # (how far it was read, what by its step)

    def unread(self, rows: Sequence[RunRow]) -> list[RunRow]:
        """Of the runs that wait for people those that have moved since they were read, the oldest first."""
        waiting = {row.run_id for row in rows}
        gone = [run_id for run_id in self._runs if run_id not in waiting]  # for good, or they come back with the same
        for run_id in gone[: max(0, len(gone) - KEPT)]:
            del self._runs[run_id]
        return [row for row in reversed(rows) if self._read(row.run_id)[0] != row.head_seq]

    def news(self, row: RunRow, requests: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The requests of a run as it was at `row` that are to be told; they count as told from here on."""
        told = self._read(row.run_id)[1]
        now = {item["step"]: {name: item[name] for name in item if name not in CONTENT} for item in requests}
        self._runs[row.run_id] = (row.head_seq, told | now)
        return [dict(item) for item in requests if told.get(item["step"]) != now[item["step"]]]

    def _read(self, run_id: str) -> tuple[int, dict[int, dict[str, Any]]]:
        return self._runs.get(run_id, (-1, {}))


@dataclass(frozen=True, slots=True)
class Asked:
    """Asks for the rows of the runs that wait for people, newest first."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Asks for what a run waits for, as `requests_of` has it."""

    row: RunRow


@dataclass(frozen=True, slots=True)
class Ring:
    """Asks to return when it is announced that a run waits, or after at most `wait_s` seconds."""

    wait_s: float


def watching(timeout: float | None) -> Generator[Asked | Requests | Ring | dict[str, Any], Any, None]:
    """What `watch` does, without doing it: what is yielded is to be asked and its answer sent, or, a dict, to be told.

    As with `following`, threads and event loops share it.
    """
    limit_s = math.inf if timeout is None else checks.number("timeout", timeout, PATIENCE)
    ends, told = time.monotonic() + limit_s, Told()
    while True:
        rows = yield Asked()
        for row in told.unread(rows):
            requests = yield Requests(row)
            yield from told.news(row, requests)
        left = ends - time.monotonic()
        if left <= 0:
            return
        yield Ring(min(left, APPROVALS_POLL_S))


def watch(log: Log, doorbell: Doorbell, timeout: float | None) -> Iterator[dict[str, Any]]:
    """Every request that waits for a person once, and again when it has changed, until `timeout` seconds are over
    (None: for ever)."""
    asking = watching(timeout)
    answer: Any = None
    with doorbell.listen_approvals() as listener:
        while True:
            try:
                asked = asking.send(answer)
            except StopIteration:
                return
            answer = None
            match asked:
                case Asked():
                    answer = asked_runs(log)
                case Requests(row):
                    answer = requests_of(log, row)
                case Ring(wait_s):
                    listener.wait(wait_s)
                case request:
                    yield request


def asked_runs(log: Log) -> list[RunRow]:
    """The answer to Asked."""
    return log.runs(asked=True, limit=MOST_ASKED)


def requests_of(log: Log, row: RunRow) -> list[dict[str, Any]]:
    """The requests of a run that wait for a person: {run_id, agent, step, call_id, tool, arguments, ...}."""
    events = log.events(row.run_id)
    return [{"run_id": row.run_id, "agent": row.agent, **item} for item in pending_requests(fold(events), events)]
