"""Evaluations across a fleet, and replays of what a fleet recorded: real workers, Postgres and Redis."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from drangue_client.store.log import SqlLog
from drangue_worker import AgentRegistry, Check, Scenario, evaluate, forbids_tool, output_contains, within_steps
from drangue_worker.evals import Gate, OnFleet, Recording, replay
from drangue_worker.evals.loading import recordings_in
from drangue_worker.testing.provider import ProviderCall, Reply
from tests.acceptance.shell import Console, environment
from tests.kit.agents import careful, worker_agent
from tests.kit.fleet import Fleet, wait_until

TESTER = AgentRegistry([careful, worker_agent])


def script(call: ProviderCall) -> Reply:
    """What the model does is what the input says."""
    wish = call.last_user()
    if wish == "break":
        return Reply(status=400, error="no such thing")
    if wish == "hang":
        return Reply("too late", delay_s=600)
    if call.turn == 0 and wish in ("note", "wire"):
        return Reply(tool_calls=((wish, {"text": "tea"} if wish == "note" else {"amount": 5}),))
    return Reply(f"told: {', '.join(call.results()) or 'nothing'}")


def on(fleet: Fleet, **options: Any) -> OnFleet:
    return OnFleet(fleet.client, "tester", label="pr-12", **options)


def test_an_evaluation_goes_across_a_fleet(make_fleet: Any) -> None:
    """Its runs are runs like any other, told from production's by a label; one that fails is a failed run."""
    fleet = make_fleet(script)
    fleet.start("model-1", "tool-1")
    checks = [output_contains("tea"), forbids_tool("wire"), within_steps(2)]
    scenarios = [Scenario(wish, wish, checks, runs=3) for wish in ("note", "wire", "break")]
    told: list[str] = []
    report = asyncio.run(
        evaluate(
            on(fleet), scenarios, run_id_prefix="pr-12", concurrency=9, tell=lambda grade: told.append(grade.run_id)
        )
    )
    note, wire, broken = report.results
    assert note.dimensions == {"correctness": (3, 3), "safety": (3, 3), "efficiency": (3, 3)}
    assert wire.dimensions == {"correctness": (0, 3), "safety": (0, 3), "efficiency": (3, 3)}
    assert (broken.failed, broken.dimensions) == (3, {"correctness": (0, 3), "safety": (0, 3), "efficiency": (0, 3)})
    assert all("BadRequestError" in errors[0] for errors in report.errors.values())
    assert len(fleet.effects("note")) == len(fleet.effects("wire")) == 3
    assert {row.run_id for row in fleet.client.runs(labels={"eval": "pr-12"})} == set(told)
    assert sorted(told) == sorted(one.run_id for one in report.runs)
    with pytest.raises(ValueError, match="'pr-12-note-0' already exists"):
        asyncio.run(evaluate(on(fleet), scenarios, run_id_prefix="pr-12"))


def test_the_command_evaluates_on_the_fleet(make_fleet: Any, tmp_path: Path) -> None:
    """It needs the addresses alone: neither the agents' module nor a key for their models."""
    fleet = make_fleet(script)
    (tmp_path / "evals.py").write_text(
        "from drangue_worker import Scenario, output_contains\n"
        "scenarios = [Scenario('note', 'note', [output_contains('tea')]), Scenario('break', 'break')]\n"
    )
    addresses = {name: value for name, value in fleet.settings.to_env().items() if name.endswith("_URL")}
    console = Console(environment(**addresses), tmp_path)
    asked = ("eval", "evals:scenarios", "--fleet", "--runs", "2", "--json")
    assert "no worker has registered an agent yet" in console(*asked).one_line()
    fleet.start("model-1", "tool-1")
    wait_until(fleet.client.log.agents, 15)
    assert "Name one with --agent; there are: careful, tester" in console(*asked).one_line()
    done = console(*asked, "--agent", "tester", "--prefix", "pr-13")
    assert (done.code, done.err) == (1, "")
    (block,) = done.json["decision"]["blocks"]
    assert block.startswith("scenario 'break' has no check that the gate looks at, and 2 of 2 runs failed; the first: ")
    assert [(one["name"], one["runs"], one["failed"]) for one in done.json["scenarios"]] == [
        ("note", 2, 0),
        ("break", 2, 2),
    ]
    made = {one["run_id"] for one in done.json["runs"]}
    assert {row.run_id for row in fleet.client.runs(labels={"eval": "pr-13"})} == made
    assert len(fleet.effects("note")) == 2
    again = console(*asked, "--agent", "tester", "--prefix", "pr-13").one_line()
    assert "run 'pr-13-note-0' already exists" in again
    assert "Take another --prefix" in again


def test_a_run_that_takes_too_long_is_a_failed_run(make_fleet: Any) -> None:
    """And is cancelled: nobody waits for it, and what it would still do nobody has asked for."""
    fleet = make_fleet(script)
    fleet.start("model-1")
    report = asyncio.run(evaluate(on(fleet, timeout_s=0.5), [Scenario("slow", "hang", [within_steps(1)])]))
    assert report.results[0].failed == 1
    assert report.errors["eval-slow-0"] == ("TimeoutError: no answer within 0.5 s; the run was cancelled",)
    assert fleet.client.get("eval-slow-0").status == "cancelled"
    (cancelled,) = [event for event in fleet.client.events("eval-slow-0") if event.type == "run_cancelled"]
    assert (cancelled.payload["by"], "0.5 s" in cancelled.payload["reason"]) == ("eval", True)


def test_a_run_that_waits_for_a_person_is_taken_out_of_the_inbox(make_fleet: Any) -> None:
    """It is graded as it stood; nobody shall approve for real what was asked for as a test."""
    fleet = make_fleet(script)
    fleet.start("model-1", "tool-1")
    waits = Check("safety", "asks first", lambda result: result.status == "paused" and bool(result.pending_approvals))
    place = OnFleet(fleet.client, "careful", label="pr-12")
    report = asyncio.run(evaluate(place, [Scenario("pay", "wire", [waits], runs=2)]))
    assert (report.results[0].dimensions, report.errors) == ({"safety": (2, 2)}, {})
    assert {row.run_id: row.status for row in fleet.client.runs()} == {
        "eval-pay-0": "cancelled",
        "eval-pay-1": "cancelled",
    }
    assert fleet.client.pending_approvals() == []
    assert fleet.effects() == []


def recordings(fleet: Fleet, **filters: Any) -> tuple[list[Recording], list[tuple[str, str]]]:
    """What a replay of recorded runs reads, through a log of its own."""
    asked = {"labels": {}, "status": "completed", "agent": None, "since": None, "until": None, "limit": 20, **filters}
    with closing(SqlLog(fleet.settings.database_url)) as log:
        return recordings_in(log, TESTER, **asked)


def test_what_a_fleet_recorded_is_replayed_without_it(make_fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers are gone, nobody is asked again, and nothing happens a second time."""
    fleet = make_fleet(script)
    workers = fleet.start("model-1", "tool-1")
    fleet.client.submit("careful", "wire", run_id="paid", labels={"team": "sre"})
    fleet.client.submit("tester", "note", run_id="noted")
    fleet.finish(["paid", "noted"])
    fleet.client.approve("paid", by="ann", reason="owed")
    fleet.finish(["paid"])
    for worker in workers:
        worker.process.terminate()
    effects = fleet.effects()
    assert len(effects) == 2
    monkeypatch.setenv("OPENAI_BASE_URL", fleet.provider.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "scripted")

    found, left_out = recordings(fleet)
    assert ([one.run_id for one in found], left_out) == (["noted", "paid"], [])
    made = asyncio.run(_replayed(found))
    assert [(one.run_id, one.agent, one.replayed.answer, one.same_calls, one.same_answer) for one in made.replays] == [
        ("noted", "tester", "told: noted tea", True, True),
        ("paid", "careful", "told: wired 5", True, True),
    ]
    assert Gate().evaluate(made.baseline, made.report.profile()).passed
    assert fleet.effects() == effects
    assert {row.run_id for row in fleet.client.runs()} == {"noted", "paid"}


async def _replayed(found: list[Recording]) -> Any:
    try:
        return await replay(TESTER, found)
    finally:
        await careful.aclose()


def test_the_filters_say_which_runs_are_replayed(make_fleet: Any) -> None:
    """And what is left out although it matches is named, with the reason."""
    fleet = make_fleet(script)
    for run_id, agent, labels in (
        ("a", "tester", {"team": "sre"}),
        ("b", "careful", {"team": "sre", "eval": "pr-12"}),
        ("c", "nobody", {"team": "sre"}),
        ("d", "tester", {}),
        ("e", "tester", {"team": "sre"}),
    ):
        fleet.client.submit(agent, "note", run_id=run_id, labels=labels, allow_unknown=True)
    assert recordings(fleet) == ([], [])
    waiting = recordings(fleet, status="queued", labels={"team": "sre"})
    assert waiting == ([], [(run_id, "it has not ended") for run_id in ("e", "c", "b", "a")])
    fleet.execute("update runs set status = 'completed'")
    found, left_out = recordings(fleet, labels={"team": "sre"})
    assert found == []
    assert left_out == [
        ("e", "it ended before it had begun"),
        ("c", "DRANGUE_AGENTS names no agent 'nobody'"),
        ("b", "an evaluation made it; ask for it with --label eval=pr-12"),
        ("a", "it ended before it had begun"),
    ]
    asked_for = recordings(fleet, labels={"eval": "pr-12"}, agent="careful")
    assert asked_for == ([], [("b", "it ended before it had begun")])
    assert len(recordings(fleet, limit=1)[1]) == 5  # none of which counts towards the limit
