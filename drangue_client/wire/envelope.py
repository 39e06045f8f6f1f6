"""The message of one task, as Celery's protocol 2 and kombu's Redis transport write it.

Celery makes the same from its settings, its routes and its signals, anew for each message. Here all that is the same in
every message of a task, a queue and a priority is text that is made once, and the ids are put in: no Celery is loaded,
and none of its publish signals is sent. Whoever reads cannot tell the two apart; `tests/contract/test_envelope.py`
holds them against each other, so that a Celery or a kombu that writes something else is noticed.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from base64 import b64encode
from bisect import bisect
from functools import lru_cache

PRIORITY_STEPS = (0, 3, 6, 9)
SEPARATOR = "\x06\x16"  # of a queue's name and a priority, in the name of a list
MOST = 9  # the lowest priority there is
BEHIND = ', {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'  # the arguments, in a body


def list_of(queue: str, priority: int) -> str:
    """The Redis list that holds a queue's messages of one priority."""
    step = PRIORITY_STEPS[bisect(PRIORITY_STEPS, max(0, min(priority, MOST))) - 1]
    return f"{queue}{SEPARATOR}{step}" if step else queue


def lists_of(queue: str) -> list[str]:
    """The Redis lists of a queue, in the order in which they are served."""
    return [list_of(queue, step) for step in PRIORITY_STEPS]


def message(task: str, args: tuple[str | int, ...], task_id: str, queue: str, priority: int) -> str:
    """One message, to be pushed to the left of its list. Each has a delivery tag of its own."""
    body = b64encode(f"[{json.dumps(args)}{BEHIND}".encode())
    return _mould(task, queue, priority) % (
        body.decode(),
        (quoted := json.dumps(task_id)),
        quoted,
        json.dumps(repr(args)),
        json.dumps(_origin(os.getpid())),
        quoted,
        uuid.uuid4(),
    )


@lru_cache(maxsize=1024)
def _mould(task: str, queue: str, priority: int) -> str:
    """The text of a message with a `%s` for what differs: body, id, root id, arguments, origin, correlation id, tag."""
    whole = {
        "body": "\0body",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": task,
            "id": "\0quoted",
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": "\0quoted",
            "parent_id": None,
            "argsrepr": "\0quoted",
            "kwargsrepr": "{}",
            "origin": "\0quoted",
            "ignore_result": None,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        },
        "properties": {
            "correlation_id": "\0quoted",
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": priority,
            "body_encoding": "base64",
            "delivery_tag": "\0tag",
        },
    }
    text = json.dumps(whole).replace("%", "%%")
    text = text.replace(json.dumps("\0quoted"), "%s")  # which brings its own quotes
    return text.replace(json.dumps("\0body"), '"%s"').replace(json.dumps("\0tag"), '"%s"')


@lru_cache(maxsize=8)
def _origin(process: int) -> str:
    return f"gen{process}@{socket.gethostname()}"
