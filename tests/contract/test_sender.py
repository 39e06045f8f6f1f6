"""Sending hints through a real Redis."""

from __future__ import annotations

import ssl
import subprocess
import sys
from dataclasses import replace

import pytest
import redis

from drangue_client import Settings
from drangue_client.errors import QueueUnavailable, SettingsError
from drangue_client.store.values import StepRef
from drangue_client.wire.broker import sending_app
from drangue_client.wire.queue import COORDINATE_QUEUE, Sender
from drangue_client.wire.signals import LIMITS
from tests.kit.tcp import Wire

REF = StepRef("r", 1, "tool", "drangue.tool", 5)

TOGETHER = """
import sys, threading, time
from drangue_client.settings import Settings
from drangue_client.store.values import RunRow
from drangue_client.wire.queue import Sender

sender = Sender(Settings(redis_url=sys.argv[1]))
row = RunRow("r", "a", "queued", "celery", 5, {}, "", 0, None, 0.0, 0.0, None, None, {})
together = threading.Barrier(8)
done = []


def work():
    together.wait()
    done.append(WORK)


class Slow:
    def find_spec(name, path=None, target=None):
        if name.startswith(("celery", "kombu")):
            time.sleep(0.005)  # the others get their turn in the middle of each import


sys.meta_path.insert(0, Slow)
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(done), "celery" in sys.modules)
"""

FORKED = """
import os, sys
from drangue_client.settings import Settings
from drangue_client.store.values import RunRow
from drangue_client.wire.queue import Sender

sender = Sender(Settings(redis_url=sys.argv[1]))
row = RunRow("r", "a", "queued", "celery", 5, {}, "", 0, None, 0.0, 0.0, None, None, {})
sender.coordinate([row])
child = os.fork()
for _ in range(200):
    sender.coordinate([row])
if not child:
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run_program(program: str, redis_url: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, redis_url], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_the_first_sends_of_a_process_may_come_from_many_threads_at_once(redis_url: str) -> None:
    """Each message leaves once, over connections that are made by whoever comes first; Celery is not even loaded."""
    assert run_program(TOGETHER.replace("WORK", "sender.coordinate([row])"), redis_url) == "8 False"
    assert Sender(Settings(redis_url=redis_url)).waiting([COORDINATE_QUEUE]) == {COORDINATE_QUEUE: 8}


def test_workers_may_be_asked_by_many_threads_at_once(redis_url: str) -> None:
    """Celery is loaded by the first of them, and its modules are not whole while they are being imported."""
    assert run_program(TOGETHER.replace("WORK", "sender.workers(0.1)"), redis_url) == "8 True"


def test_a_process_and_its_child_send_at_the_same_time(redis_url: str) -> None:
    """A pool forks from a process that has sent; on one connection the two would read each other's answers."""
    assert run_program(FORKED, redis_url) == "0"
    assert Sender(Settings(redis_url=redis_url)).waiting([COORDINATE_QUEUE]) == {COORDINATE_QUEUE: 401}


def test_a_connection_that_was_lost_while_idle_costs_no_message(redis_url: str) -> None:
    """Redis was restarted a minute ago: that is no reason to leave a run to the sweep."""
    sender = Sender(Settings(redis_url=redis_url))
    sender.steps([REF])
    with redis.Redis.from_url(redis_url) as server:
        assert server.client_kill_filter(_type="normal", skipme=True) >= 1
        sender.steps([REF, replace(REF, queue="drangue.model")])
        assert server.client_kill_filter(_type="normal", skipme=True) >= 1
    assert sender.waiting(["drangue.tool", "drangue.model"]) == {"drangue.tool": 2, "drangue.model": 1}
    sender.close()
    sender.steps([REF])  # over a new connection
    sender.close()


def test_a_redis_that_is_away_is_told_in_one_line(redis_url: str) -> None:
    """What was recorded waits; the caller must not have to know the errors of a library."""
    wire, url = Wire.to(redis_url, 6379)
    with wire:
        sender = Sender(Settings(redis_url=url))
        sender.steps([REF])
        wire.refuse()
        for ask in (lambda: sender.steps([REF]), lambda: sender.waiting(["q"]), lambda: sender.on_the_way("q", 1, 1.0)):
            with pytest.raises(QueueUnavailable, match="cannot be reached"):
                ask()
        wire.restore()
        sender.steps([REF])
        sender.close()


def test_a_redis_that_does_not_answer_is_asked_once(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever submits waits for one answer that does not come, and not for two."""
    monkeypatch.setitem(LIMITS, "socket_timeout", 0.5)
    wire, url = Wire.to(redis_url, 6379)
    with wire:
        sender = Sender(Settings(redis_url=url))
        sender.steps([REF])
        opened = wire.opened
        wire.strand()
        with pytest.raises(QueueUnavailable):
            sender.steps([REF])
        assert wire.opened == opened
        sender.steps([REF])  # over a new connection
        assert wire.opened > opened
        sender.close()


def test_what_no_fleet_serves_is_not_sent(redis_url: str) -> None:
    """A step of a run that goes on in one process has no queue; a list without a name would never be read."""
    Sender(Settings(redis_url=redis_url)).steps([replace(REF, queue=None)])
    with redis.Redis.from_url(redis_url) as server:
        assert server.dbsize() == 0


@pytest.mark.parametrize(
    ("address", "verified"),
    [
        ("rediss://127.0.0.1:1/0", ssl.CERT_REQUIRED),
        ("rediss://127.0.0.1:1/0?ssl_cert_reqs=none", ssl.CERT_NONE),
    ],
)
def test_a_redis_over_tls_is_verified_unless_its_address_says_otherwise(address: str, verified: ssl.VerifyMode) -> None:
    """kombu by itself verifies nobody: whoever stands in between would have the password of the queue."""
    app = sending_app(Settings(redis_url=address))
    assert app.connection_for_write().ssl == {"ssl_cert_reqs": verified}


def test_the_scheme_of_an_address_is_written_small() -> None:
    """redis-py knows no other: the first message would end with an error of its own."""
    with pytest.raises(SettingsError, match="redis_url"):
        Settings(redis_url="REDISS://127.0.0.1:1/0")


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
