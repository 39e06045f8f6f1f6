"""The short soak: `scripts/chaos` as one types it, on a small fleet of its own, and what it must find.

The long one is for people: `scripts/chaos --runs 1000 --seconds 600`. That its verdict can fail is shown here with the
log of a planned run, spoiled in every way that it must see.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drangue_client.events import Event
from drangue_worker.chaos.plan import IRREVERSIBLE, PlannedRun, plan
from drangue_worker.chaos.verdict import Ran, Verdict, judge
from drangue_worker.chaos.world import Execution
from tests.kit.fleet import wait_until

ROOT = Path(__file__).resolve().parents[2]
CHAOS = [sys.executable, str(ROOT / "scripts" / "chaos")]
SMALL = ["--model-workers", "1", "--tool-workers", "1", "--lease", "2", "--seed", "7"]
ZEROS = ("lost", "missing", "doubled", "unplanned", "repeated", "untrue", "unheeded", "late", "noise", "gaps")


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DRANGUE_", "OPENAI_"))}
    return kept | {"TMPDIR": str(folder)}


def processes_with(text: str) -> list[str]:
    """The command lines of running processes that hold a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if text in line:
            found.append(line)
    return found


def test_a_short_soak_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Workers killed every 2 s, Redis flushed, Postgres crashed: every run ends, every effect is there once."""
    logs = tmp_path / "logs"
    short = ["--runs", "10", "--seconds", "9", "--flush-every", "4", "--other-every", "3", "--postgres-restarts", "1"]
    command = [*CHAOS, *SMALL, *short, "--deadline", "90", "--logs", str(logs), "--json"]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert {name: told[name] for name in ZEROS} == {name: [] for name in ZEROS}
    assert (told["submitted"], told["finished"] + told["cancelled"], told["failed"]) == (10, 10, {})
    assert told["cancelled"] >= 1  # of three that were to be, unless they were quicker
    assert told["done"] + sum(told["excused"].values()) == told["expected"] > 20
    assert told["breaks"]["flush_redis"] >= 1  # not where Redis was away just then
    assert told["breaks"]["crash_postgres"] == 1
    assert told["breaks"].get("shuffle", 0) + told["skipped"].get("shuffle", 0) == 1  # where something waited
    assert told["breaks"].get("kill_worker", 0) + told["breaks"].get("kill_child", 0) >= 1  # not of those that boot
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    assert len((logs / "runs.jsonl").read_text().splitlines()) == 10


@pytest.mark.long  # test_noise has a fleet to which nothing happens in every run of the suite
def test_a_calm_soak_sends_nothing_twice(tmp_path: Path) -> None:
    """Nothing is broken, all runs come at once, and the provider has its troubles: sweeps have nothing to mend."""
    logs = tmp_path / "logs"
    command = [*CHAOS, *SMALL, "--runs", "16", "--calm", "--deadline", "90", "--logs", str(logs), "--json"]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert (told["resent"], told["recovered"], told["breaks"], told["skipped"]) == (0, 0, {}, {})
    assert (told["finished"] + told["cancelled"], told["executions_per_step"]["max"]) == (16, 3)  # as often as planned
    lines = [line for path in logs.glob("*.log") for line in path.read_text().splitlines()]
    assert any('"swept"' in line for line in lines)  # they had backoffs to end, and are seen to have


def test_an_interrupted_soak_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C in the middle of it: no process, no folder."""
    command = [*CHAOS, *SMALL, "--runs", "50", "--kill-every", "1"]
    soak = subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        worker = f"--parent {soak.pid} "
        wait_until(lambda: len(processes_with(worker)) >= 2, 60, "workers are running")
        (folder,) = tmp_path.iterdir()
        time.sleep(3)
        soak.send_signal(signal.SIGINT)
        said, _ = soak.communicate(timeout=60)
    finally:
        soak.kill()
    assert soak.returncode == 130, said
    assert b"Traceback" not in said
    assert (processes_with(worker), processes_with(str(folder))) == ([], [])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def planned() -> PlannedRun:
    """A run that has more than one decision, and calls that can and cannot be repeated."""

    def fits(one: PlannedRun) -> bool:
        tools = {call.tool for call in one.calls if call.granted}
        return len(one.decisions) > 2 and bool(tools & IRREVERSIBLE) and bool(tools - IRREVERSIBLE)

    return next(one for one in plan(7, 50, 3.0) if fits(one))


def as_it_went(planned: PlannedRun) -> tuple[list[Event], list[Execution]]:
    """The log and the effects of a run to which nothing happened."""
    events = [Event(0, "run_started", {})]
    executions = []
    for decision in planned.decisions:
        calls = [{"id": call.key, "name": call.tool, "arguments": call.arguments} for call in decision.calls]
        events.append(Event(0, "model_decision", {"tool_calls": calls}, step=decision.step))
        for call in decision.calls:
            subject = call.arguments["subject"]
            content = f"done: {subject}" if call.granted else "refused"
            events.append(Event(0, "tool_result", {"content": content}, step=call.step))
            if call.granted:
                executions.append(Execution(call.key, call.tool, subject))
    events.append(Event(0, "run_finished", {"output": ""}))
    return [replace(event, seq=seq) for seq, event in enumerate(events)], executions


def judged(planned: PlannedRun, events: list[Event], executions: list[Execution], status: str = "completed") -> Verdict:
    return judge([planned], {planned.run_id: Ran(planned.run_id, status, tuple(events))}, executions, {})


def lose(events: list[Event], executions: list[Execution]) -> None:
    executions.remove(next(one for one in executions if one.tool not in IRREVERSIBLE))


def double(events: list[Event], executions: list[Execution]) -> None:
    one = next(one for one in executions if one.tool not in IRREVERSIBLE)
    executions.append(replace(one, key=f"{one.key}0"))


def repeat(events: list[Event], executions: list[Execution]) -> None:
    executions.append(next(one for one in executions if one.tool in IRREVERSIBLE))


def tear(events: list[Event], executions: list[Execution]) -> None:
    events.remove(next(event for event in events if event.type == "tool_result"))


@pytest.mark.parametrize(
    ("spoil", "fault"), [(lose, "missing"), (double, "doubled"), (repeat, "repeated"), (tear, "gaps")]
)
def test_the_verdict_fails_over_what_must_not_be(
    planned: PlannedRun, spoil: Callable[[list[Event], list[Execution]], Any], fault: str
) -> None:
    """A soak that cannot fail shows nothing."""
    events, executions = as_it_went(planned)
    assert judged(planned, events, executions).code == 0
    spoil(events, executions)
    found = judged(planned, events, executions)
    assert found.code == 1
    assert fault in found.faults


def test_the_verdict_fails_over_a_run_that_never_ended(planned: PlannedRun) -> None:
    """Lost is what nobody will ever end."""
    events, executions = as_it_went(planned)
    found = judged(planned, events[:-1], executions, "running")
    assert (found.code, len(found.lost)) == (1, 1)
