"""What others see of a fleet without asking its workers: a file that stays young, and metrics for Prometheus."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.shell import Console, celery_worker, drangue, environment, run, running
from tests.kit.fleet import Fleet, calls_then_answer, wait_until

Make = Callable[..., Fleet]
BLOCKED_S = 4.0


@pytest.fixture
def fleet(make_fleet: Make) -> Fleet:
    calls = calls_then_answer(("hog", {"seconds": BLOCKED_S}))
    return make_fleet(calls, agents=("tests.kit.agents", "tests.kit.blocking"), lease_s=30.0)


def age_of(path: Path) -> float:
    """How many seconds ago the file was touched."""
    return time.time() - path.stat().st_mtime


def test_a_worker_that_cannot_work_shows_no_sign_of_life(fleet: Fleet, tmp_path: Path) -> None:
    """A blocked event loop serves nobody, though its process lives: who watches the file starts another one."""
    sign = tmp_path / "model.alive"
    fleet.start("model-1", options=("--liveness-file", str(sign)))
    wait_until(sign.exists, 20)
    run_id = fleet.client.submit("hogging", "go", allow_unknown=True).run_id
    wait_until(lambda: age_of(sign) > BLOCKED_S / 2, 60, "the file grows old while the loop is blocked")
    wait_until(lambda: age_of(sign) < BLOCKED_S / 2, 60, "and young again")
    assert fleet.finish([run_id])[0].status == "completed"


def test_a_worker_that_ends_in_order_takes_its_sign_away(fleet: Fleet, tmp_path: Path) -> None:
    """A young file of a worker that was stopped would say for seconds that it lives."""
    sign = tmp_path / "tool.alive"
    (child,) = fleet.start("tool-1", options=("--liveness-file", str(sign)))
    wait_until(sign.exists, 20)
    child.process.terminate()
    wait_until(lambda: child.process.poll() is not None, 30)
    assert not sign.exists()


def test_a_sign_that_cannot_be_shown_is_refused_at_the_start(fleet: Fleet, tmp_path: Path) -> None:
    """Else the health check would kill a healthy worker over and over, and nobody would know why."""
    env = environment(**fleet.supervisor.env)
    done = run(drangue("worker", "model", "--liveness-file", str(tmp_path / "no" / "such" / "file")), env, tmp_path)
    assert "DRANGUE_LIVENESS_FILE" in done.one_line()
    done = run(drangue("worker", "--liveness-file", str(tmp_path / "both")), env, tmp_path)
    assert "one pool" in done.one_line()
    kept = tmp_path / "agents.py"
    kept.write_text("precious")
    done = run(drangue("worker", "model", "--liveness-file", str(kept)), env, tmp_path)
    assert "holds something" in done.one_line()
    assert kept.read_text() == "precious"


def test_no_worker_removes_a_file_that_holds_something(fleet: Fleet, tmp_path: Path) -> None:
    """Plain Celery does not look at the path before it starts; a mistaken one must not cost somebody a file."""
    kept = tmp_path / "kept"
    kept.write_text("precious")
    env = environment(**fleet.supervisor.env, DRANGUE_LIVENESS_FILE=str(kept))
    command = celery_worker("-l", "INFO", "-Q", "drangue.coordinate")
    with running(command, env, tmp_path, tmp_path / "worker.out") as worker:
        worker.waits_to_say(" ready.")
        assert worker.terminate() == 0
    assert kept.read_text() == "precious"


def test_coordination_can_have_a_pool_of_its_own(make_fleet: Make) -> None:
    """It begins runs although no model pool is up, and leaves the model calls to those who do them."""
    fleet = make_fleet(calls_then_answer())
    fleet.start("coordinator-1")
    (worker,) = fleet.client.workers(2.0)
    assert worker["queues"] == ["drangue.coordinate"]
    run_id = fleet.client.submit("tester", "go", allow_unknown=True).run_id
    wait_until(lambda: fleet.client.get(run_id).status == "running", 20)
    assert [event.type for event in fleet.client.events(run_id)] == ["run_started"]
    fleet.start("model-1")
    assert fleet.finish([run_id])[0].status == "completed"


class TestMetrics:
    def test_an_exporter_answers_until_it_is_told_to_end(self, fleet: Fleet, tmp_path: Path) -> None:
        """Prometheus asks by HTTP; SIGTERM ends it with 0."""
        command = drangue("metrics", "--port", "0")
        with running(command, environment(**fleet.supervisor.env), tmp_path, tmp_path / "metrics.out") as exporter:
            exporter.waits_to_say("/metrics")
            url = exporter.said().split()[-1]
            fleet.client.submit("tester", "go", allow_unknown=True)
            assert 'drangue_runs{status="queued"} 1.0' in read(url)
            assert exporter.terminate() == 0, exporter.said()

    def test_metrics_can_be_had_once(self, fleet: Fleet, make_console: Callable[[Fleet], Console]) -> None:
        """For a look by hand, or a collector of text files; no address is taken for it."""
        done = make_console(fleet)("metrics", "--once")
        assert done.code == 0
        assert "drangue_up 1.0" in done.out

    def test_what_cannot_be_served_is_said_in_one_line(
        self, fleet: Fleet, make_console: Callable[[Fleet], Console], tmp_path: Path
    ) -> None:
        """An address that is taken, a price table that is none, a database that is away."""
        console = make_console(fleet)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            assert "--port" in console("metrics", "--port", str(taken.getsockname()[1])).one_line()
        (tmp_path / "prices.json").write_text('{"scripted": 3}')
        assert "prices" in console("metrics", "--once", "--prices", str(tmp_path / "prices.json")).one_line()
        console("metrics", "--once", DRANGUE_DATABASE_URL="postgresql://127.0.0.1:1/x").one_line()


def read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as response:
        return response.read().decode()
