"""Logs of yesterday's programs, against today's: decided as they were decided, read as they were read.

Everything else in this folder would stay green if the meaning of a log changed and its tests with it. These logs lie in
somebody's database, perhaps paused for months. What to do when one of these tests is red: `tests/golden/__init__.py`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from drangue_client.folding import fold
from drangue_client.run import Run, knows
from drangue_worker.rules.decide import decide
from tests.golden import BEGAN, expected, log_of, names, result_of, told
from tests.golden.stories import STORIES
from tests.unit.test_rules_stateful import in_call_order

every_log = pytest.mark.parametrize("name", names())


@every_log
def test_a_recorded_log_is_decided_as_it_was(name: str) -> None:
    """After every event: a worker of today takes over from a worker of then, wherever that one stopped."""
    events, prefixes = log_of(name), expected(name)["prefixes"]
    assert len(prefixes) == len(events) + 1
    for length, prefix in enumerate(prefixes):
        assert told(decide(fold(events[:length]), BEGAN)) == prefix["commands"], f"after {length} events"


@every_log
def test_a_recorded_snapshot_reads_back(name: str) -> None:
    """Every run in a database has one, written by the program that moved it last."""
    events = log_of(name)
    terms = events[0].payload["config"]
    for length, prefix in enumerate(expected(name)["prefixes"]):
        whole = fold(events[:length])
        read_back = Run.from_snapshot(prefix["snapshot"], whole.seq, terms if length else None)
        assert read_back == (whole if knows(prefix["snapshot"]) else Run())
        assert fold(events[:length], onto=read_back) == whole
        again = json.loads(json.dumps(whole.to_snapshot()))
        assert Run.from_snapshot(again, whole.seq, terms if length else None) == whole


@every_log
def test_a_recorded_log_is_read_as_it_was(name: str) -> None:
    """The conversation a model is shown, the answer, the money: what a program stored or compared must not change."""
    assert json.loads(json.dumps(result_of(name, log_of(name)))) == expected(name)["result"]


def test_every_story_is_recorded() -> None:
    """A story without its files proves nothing. `python -m tests.golden` records those that are missing."""
    assert set(STORIES) <= set(names())


@pytest.mark.parametrize("name", STORIES)
def test_a_run_of_today_walks_as_the_recorded_one_did(name: str) -> None:
    """The same facts of the same steps in the same order, but for that of siblings; what they hold besides may grow."""

    def walk(events: Any) -> list[Any]:
        return [(event.type, event.step) for event in in_call_order(events)]

    assert walk(STORIES[name]()) == walk(log_of(name))


def test_the_stories_cover_what_a_log_can_hold() -> None:
    """A kind of event that no golden log has is one whose meaning may change unseen."""
    held = {event.type for name in names() for event in log_of(name)}
    assert held >= {
        "run_started",
        "memory_recalled",
        "input_screened",
        "model_decision",
        "step_started",
        "tool_result",
        "approval_requested",
        "approval_granted",
        "approval_denied",
        "approval_expired",
        "outcome_requested",
        "outcome_given",
        "outcome_corrected",
        "step_stopped",
        "schema_feedback",
        "user_message",
        "run_resumed",
        "run_cancelled",
        "run_failed",
        "run_finished",
    }
