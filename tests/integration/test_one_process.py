"""What a run in one process costs and shares: waits for the disk, questions to the log, threads, the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from drangue_client.settings import Settings
from drangue_client.store.database import Database
from drangue_client.store.values import NewRun
from drangue_worker import Agent, InMemoryStore, SQLiteStore, tool
from drangue_worker.engine.runtime import WAITED_S, Runtime
from drangue_worker.registry import OneAgent
from drangue_worker.testing.fake import FakeModel
from tests.contract.log_scenes import forked

TURNS = 10  # a turn is a model step and a tool step


@tool
async def add(a: int, b: int) -> int:
    """Add."""
    return a + b


def adder(store: Any, calls: int = 1, turns: int = TURNS) -> Agent:
    decisions = [[("add", {"a": turn, "b": call}) for call in range(calls)] for turn in range(turns)]
    return Agent(FakeModel([*decisions, "done"], by_turn=True), [add], store=store)


@contextmanager
def transactions() -> Iterator[Counter[str]]:
    """How many transactions were `durable`, `hasty` and for reading alone, and how many went the `plain` way."""
    seen: Counter[str] = Counter()
    file, run = Database.file, Database.run

    def noted_file(self: Database, work: Any, *, durable: bool = True, reads: bool = False) -> Any:
        seen["reads" if reads else "durable" if durable else "hasty"] += 1
        return file(self, work, durable=durable, reads=reads)

    def noted_run(self: Database, work: Any, **more: Any) -> Any:
        seen["plain"] += 1
        return run(self, work, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "file", noted_file)
        patch.setattr(Database, "run", noted_run)
        yield seen


def test_a_step_in_one_process_waits_for_the_disk_once(tmp_path: Path) -> None:
    """A claim and a result are all that a step writes, and only the result may not be lost; nobody asks in between."""
    with closing(SQLiteStore(tmp_path / "runs.db")) as store, transactions() as seen:
        assert adder(store).run_sync("go").status == "completed"
    steps = 2 * TURNS + 1
    assert seen["durable"] == steps + 1  # and the submission
    assert seen["hasty"] == steps + 1, "the claims and the run's beginning"
    assert seen["reads"] <= 4, "where the run stands, before and after it has begun; that nothing is left; the result"
    assert seen["plain"] == 0


def test_siblings_in_one_process_go_together(tmp_path: Path) -> None:
    """Ten results that are there at once need not wait for the disk ten times."""
    with closing(SQLiteStore(tmp_path / "runs.db")) as store, transactions() as seen:
        assert adder(store, calls=10, turns=1).run_sync("go").status == "completed"
    assert seen["durable"] <= 3 + 6  # the submission and two thoughts, and what the ten come to


def test_runs_of_one_process_share_their_threads() -> None:
    """A thread takes longer to start than a step to be recorded."""
    store = InMemoryStore()
    asyncio.run(adder(store, turns=1).run("go"))
    before = {thread for thread in threading.enumerate() if thread.name.startswith("drangue-")}
    for _ in range(20):
        asyncio.run(adder(store, turns=1).run("go"))
    after = {thread for thread in threading.enumerate() if thread.name.startswith("drangue-")}
    assert before <= after
    assert len(after) <= len(before) + 4


def test_a_forked_child_has_threads_of_its_own(tmp_path: Path) -> None:
    """Of its parent's it has the names alone: what waits for one of those waits for ever."""
    asyncio.run(adder(InMemoryStore(), turns=1).run("go"))

    def child() -> str:
        with closing(SQLiteStore(tmp_path / "child.db")) as store:
            return asyncio.run(adder(store, turns=1).run("go")).status

    with forked(child) as answer:
        assert answer() == "completed"


def test_a_file_that_somebody_holds_keeps_the_event_loop_once(tmp_path: Path) -> None:
    """Who waits for a file on the loop keeps all else from going on; what had to wait once is asked from a thread."""
    path = tmp_path / "runs.db"
    with closing(SQLiteStore(path)) as store, closing(sqlite3.connect(path, check_same_thread=False)) as other:
        runtime = Runtime(store, OneAgent([adder(store).blueprint]), Settings(), "w", direct=True)
        on_loop = threading.get_ident()
        asked: list[bool] = []

        def submit(run_id: str) -> bool:
            asked.append(threading.get_ident() == on_loop)
            return store.submit([NewRun(run_id, "agent", "go", executor="inline")])[0][1]

        async def work() -> list[bool]:
            other.execute("begin immediate")
            threading.Timer(3 * WAITED_S, other.rollback).start()
            return [await runtime.database(submit, "a"), await runtime.database(submit, "b")]

        assert asyncio.run(work()) == [True, True]
        assert asked == [True, False]
        runtime.close()


def test_the_loop_of_somebody_else_is_not_kept(tmp_path: Path) -> None:
    """Others have work on it, and a disk may take its time."""
    with closing(SQLiteStore(tmp_path / "runs.db")) as store:
        on_loop: set[bool] = set()
        file = Database.file

        def noted(self: Database, *args: Any, **more: Any) -> Any:
            on_loop.add(asyncio._get_running_loop() is not None)
            return file(self, *args, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Database, "file", noted)
            assert asyncio.run(adder(store, turns=1).run("go")).status == "completed"
            assert on_loop == {False}
            adder(store, turns=1).run_sync("go")
            assert on_loop == {False, True}
