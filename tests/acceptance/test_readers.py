"""Two hundred readers of fifty live runs, in four processes that have nothing to do with each other."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from drangue_client import AsyncClient
from drangue_client.events import Event
from drangue_worker.testing.provider import ProviderCall, Reply
from tests.acceptance.shell import environment, running
from tests.kit.fleet import ROOT, Fleet, wait_until
from tests.kit.readers import ATTACHED, WAYS

RUNS = [f"run-{number}" for number in range(50)]
PROCESSES = [("asyncio", RUNS[:25]), ("threads", RUNS[:25]), ("asyncio", RUNS[25:]), ("threads", RUNS[25:])]
BROKEN = [run_id for run_id in RUNS if run_id.endswith("3")]  # a piece of their answer is lost on the way
WORD_S = 0.03
POOL = 10  # connections that a client has to Postgres at most
CROWD = 120
COUNTED_S = 2.5


class Model:
    """Asks for a tool twice and then answers, word by word. Says nothing before `begin` is set."""

    def __init__(self) -> None:
        self.begin = threading.Event()
        self.broken: set[str] = set()

    async def __call__(self, call: ProviderCall) -> Reply:
        await asyncio.to_thread(self.begin.wait)
        run_id = call.last_user()
        words = " ".join(f"{run_id} says {number}" for number in range(4 + 2 * call.turn))
        if call.turn == 1 and run_id in BROKEN and run_id not in self.broken:
            self.broken.add(run_id)
            return Reply(text=words, chunk_delay_s=WORD_S, hang_up=True, hang_up_after=8)
        tools = (("ping", {}),) if call.turn < 2 else ()
        return Reply(text=words, tool_calls=tools, chunk_delay_s=WORD_S)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one reader saw: {after, items: [[seq, type, step, payload], ...]} of each of its visits."""

    run_id: str
    way: str
    visits: list[dict[str, Any]]

    def events(self) -> list[list[Any]]:
        return [item for visit in self.visits for item in visit["items"] if item[0] >= 0]


@dataclass(frozen=True, slots=True)
class Read:
    """All that was seen, and what it should have been."""

    readers: list[Seen]
    logs: dict[str, list[list[Any]]]
    postgres: int  # connections that readers held while they waited
    redis: int
    each_s: float  # transactions in Postgres for each of them and second, while there was nothing to see


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture(scope="module")
def fleet(servers: Any, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(servers.database_url, servers.redis_url, folder, model, lease_s=30.0) as made:
        made.start("model-1")
        yield made


@pytest.fixture(scope="module")
def read(fleet: Fleet, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Read once; each test looks at another side of what was seen."""
    folder = tmp_path_factory.mktemp("readers")
    model.begin.clear()
    for run_id in RUNS:
        fleet.client.submit("tester", run_id, run_id=run_id, tokens=True)
    wait_until(lambda: fleet.provider.in_flight == len(RUNS), 30)  # the fleet has nothing to do but to wait
    before = connections(fleet)
    with ExitStack() as stack:
        programs, files = [], []
        for number, (kind, run_ids) in enumerate(PROCESSES):
            files.append(folder / f"{number}.json")
            command = [sys.executable, "-m", "tests.kit.readers", kind, str(files[-1]), *run_ids]
            env = environment(**fleet.settings.to_env())
            programs.append(stack.enter_context(running(command, env, ROOT, folder / f"{number}.txt")))
        for program in programs:
            program.waits_to_say(ATTACHED)
        postgres, of_redis = (now - then for now, then in zip(connections(fleet), before, strict=True))
        each_s = transactions(fleet) / (2 * len(RUNS))  # two of each run are there from the beginning, or more
        model.begin.set()
        fleet.finish(RUNS)
        for program in programs:
            assert program.process.wait(60) == 0, program.said()
    readers = [Seen(**one) for file in files for one in json.loads(file.read_text())]
    logs = {
        run_id: [[event.seq, event.type, event.step, event.payload] for event in fleet.client.events(run_id)]
        for run_id in RUNS
    }
    return Read(readers, logs, postgres, of_redis, each_s)


def connections(fleet: Fleet) -> tuple[int, int]:
    """How many there are to Postgres and to Redis."""
    ((postgres,),) = fleet.execute("select count(*) from pg_stat_activity where application_name = 'drangue'")
    with redis.Redis.from_url(fleet.settings.redis_url) as server:
        return int(postgres), len(server.client_list())


def transactions(fleet: Fleet) -> float:
    """How many a second there are in Postgres, over some seconds: processes tell of theirs once a second."""
    query = "select xact_commit, extract(epoch from clock_timestamp())::float from pg_stat_database"
    query += " where datname = current_database()"
    ((then, began),) = fleet.execute(query)
    time.sleep(COUNTED_S)
    ((now, ended),) = fleet.execute(query)
    return float(now - then) / (ended - began)


def test_every_reader_sees_every_event_once_and_in_order(read: Read) -> None:
    """Wherever it came in and however often it went: what it saw is the log from there on."""
    assert len(read.readers) == 200
    for reader in read.readers:
        log = read.logs[reader.run_id]
        assert len(log) == 7, log
        assert reader.events() == [item for item in log if item[0] > reader.visits[0]["after"]], reader.way
    visits = {way: [len(one.visits) for one in read.readers if one.way == way] for way in WAYS}
    assert all(visits.values())
    assert min(visits["again"]) > 1


def test_the_pieces_of_an_answer_are_the_answer(read: Read) -> None:
    """In order, before the decision they belong to, and a retry voids those before it, for whoever comes in when."""
    retried = set()
    several = 0
    for reader in read.readers:
        for visit in reader.visits:
            pieces: dict[int, list[dict[str, Any]]] = defaultdict(list)
            for _, kind, step, payload in visit["items"]:
                if kind == "model_delta":
                    if payload.get("retry"):
                        assert pieces[step], "a retry of nothing"
                        retried.add((reader.run_id, reader.way))
                        pieces[step].clear()
                    pieces[step].append(payload)
                elif kind == "model_decision":
                    own = pieces.pop(step)
                    assert "".join(piece["text"] for piece in own) == payload["text"], reader
                    assert [piece["index"] for piece in own] == list(range(len(own)))
                    several += len(own) > 1
            assert not pieces or visit is not reader.visits[-1], f"pieces of a decision that is over: {pieces}"
    assert {(run_id, "first") for run_id in BROKEN} <= retried
    assert several, "every answer was shown when it was over"


def test_readers_cost_little(read: Read) -> None:
    """None has a connection to Postgres of its own, and who has nothing to see asks there about once a second."""
    assert 0 < read.postgres <= POOL * (len(PROCESSES) + 1)  # and what their worker opened meanwhile
    assert read.redis <= len(read.readers) + POOL * len(PROCESSES)
    assert read.each_s < 4


def test_any_number_of_readers_in_one_process_see_the_same(fleet: Fleet, model: Model) -> None:
    """More than a client library of Redis thinks that a process could want: nobody misses a piece of an answer."""
    model.begin.clear()
    fleet.client.submit("tester", "crowded", run_id="crowded", tokens=True)

    async def story() -> set[str]:
        seen = [(list[Event](), asyncio.Event()) for _ in range(CROWD)]
        async with AsyncClient(fleet.settings) as client, asyncio.TaskGroup() as group:

            async def reader(mine: list[Event], attached: asyncio.Event) -> None:
                async for event in client.stream("crowded", timeout=60):
                    mine.append(event)
                    attached.set()

            for mine, attached in seen:
                group.create_task(reader(mine, attached))
            for _, attached in seen:
                await attached.wait()
            model.begin.set()
        return {json.dumps([[event.seq, event.payload] for event in mine]) for mine, _ in seen}

    (what_all_saw,) = asyncio.run(story())
    assert what_all_saw.count('"index"') > 1
