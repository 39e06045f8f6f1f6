"""The loop pool under Celery's own hub: everything that is begun is answered for, and at a stop too."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery
from kombu.asynchronous import Hub

from drangue_worker.fleet.pool import TaskPool

LIMIT = 20


@pytest.fixture
def app() -> Celery:
    """An app with tasks of ours, which say what to begin, and one of somebody else's."""
    app = Celery("pool", set_as_current=False)

    async def wait(seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def fail() -> None:
        raise RuntimeError("not to be told")

    def nothing(*_: Any) -> None:
        raise AssertionError("a task's own function is for a pool of processes")

    app.task(name="wait", shared=False, work=staticmethod(wait))(nothing)
    app.task(name="fail", shared=False, work=staticmethod(fail))(nothing)
    app.task(name="theirs", shared=False)(nothing)
    app.finalize()
    return app


class Driven:
    """A pool that a hub's thread drives, as a worker's does: it hands over while there is room."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.pool = TaskPool(limit=LIMIT, app=app)
        self.hub = Hub()
        self.answers: list[Any] = []
        self.began: list[int] = []

    def begin(self, name: str, *args: Any, target: Callable[..., Any] = lambda *_: (0, "theirs", 0.0)) -> None:
        told = (name, name, {}, json.dumps([args, {}, {}]), "application/json", "utf-8")
        self.pool.on_apply(target, told, {}, self.answers.append, lambda number, _: self.began.append(number))

    def turn(self, until: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Let the hub's loop turn until something holds."""
        loop, end = self.hub.create_loop(), time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < end, f"{len(self.answers)} answers of {len(self.began)}"
            next(loop)


@contextmanager
def driven(app: Celery) -> Iterator[Driven]:
    made = Driven(app)
    made.pool.register_with_event_loop(made.hub)
    made.hub.timer.call_repeatedly(0.05, lambda: None)  # as a worker's heartbeats do: a poll is never long
    try:
        yield made
    finally:
        made.pool.on_stop()
        made.hub.close()


def test_thousands_are_answered_for_while_the_pool_is_full(app: Celery) -> None:
    """Room is known by answers alone: one that nobody hears of would stop a worker for good."""
    with driven(app) as one:
        left = 3000
        while left:
            one.turn(lambda: len(one.began) - len(one.answers) < LIMIT)
            for _ in range(min(left, LIMIT - len(one.began) + len(one.answers))):
                one.begin("wait", 0)
                left -= 1
        one.turn(lambda: len(one.answers) == 3000)
    assert {answer[:2] for answer in one.answers} == {(0, "None")}
    assert len(set(one.began)) == 3000


def test_a_failure_is_told_by_its_kind(app: Celery) -> None:
    """What Celery is told shows in Flower; the text of an exception may hold anything."""
    with driven(app) as one:
        one.begin("fail")
        one.turn(lambda: bool(one.answers))
    ((failed, told, _),) = one.answers
    assert failed == 1
    assert repr(told.exception.exc) == "StepError('RuntimeError')"


def test_what_is_no_coroutine_runs_on_a_thread(app: Celery) -> None:
    """An application's own app may have other tasks: they must not stand on the event loop."""
    with driven(app) as one:
        seen: list[str] = []
        one.begin("theirs", target=lambda *_: seen.append(threading.current_thread().name) or (0, "theirs", 0.0))
        one.turn(lambda: bool(one.answers))
    assert one.answers == [(0, "theirs", 0.0)]
    assert seen[0].startswith("drangue-task")


def test_a_job_is_told_to_stop_by_its_number(app: Celery) -> None:
    """Revoke with terminate, and a cold shutdown, end what is under way."""
    with driven(app) as one:
        one.begin("wait", 600)
        one.pool.terminate_job(one.began[0])
        one.turn(lambda: bool(one.answers))
    assert one.answers[0][0] == 1


def test_a_stop_waits_for_what_is_under_way_and_answers_for_it(app: Celery) -> None:
    """A warm shutdown ends after its tasks, and acknowledges them."""
    with driven(app) as one:
        for _ in range(5):
            one.begin("wait", 0.05)
    assert len(one.answers) == 5


def test_a_task_of_others_that_cannot_be_read_is_answered_for_too(app: Celery) -> None:
    """It would keep its place for ever, and a stop would wait for it."""

    def broken(*_: Any) -> Any:
        raise ValueError("not enough values to unpack")

    def ended(*_: Any) -> Any:
        raise SystemExit(1)

    with driven(app) as one:
        one.begin("theirs", target=broken)
        one.begin("theirs", target=ended)
        one.turn(lambda: len(one.answers) == 2)
    assert [answer[0] for answer in one.answers] == [1, 1]


def test_a_stop_on_top_of_a_stop_ends_both(app: Celery) -> None:
    """A second Ctrl-C stops the pool from inside the handler, while the first stop waits for what is under way."""
    with driven(app) as one:
        one.begin("wait", 600)
        inner = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGUSR2))

        def stop_again(*_: Any) -> None:
            one.pool.terminate_job(one.began[0])
            one.pool.on_stop()

        before = signal.signal(signal.SIGUSR2, stop_again)
        try:
            inner.start()
            one.pool.on_stop()
        finally:
            signal.signal(signal.SIGUSR2, before)
    assert len(one.answers) == 1


def test_a_stop_does_not_wait_for_what_was_never_begun(app: Celery) -> None:
    """A signal may come while a task is being handed over: nobody would ever end it."""
    with driven(app) as one:

        def stop(*_: Any) -> None:
            one.pool.on_stop()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            one.pool.on_apply(None, ("wait", "", {}, "", "application/json", ""), {}, one.answers.append, stop)
