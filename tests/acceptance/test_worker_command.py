"""Starting workers as an operator does, by `drangue worker` and by plain Celery, and what may be read off them.

Ids travel through Redis, show in Flower and stand in log lines; what people and models said does not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from drangue_worker.dev import start_flower
from drangue_worker.supervisor import Supervisor
from drangue_worker.testing.provider import ProviderCall, Reply
from tests.acceptance.agents import BEYOND, SECRET
from tests.acceptance.conftest import MakeFleet
from tests.acceptance.shell import (
    Running,
    celery_worker,
    children_of,
    command_of,
    drangue,
    environment,
    messages_in,
    run,
    running,
)
from tests.kit.fleet import Fleet, wait_until

LOOP_QUEUES = "drangue.coordinate,drangue.model,drangue.async_tool"
TOOLS = ("tell", "tell_async", "fail", "fail_async")  # of one decision: sync and async, done and failed

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")


def script(call: ProviderCall) -> Reply:
    """What the model does is what the input says; every word of it is a secret."""
    wish = call.last_user()
    if call.turn:
        return Reply(f"{SECRET} {call.results()}")
    if wish == "beyond":
        return Reply(tool_calls=(("panic", {"text": BEYOND}),))
    if SECRET in wish:
        return Reply(f"{SECRET} thoughts", tool_calls=tuple((name, {"text": SECRET}) for name in TOOLS))
    return Reply(tool_calls=tuple((name, {"text": "x"} if name == "note" else {}) for name in wish.split()))


@pytest.fixture(scope="module")
def fleet(make_shared_fleet: MakeFleet) -> Fleet:
    """Servers, a client and a provider; each test starts the workers that it is about."""
    return make_shared_fleet(script, log_level="debug")


@pytest.fixture
def start(fleet: Fleet, tmp_path: Path) -> Iterator[Any]:
    """Start a command beside the test; whatever it leaves is ended after it."""
    with ExitStack() as stack:
        numbers = iter(range(100))

        def start_one(command: list[str]) -> Running:
            env = environment(**fleet.supervisor.env)
            return stack.enter_context(running(command, env, tmp_path, tmp_path / f"{next(numbers)}.out"))

        yield start_one


def serves(fleet: Fleet, wish: str) -> None:
    """A run that uses the named tools comes to its end."""
    run_id = fleet.client.submit("tester", wish, allow_unknown=True).run_id
    (result,) = fleet.finish([run_id], 30)
    assert (result.status, len(result.events)) == ("completed", 4 + len(wish.split()))


class TestPools:
    def test_plain_celery_serves_the_model_pool(self, start: Any, fleet: Fleet) -> None:
        """Celery's own command is as good as ours, and ends at SIGTERM as if nothing had happened."""
        worker = start(celery_worker("-Q", LOOP_QUEUES))
        serves(fleet, "ping")
        assert worker.terminate() == 0, worker.said()
        assert "Traceback" not in worker.said()

    def test_one_pool_serves_its_own_steps_and_stops_when_told(self, scene: Scene) -> None:
        """`drangue worker model` alone did the async tools and left the sync ones; SIGTERM ended it with 0."""
        assert scene.done_by_the_model_pool == ["fail_async", "tell_async"]
        assert scene.stopped_with == 0

    def test_both_pools_are_kept_running_by_one_command(self, start: Any, fleet: Fleet) -> None:
        """A child that is killed is started again; SIGTERM stops everything, with exit code 0."""
        supervisor = start(drangue("worker"))
        serves(fleet, "note ping")
        killed = pool_of(supervisor, "model")
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: pool_of(supervisor, "model") not in (0, killed), 20, "the model pool is started again")
        serves(fleet, "note ping")
        assert supervisor.terminate() == 0
        assert supervisor.family.left() == {}
        assert "Traceback" not in supervisor.said()

    @on_linux
    def test_no_worker_outlives_a_killed_command(self, start: Any, fleet: Fleet) -> None:
        """A supervisor that is shot must not leave workers that nobody knows of."""
        supervisor = start(drangue("worker"))
        wait_until(lambda: supervisor.said().count(" ready.") == 2, 30, "both pools are ready")
        supervisor.kill()
        assert len(supervisor.family) >= 4  # two pools, and the tool pool's children
        wait_until(lambda: not supervisor.family.left(), 30, f"gone: {supervisor.family.left()}")


def pool_of(supervisor: Running, pool: str) -> int:
    """The process id of a supervisor's child, 0 while there is none."""
    return next((pid for pid in children_of(supervisor.pid) if f" worker {pool} " in command_of(pid)), 0)


class TestRefusals:
    def test_threads_refuse_the_queues_of_sync_tools(self, fleet: Fleet, tmp_path: Path) -> None:
        """A thread cannot be stopped. The message names the queues, and what to start in its place."""
        done = run(celery_worker("-Q", "drangue.tool"), environment(**fleet.supervisor.env), tmp_path)
        says = ("(drangue.tool)", "drangue worker tool", f"-Q {LOOP_QUEUES}")
        assert [part for part in says if part not in done.err] == [], done.err
        assert done.code == 2
        assert "Traceback" not in done.err

    def test_a_queue_that_nobody_sends_to_is_refused(self, fleet: Fleet, tmp_path: Path) -> None:
        """A typo in a queue's name would be a worker that waits for ever."""
        command = drangue("worker", "model", "--queues", "drangue.modle")
        done = run(command, environment(**fleet.supervisor.env), tmp_path)
        line = done.one_line()
        assert "'drangue.modle'" in line
        assert "task_create_missing_queues" not in line, "advice that the reader cannot and should not follow"

    def test_options_of_one_pool_are_refused_for_both(self, fleet: Fleet, tmp_path: Path) -> None:
        """An option that is taken and then ignored is a fleet of another size than was asked for."""
        env = environment(
            **{**fleet.supervisor.env, "DRANGUE_REDIS_URL": "redis://127.0.0.1:1/0"}
        )  # it shall not start
        line = run(drangue("worker", "--concurrency", "2"), env, tmp_path).one_line()
        assert "--concurrency" in line


@dataclass(frozen=True, slots=True)
class Scene:
    """What could be seen while runs full of secrets went through."""

    run_id: str
    last_step: int
    done_by_the_model_pool: list[str]
    """The tools that had a result when the model pool, started alone, was stopped."""
    stopped_with: int
    messages: str
    """What Redis held while no worker was there to take it."""
    events: list[dict[str, Any]]
    flower: dict[str, dict[str, Any]]
    """Flower's tasks by id."""
    logs: str
    beyond: list[str]
    """What the model was told of a tool that raised what is no Exception."""


@pytest.fixture(scope="module")
def scene(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Runs whose input, arguments, results and exceptions are secrets, watched by everything that can watch them."""
    folder = tmp_path_factory.mktemp("scene")
    env = environment(**fleet.supervisor.env)
    monitors = Supervisor({**fleet.supervisor.env, "FLOWER_UNAUTHENTICATED_API": "true"}, folder, 2.0)
    with ExitStack() as stack:
        stack.callback(monitors.stop)
        stack.callback(fleet.supervisor.stop)
        with watching(fleet) as events:
            flower = start_flower(monitors, fleet.settings)
            if flower is None:
                pytest.skip("Flower is not installed")
            wait_until(lambda: listeners(fleet) == 2, 30, "Flower listens")
            run_id = submit(fleet, f"Keep {SECRET}.")
            with running(drangue("worker", "model"), env, folder, folder / "first.log") as first:
                wait_until(lambda: len(told(fleet, run_id)) == 2, 30, "the async tools are done")
                stopped_with = first.terminate()
            names = [event.payload["name"] for event in fleet.client.events(run_id) if event.type == "tool_result"]
            submit(fleet, f"Keep {SECRET} too.")
            messages = messages_in(fleet.settings.redis_url)  # the sync tools, whose workers are still to come
            fleet.start("model-1", "tool-1")
            (result,) = fleet.finish([run_id])
            last_step = result.events[-1].step
            seen = wait_until(lambda: shown_by(flower, run_id, last_step), 30, "Flower shows the last task")
            wait_until(lambda: all_ended(events, run_id, last_step), 30, "every task's end is an event")
            panicked = submit(fleet, "beyond")
            failed = "task-failed"
            wait_until(lambda: told(fleet, panicked) or any(event["type"] == failed for event in events), 30)
            fleet.supervisor.stop()
        logs = [*folder.glob("*.log"), *fleet.folder.glob("*.log")]
        assert len(logs) == 4  # a model pool twice, a tool pool, Flower
        text = "".join(path.read_text(errors="replace") for path in logs)
        yield Scene(run_id, last_step, sorted(names), stopped_with, messages, events, seen, text, told(fleet, panicked))


def submit(fleet: Fleet, wish: str) -> str:
    return fleet.client.submit("keeper", wish, allow_unknown=True).run_id


def told(fleet: Fleet, run_id: str) -> list[str]:
    """The results of a run's tools so far."""
    return [event.payload["content"] for event in fleet.client.events(run_id) if event.type == "tool_result"]


def listeners(fleet: Fleet) -> int:
    """How many programs are subscribed to Celery's events."""
    with redis.Redis.from_url(fleet.settings.redis_url) as client:
        return sum(int(one["psub"]) > 0 for one in client.client_list())


@contextmanager
def watching(fleet: Fleet) -> Iterator[list[dict[str, Any]]]:
    """Every Celery event of the block, as a monitor receives it."""
    events: list[dict[str, Any]] = []
    stop = threading.Event()

    def listen() -> None:
        with fleet.sender.app.connection_for_read() as connection:
            receiver = fleet.sender.app.events.Receiver(connection, handlers={"*": events.append})
            with receiver.consumer_context() as (own, _channel, _consumers):
                while not stop.is_set():
                    try:
                        own.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

    thread = threading.Thread(target=listen, name="events")
    thread.start()
    try:
        wait_until(lambda: listeners(fleet) == 1, 30, "the receiver listens")
        yield events
    finally:
        stop.set()
        thread.join()


def all_ended(events: list[dict[str, Any]], run_id: str, last_step: int) -> bool:
    """Whether the run's last task, and every one before it, has said that it ended."""
    ours = [event for event in list(events) if str(event.get("uuid")).startswith(run_id)]
    begun = {event["uuid"] for event in ours if event["type"] == "task-received"}
    ended = {event["uuid"] for event in ours if event["type"] in ("task-succeeded", "task-failed")}
    return begun == ended and any(uuid.startswith(f"{run_id}:{last_step}:") for uuid in ended)


def shown_by(flower: str, run_id: str, last_step: int) -> dict[str, dict[str, Any]] | None:
    """Flower's tasks, once it shows that the run's last one has succeeded."""
    try:
        with urllib.request.urlopen(f"{flower}/api/tasks?limit=1000", timeout=5) as answer:
            tasks: dict[str, dict[str, Any]] = json.load(answer)
    except urllib.error.URLError:
        return None  # it is still starting
    shown = [task for uuid, task in tasks.items() if uuid.startswith(f"{run_id}:{last_step}:")]
    return tasks if any(task["state"] == "SUCCESS" for task in shown) else None


class TestNothingIsToldToThoseWhoOnlyWatch:
    def test_messages_hold_ids(self, scene: Scene) -> None:
        """Whoever can read Redis learns that a run exists."""
        for name in ("drangue.coordinate", "drangue.call_tool"):
            assert f'"task": "{name}"' in scene.messages
        assert scene.run_id in scene.messages
        assert SECRET not in scene.messages

    def test_events_hold_ids(self, scene: Scene) -> None:
        """Everyone who may look at the queue sees task events, and some monitors keep them."""
        kinds = {event["type"] for event in scene.events}
        assert {"task-received", "task-started", "task-succeeded"} <= kinds
        assert [event for event in scene.events if SECRET in json.dumps(event)] == []

    def test_events_read_as_run_and_step(self, scene: Scene) -> None:
        """An operator finds the run that a task belongs to without asking anyone."""
        received = [event for event in scene.events if event["type"] == "task-received"]
        names: set[str] = set()
        for event in received:
            run_id, step, _ = event["uuid"].split(":")
            wanted = f"('{run_id}',)" if step == "c" else f"('{run_id}', {step})"
            assert (event["args"], event["kwargs"]) == (wanted, "{}")
            names.add(event["name"])
        assert names == {"drangue.coordinate", "drangue.call_model", "drangue.call_tool"}

    def test_log_lines_hold_ids(self, scene: Scene) -> None:
        """Logs are shipped to places where prompts must not be, whatever their level."""
        assert scene.run_id in scene.logs
        assert [line for line in scene.logs.splitlines() if SECRET in line] == []

    def test_flower_lists_runs_and_steps(self, scene: Scene) -> None:
        """Flower reads as runs and steps, with nothing of what was said, returned or raised."""
        tasks = {uuid: task for uuid, task in scene.flower.items() if uuid.startswith(f"{scene.run_id}:")}
        steps = {uuid: uuid.split(":")[1] for uuid in tasks}
        assert {str(step) for step in range(1, scene.last_step + 1)} <= set(steps.values())
        for uuid, task in tasks.items():
            assert task["name"].startswith("drangue.")
            wanted = f"('{scene.run_id}',)" if steps[uuid] == "c" else f"('{scene.run_id}', {steps[uuid]})"
            assert task["args"] == wanted
            assert task["result"] in (None, "None")
            assert (task["exception"], task["traceback"]) == (None, None)
        assert SECRET not in json.dumps(scene.flower)

    def test_a_tool_that_raises_no_exception_fails_like_any_other(self, scene: Scene) -> None:
        """Extension modules raise BaseException when they crash: that is a result for the model as well."""
        (content,) = scene.beyond or [None]
        assert content is not None, "the call has no result: its step is left to lapse"
        assert json.loads(content)["ok"] is False

    def test_what_is_no_exception_is_not_shown_either(self, scene: Scene) -> None:
        """Its text is the author's, with the arguments in it, as any other's."""
        assert [event for event in scene.events if BEYOND in json.dumps(event)] == []
        assert [line for line in scene.logs.splitlines() if BEYOND in line] == []


def test_a_second_signal_ends_a_stop_that_takes_too_long(tmp_path: Path) -> None:
    """Whoever presses Ctrl-C twice does not want to wait for a child that will not end."""
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    program = (
        "import sys; from pathlib import Path; from drangue_worker.supervisor import Supervisor; "
        "one = Supervisor(log_folder=Path(sys.argv[1]), grace_s=300.0); "
        "one.start('stubborn', [sys.executable, '-c', sys.argv[2]]); sys.exit(one.run())"
    )
    command = [sys.executable, "-c", program, str(tmp_path), stubborn]
    with subprocess.Popen(command, env=environment()) as process:
        log = tmp_path / "stubborn.log"
        wait_until(lambda: log.exists() and "up" in log.read_text(), 30)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
