"""Our own messages against Celery's: whoever reads a queue must not be able to tell which of the two wrote one.

The reference is `app.send_task`, which goes through `as_task_v2`, kombu's `prepare_message` and its transport into a
real list. Where Celery or kombu begin to write something else, it is seen here and not by a worker of tomorrow.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import redis

from drangue_client import Settings
from drangue_client.store.values import RunRow, StepRef
from drangue_client.wire.broker import queue_named, sending_app
from drangue_client.wire.envelope import list_of, lists_of, message
from drangue_client.wire.queue import CALL_MODEL, CALL_TOOL, COORDINATE, PREPARE, Sender

IDS = ["r", "ticket-4711", 'a "quoted" \\ one', "zwölf ☕ 🚲", "per%cent %s %(x)s", "line\nbreak", "<b>", "x" * 200]
TASKS = [(COORDINATE, "drangue.coordinate"), (PREPARE, "drangue.model"), (CALL_MODEL, "drangue.model")]
TASKS += [(CALL_TOOL, "drangue.tool"), (CALL_TOOL, "br%sowser 🚲")]

# What differs on purpose. Nobody answers our messages, and the tag of a message is random.
OTHER_PROPERTIES = {"reply_to", "delivery_tag"}
# A repr that Celery cuts, and in which it does not escape: it is there to be looked at.
OTHER_HEADERS = {"argsrepr"}


@pytest.fixture
def lists(redis_url: str) -> Any:
    """What lies in each list of Redis, the next to be served first; asking takes it away."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:

        def take() -> dict[str, list[dict[str, Any]]]:
            found = {
                name: [json.loads(told) for told in client.lrange(name, 0, -1)[::-1]]
                for name in client.scan_iter()
                if client.type(name) == "list"
            }
            client.flushdb()
            return found

        yield take


def told(written: dict[str, Any]) -> dict[str, Any]:
    """All of a message that is the same every time; its body as what it holds."""
    headers = {name: value for name, value in written["headers"].items() if name not in OTHER_HEADERS}
    properties = {name: value for name, value in written["properties"].items() if name not in OTHER_PROPERTIES}
    body = json.loads(base64.b64decode(written["body"]))
    return {**written, "headers": headers, "properties": properties, "body": body}


@pytest.mark.parametrize("priority", range(10))
def test_a_message_is_what_celery_would_have_written(redis_url: str, lists: Any, priority: int) -> None:
    """A worker, Flower and whoever else knows Celery reads it; the list is the one that a worker waits at."""
    app = sending_app(Settings(redis_url=redis_url))
    for task, queue in TASKS:
        for run_id in IDS:
            args: tuple[str | int, ...] = (run_id,) if task == COORDINATE else (run_id, 3)
            task_id = f"{run_id}:3:0.0"
            app.send_task(task, args, task_id=task_id, queue=queue_named(queue), priority=priority)
            ((name, (reference,)),) = lists().items()
            ours = json.loads(message(task, args, task_id, queue, priority))
            assert name == list_of(queue, priority)
            assert told(ours) == told(reference)
            assert ours["headers"].keys() == reference["headers"].keys()
            assert ours["properties"].keys() == reference["properties"].keys()
    app.close()


def test_what_is_shown_of_the_arguments_is_what_celery_would_show(redis_url: str, lists: Any) -> None:
    """Lists of tasks are searched by it: the id of a run, and the step."""
    app = sending_app(Settings(redis_url=redis_url))
    app.send_task(CALL_MODEL, ("ticket-4711", 3), queue=queue_named("drangue.model"))
    (((reference,)),) = lists().values()
    app.close()
    ours = json.loads(message(CALL_MODEL, ("ticket-4711", 3), "x", "drangue.model", 0))
    assert ours["headers"]["argsrepr"] == reference["headers"]["argsrepr"] == "('ticket-4711', 3)"


def test_each_message_has_a_tag_of_its_own() -> None:
    """Workers keep their books by it: of two messages with one tag, one would be forgotten."""
    tags = {json.loads(message(CALL_TOOL, ("r", 1), "r:1:0.0", "q", 5))["properties"]["delivery_tag"] for _ in range(9)}
    assert len(tags) == 9


def test_what_goes_out_together_is_one_command_and_keeps_its_order(redis_url: str, lists: Any) -> None:
    """A fan-out of twenty costs one round trip; where several lists are meant, one command for each, sent at once."""
    sender = Sender(Settings(redis_url=redis_url))
    with redis.Redis.from_url(redis_url) as client:
        sender.steps([StepRef("warm", 1, "tool", "drangue.tool", 5)])
        lists()
        client.config_resetstat()
        sender.steps([StepRef("r", step, "tool", "drangue.tool", 5) for step in range(20)])
        assert client.info("commandstats")["cmdstat_lpush"]["calls"] == 1
        assert [one["headers"]["id"] for one in lists()["drangue.tool\x06\x163"]] == [f"r:{n}:0.0" for n in range(20)]
        client.config_resetstat()
        urgent = StepRef("r", 2, "model", "drangue.model", 5, attempt=1, sends=2, urgent=True)
        sender.steps([StepRef("r", 1, "tool", "drangue.tool", 5), urgent, StepRef("r", 3, "tool", "drangue.tool", 5)])
        stats = client.info("commandstats")
        assert (stats["cmdstat_lpush"]["calls"], "cmdstat_multi" in stats) == (2, False)
    found = {name: [one["headers"]["id"] for one in messages] for name, messages in lists().items()}
    assert found == {"drangue.tool\x06\x163": ["r:1:0.0", "r:3:0.0"], "drangue.model": ["r:2:1.2"]}
    sender.close()


def test_a_coordinator_is_asked_for_by_its_run(redis_url: str, lists: Any) -> None:
    """Each message has an id of its own: two for one run are two tasks in Flower."""
    sender = Sender(Settings(redis_url=redis_url))
    row = RunRow("r", "a", "queued", "celery", 5, {}, "", 0, None, 0.0, 0.0, None, None, {})
    sender.coordinate([row, row])
    sent = lists()["drangue.coordinate\x06\x163"]
    assert [told(one)["body"][0] for one in sent] == [["r"], ["r"]]
    assert len({one["headers"]["id"] for one in sent}) == 2
    assert all(one["headers"]["id"].startswith("r:c:") for one in sent)
    sender.close()


def test_the_lists_of_a_queue_are_named_in_the_order_they_are_served_in() -> None:
    """Priority 0 before all others."""
    assert lists_of("q") == ["q", "q\x06\x163", "q\x06\x166", "q\x06\x169"]
    assert [list_of("q", priority) for priority in (-1, 2, 3, 10)] == ["q", "q", "q\x06\x163", "q\x06\x169"]
