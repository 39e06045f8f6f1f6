"""The rules against runs played by chance: whatever happens to a run, and in whatever order, they hold.

`made_logs` writes logs without the rules and looks at what the rules say of them; here the rules make the log. What is
checked at every move besides stands in `played_run`: no fact and no step for what is settled, nothing after the end,
nothing without leave, no irreversible call before the calls before it.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import invariant

from drangue_client.events import Event, Fact
from drangue_client.folding import fold
from drangue_client.messages import Message, conversation
from drangue_client.run import Run
from drangue_worker.rules.decide import decide
from tests.unit.made_logs import (
    IRREVERSIBLE,
    TERMS,
    asked,
    cancelled,
    decided,
    granted,
    late,
    log_of,
    said,
    started,
)
from tests.unit.played_run import OF_A_CALL, TIME_S, PlayedRun
from tests.unit.test_plan import planned


class WatchedRun(PlayedRun):
    """What must hold after every move."""

    @invariant()
    def a_process_that_reads_the_snapshot_decides_the_same(self) -> None:
        state, terms = json.loads(json.dumps([self.run.to_snapshot(), self.terms.to_json()]))
        read_back = Run.from_snapshot(state, self.run.seq, terms)
        assert read_back == self.run == fold(self.log)
        for now in (0.0, self.now, self.now + TIME_S):
            assert decide(read_back, now) == decide(self.run, now)

    @invariant()
    def the_order_between_siblings_leaves_no_trace(self) -> None:
        """Neither in what a model is shown nor in what comes next."""
        ordered = in_call_order(self.log)
        assert conversation(ordered) == conversation(self.log)
        assert fold(ordered) == self.run

    @invariant()
    def every_call_has_its_result_before_the_next_thought(self) -> None:
        """A provider refuses the conversation otherwise."""
        thinking = any(opened.kind == "model" for opened in self.open.values())
        if thinking and not self.run.ended and not self.thought_too_late():
            assert unanswered(conversation(self.log)) == []

    @invariant()
    def nothing_is_due_after_the_end(self) -> None:
        assert bool(self.run.ended) == self.over
        if self.over:
            assert decide(self.run, self.now + TIME_S) == ()

    @invariant()
    def at_most_a_window_of_calls_is_open(self) -> None:
        # A refusal holds no place in the window, and may release the one call behind it that cannot be undone.
        assert len([one for one in self.open.values() if one.kind == "tool"]) <= self.terms.window + len(self.judged)

    @invariant()
    def irreversible_calls_go_one_at_a_time(self) -> None:
        assert len([step for step in self.tools() if self.names[step] in IRREVERSIBLE]) <= 1

    @invariant()
    def a_run_never_stands_still(self) -> None:
        """There is somebody to wait for: a step, a person, or nobody because it is over."""
        assert self.open or self.run.pending or self.run.uncertain or self.run.ended

    @invariant()
    def nothing_goes_on_beyond_its_time(self) -> None:
        """A coordinator has come at every moment of the clock, so a turn that is late has ended."""
        assert self.run.ended or self.run.deadline_at is None or self.now < self.run.deadline_at

    @invariant()
    def what_nobody_knows_is_kept_in_mind(self) -> None:
        """Through failures, ends and later turns, until somebody has told it; and whoever is asked is still asked."""
        assert set(self.run.unknown) == self.nobody_knows
        assert {call.step for call in self.run.uncertain} == set(filter(self.waits_for_word, self.nobody_knows))
        if not self.run.ended and (self.run.uncertain or self.run.pending):
            assert (self.run.status == "paused") == (self.open == {})


def in_call_order(log: list[Event]) -> list[Event]:
    """The log with what happened side by side in the order of the calls."""
    ordered: list[Event] = []
    beside: list[Event] = []
    for event in [*log, None]:
        if event is not None and event.type in OF_A_CALL:
            beside.append(event)
            continue
        ordered += sorted(beside, key=lambda one: one.step or 0)
        beside = []
        if event is not None:
            ordered.append(event)
    return [replace(event, seq=seq) for seq, event in enumerate(ordered)]


def unanswered(messages: list[Message]) -> list[str]:
    """The calls of a conversation that have no result; the others have theirs once, in the order of the calls."""
    called_for = [call["id"] for message in messages for call in message.get("tool_calls", ())]
    results = [message["call_id"] for message in messages if message["role"] == "tool"]
    assert results == [call for call in called_for if call in results]
    return [call for call in called_for if call not in results]


WatchedRun.TestCase.settings = settings(
    max_examples=50,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # a play of forty moves is made smaller for minutes, by a move or two
)
TestWatchedRun = WatchedRun.TestCase


def test_a_verdict_keeps_to_the_window_too() -> None:
    """A run with a hundred calls to approve, approved at once, must not starve the others of their queue."""
    log = log_of(started(replace(TERMS, window=2)), decided(1, "pay", "read", "read"), asked(2))
    opened = {step.step for step in planned(log).opens}
    opened |= {step.step for step in planned(log, granted(2)).opens}
    assert len(opened) <= 2


@pytest.mark.parametrize("end", [cancelled(1), late(1)], ids=lambda end: end.type)
def test_calls_of_a_thought_that_came_after_its_turn_was_cut_short_are_answered_too(end: Fact) -> None:
    """A model may answer in the moment in which its run is ended; providers refuse every later turn otherwise."""
    log = log_of(started(), end, decided(1, "read"), said())
    assert unanswered(conversation(log)) == []
