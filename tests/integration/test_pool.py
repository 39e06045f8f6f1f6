"""The loop pool under Celery's own hub: everything that is begun is answered for, and at a stop too."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from celery import Celery
from kombu.asynchronous import Hub

from drangue_worker.fleet.aio import Job, LoopThread, loop_thread
from drangue_worker.fleet.pool import TaskPool
from tests.kit.fleet import wait_until

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

    app.task(name="wait", shared=False, drangue_work=staticmethod(wait))(nothing)
    app.task(name="fail", shared=False, drangue_work=staticmethod(fail))(nothing)
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


class Ahead:
    """Tasks that begin before their messages come: `told` of when those shall."""

    def __init__(self, one: Driven) -> None:
        self.one = one
        self.told: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}

    def begin(self, *names: str, tell: bool = True) -> None:
        works = {name: functools.partial(self._wait, name) for name in names}
        self.one.pool.begin_ahead(works, lambda: self._tell(names) if tell else None)

    def _tell(self, names: Sequence[str]) -> None:
        for name in names:
            self.message(name)
            self.told.append(name)

    def message(self, name: str) -> None:
        told = ("wait", name, {}, json.dumps([[600], {}, {}]), "application/json", "utf-8")
        self.one.pool.on_apply(None, told, {}, self.one.answers.append, lambda number, _: self.one.began.append(number))
        self.one.pool.leave(name)

    async def _wait(self, name: str) -> None:
        gate = self.gates[name] = asyncio.Event()
        await gate.wait()

    def end(self, name: str) -> None:
        wait_until(lambda: name in self.gates)
        loop_thread().call(self.gates[name].set)


def test_a_task_that_began_ahead_of_its_message_is_the_same_task(app: Celery) -> None:
    """It is begun once, answered for once, and told to stop by its number."""
    with driven(app) as one:
        ahead = Ahead(one)
        ahead.begin("a", "b")
        assert one.pool.ahead == 2
        one.turn(lambda: ahead.told == ["a", "b"])
        assert (one.pool.ahead, len(one.began), one.answers) == (0, 2, [])
        ahead.end("a")
        one.turn(lambda: len(one.answers) == 1)
        one.pool.terminate_job(one.began[1])
        one.turn(lambda: len(one.answers) == 2)
    assert [answer[0] for answer in one.answers] == [0, 1]


def test_a_task_that_ended_ahead_of_its_message_is_answered_for_when_it_comes(app: Celery) -> None:
    """Most are over in a moment; what Celery shows of them is right all the same."""
    with driven(app) as one:
        ahead = Ahead(one)
        ahead.begin("a", tell=False)
        ahead.end("a")
        wait_until(lambda: all(job.ended for job in one.pool._jobs.values()))
        one.turn(lambda: next(iter(one.pool._jobs.values())).answer is not None)
        ahead.message("a")
        assert [answer[:2] for answer in one.answers] == [(0, "None")]
        assert (one.pool.ahead, one.pool._get_info()["running"]) == (0, 0)


def test_a_task_whose_message_never_comes_keeps_no_place(app: Celery) -> None:
    """The connection to the broker was lost, or somebody revoked it: it goes on, and nobody is told."""
    with driven(app) as one:
        ahead = Ahead(one)
        ahead.begin("a", "b", tell=False)
        ahead.end("a")
        one.turn(lambda: any(job.answer for job in one.pool._jobs.values()))
        for name in ("a", "b"):
            one.pool.leave(name)
        assert (one.pool.ahead, one.pool._get_info()["running"]) == (0, 1)
        ahead.end("b")
        one.turn(lambda: one.pool._get_info()["running"] == 0)
    assert one.answers == []


def test_a_stop_waits_for_what_began_ahead(app: Celery) -> None:
    """Celery has never heard of it, and it is under way like any other."""
    with driven(app) as one:
        ahead = Ahead(one)
        ahead.begin("a", tell=False)
        threading.Timer(0.3, lambda: ahead.end("a")).start()
        one.pool.on_stop()
        assert [job.ended for job in one.pool._jobs.values()] == [True]


def test_a_cold_stop_cancels_what_began_ahead(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery cancels the requests it knows of; nobody else would end this one before it has its answer."""
    with driven(app) as one:
        ahead = Ahead(one)
        ahead.begin("a", tell=False)
        wait_until(lambda: "a" in ahead.gates)
        monkeypatch.setattr("celery.worker.state.should_terminate", True)
        one.pool.on_stop()
        assert [job.ended for job in one.pool._jobs.values()] == [True]


@pytest.mark.parametrize("first", ["drain", "begin"])
def test_what_a_drain_meets_before_it_has_begun_begins_and_is_told_to_stop(first: str) -> None:
    """A step that was claimed for it must be given back, which only its own code can do."""
    loop, seen = LoopThread().start(), list[str]()
    ended = threading.Event()

    async def work() -> None:
        seen.append("began")
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            seen.append("told to stop")

    def begin() -> None:
        loop.begin(Job(1), work, lambda _: ended.set())

    blocked, free = threading.Event(), threading.Event()
    loop.loop.call_soon_threadsafe(lambda: (blocked.set(), free.wait(10)))
    assert blocked.wait(10)
    draining = threading.Thread(target=loop.drain)
    for act in (draining.start, begin) if first == "drain" else (begin, draining.start):
        act()
        wait_until(lambda: loop._draining or first == "begin")
    wait_until(lambda: loop._draining)
    free.set()
    draining.join(10)
    assert ended.wait(10)
    assert seen == ["began", "told to stop"]
    loop.loop.call_soon_threadsafe(loop.loop.stop)
    assert loop._thread is not None
    loop._thread.join(10)
    loop.loop.close()


def test_what_is_begun_belongs_to_nothing_that_was_at_work() -> None:
    """A step begins its successor, from the loop or from a thread; that one's log lines and spans are its own."""
    whose: ContextVar[str] = ContextVar("whose", default="nobody's")
    loop, seen, ended = LoopThread().start(), list[str](), threading.Event()

    async def successor() -> None:
        seen.append(whose.get())

    async def step() -> None:
        whose.set("the first's")
        loop.begin(Job(2), successor, lambda _: ended.set())

    loop.begin(Job(1), step, lambda _: None)
    assert ended.wait(10)
    ended.clear()
    whose.set("this thread's")
    loop.begin(Job(3), successor, lambda _: ended.set())
    assert ended.wait(10)
    assert seen == ["nobody's"] * 2
    loop.loop.call_soon_threadsafe(loop.loop.stop)
    assert loop._thread is not None
    loop._thread.join(10)
    loop.loop.close()
