"""The soak's judgement: what it expects comes from the plan, and each way of breaking a promise is seen."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from drangue_client.events import Event
from drangue_client.outcomes import cancelled, failure, unknown_outcome
from drangue_worker.chaos.breaks import KINDS, Pace, timetable
from drangue_worker.chaos.cancels import Cancel
from drangue_worker.chaos.gaps import gaps, strays
from drangue_worker.chaos.plan import IRREVERSIBLE, PlannedCall, PlannedDecision, PlannedRun, plan
from drangue_worker.chaos.recovery import percentile
from drangue_worker.chaos.swept import Swept, total
from drangue_worker.chaos.verdict import Ran, Verdict, judge
from drangue_worker.chaos.world import Execution

PACE = Pace(seconds=120, kill_every_s=2, flush_every_s=15, other_every_s=5, postgres_restarts=2)


def call(step: int, tool: str, granted: bool = True) -> PlannedCall:
    return PlannedCall(f"r:{step}", tool, {"subject": f"{tool} r:{step}"}, granted)


CALLS = (call(2, "look"), call(3, "wire"), call(4, "refund", granted=False))
PLAN = PlannedRun("r", (PlannedDecision("r:1", CALLS, (), 0.1), PlannedDecision("r:5", (), (), 0.1)))
EXECUTIONS = [Execution("r:2", "look", "look r:2"), Execution("r:3", "wire", "wire r:3")]


def log(**contents: str) -> tuple[Event, ...]:
    """The log of PLAN, with other contents for the results of the steps that are named (`s3="..."`)."""
    told = {"s2": "done: look r:2", "s3": "done: wire r:3", "s4": failure("refund", "denied", "no")} | contents
    asked = [{"id": f"c{one.step}", "name": one.tool, "arguments": one.arguments} for one in CALLS]
    facts: list[tuple[Any, int | None, dict[str, Any]]] = [
        ("run_started", None, {}),
        ("model_decision", 1, {"tool_calls": asked}),
        *(("tool_result", step, {"content": told[f"s{step}"]}) for step in (2, 3, 4)),
        ("model_decision", 5, {"tool_calls": []}),
        ("run_finished", 5, {"output": ""}),
    ]
    return numbered(Event(0, kind, payload, step=step) for kind, step, payload in facts)


def numbered(events: Any) -> tuple[Event, ...]:
    return tuple(replace(event, seq=seq) for seq, event in enumerate(events))


def verdict(
    events: tuple[Event, ...] | None = None, executions: list[Execution] = EXECUTIONS, status: str | None = "completed"
) -> Verdict:
    ran = Ran("r", status, log() if events is None else events)
    return judge([PLAN], {"r": ran}, executions, {"r:1": 1, "r:5": 2})


def test_the_same_seed_gives_the_same_runs_and_the_same_breaks() -> None:
    """A failure that was seen once must be sought again under the same conditions."""
    assert plan(7, 20, 5.0) == plan(7, 20, 5.0)
    assert plan(7, 20, 5.0) != plan(8, 20, 5.0)
    assert timetable(7, PACE) == timetable(7, PACE)
    assert timetable(7, PACE) != timetable(8, PACE)


def test_more_runs_do_not_change_the_first_ones() -> None:
    """A shorter soak of the same seed is the beginning of a longer one."""
    assert plan(7, 20, 5.0)[:5] == plan(7, 5, 5.0)


def test_planned_steps_are_numbered_as_users_are_promised() -> None:
    """A decision takes the next number and its calls those after it; keys are worked out here, and not read."""
    for run in plan(3, 50, 5.0):
        steps = [step for one in run.decisions for step in (one.step, *(call.step for call in one.calls))]
        assert steps == list(range(1, len(steps) + 1))
        assert [call.key for call in run.calls] == [f"{run.run_id}:{call.step}" for call in run.calls]


def test_a_plan_asks_for_everything_that_could_go_wrong() -> None:
    """A soak without an irreversible call, a refusal or a slow model would pass for nothing."""
    runs = plan(7, 100, 5.0)
    calls = [call for run in runs for call in run.calls]
    decisions = [decision for run in runs for decision in run.decisions]
    assert {call.tool for call in calls} == {"look", "fetch", "flaky", "wire", "send", "transfer", "refund"}
    assert {call.granted for call in calls if call.tool == "refund"} == {True, False}
    assert any(call.arguments.get("trips") for call in calls)
    assert {fault for decision in decisions for fault in decision.faults} == {"429", "500", "hang_up"}
    assert {5.0} < {decision.delay_s for decision in decisions}
    assert max(len(decision.calls) for decision in decisions) > 1
    assert any(run.cancel_at is not None for run in runs)


def test_a_run_is_cancelled_before_it_could_have_ended() -> None:
    """Its log gets to the planned place while something is still to be done, else the cancel would meet nothing."""
    cancelled = [run for run in plan(3, 300, 5.0) if run.cancel_at is not None]
    assert 20 < len(cancelled) < 80
    for run in cancelled:
        steps = len(run.decisions) + len(list(run.calls))
        assert 0 <= (run.cancel_at or 0) <= steps < len(("run_started", "run_finished")) + steps - 1


def test_breaks_keep_their_pace() -> None:
    """ "A SIGKILL every 2 s" is what the table is read with."""
    breaks = timetable(7, PACE)
    counts = Counter(one.kind for one in breaks)
    assert counts["kill_worker"] + counts["kill_child"] == 60
    assert counts["flush_redis"] == 8
    assert (counts["crash_postgres"], counts["restart_postgres"]) == (1, 1)
    assert set(counts) == set(KINDS)
    assert all(one.at_s <= other.at_s for one, other in pairwise(breaks))
    assert 0 <= breaks[0].at_s <= breaks[-1].at_s <= PACE.seconds


def test_another_pace_of_flushes_moves_no_kill() -> None:
    """Two soaks that differ in one thing can be compared."""
    other = timetable(7, replace(PACE, flush_every_s=3))
    assert [one for one in other if one.kind != "flush_redis"] == [
        one for one in timetable(7, PACE) if one.kind != "flush_redis"
    ]


def test_what_went_by_the_plan_passes() -> None:
    """Two effects, one refusal, one end."""
    found = verdict()
    assert (found.code, found.faults) == (0, {})
    assert (found.submitted, found.finished, found.expected, found.done) == (1, 1, 2, 2)
    assert (list(found.executions), list(found.asks)) == ([1, 1], [1, 2])


def test_an_execution_that_is_repeated_under_its_key_is_one_effect() -> None:
    """A reversible call is done at least once; who deduplicates by the key sees one."""
    found = verdict(executions=[*EXECUTIONS, EXECUTIONS[0]])
    assert (found.code, found.done, max(found.executions)) == (0, 2, 2)


@pytest.mark.parametrize("status", ["queued", "running", "paused"])
def test_a_run_that_has_not_ended_is_lost(status: str) -> None:
    """It was acknowledged, and its caller waits for ever."""
    found = verdict(log()[:-1], status=status)
    assert (found.code, len(found.lost)) == (1, 1)


def test_a_run_that_is_not_there_is_lost() -> None:
    """A submit that was acknowledged must have left a row."""
    found = judge([PLAN], {}, EXECUTIONS, {})
    assert (found.code, len(found.lost)) == (1, 1)


def test_a_call_under_two_keys_is_doubled() -> None:
    """Whoever deduplicates by the key would do it twice."""
    found = verdict(executions=[*EXECUTIONS, Execution("r:9", "look", "look r:2")])
    assert (found.code, len(found.doubled)) == (1, 1)


def test_an_irreversible_call_that_was_executed_twice_is_a_break_even_under_its_key() -> None:
    """Its service knows no keys."""
    found = verdict(executions=[*EXECUTIONS, EXECUTIONS[1]])
    assert (found.code, len(found.repeated), found.doubled) == (1, 1, ())


def test_a_call_that_was_refused_must_have_no_effect() -> None:
    """A person said no."""
    found = verdict(executions=[*EXECUTIONS, Execution("r:4", "refund", "refund r:4")])
    assert (found.code, len(found.unplanned)) == (1, 1)


def test_an_effect_that_is_recorded_and_not_there_is_missing() -> None:
    """The log says done; the world knows of nothing."""
    found = verdict(executions=EXECUTIONS[1:])
    assert (found.code, len(found.missing)) == (1, 1)


def test_an_effect_that_the_model_was_told_is_in_doubt_may_be_missing() -> None:
    """An interrupted call that never got to its effect: nobody was told otherwise."""
    found = verdict(log(s3=unknown_outcome("wire")), EXECUTIONS[:1])
    assert (found.code, found.unknown, dict(found.excused)) == (0, 1, {"unknown_outcome": 1})


@pytest.mark.parametrize("category", ["transient", "cancelled"])
def test_an_effect_must_not_be_denied(category: str) -> None:
    """An irreversible call that is reported as not executed would be asked for again."""
    found = verdict(log(s3=failure("wire", category, "not executed: the worker was told to stop just before")))
    assert (found.code, len(found.untrue)) == (1, 1)


CUT = numbered([*log()[:4], Event(0, "run_cancelled", {"last_step": 5})])  # one call done, the next under way
AT = 1000.0


def cut(
    events: tuple[Event, ...] = CUT,
    executions: list[Execution] = EXECUTIONS[:1],
    status: str = "cancelled",
    held: int = 0,
    cancels: Mapping[str, Cancel] = {"r": Cancel(AT, True)},
) -> Verdict:
    return judge([PLAN], {"r": Ran("r", status, events, held)}, executions, {}, cancels=cancels, late_s=5.0)


def test_a_cancelled_run_owes_only_what_it_says_was_done() -> None:
    """What was not begun, or is told as cancelled, needs no effect."""
    events = numbered([*CUT[:3], CUT[4]])
    told = numbered([*events, Event(0, "tool_result", {"content": cancelled("wire")}, step=3)])
    for found in (cut(events), cut(told)):
        assert (found.faults, found.cancelled, found.finished, found.expected, found.done) == ({}, 1, 0, 1, 1)
    assert cut(events, []).missing == ("r:2: look had no effect",)


def test_what_a_cancelled_run_did_for_good_must_be_told() -> None:
    """Its log is all that anybody will ever know: silence and a denial are as bad as each other."""
    silent = numbered([*CUT[:3], CUT[4]])
    denied = numbered([*silent, Event(0, "tool_result", {"content": cancelled("wire")}, step=3)])
    unknown = numbered([*silent, Event(0, "tool_result", {"content": unknown_outcome("wire")}, step=3)])
    assert [len(cut(events, EXECUTIONS).untrue) for events in (silent, denied, unknown)] == [1, 1, 0]


@pytest.mark.parametrize(
    ("status", "cancels", "faults"),
    [
        ("cancelled", {"r": Cancel(AT, True)}, 0),
        ("cancelled", {"r": Cancel(AT, False)}, 0),  # done the first time, and the answer was lost
        ("cancelled", {"r": Cancel(math.inf, False)}, 0),
        ("cancelled", {}, 1),
        ("completed", {"r": Cancel(AT, False)}, 0),
        ("completed", {"r": Cancel(AT, True)}, 1),
        ("running", {"r": Cancel(AT, True)}, 1),
        ("running", {"r": Cancel(AT, False)}, 1),
        ("running", {"r": Cancel(math.inf, False)}, 0),
    ],
)
def test_a_cancel_that_was_acknowledged_must_hold(status: str, cancels: dict[str, Cancel], faults: int) -> None:
    """It reads cancelled at once and for ever, unless it had ended before; and no run is cancelled by itself."""
    assert len(cut(log(), EXECUTIONS, status, cancels=cancels).unheeded) == faults


def test_nothing_of_a_cancelled_run_begins_late() -> None:
    """Workers hear of a cancel within seconds; what began before it may end after it."""
    soon, late = (replace(EXECUTIONS[0], at=AT + s) for s in (4.9, 5.1))
    assert cut(executions=[soon, EXECUTIONS[1]]).late == ()
    found = cut(executions=[late, EXECUTIONS[1]])
    assert (found.code, found.late) == (1, ("r:2: look began 5.1 s after its run was cancelled",))
    assert cut(executions=[late], cancels={"r": Cancel(AT, False)}).late == ()


def test_a_cancelled_run_with_a_step_that_nobody_records_is_lost() -> None:
    """`say` would refuse to go on with it for ever."""
    assert len(cut(held=1).lost) == 1


def test_in_a_calm_soak_whatever_was_sent_again_is_noise() -> None:
    """Nothing was broken, so nothing was to be mended; where something was, the figures stand for themselves."""
    ran = {"r": Ran("r", "completed", log())}
    for calm, faults in ((True, 2), (False, 0)):
        found = judge([PLAN], ran, EXECUTIONS, {}, swept=Swept(resent=3, recovered=1), calm=calm)
        assert (found.resent, found.recovered, len(found.noise)) == (3, 1, faults)
    assert judge([PLAN], ran, EXECUTIONS, {}, calm=True).code == 0


def test_what_was_swept_is_read_from_the_workers_lines() -> None:
    """A step whose backoff is over is sent as well (`due`): that is no recovery."""
    lines = [
        "worker: Warm shutdown (MainProcess)",
        json.dumps({"event": "swept", "runs": 9, "recovered": 1, "due": 2, "resent": 0}),
        json.dumps({"event": "step_given_back", "category": "rate_limited", "delay_s": 0.4}),
        json.dumps({"event": "swept", "runs": 0, "recovered": 1, "due": 0, "resent": 5}),
        json.dumps({"event": "run_stopped", "run_id": "swept"}),
        '{"event": "swept", "runs": 0, "reco',
    ]
    assert total(lines) == Swept(resent=5, recovered=2)


def test_a_failed_run_is_told_with_its_reason_and_misses_its_effects() -> None:
    """Failing is honest; the effects that were promised are not there all the same."""
    events = numbered([*log()[:2], Event(2, "run_failed", {"error": "gave up", "category": "crashed"})])
    found = verdict(events, [], status="failed")
    assert (found.code, dict(found.failed), len(found.missing)) == (1, {"crashed: gave up": 1}, 2)


def test_the_figures_can_be_written_as_json() -> None:
    """`--json` is for programs that compare soaks; means stand for the lists of counts."""
    told = json.loads(json.dumps(verdict(log(s3=unknown_outcome("wire")), EXECUTIONS[:1]).to_json()))
    assert (told["excused"], told["asks_per_step"]) == ({"unknown_outcome": 1}, {"mean": 1.5, "max": 2})


def test_a_model_call_under_a_wrong_key_is_a_gap() -> None:
    """The provider deduplicates by the key too."""
    found = judge([PLAN], {"r": Ran("r", "completed", log())}, EXECUTIONS, {}, ["step r:1 under the key r:2"])
    assert (found.code, len(found.gaps)) == (1, 1)


@pytest.mark.parametrize(
    ("events", "found"),
    [
        (log(), []),
        (log()[1:], ["seq 1 stands at place 0"]),
        (numbered([*log()[:3], *log()[2:]]), ["step 2 has 2 events of type tool_result"]),
        (numbered([*log()[:3], *log()[4:]]), ["step 3 had no result when model_decision was written"]),
        (numbered([*log()[:4], *log()[5:6]]), ["step 4 had no result when model_decision was written"]),
        (numbered([*log(), Event(0, "approval_granted", {}, step=2)]), ["approval_granted stands behind run_finished"]),
        (CUT, []),
        (numbered([*CUT, log()[4], Event(0, "step_stopped", {"kind": "model"}, step=5)]), []),
        (numbered([*CUT, Event(0, "step_started", {}, step=3)]), ["step_started stands behind run_cancelled"]),
        (numbered([*log(), Event(0, "outcome_corrected", {"content": "done: wire r:3"}, step=3)]), []),
        (
            numbered([*log()[:6], Event(0, "tool_result", {"content": ""}, step=8), *log()[6:]]),
            ["step 8 has a result and was never asked for"],
        ),
    ],
    ids=[
        "whole",
        "begun late",
        "doubled",
        "skipped",
        "too early",
        "after the end",
        "cut",
        "cut, and told",
        "begun after it",
        "corrected late",
        "of no call",
    ],
)
def test_a_log_with_a_gap_is_seen(events: tuple[Event, ...], found: list[str]) -> None:
    """What the log holds must be in order, wherever it stops."""
    assert gaps(events) == found


def test_results_of_another_call_are_seen() -> None:
    """Siblings end in any order; each result belongs to its own call."""
    assert strays(PLAN, log()) == []
    assert len(strays(PLAN, log(s2="done: wire r:3"))) == 1


def test_decisions_that_were_not_planned_are_seen() -> None:
    """The model was shown another conversation than its own."""
    other = replace(PLAN, decisions=(replace(PLAN.decisions[0], calls=CALLS[:2]), *PLAN.decisions[1:]))
    assert "step 1 is not the decision that was planned" in strays(other, log())


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5.0), (0.99, 10.0), (0.0, 1.0), (1.0, 10.0)])
def test_a_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    """Of ten recoveries p99 is the longest, not something between the two longest."""
    assert percentile([float(n) for n in range(10, 0, -1)], share) == expected
    assert percentile([], share) is None


def test_irreversible_tools_are_those_of_the_agent() -> None:
    """The verdict and the agent must mean the same tools."""
    from drangue_worker.chaos.agents import mixed

    assert {name for name, tool in mixed.blueprint.tools.items() if not tool.reversible} == IRREVERSIBLE
