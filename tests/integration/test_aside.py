"""Aside: blocking work on the event loop's own thread, which goes on with other things where Postgres is slow."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from contextvars import ContextVar
from functools import partial
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from drangue_client.errors import DatabaseUnavailable
from drangue_client.settings import Settings
from drangue_client.store import PostgresStore
from drangue_client.store.database import Database
from drangue_client.store.values import NewRun, StepRef
from drangue_worker import Agent, tool
from drangue_worker.engine import aside
from drangue_worker.engine.coordinate import Next, move_on
from drangue_worker.engine.perform import perform
from drangue_worker.engine.runtime import Runtime
from drangue_worker.registry import OneAgent
from drangue_worker.testing.fake import FakeModel
from tests.kit.fleet import wait_until

SLOW = "select pg_sleep(0.2)"
WHOSE: ContextVar[str] = ContextVar("WHOSE", default="nobody's")


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url)) as made:
        made.wait_by(aside)
        made.alone("select 1", {})
        yield made


async def beats(work: asyncio.Future[Any]) -> int:
    """How often a loop comes to something else while it waits for work."""
    count = 0
    while not work.done():
        await asyncio.sleep(0.01)
        count += 1
    return count


class TestWork:
    def test_what_is_answered_at_once_never_leaves_the_loop_s_turn(
        self, db: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No other task gets a turn in between, and no thread is asked."""
        monkeypatch.setattr(aside, "MOMENT_MS", 60_000)  # whatever else this machine does

        async def main() -> list[Any]:
            order: list[Any] = []
            asyncio.get_running_loop().call_soon(order.append, "another")
            order.append(await aside.do(lambda: (db.alone("select 7", {}), threading.get_ident(), aside.inside())))
            return [*order]

        ((rows, thread, inside),) = asyncio.run(main())
        assert (rows, thread, inside) == ([(7,)], threading.get_ident(), True)
        assert not aside.inside()

    def test_the_loop_is_left_once_for_each_answer_that_is_late(
        self, db: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever there is to wait for."""
        monkeypatch.setattr(aside, "MOMENT_MS", 0)

        async def main() -> list[Any]:
            return [await aside.do(partial(db.alone, "select %(n)s::int", {"n": n})) for n in range(20)]

        assert asyncio.run(main()) == [[(n,)] for n in range(20)]

    @pytest.mark.parametrize("durable", [True, False])
    def test_a_loop_goes_on_while_postgres_takes_its_time(self, db: Database, durable: bool) -> None:
        """A statement alone, and a transaction of several."""

        def whole(connection: Any) -> Any:
            connection.execute(text(SLOW))
            return connection.execute(text("select 7")).scalar()

        async def main() -> tuple[Any, Any, int]:
            db.run(lambda c: c.execute(text("select 1")), durable=durable)  # its connection is made
            one = asyncio.ensure_future(aside.do(lambda: db.alone(f"{SLOW}::text, 7", {})))
            other = asyncio.ensure_future(aside.do(lambda: db.run(whole, durable=durable)))
            count = await beats(asyncio.gather(one, other))
            return await one, await other, count

        one, other, count = asyncio.run(main())
        assert (one, other) == ([("", 7)], 7)
        assert count >= 10

    def test_much_is_sent_and_much_is_read(self, db: Database) -> None:
        """More than a socket takes at once, in both directions."""
        much = "x" * 20_000_000

        async def main() -> Any:
            return await aside.do(lambda: db.alone("select %(much)s::text", {"much": much}))

        assert asyncio.run(main()) == [(much,)]

    def test_an_error_is_raised_whenever_it_comes(self, db: Database) -> None:
        """At once, and after the work was left standing; the connection is good for the next."""

        async def main() -> None:
            for wrong in ("select 1/0", f"select 1/(select count(*) - 1 from ({SLOW}) as slept)"):
                with pytest.raises(Exception, match="division by zero"):
                    await aside.do(partial(db.alone, wrong, {}))
            assert await aside.do(lambda: db.alone("select 7", {})) == [(7,)]

        asyncio.run(main())

    def test_who_is_cancelled_waits_for_what_is_written(self, db: Database) -> None:
        """Nothing is left half known: a step that is drained while it is recorded has been recorded."""

        async def main() -> tuple[Any, int]:
            async def caller() -> tuple[Any, int]:
                done = await aside.do(lambda: db.alone(f"{SLOW}::text, 7", {}))
                task = asyncio.current_task()
                assert task is not None
                return done, task.cancelling()

            task = asyncio.ensure_future(caller())
            for _ in range(3):
                await asyncio.sleep(0.02)
                task.cancel()
            return await task

        assert asyncio.run(main()) == ([("", 7)], 3)

    def test_a_connection_that_is_ended_under_it_is_an_error_and_another_is_made_elsewhere(
        self, db: Database, database_url: str
    ) -> None:
        """A database that restarts. To make a connection takes as long as it takes, so the loop does not."""
        kill = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'drangue'"

        async def main() -> None:
            work = asyncio.ensure_future(aside.do(lambda: db.alone("select pg_sleep(30)", {})))
            await asyncio.sleep(0.1)
            with psycopg.connect(database_url, autocommit=True) as other:
                other.execute(kill)
            with pytest.raises(DatabaseUnavailable):
                await work
            assert not db.idle
            with pytest.raises(DatabaseUnavailable, match="no connection is idle"):
                await aside.do(lambda: db.alone("select 7", {}))
            assert await asyncio.to_thread(db.alone, "select 7", {}) == [(7,)]
            assert db.idle
            assert await aside.do(lambda: db.alone("select 7", {})) == [(7,)]

        asyncio.run(main())

    def test_where_every_connection_is_taken_nobody_waits_for_one(self, db: Database) -> None:
        """A pool lets its callers wait, on whatever thread they are."""

        async def main() -> None:
            engine: Any = db.engine("alone")
            taken = [await asyncio.to_thread(engine.raw_connection) for _ in range(10)]
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailable, match="no connection is idle"):
                await aside.do(lambda: db.alone("select 7", {}))
            assert time.monotonic() - began < 10
            for one in taken:
                one.close()

        asyncio.run(main())

    def test_it_is_the_caller_s_context(self, db: Database) -> None:
        """A line that is logged in there names the run, also behind a wait."""

        async def main() -> list[str]:
            WHOSE.set("mine")
            return await aside.do(lambda: [WHOSE.get(), str(db.alone(SLOW, {}))[:1], WHOSE.get()])

        assert asyncio.run(main()) == ["mine", "[", "mine"]
        assert WHOSE.get() == "nobody's"


@tool
def count(n: int) -> int:
    """Count."""
    return n + 1


class Scene:
    """A runtime that is quiet while it is told so, and where its work was done."""

    def __init__(self, log: PostgresStore, agent: Agent, **more: Any) -> None:
        self.quiet = True
        self.threads: list[str] = []
        self.told: list[tuple[str, int]] = []
        log.db.wait_by(aside)
        self.log = log
        self.runtime = Runtime(
            log, OneAgent([agent.blueprint]), Settings(), worker="test/1", executor="celery", patient=True,
            publish=self.publish, quiet=lambda: self.quiet and log.db.idle, **more,
        )  # fmt: skip
        settle = log.settle

        def noted(moves: Any) -> Any:
            self.threads.append(threading.current_thread().name)
            return settle(moves)

        log.settle = noted  # type: ignore[method-assign]

    def publish(self, steps: Any) -> None:
        self.told += [(threading.current_thread().name, ref.step) for ref in steps]

    async def whole(self) -> str:
        """A run from its submission to its end, by messages."""
        self.log.submit([NewRun("r", "agent", "go")])
        opened: tuple[StepRef, ...] = (await self.runtime.together(move_on, Next("r"))).opened
        while opened:
            opened = (await perform(self.runtime, "r", opened[0].step)).opened
        return self.log.look("r").row.status


@pytest.fixture
def scene(database_url: str) -> Iterator[Scene]:
    agent = Agent(FakeModel([[("count", {"n": 1})], "done"]), [count])
    with closing(PostgresStore(database_url)) as log:
        made = Scene(log, agent)
        with closing(made.runtime):
            yield made


class TestRuntime:
    def test_a_process_with_nothing_else_to_do_settles_by_itself(self, scene: Scene) -> None:
        """What may take long besides, as telling others, is a thread's."""
        assert asyncio.run(scene.whole()) == "completed"
        assert set(scene.threads) == {"MainThread"}
        wait_until(lambda: [step for _, step in scene.told] == [1, 2, 3])
        assert {thread.partition("_")[0] for thread, _ in scene.told} == {"drangue-tell"}

    def test_with_company_a_thread_does(self, scene: Scene) -> None:
        """Where what waits is gathered."""
        scene.quiet = False
        assert asyncio.run(scene.whole()) == "completed"
        assert set(scene.threads) == {"drangue-move_on"}
        assert [step for _, step in scene.told] == [1, 2, 3]

    def test_a_run_that_somebody_has_locked_holds_nobody_up(self, scene: Scene, database_url: str) -> None:
        """An application's own transaction, which may take as long as it likes."""

        async def main() -> int:
            scene.log.submit([NewRun("r", "agent", "go")])
            with psycopg.connect(database_url) as other:
                other.execute("select 1 from runs where run_id = 'r' for update")
                work = asyncio.ensure_future(scene.runtime.together(move_on, Next("r")))
                ticking = asyncio.ensure_future(beats(work))
                await asyncio.sleep(0.3)
                assert not work.done()
                await asyncio.to_thread(other.rollback)
            assert [ref.step for ref in (await work).opened] == [1]
            return await ticking

        assert asyncio.run(main()) >= 10

    def test_a_database_that_is_away_is_waited_out_on_a_thread(self, scene: Scene, database_url: str) -> None:
        """The step's result is recorded when it is back, with nothing else held up meanwhile."""
        kill = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'drangue'"
        scene.log.submit([NewRun("r", "agent", "go")])
        with psycopg.connect(database_url, autocommit=True) as other:
            other.execute(kill)
        assert scene.log.db.idle  # as far as anybody can tell
        assert [ref.step for ref in asyncio.run(self._moved(scene))] == [1]
        assert scene.threads[-1] == "drangue-move_on"

    @staticmethod
    async def _moved(scene: Scene) -> Any:
        return (await scene.runtime.together(move_on, Next("r"))).opened
