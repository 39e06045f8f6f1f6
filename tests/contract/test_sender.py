"""Sending hints through a real Redis."""

from __future__ import annotations

import subprocess
import sys

import redis

from drangue_client.wire.queue import COORDINATE_QUEUE

FIRST_SENDS = """
import sys, threading, time
from drangue_client.settings import Settings
from drangue_client.store.values import RunRow
from drangue_client.wire.queue import Sender

sender = Sender(Settings(redis_url=sys.argv[1]))
together = threading.Barrier(8)


def send(number):
    together.wait()
    sender.coordinate([RunRow(f"run-{number}", "a", "queued", "celery", 5, {}, "", 0, None, 0.0, 0.0, None, None, {})])


class Slow:
    def find_spec(name, path=None, target=None):
        if name.startswith(("celery", "kombu")):
            time.sleep(0.005)  # the others get their turn in the middle of each import


sys.meta_path.insert(0, Slow)
threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_the_first_sends_of_a_process_may_come_from_many_threads_at_once(redis_url: str) -> None:
    """Celery is loaded by the first of them, and its modules are not whole while they are being imported."""
    done = subprocess.run([sys.executable, "-c", FIRST_SENDS, redis_url], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    with redis.Redis.from_url(redis_url) as server:
        waiting = sum(server.llen(key) for key in server.keys(COORDINATE_QUEUE + "*"))
    assert waiting == 8
