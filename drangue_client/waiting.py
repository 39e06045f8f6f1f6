"""Waiting for a run: until it has stopped, or event by event. By the log alone; Redis makes it quicker, not truer."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from drangue_client import checks
from drangue_client.errors import WaitTimeout
from drangue_client.events import Event
from drangue_client.run import MOVING
from drangue_client.store.port import Log
from drangue_client.wire.signals import Doorbell
from drangue_client.wire.tokens import BEGINNING, TokenStream

STREAM_POLL_S = 0.2  # how old an event may be when a stream shows it


def until_stopped(log: Log, doorbell: Doorbell, run_id: str, timeout: float | None) -> None:
    """Return when the run has ended or waits for a person. Raises WaitTimeout after `timeout` seconds (None: never)."""
    patience = Patience(run_id, timeout)
    if not moving(log, run_id):  # before anything that could wait for Redis
        return
    with doorbell.listen(run_id) as listener:
        while status := moving(log, run_id):
            listener.wait(patience.left_s(status))


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
    _, log = yield Grown(-1)
    known = [event for event in log if event.seq <= after]
    decided = max((event.step or 0 for event in known if event.type == "model_decision"), default=0)
    pieces, place = list[Event](), BEGINNING
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
        pieces, place = yield Pieces(place, min(STREAM_POLL_S, patience.left_s(status)))


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
    """The answer to Grown. The status is read first: what ends the run is among the events then."""
    return moving(log, run_id), log.events(run_id, after)


def _between(decided: int, step: float, pieces: Sequence[Event]) -> list[Event]:
    """The pieces of steps up to `step`; those of a step that is decided come too late to be shown."""
    return [piece for piece in pieces if decided < (piece.step or 0) <= step]


def moving(log: Log, run_id: str) -> str:
    """The status of a run that goes on by itself; empty for one that has stopped."""
    status = log.look(run_id).row.status
    return status if status in MOVING else ""


class Patience:
    """How long somebody waits for a run."""

    def __init__(self, run_id: str, timeout: float | None) -> None:
        what = "a number of seconds, or None to wait without end"
        self._run_id = checks.text("run_id", run_id)
        self._limit_s = math.inf if timeout is None else checks.number("timeout", timeout, what)
        self._began = time.monotonic()

    def left_s(self, status: str) -> float:
        """The seconds that are left, above 0. Raises WaitTimeout, with the run's `status`, when there are none."""
        left = self._limit_s - (time.monotonic() - self._began)
        if left <= 0:
            raise WaitTimeout(self._run_id, status, self._limit_s)
        return left
