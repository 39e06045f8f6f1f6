"""What a recorded run answers to somebody who does it again, read from logs made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from drangue_client.answer import FINAL_ANSWER
from drangue_client.events import Fact
from drangue_client.outcomes import failure, shadow
from drangue_client.result import Result
from drangue_worker.evals.recording import Answers, Difference, RecordedCall, Recording, choices, decisions
from tests.unit.made_logs import (
    SCHEMA,
    TERMS,
    accepted,
    asked,
    called,
    decided,
    denied,
    finished,
    granted,
    log_of,
    recalled,
    result,
    said,
    started,
)

READ = ("read", {"order": 7})
PAY = ("pay", {"amount": 5})


def read(*facts: Fact) -> Result:
    return Result.from_events("r1", log_of(started(), *facts))


def answers(*facts: Fact) -> Answers:
    return Answers(Recording(read(*facts)))


class TestRecording:
    def test_every_turn_has_its_input(self) -> None:
        """A conversation is replayed as a whole; its second question alone would make no sense."""
        talk = read(decided(1, text="hi"), finished("hi"), said("and now?"), decided(2, text="bye"), finished("bye"))
        assert Recording(talk).inputs == ["hello", "and now?"]
        assert Recording(Result.from_events("r1", [])).inputs == []

    def test_what_was_recalled_is_known(self) -> None:
        """Memory has learnt other things since."""
        assert [item["value"] for item in Recording(read(recalled("likes tea", 7))).recalled] == ["likes tea", 7]

    def test_calls_come_with_what_became_of_them(self) -> None:
        """Results are recorded as they come, and belong to their step."""
        verdict = granted(3)
        log = read(called(1, READ, PAY, READ), asked(3), result(4, content="late"), result(2), verdict, decided(5))
        (first, second) = decisions(log)
        assert first == [
            RecordedCall(*READ, "ok"),
            RecordedCall(*PAY, None, asked=True, verdict=verdict.at(5)),
            RecordedCall(*READ, "late"),
        ]
        assert second == []

    def test_a_true_outcome_that_came_late_is_the_outcome(self) -> None:
        """The run went on with less; who does it again need not."""
        late = Fact("outcome_corrected", {"call_id": "call_2", "name": "send", "content": "sent after all"}, 2)
        log = read(called(1, ("send", {})), result(2, "send", "unknown"), decided(3), late)
        assert decisions(log)[0][0].content == "sent after all"

    def test_delivering_an_answer_is_no_call(self) -> None:
        """It is what was said, and is compared as such; an author's tool of that name would be a call."""
        terms = replace(TERMS, output_schema=SCHEMA)
        facts = [called(1, READ, (FINAL_ANSWER, {"n": 1})), result(2), accepted(3), finished('{"n": 1}')]
        assert [call.name for call in decisions(Result.from_events("r", log_of(started(terms), *facts)))[0]] == ["read"]
        assert [call.name for call in decisions(read(*facts))[0]] == ["read", FINAL_ANSWER]


class TestChoices:
    def test_the_order_within_a_decision_is_nobodys_choice(self) -> None:
        """Models name the calls of one decision in any order, and they are run together."""
        assert choices(read(called(1, READ, PAY))) == choices(read(called(1, PAY, READ)))

    @pytest.mark.parametrize(
        "other",
        [
            [called(1, PAY), called(3, READ)],  # in another order of decisions
            [called(1, READ)],
            [called(1, READ, PAY, PAY)],
            [called(1, ("read", {"order": 8}), PAY)],
            [called(1, ("read", {"order": "7"}), PAY)],
            [],
        ],
    )
    def test_everything_else_is(self, other: list[Fact]) -> None:
        """Another tool, another argument, once more or once less."""
        assert choices(read(*other)) != choices(read(called(1, READ), called(3, PAY)))

    def test_arguments_are_equal_whatever_their_order(self) -> None:
        """JSON objects have none."""
        one, other = {"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}
        assert choices(read(called(1, ("read", one)))) == choices(read(called(1, ("read", other))))


REFUSED = [
    failure("read", "denied", "no"),
    failure("read", "blocked", "not on the list"),
    failure("read", "unknown_tool", "gone"),
    failure("read", "invalid_arguments", "order: missing"),
    failure("read", "skipped", "an answer was accepted already"),
    shadow("read", {"order": 7}),
]
RAN = [
    "ok",
    "",
    failure("read", "permanent", "no such order"),
    failure("read", "unknown_outcome", "interrupted"),
    json.dumps({"shadow": True}),
    json.dumps({"ok": True, "error": {"category": "denied"}}),
    json.dumps({"error": "denied"}),
    "[1]",
    "7",
    "[" * 10_000,
]


@pytest.mark.parametrize(("contents", "refused"), [(REFUSED, True), (RAN, False)])
def test_a_refusal_is_told_from_a_result(contents: list[str], refused: bool) -> None:
    """What a tool says in its own words is a result, also where it says that it failed."""
    assert [RecordedCall("read", {}, content).refused for content in contents] == [refused] * len(contents)
    assert not RecordedCall("read", {}).refused


class TestContent:
    def test_a_call_gets_its_recorded_result(self) -> None:
        """By its tool and its arguments, whatever place it has in the replay."""
        known = answers(called(1, READ, ("read", {"order": 8})), result(2, content="a"), result(3, content="b"))
        assert known.content("read", {"order": 8}, once=False) == "b"
        assert known.content("read", {"order": 7}, once=False) == "a"
        assert known.content("read", {"order": 9}, once=False) is None
        assert known.content("send", {"order": 7}, once=False) is None
        assert known.differences == []

    def test_the_same_call_is_answered_as_it_was_each_time(self) -> None:
        """A job that was still running at the first look and done at the second."""
        log = [called(1, READ), result(2, content="running"), called(3, READ), result(4, content="done")]
        known = answers(*log)
        assert [known.content(*READ, once=False) for _ in range(3)] == ["running", "done", "done"]
        known = answers(*log)
        assert [known.content(*READ, once=True) for _ in range(3)] == ["running", "done", None]

    def test_a_call_without_a_result_is_in_no_record(self) -> None:
        """Its run had failed, or still waits."""
        assert answers(called(1, READ)).content(*READ, once=False) is None

    def test_what_was_refused_first_and_run_later_is_answered_by_the_run(self) -> None:
        """A refusal is repeated by whoever refused, not by the tool."""
        refusal = failure("read", "denied", "no")
        known = answers(called(1, READ), result(2, content=refusal), called(3, READ), result(4, content="ran"))
        assert known.content(*READ, once=True) == "ran"
        assert known.differences == []

    def test_a_call_that_nothing_refuses_any_more_is_reported(self) -> None:
        """Today it would have run; only the record stands between it and the world."""
        known = answers(called(1, READ), result(2, content=failure("read", "denied", "no")))
        assert known.refused(*READ)
        assert known.content(*READ, once=True) == failure("read", "denied", "no")
        assert known.differences == [Difference("runs_now", *READ)]

    def test_a_call_that_was_never_made_was_not_refused(self) -> None:
        """An approver answers for what it has seen."""
        assert not answers().refused(*READ)
        assert not answers(called(1, READ), result(2)).refused(*READ)


class TestVerdicts:
    def verdicts(self, *facts: Fact, times: int = 1) -> tuple[list[Any], list[Difference]]:
        known = answers(*facts)
        return [known.verdict(*PAY) for _ in range(times)], known.differences

    @pytest.mark.parametrize(
        ("fact", "verdict"),
        [
            (granted(2), (True, "ann", "")),
            (denied(2, "too much"), (False, "ann", "too much")),
            (Fact("approval_expired", {"call_id": "call_2"}, 2), (False, "", "")),
        ],
    )
    def test_a_request_gets_its_recorded_verdict(self, fact: Fact, verdict: Any) -> None:
        """Nobody is asked again."""
        assert self.verdicts(called(1, PAY), asked(2), fact) == ([verdict], [])

    def test_each_request_gets_its_own(self) -> None:
        """The first was refused, and the model asked again."""
        log = (called(1, PAY), asked(2), denied(2, "why?"), called(3, PAY), asked(4), granted(4))
        assert self.verdicts(*log, times=2) == ([(False, "ann", "why?"), (True, "ann", "")], [])

    def test_a_request_that_still_waits_waits_in_a_replay(self) -> None:
        """However often one looks."""
        assert self.verdicts(called(1, PAY), asked(2), times=2) == ([None, None], [])

    def test_a_call_that_nobody_was_asked_about_goes_on_and_is_reported(self) -> None:
        """The agent has become more careful, which is worth knowing and harms nobody here."""
        (verdict,), differences = self.verdicts(called(1, PAY), result(2, "pay"))
        assert verdict[0] is True
        assert differences == [Difference("asks_now", *PAY)]

    def test_a_call_that_is_not_in_the_record_goes_on_to_be_found_missing(self) -> None:
        """Where its result is looked for; one report of it is enough."""
        (verdict,), differences = self.verdicts(called(1, READ), result(2))
        assert verdict[0] is True
        assert differences == []
