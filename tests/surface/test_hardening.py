"""What a tool's author declares about failing: retries, fallbacks, validation, time limits, irreversibility."""

from __future__ import annotations

import json
from typing import Any

import pytest

from drangue_worker.testing import Reply
from tests.surface.case import Case, calls, contents, errors, of

DONE = Reply("done")

CATEGORIES = {
    "error": ("error", "it broke"),
    "tool_error": ("error", "it said so"),
    "silent": ("error", "RuntimeError"),
    "permanent": ("permanent", "never again"),
    "auth": ("auth", "who are you"),
    "validation": ("validation", "not like this"),
    "transient": ("transient", "not now"),
    "rate_limit": ("rate_limit", "slow down"),
    "timeout": ("timeout", "too late"),
    "exit": ("error", "it raised SystemExit: 3"),
}


@pytest.mark.parametrize("tool", ["fail", "fail_async"])
def test_a_failure_is_told_to_the_model_by_category_and_never_ends_the_run(case: Case, tool: str) -> None:
    """The model decides what to do about a failed call, and a stray exit must not take a worker down."""
    case.model(calls(*((tool, {"kind": kind}) for kind in CATEGORIES)), DONE)
    result = case.run("workshop")
    expected = [
        {"ok": False, "tool": tool, "error": {"category": category, "message": message}}
        for category, message in CATEGORIES.values()
    ]
    assert [json.loads(content) for content in contents(result)] == expected
    assert (result.status, result.output) == ("completed", "done")


def test_a_retried_call_has_one_result_and_its_record_shows_each_failed_attempt(case: Case) -> None:
    """Same arguments, same key; afterwards anybody can see what it took."""
    case.model(calls(("flaky", {"failures": 2})), DONE)
    result = case.run("workshop")
    assert case.effects() == [["flaky", case.key(2)]] * 3
    (recorded,) = of(result, "tool_result")
    assert recorded == {
        "call_id": recorded["call_id"],
        "name": "flaky",
        "content": "worked at attempt 3",
        "retries": [
            {"phase": "call", "category": "transient", "error": "attempt 1 of 2 that fail", "delay_s": 0.0},
            {"phase": "call", "category": "transient", "error": "attempt 2 of 2 that fail", "delay_s": 0.0},
        ],
    }


def test_retries_end_and_the_last_failure_is_told(case: Case) -> None:
    """Three extra attempts mean four in all."""
    case.model(calls(("flaky", {"failures": 9})), DONE)
    result = case.run("workshop")
    assert errors(result) == [{"category": "transient", "message": "attempt 4 of 9 that fail"}]
    assert len(case.effects("flaky")) == 4
    assert len(of(result, "tool_result")[0]["retries"]) == 3


@pytest.mark.parametrize(("reconnect", "attempts"), [(True, 2), (False, 1)])
def test_retry_on_replaces_what_is_retried(case: Case, reconnect: bool, attempts: int) -> None:
    """Who names exceptions means these and no others."""
    case.model(calls(("fussy", {"reconnect": reconnect})), DONE)
    case.run("workshop")
    assert len(case.effects("fussy")) == attempts


def test_a_fallback_stands_beside_the_failure(case: Case) -> None:
    """The model sees both that the call failed and what may serve instead."""
    case.model(calls(("limited", {})), DONE)
    result = case.run("workshop")
    assert json.loads(contents(result)[0]) == {
        "ok": False,
        "tool": "limited",
        "error": {"category": "rate_limit", "message": "429"},
        "degraded": True,
        "fallback": {"cached": 7},
    }
    (recorded,) = of(result, "tool_result")
    assert recorded["retries"] == [{"phase": "call", "category": "rate_limit", "error": "429", "delay_s": 0.0}]


def _refused(tool: str, **error: Any) -> dict[str, Any]:
    return {"ok": False, "tool": tool, "error": {"category": "validation", "message": "negative", **error}}


VALIDATED = {
    "None keeps the result": ("checked", 2, 2),
    "another value replaces it": ("checked", 1, 10),
    "even a false one": ("checked", 3, False),
    "raising refuses it": ("checked", -1, _refused("checked")),
    "refused and softened": ("softened", -1, {**_refused("softened"), "degraded": True, "fallback": "yesterday's"}),
    "None is a fallback": ("nothing", -1, {**_refused("nothing"), "degraded": True, "fallback": None}),
    "a fallback may fail": ("brittle", -1, _refused("brittle", fallback_error="no cache either")),
}


def test_a_result_is_validated_before_it_is_told(case: Case) -> None:
    """Validators and fallbacks may be async; a check that does not change the result need not return it."""
    case.model(calls(*((tool, {"value": value}) for tool, value, _ in VALIDATED.values())), DONE)
    told = [json.loads(content) for content in contents(case.run("workshop"))]
    assert dict(zip(VALIDATED, told, strict=True)) == {name: wanted for name, (_, _, wanted) in VALIDATED.items()}


@pytest.mark.parametrize("tool", ["hang", "hang_async"])
def test_a_call_past_its_time_is_answered_as_timed_out(case: Case, tool: str) -> None:
    """A hanging tool must not hang its run; a timeout is not retried by default."""
    case.model(calls((tool, {})), DONE)
    result = case.run("workshop")
    assert errors(result) == [{"category": "timeout", "message": "no answer within 0.1 s"}]
    assert result.output == "done"


def test_an_irreversible_call_announces_its_beginning_and_runs_once(case: Case) -> None:
    """What cannot be undone leaves a trace before it begins, so that a crash is known to have come in between."""
    case.model(calls(("wire", {"amount": 5})), DONE)
    result = case.run("workshop")
    begun, ended = result.events[2:4]
    assert [(event.type, event.step) for event in (begun, ended)] == [("step_started", 2), ("tool_result", 2)]
    assert begun.payload == {"call_id": ended.payload["call_id"], "tool": "wire", "attempt": 1}
    assert case.effects() == [["wire", case.key(2), 5], ["wired", case.key(2), 5]]


def test_an_irreversible_call_that_raises_is_not_tried_again(case: Case) -> None:
    """Nobody knows whether its effect took place before it raised; retries declared for it do not change that."""
    case.model(calls(("fire", {})), DONE)
    result = case.run("workshop")
    assert errors(result) == [{"category": "transient", "message": "jammed"}]
    assert case.effects() == [["fire", case.key(2)]]


def test_an_irreversible_call_past_its_time_is_unknown(case: Case) -> None:
    """Its effect may still come: the model is told to look by other means, and nothing is repeated."""
    case.model(calls(("launch", {})), DONE)
    result = case.run("workshop")
    (error,) = errors(result)
    assert error["category"] == "unknown_outcome"
    assert "unknown whether its effect took place" in error["message"]
    assert case.effects() == [["launch", case.key(2)]]
