"""Whoever can write to Redis can write anything there: nothing that lies in a queue may take a worker down.

Whoever kills a worker with one message kills a fleet with a few: each worker takes the next one, and what they were
doing waits for its leases to lapse. The kinds that do so today are marked, with what ends the worker.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from drangue_client.wire.envelope import lists_of
from drangue_client.wire.queue import CALL_MODEL, CALL_TOOL, COORDINATE, PREPARE, QUEUES
from drangue_worker.supervisor import Child
from tests.kit.fleet import Fleet, calls_then_answer, wait_until

Make = Callable[..., Fleet]

MANY = 300
KEYS = [name for queue in QUEUES for name in lists_of(queue)]
TASKS = (COORDINATE, PREPARE, CALL_MODEL, CALL_TOOL)
DEEP = 200
LOST = "Connection to broker lost"  # what a worker had fetched is lost with it


class Explodes:
    """What a pickle can do to whoever reads it."""

    def __reduce__(self) -> Any:
        return os._exit, (66,)


def anything(chance: random.Random, levels: int = 3) -> Any:
    """A JSON value, sometimes an awkward one."""
    kinds = ["none", "flag", "number", "huge", "text", "odd", "list", "object"]
    match chance.choice(kinds if levels else kinds[:6]):
        case "none":
            return None
        case "flag":
            return chance.random() < 0.5
        case "number":
            return chance.choice([0, -1, 1.5, 2**31, -(2**63), 1e308])
        case "huge":
            return 10 ** chance.randrange(20, 4000)
        case "text":
            return "x" * chance.choice([0, 1, 5, 300])
        case "odd":
            return chance.choice(["\x00", "\u2028", "drangue.call_tool", "../../etc/passwd", "'; drop table runs; --"])
        case "list":
            return [anything(chance, levels - 1) for _ in range(chance.randrange(4))]
        case _:
            return {str(place): anything(chance, levels - 1) for place in range(chance.randrange(4))}


def envelope(body: bytes, headers: Any, **more: Any) -> dict[str, Any]:
    """A message as kombu writes it."""
    properties = {
        "body_encoding": "base64",
        "delivery_tag": more.pop("delivery_tag", "tag"),
        "delivery_info": {"exchange": "", "routing_key": QUEUES[0]},
        "delivery_mode": 2,
        "priority": 0,
    }
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
        **more,
    }


def task(chance: random.Random, name: str, args: Any, kwargs: Any = None, **more: Any) -> dict[str, Any]:
    """A message that asks for a task, as Celery writes it."""
    ident = f"t{chance.getrandbits(64)}"
    headers = {"task": name, "id": ident, "root_id": ident, "lang": "py", "argsrepr": "", "kwargsrepr": ""}
    body = json.dumps([args, kwargs or {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    return envelope(body.encode(), headers | more.pop("headers", {}), delivery_tag=ident, **more)


def bytes_of_any_kind(chance: random.Random) -> Iterator[bytes]:
    """What is not even JSON."""
    while True:
        yield chance.choice(
            [b"\xff\xfe", b"{", b"nonsense", b"[" * 100_000, chance.randbytes(chance.randrange(1, 200))]
        )


def json_of_any_kind(chance: random.Random) -> Iterator[bytes]:
    """JSON that is no message."""
    while True:
        yield json.dumps(anything(chance)).encode()


def broken_envelopes(chance: random.Random) -> Iterator[bytes]:
    """Messages of which a part is missing, or is something else."""
    while True:
        message = task(chance, chance.choice(TASKS), ["no-such-run", 1])
        part = chance.choice([*message, "delivery_tag", "delivery_info", "body_encoding"])
        of = message if part in message else message["properties"]
        if chance.random() < 0.5:
            del of[part]
        else:
            of[part] = anything(chance)
        yield json.dumps(message).encode()


def sealed_bodies(chance: random.Random) -> Iterator[bytes]:
    """Bodies that this fleet does not open: pickles that would end whoever reads them, foreign formats and packings."""
    pickled = {"content-type": "application/x-python-serialize", "content-encoding": "binary"}
    ids = b'[["no-such-run", 1], {}, {}]'
    while True:
        name = chance.choice(TASKS)
        headers = {"task": name, "id": f"t{chance.getrandbits(64)}", "lang": "py"}
        messages = [
            envelope(pickle.dumps(([Explodes()], {}, {})), headers, **pickled),
            envelope(pickle.dumps([Explodes()]), headers, **{**pickled, "content-type": "pickle"}),
            envelope(pickle.dumps({"task": name, "id": "x", "args": [Explodes()], "kwargs": {}}), {}, **pickled),
            envelope(ids, headers, **{"content-type": chance.choice(["text/plain", "x", "yaml"])}),
            envelope(ids, headers, **{"content-encoding": chance.choice(["utf-7", "none", "rot13"])}),
            envelope(zlib.compress(ids), headers | {"compression": "application/x-gzip"}),
            envelope(ids, headers | {"compression": "application/x-rar"}),
        ]
        yield json.dumps(chance.choice(messages)).encode()


def unreadable_bodies(chance: random.Random) -> Iterator[bytes]:
    """Whole messages whose body is no JSON, or not what Celery puts there."""
    while True:
        headers = {"task": chance.choice(TASKS), "id": f"t{chance.getrandbits(64)}", "lang": "py"}
        bodies = [chance.randbytes(50), b"", b"[]", json.dumps(anything(chance)).encode(), b"[" * 100_000]
        yield json.dumps(envelope(chance.choice(bodies), headers)).encode()


def tasks_of_any_kind(chance: random.Random) -> Iterator[bytes]:
    """Well-formed messages that ask for something that cannot be done."""
    while True:
        yield json.dumps(chance.choice(list(_tasks(chance)))).encode()


def _tasks(chance: random.Random) -> Iterator[dict[str, Any]]:
    name = chance.choice(TASKS)
    yield task(chance, "os.system", ["true"])
    yield task(chance, f"drangue.{chance.choice(['call_', 'cancel', 'x' * 500])}", ["r", 1])
    yield task(chance, "celery.backend_cleanup", [])
    yield task(chance, "celery.chord_unlock", ["x", {}])
    yield task(chance, name, [anything(chance) for _ in range(chance.randrange(5))])
    yield task(chance, name, [f"no-such-run-{chance.random()}", chance.choice([0, 1, -1, 10**6])])
    yield task(chance, name, [f"no-such-run-{chance.random()}", 10 ** chance.choice([3, 10, 19, 4000])])
    yield task(chance, name, ["\x00", 1])
    yield task(chance, name, ["r", True])
    yield task(chance, name, ["r", json.loads("[" * DEEP + "]" * DEEP)])
    yield task(chance, name, ["r"], {"step": anything(chance)})
    yield task(chance, name, [], {"run_id": "r", "step": 1, "and": anything(chance)})
    yield task(chance, name, anything(chance), anything(chance))
    yield task(chance, name, ["r", 1], headers={"retries": chance.choice([7, -1])})
    yield task(chance, name, ["r", 1], headers={"parent_id": "x", "group": "y", "meth": "z", "shadow": "w" * 99})


def odd_headers(chance: random.Random) -> Iterator[bytes]:
    """Headers that Celery reads, with values that it does not expect."""
    known = ("task", "id", "eta", "expires", "retries", "timelimit", "argsrepr", "origin", "ignore_result", "stamps")
    while True:
        headers = {chance.choice(known): anything(chance)}
        yield json.dumps(task(chance, chance.choice(TASKS), ["no-such-run", 1], headers=headers)).encode()


KINDS = (
    bytes_of_any_kind,
    json_of_any_kind,
    broken_envelopes,
    odd_headers,
    unreadable_bodies,
    sealed_bodies,
    tasks_of_any_kind,
)


def pool_of(fleet: Fleet, worker: Child) -> list[int]:
    """A worker's process and those of its pool."""
    return [worker.process.pid, *fleet.children_of(worker)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_message_takes_a_worker_down(make_fleet: Make, redis_url: str, kind: Any) -> None:
    """Three hundred of a kind, on every list of every queue: the same processes live on, and do what is to be done."""
    fleet = make_fleet(calls_then_answer(("note", {"text": "a"}), ("ping", {})))
    workers = fleet.start("model-1", "tool-1")
    before = [pool_of(fleet, worker) for worker in workers]
    made = kind(random.Random(5))
    with redis.Redis.from_url(redis_url) as client:
        with client.pipeline() as pipe:
            for number in range(MANY):
                pipe.lpush(KEYS[number % len(KEYS)], next(made))
            pipe.execute()
        run_id = fleet.submit()[0]

        def done() -> bool:
            assert [worker.name for worker in workers if worker.process.poll() is not None] == []
            return not any(client.llen(key) for key in KEYS)

        wait_until(done, 20, "every message is read")
    (result,) = fleet.finish([run_id], 15)
    assert (result.status, len(fleet.effects())) == ("completed", 2)
    assert [worker.name for worker in workers if worker.process.poll() is not None] == []
    assert [pool_of(fleet, worker) for worker in workers] == before
    assert [worker.name for worker in workers if LOST in fleet.log_of(worker.name)] == []
