"""Sending hints through a real Redis."""

from __future__ import annotations

import ssl
import subprocess
import sys

import pytest
import redis

from drangue_client import Settings
from drangue_client.errors import QueueUnavailable
from drangue_client.wire.broker import sending_app
from drangue_client.wire.queue import COORDINATE_QUEUE, Sender

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


@pytest.mark.parametrize(
    ("address", "verified"),
    [
        ("rediss://127.0.0.1:1/0", ssl.CERT_REQUIRED),
        ("REDISS://127.0.0.1:1/0", ssl.CERT_REQUIRED),
        ("rediss://127.0.0.1:1/0?ssl_cert_reqs=none", ssl.CERT_NONE),
    ],
)
def test_a_redis_over_tls_is_verified_unless_its_address_says_otherwise(address: str, verified: ssl.VerifyMode) -> None:
    """kombu by itself verifies nobody: whoever stands in between would have the password of the queue."""
    app = sending_app(Settings(redis_url=address))
    assert app.connection_for_write().ssl == {"ssl_cert_reqs": verified}


def test_a_permission_that_is_missing_is_named(redis_url: str) -> None:
    """ "Start Redis" is no help to whoever has given its user too little."""
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command("ACL", "SETUSER", "mute", "on", ">mute", "+@connection", "+client")
        address = f"redis://mute:mute@{redis_url.rpartition('@')[2]}"
        try:
            with pytest.raises(QueueUnavailable, match=r"refused.*users\.acl"):
                Sender(Settings(redis_url=address)).waiting(["drangue.tool"])
        finally:
            client.execute_command("ACL", "DELUSER", "mute")
