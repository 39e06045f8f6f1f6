"""drangue on an application's own Celery app: its tasks and ours, each on the workers that were started for them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from drangue_client import Settings
from drangue_client.errors import SettingsError
from drangue_worker import install
from tests.acceptance.shell import Running, environment, running
from tests.kit.fleet import Fleet, calls_then_answer, wait_until

Make = Callable[..., Fleet]
LOOPS = "drangue.coordinate,drangue.model,drangue.async_tool"
POOL = "drangue_worker.fleet.pool:TaskPool"
SERVERS = Settings(database_url="postgresql://127.0.0.1:1/x", redis_url="redis://127.0.0.1:1/0")


@pytest.fixture
def fleet(make_fleet: Make) -> Fleet:
    return make_fleet(calls_then_answer(("note", {"text": "tea"}), ("ping", {})))


@pytest.fixture
def start(fleet: Fleet, tmp_path: Path) -> Iterator[Any]:
    """Start a worker of the application's app; it ends with the test."""
    with ExitStack() as stack:

        def start_one(name: str, *options: str, **variables: str) -> Running:
            env = environment(**{**fleet.supervisor.env, "DRANGUE_AGENTS": "", **variables})
            command = [
                sys.executable,
                "-m",
                "celery",
                "-A",
                "tests.kit.own_app",
                "worker",
                "-l",
                "INFO",
                "-n",
                name,
                *options,
            ]
            worker = stack.enter_context(running(command, env, tmp_path, tmp_path / f"{name}.out"))
            worker.waits_to_say(" ready.")
            return worker

        yield start_one


def test_an_application_s_workers_do_its_tasks_and_ours(start: Any, fleet: Fleet, redis_url: str) -> None:
    """Runs go through the application's app, also after a Redis that was emptied; its own tasks go on beside them."""
    start("loops", "-P", "custom", "-Q", LOOPS, CELERY_CUSTOM_WORKER_POOL=POOL)
    start("tools", "-Q", "drangue.tool", "-c", "2")
    own = start("own", "-P", "solo")  # which consumes what it did before
    shop = Celery("shop", broker=redis_url, set_as_current=False)
    shop.conf.task_default_queue = "shop"
    shop.send_task("tests.kit.own_app.restock", ["shelf"])
    shop.send_task("tests.kit.own_app.recount", ["shelf"], time_limit=60)
    runs = fleet.submit(6)
    assert {result.status for result in fleet.finish(runs)} == {"completed"}
    assert sorted(fleet.effects("note")) == sorted(f"{run_id}:2" for run_id in runs)
    wait_until(lambda: fleet.effects("restock") == fleet.effects("recount") == ["shelf"], 30)
    shop.close()
    with redis.Redis.from_url(redis_url) as client:
        lost = fleet.client.submit("tester", "go").run_id
        client.flushdb()
    assert fleet.finish([lost])[0].status == "completed"
    assert "drangue" not in own.said().partition("ready.")[2]  # it takes no part


@pytest.mark.parametrize("options", [("-P", "threads", "-Q", "drangue.tool"), ("-Q", "shop,drangue.tool")])
def test_its_workers_are_refused_what_they_could_not_stop(
    fleet: Fleet, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """A tool on a thread of Celery's own pool could be ended by nobody; the app's tasks would be ended with ours."""
    command = [sys.executable, "-m", "celery", "-A", "tests.kit.own_app", "worker", *options]
    env = environment(**{**fleet.supervisor.env, "DRANGUE_AGENTS": ""})
    with running(command, env, tmp_path, tmp_path / "out") as worker:
        wait_until(lambda: worker.process.poll() is not None, 30)
        assert worker.process.returncode == 2
        assert "-Q" in worker.said()
        assert "Traceback" not in worker.said()


FORKED = """
import multiprocessing, sys
from tests.kit.own_app import app

multiprocessing.set_start_method("fork")
worker = multiprocessing.Process(
    target=app.worker_main, args=(["--quiet", "worker", "-l", "INFO", "-n", "forked", "-c", "1", "-Q", "drangue.tool"],)
)
worker.start()
worker.join()
"""


def test_a_worker_may_be_forked_from_whoever_imported_the_app(start: Any, fleet: Fleet, tmp_path: Path) -> None:
    """A management command does so; its pool's processes must not take themselves for orphans."""
    start("loops", "-P", "custom", "-Q", LOOPS, CELERY_CUSTOM_WORKER_POOL=POOL)
    env = environment(**{**fleet.supervisor.env, "DRANGUE_AGENTS": ""})
    with running([sys.executable, "-c", FORKED], env, tmp_path, tmp_path / "forked.out") as worker:
        worker.waits_to_say(" ready.")
        assert fleet.finish(fleet.submit(1))[0].status == "completed"
        worker.family.add(worker.pid)


@pytest.mark.parametrize(
    ("conf", "settings", "says"),
    [
        ({"broker_url": "amqp://127.0.0.1//"}, SERVERS, "no single redis"),
        ({"broker_url": "redis://127.0.0.1:1/1"}, SERVERS, "another address"),
        ({"broker_url": "rediss://127.0.0.1:1/1", "broker_use_ssl": {"ssl_cert_reqs": 2}}, SERVERS, "broker_use_ssl"),
        ({"broker_url": "redis://127.0.0.1:1", "task_default_queue": "drangue.tool"}, SERVERS, "'drangue.tool'"),
        ({"broker_url": "redis://127.0.0.1:1", "accept_content": ["pickle"]}, SERVERS, "'json'"),
        ({"broker_url": "redis://127.0.0.1:1", "broker_transport_options": {"global_keyprefix": "x"}}, SERVERS, "keyp"),
        ({"broker_url": "redis://127.0.0.1:1", "broker_transport_options": {"priority_steps": [0]}}, SERVERS, "steps"),
        ({"broker_url": "redis://127.0.0.1:1"}, Settings(), "DRANGUE_DATABASE_URL"),
    ],
)
def test_what_cannot_work_together_is_refused(conf: dict[str, Any], settings: Settings, says: str) -> None:
    """Else runs would be recorded, sent, and never begun."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(conf)
    with pytest.raises(SettingsError, match=says):
        install(app, [], settings=settings)


def test_it_is_installed_once_and_leaves_the_rest_alone() -> None:
    """The application's own queue, options and tasks are what they were."""
    app = Celery("shop", broker="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.update(worker_pool="gevent", broker_transport_options={"visibility_timeout": 99, "socket_timeout": 3})
    install(app, [], settings=Settings(database_url=SERVERS.database_url))
    assert app.conf.worker_pool == "gevent"
    assert {"visibility_timeout": 99, "socket_timeout": 3}.items() <= app.conf.broker_transport_options.items()
    assert {"celery", "drangue.tool"} <= set(app.amqp.queues)
    assert set(app.amqp.queues.consume_from) == {"celery"}
    with pytest.raises(SettingsError, match="already"):
        install(app, [], settings=Settings(database_url=SERVERS.database_url))
    with pytest.raises(TypeError, match="app"):
        install("shop", [], settings=SERVERS)  # type: ignore[arg-type]
