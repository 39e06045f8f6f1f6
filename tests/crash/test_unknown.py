"""An irreversible call whose process dies: made anew where it had no effect for sure, looked up or asked about else.

What the world saw is counted in a table of the tests' own. The calls of one fleet are interrupted at the same time.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from drangue_client.errors import NotPendingError
from drangue_client.outcomes import failed_as
from drangue_worker.testing.provider import ProviderCall, Reply
from tests.acceptance.shell import Console, environment
from tests.kit.fleet import Fleet, wait_until

Make = Callable[..., Fleet]

CALLS = ("early", "late", "mute", "doubtful")
SOON_S = 2.0  # how late a deadline may be noticed


def script(call: ProviderCall) -> Reply:
    """A model that calls the tool it is asked for, and says what came of it; or one that thinks for a minute."""
    if call.last_user() == "think":
        return Reply("too late", delay_s=60.0)
    if call.turn == 0 and call.last_user() != "well?":
        return Reply(tool_calls=((call.last_user(), {}),))
    return Reply(" | ".join(call.results()) or "nothing")


def banking(make_fleet: Make, **settings: Any) -> Fleet:
    return make_fleet(script, agents=("tests.kit.doubtful",), tool_concurrency=len(CALLS), **settings)


def submitted(fleet: Fleet, *wishes: str, **options: Any) -> dict[str, str]:
    """A run of each wish, {wish: run id}."""
    return {wish: fleet.client.submit("bank", wish, allow_unknown=True, **options).run_id for wish in wishes}


def under_way(fleet: Fleet) -> dict[str, str]:
    """A run of each call, at the place where its first attempt is interrupted, {tool: run id}."""
    ids = submitted(fleet, *CALLS)
    places = {"late" if tool == "late" else f"{tool} made" for tool in CALLS}
    wait_until(lambda: places <= {tool for (tool,) in fleet.execute("select tool from effects")})
    return ids


def told(fleet: Fleet, run_id: str) -> list[str]:
    """What the calls of a run came to."""
    return [event.payload["content"] for event in fleet.client.events(run_id) if event.type == "tool_result"]


def made(fleet: Fleet) -> dict[str, tuple[int, int]]:
    """How often each call was made, and how often it had its effect."""
    return {tool: (len(fleet.effects(f"{tool} made")), len(fleet.effects(tool))) for tool in CALLS}


def test_a_call_whose_process_died_is_made_anew_where_it_had_no_effect(make_fleet: Make, tmp_path: Any) -> None:
    """At once, since the pool knows who died, and long before the lease; what cannot be told a person settles."""
    fleet = banking(make_fleet, lease_s=20.0)
    fleet.start("model-1", "tool-1")
    ids = under_way(fleet)
    for (process,) in fleet.execute("select distinct process from effects"):
        os.kill(process, signal.SIGKILL)
    killed_at = time.monotonic()
    results = dict(zip(CALLS, fleet.finish(list(ids.values()), 15), strict=True))
    assert time.monotonic() - killed_at < 8
    assert {tool: result.status for tool, result in results.items()} == {
        "early": "completed",
        "late": "completed",
        "mute": "completed",
        "doubtful": "paused",
    }
    assert told(fleet, ids["early"]) == ["early sent in attempt 2"]
    assert told(fleet, ids["late"]) == ["found late"]
    assert failed_as(told(fleet, ids["mute"])[0]) == "unknown_outcome"
    assert made(fleet) == {"early": (2, 1), "late": (1, 1), "mute": (1, 0), "doubtful": (1, 0)}
    began = [event.payload["attempt"] for event in results["early"].events if event.type == "step_started"]
    assert began == [1, 2]
    assert {row.run_id for row in fleet.client.runs(unknown=True)} == {ids["mute"], ids["doubtful"]}

    addresses = {name: value for name, value in fleet.settings.to_env().items() if name.endswith("_URL")}
    console = Console(environment(**addresses), tmp_path)
    done = console("outcome", ids["doubtful"], "--happened", "--note", "entry 4711", "--by", "ann")
    assert (done.code, done.err) == (0, "")
    (result,) = fleet.finish([ids["doubtful"]])
    assert (result.status, result.output) == ("completed", "entry 4711")
    assert made(fleet)["doubtful"] == (1, 0)
    assert console("outcome", ids["mute"], "--did-not-happen").code == 0
    assert fleet.client.runs(unknown=True) == []
    fleet.client.say(ids["mute"], "well?")
    fleet.finish([ids["mute"]])
    assert any("not_done" in json.dumps(message) for message in fleet.provider.calls[-1].messages)


def test_a_lease_that_lapsed_proves_nothing(make_fleet: Make) -> None:
    """The machine is not heard of again: what is not done yet may be done a second later by whoever is still there."""
    fleet = banking(make_fleet, lease_s=2.0)
    fleet.start("model-1")
    (victim,) = fleet.start("tool-1")
    ids = under_way(fleet)
    os.kill(victim.process.pid, signal.SIGSTOP)  # so that it gives nothing back before it dies itself
    for process in (*fleet.children_of(victim), victim.process.pid):
        os.kill(process, signal.SIGKILL)
    fleet.start("tool-2")
    results = dict(zip(CALLS, fleet.finish(list(ids.values()), 30), strict=True))
    assert [results[tool].status for tool in CALLS] == ["completed", "completed", "completed", "paused"]
    assert [failed_as(told(fleet, ids[tool])[0]) for tool in ("early", "mute")] == ["unknown_outcome"] * 2
    assert told(fleet, ids["late"]) == ["found late"]
    assert made(fleet) == {"early": (1, 0), "late": (1, 1), "mute": (1, 0), "doubtful": (1, 0)}
    assert len(fleet.effects("early looked up")) == 1
    assert fleet.client.give_outcome(ids["doubtful"], happened=False, by="ann")["asked"]
    (result,) = fleet.finish([ids["doubtful"]])
    assert (result.status, failed_as(result.output)) == ("completed", "not_done")


def test_a_call_that_was_killed_at_its_timeout_before_its_effect_has_timed_out(make_fleet: Make) -> None:
    """It had its time: it is not made anew, and nobody has to look for an effect that there is none of."""
    fleet = banking(make_fleet, lease_s=10.0)
    fleet.start("model-1", "tool-1")
    ids = submitted(fleet, "brief")
    (result,) = fleet.finish(list(ids.values()), 15)
    assert (result.status, failed_as(result.output), result.unknown_outcomes) == ("completed", "timeout", [])
    assert (len(fleet.effects("brief made")), fleet.effects("brief")) == (1, [])


def test_a_child_that_dies_after_its_turn_was_over_leaves_an_unknown_outcome(make_fleet: Make) -> None:
    """Nobody makes a call of an ended turn anew, whatever can be proven."""
    fleet = banking(make_fleet, lease_s=20.0)
    fleet.start("model-1", "tool-1")
    ids = submitted(fleet, "early")
    wait_until(lambda: fleet.effects("early made"))
    fleet.client.cancel(ids["early"])
    os.kill(fleet.execute("select process from effects")[0][0], signal.SIGKILL)
    wait_until(lambda: told(fleet, ids["early"]), 8)
    assert failed_as(told(fleet, ids["early"])[0]) == "unknown_outcome"
    assert [row.unknown for row in fleet.client.runs(unknown=True)] == [1]
    assert (len(fleet.effects("early made")), fleet.effects("early")) == (1, [])
    wait_until(lambda: not fleet.execute("select 1 from steps"), 5)
    fleet.client.say(ids["early"], "well?")
    (result,) = fleet.finish(list(ids.values()))
    assert "unknown_outcome" in result.output


def test_a_deadline_ends_a_run_wherever_it_is(make_fleet: Make) -> None:
    """In a thought, in a call that hears nothing, in a queue that nobody serves, and while a person is asked."""
    fleet = banking(make_fleet)
    fleet.start("model-1")
    (worker,) = fleet.start("tool-1", options=("--queues", "drangue.tool"))
    size = len(wait_until(lambda: fleet.children_of(worker)))
    fleet.finish([*submitted(fleet, "well?").values()])  # the first thought of a worker costs it a second more
    ids = submitted(fleet, "think", "sleep", "unserved", "ask_first", deadline=4.0)
    fleet.provider.wait_for(lambda p: p.in_flight == 1 and p.received >= 5, 4)
    wait_until(lambda: fleet.execute("select 1 from steps where name = 'unserved'"), 4)
    (process,) = wait_until(lambda: fleet.execute("select process from effects where tool = 'sleep'"), 4)[0]
    wait_until(lambda: fleet.client.get(ids["ask_first"]).status == "paused", 4)
    assert {row.status for row in fleet.client.runs(limit=4)} == {"running", "paused"}
    wait_until(lambda: {row.status for row in fleet.client.runs()} == {"completed"}, 4 + SOON_S)
    for wish, run_id in ids.items():
        row, result = fleet.client.get(run_id), fleet.client.result(run_id, timeout=1)
        assert (wish, result.reason, result.output) == (wish, "deadline", "(stopped: its time was over)")
        assert row.deadline_at == pytest.approx(row.created_at + 4.0, abs=1e-3)
        assert row.deadline_at is not None
        assert row.finished_at is not None
        assert 0 <= row.finished_at - row.deadline_at < SOON_S, wish
    fleet.provider.wait_for(lambda p: p.aborted == 1, 5)
    wait_until(lambda: process not in fleet.children_of(worker), 8)
    wait_until(lambda: len(fleet.children_of(worker)) == size, 8)
    wait_until(lambda: not fleet.execute("select 1 from steps"), 8)
    assert [failed_as(content) for content in told(fleet, ids["sleep"])] == ["cancelled"]
    with pytest.raises(NotPendingError):
        fleet.client.approve(ids["ask_first"])
    assert (fleet.effects("ask_first"), len(fleet.effects("sleep"))) == ([], 1)
    for run_id in ids.values():
        fleet.client.say(run_id, "well?")
    answers = dict(zip(ids, fleet.finish(list(ids.values())), strict=True))
    assert {wish: result.reason for wish, result in answers.items()} == dict.fromkeys(ids, "answered")
    assert failed_as(answers["unserved"].output) == "cancelled"
    assert answers["think"].output == "nothing"
