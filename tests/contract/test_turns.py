"""`say`: another turn of a run, once, whoever says it and however often, on every database."""

from __future__ import annotations

from typing import Any

import pytest

from drangue_client.errors import InFlightError, TurnExistsError, UnknownRunError
from drangue_client.events import Fact
from drangue_client.store.log import SqlLog
from drangue_client.store.values import NewRun, Release
from drangue_client.turns import check_turn_id, resume, say, turns
from tests.contract.log_scenes import (
    at_once,
    claim,
    decision,
    failed,
    finished,
    kinds,
    start,
    stored,
    whole,
    write,
)

Logs = tuple[SqlLog, SqlLog]


def answered(log: SqlLog, run_id: str = "r", **overrides: Any) -> None:
    """A run that has answered its first input, "disk full"."""
    start(log, run_id, overrides=overrides)
    claimed = claim(log, run_id)
    write(log, run_id, decision(1, text="mended"), finished(1), claim=claimed.ask)


def said(log: SqlLog, run_id: str = "r") -> list[dict[str, Any]]:
    """What was said after the first input."""
    return [event.payload for event in log.events(run_id) if event.type == "user_message"]


class TestSaying:
    @pytest.mark.parametrize("turn_id", [None, "t2"])
    def test_an_answered_run_is_asked_again(self, log: SqlLog, turn_id: str | None) -> None:
        """One event; the row says that the run moves again, and that nobody need hurry before its message has come."""
        answered(log)
        row, new = say(log, "r", "and now?", turn_id)
        assert (row.run_id, row.executor, new) == ("r", "celery", True)
        assert said(log) == [{"text": "and now?"} | ({"turn_id": turn_id} if turn_id else {})]
        look = log.look("r")
        assert (look.row.status, look.row.finished_at, look.run.turn) == ("running", None, 2)
        assert look.row.wake_at == pytest.approx(look.now + 2, abs=1.5)
        assert look.run == whole(log)

    def test_a_cancelled_run_may_be_asked_again(self, log: SqlLog) -> None:
        """Somebody stopped a wrong turn to take another."""
        start(log)
        write(log, "r", Fact("run_cancelled", {"by": "ops"}, 1))
        assert say(log, "r", "rather this")[1]
        assert log.look("r").row.status == "running"

    @pytest.mark.parametrize("end", [None, failed(1)], ids=["running", "failed"])
    @pytest.mark.parametrize("turn_id", [None, "t2"])
    def test_a_turn_that_has_not_ended_well_is_not_talked_over(
        self, log: SqlLog, end: Fact | None, turn_id: str | None
    ) -> None:
        """A failed turn is resumed, not buried under the next; what is refused has written nothing."""
        start(log)
        if end:
            write(log, "r", end, claim=claim(log).ask, park=True)
        before = stored(log)
        with pytest.raises(InFlightError, match=f"in flight \\({'failed' if end else 'running'}\\)"):
            say(log, "r", "and now?", turn_id)
        assert stored(log) == before

    def test_a_run_that_waits_in_its_queue_is_in_flight(self, log: SqlLog) -> None:
        """Its first input has not been looked at yet."""
        log.submit([NewRun("r", "oncall", "disk full")])
        with pytest.raises(InFlightError, match="queued"):
            say(log, "r", "and now?")

    def test_a_paused_run_is_in_flight(self, log: SqlLog) -> None:
        """It waits for a verdict, and words are none."""
        start(log)
        request = Fact("approval_requested", {"call_id": "call_2"}, 2)
        write(log, "r", decision(1, "restart"), request, claim=claim(log).ask)
        with pytest.raises(InFlightError, match="paused"):
            say(log, "r", "yes")

    def test_nothing_is_said_to_a_run_that_does_not_exist(self, log: SqlLog) -> None:
        """A mistyped id must not begin a conversation of its own."""
        with pytest.raises(UnknownRunError):
            say(log, "nobody", "hello", "t1")
        assert log.events("nobody") == []

    def test_what_no_database_can_hold_is_escaped(self, log: SqlLog) -> None:
        """A user may paste anything."""
        answered(log)
        say(log, "r", "a\x00b\udc80")
        assert said(log) == [{"text": "a\\u0000b\\udc80"}]

    def test_a_run_cancelled_before_its_start_is_not_asked_anything_it_could_never_answer(self, log: SqlLog) -> None:
        """It has no terms, and nobody would ever give it some: it would be `running` for good."""
        log.submit([NewRun("r", "oncall", "disk full")])
        write(log, "r", Fact("run_cancelled", {"by": "ops"}))
        with pytest.raises(InFlightError):
            say(log, "r", "rather this")


class TestTurnIds:
    def test_the_same_turn_twice_is_one_turn_whatever_has_happened_since(self, log: SqlLog) -> None:
        """A caller that never heard the answer asks again: at once, after the turn, after the next."""
        answered(log)
        assert say(log, "r", "and now?", "t2")[1]
        for fact in (decision(2, text="so"), finished(2), Fact("user_message", {"text": "more"}), failed(2)):
            before = stored(log)
            row, new = say(log, "r", "and now?", "t2")
            assert (row.run_id, new) == ("r", False)
            assert stored(log) == before
            write(log, "r", fact)

    def test_the_same_text_in_another_turn_is_another_turn(self, log: SqlLog) -> None:
        """People say `yes` and `go on` more than once."""
        answered(log)
        for number, turn_id in enumerate(("t2", "t3", None, None), start=2):
            assert say(log, "r", "go on", turn_id)[1]
            write(log, "r", decision(number, text="so"), finished(number))
        assert [payload.get("turn_id") for payload in said(log)] == ["t2", "t3", None, None]

    def test_a_turn_id_with_another_text_is_refused(self, log: SqlLog) -> None:
        """Two callers that share an id by mistake must both hear of it, in flight or not."""
        answered(log)
        say(log, "r", "and now?", "t2")
        before = stored(log)
        with pytest.raises(TurnExistsError, match="turn 't2' of run 'r' has another text") as caught:
            say(log, "r", "and then?", "t2")
        assert (caught.value.run_id, caught.value.turn_id) == ("r", "t2")
        assert stored(log) == before

    def test_the_first_turn_has_an_id_too_if_it_was_given_one(self, log: SqlLog) -> None:
        """One way to talk to a run, from its first word on."""
        answered(log, turn_id="t1")
        assert not say(log, "r", "disk full", "t1")[1]
        with pytest.raises(TurnExistsError):
            say(log, "r", "disk empty", "t1")
        say(log, "r", "and now?", "t2")
        assert turns(log.look("r").row, log.events("r")) == {"t1": "disk full", "t2": "and now?"}

    def test_a_turn_is_known_before_the_run_has_started(self, log: SqlLog) -> None:
        """The first caller's answer was lost, and no worker has been there yet."""
        log.submit([NewRun("r", "oncall", "disk full", overrides={"turn_id": "t1"})])
        assert not say(log, "r", "disk full", "t1")[1]

    def test_turn_ids_are_a_runs_own(self, log: SqlLog) -> None:
        """Every chat has a first message."""
        answered(log, "a")
        answered(log, "b")
        assert say(log, "a", "and now?", "t2")[1]
        assert say(log, "b", "what else?", "t2")[1]

    @pytest.mark.parametrize("turn_id", ["é 2\n", "t\x002", "t\ud8002"], ids=ascii)
    def test_an_id_that_is_accepted_is_found_again(self, log: SqlLog, turn_id: str) -> None:
        """Else saying it twice is two turns, and two answers."""
        answered(log)
        check_turn_id(turn_id)
        assert say(log, "r", "and now?", turn_id)[1]
        assert not say(log, "r", "and now?", turn_id)[1]

    @pytest.mark.parametrize("wrong", ["", "x" * 201, 5, b"t1"], ids=["empty", "long", "number", "bytes"])
    def test_what_cannot_name_a_turn_is_refused(self, wrong: Any) -> None:
        """An empty id would make one turn of all that have none."""
        with pytest.raises((TypeError, ValueError), match=r"turn_id is .*; it must be text of 1 to 200 characters"):
            check_turn_id(wrong)


class TestAtOnce:
    @pytest.mark.parametrize("times", range(3))
    def test_of_two_who_say_the_same_turn_one_begins_it(self, logs: Logs, times: int) -> None:
        """A request that was retried by a proxy; both callers are told that it is under way."""
        answered(logs[0])
        answers = at_once(*(lambda log=log: say(log, "r", "and now?", "t2") for log in logs * 2))
        assert sorted(new for _, new in answers) == [False, False, False, True]
        assert said(logs[0]) == [{"text": "and now?", "turn_id": "t2"}]
        assert logs[0].look("r").run == whole(logs[0])

    @pytest.mark.parametrize("ids", [("t2", "t3"), (None, None), (None, "t2")], ids=str)
    def test_of_two_who_say_different_turns_one_begins_and_the_other_is_told_to_wait(
        self, logs: Logs, ids: tuple[str | None, str | None]
    ) -> None:
        """Two people in one chat: nobody's words may vanish, and no turn be begun inside another."""
        answered(logs[0])

        def attempt(log: SqlLog, turn_id: str | None) -> bool | str:
            try:
                return say(log, "r", "and now?", turn_id)[1]
            except InFlightError:
                return "in flight"

        answers = at_once(*(lambda log=log, one=one: attempt(log, one) for log, one in zip(logs, ids, strict=True)))
        assert sorted(answers, key=str) == [True, "in flight"]
        assert len(said(logs[0])) == 1
        write(logs[0], "r", decision(2, text="so"), finished(2))
        loser = answers.index("in flight")
        assert say(logs[0], "r", "and now?", ids[loser])[1]

    def test_of_two_texts_under_one_id_one_is_refused(self, logs: Logs) -> None:
        """The id decides, not who was first to ask the row."""
        answered(logs[0])

        def attempt(log: SqlLog, text: str) -> bool | str:
            try:
                return say(log, "r", text, "t2")[1]
            except TurnExistsError:
                return "exists"

        answers = at_once(*(lambda log=log, n=n: attempt(log, f"text {n}") for n, log in enumerate(logs)))
        assert sorted(answers, key=str) == [True, "exists"]

    def test_a_turn_decided_on_an_older_run_is_decided_again(
        self, log: SqlLog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A late result lands between the look and the write: the turn comes after it, and nothing is lost."""
        answered(log)
        settle, between = log.settle, [lambda: write(log, "r", Fact("outcome_requested", {"text": "late"}))]

        def late(moves: Any) -> Any:
            if between:
                monkeypatch.setattr(log, "settle", settle)
                between.pop()()
            return settle(moves)

        monkeypatch.setattr(log, "settle", late)
        assert say(log, "r", "and now?", "t2")[1]
        assert kinds(log.events("r"))[-3:] == ["run_finished", "outcome_requested", "user_message"]
        assert log.look("r").run == whole(log)


class TestResuming:
    def test_a_failed_run_is_taken_up_again_with_the_step_that_failed(self, log: SqlLog) -> None:
        """The steps to send are told, since nobody else will send them at once."""
        start(log)
        claimed = claim(log)
        log.release([Release(claimed.ask, failed=True, lost=True)])
        write(log, "r", failed(0), claim=claim(log).ask, park=True)
        row, opened = resume(log, "r", by="ann", reason="key mended")
        assert (row.run_id, [ref.step for ref in opened]) == ("r", [1])
        assert log.events("r")[-1].payload == {"by": "ann", "reason": "key mended"}
        look = log.look("r")
        assert (look.row.status, look.row.error, look.run) == ("running", None, whole(log))
        assert look.row.wake_at == pytest.approx(look.now + 2, abs=1.5)
        assert claim(log).failures == 0

    @pytest.mark.parametrize("state", ["queued", "running", "completed", "cancelled"])
    def test_a_run_that_has_not_failed_is_left_as_it_is(self, log: SqlLog, state: str) -> None:
        """Repeating is safe: the second of two clicks must not redrive what the first one set going."""
        if state == "completed":
            answered(log)
        elif state == "queued":
            log.submit([NewRun("r", "oncall", "disk full")])
        else:
            start(log)
        if state == "cancelled":
            write(log, "r", Fact("run_cancelled", {}, 1))
        before = stored(log)
        row, opened = resume(log, "r")
        assert (row.status, opened) == (state, ())
        assert stored(log) == before

    def test_of_many_who_resume_at_once_one_does(self, logs: Logs) -> None:
        """Two people on call see the same alert."""
        start(logs[0])
        write(logs[0], "r", failed(0), claim=claim(logs[0]).ask, park=True)
        answers = at_once(*(lambda log=log: resume(log, "r")[1] for log in logs * 2))
        assert sorted(len(opened) for opened in answers) == [0, 0, 0, 1]
        assert kinds(logs[0].events("r")).count("run_resumed") == 1

    def test_nobody_can_resume_what_does_not_exist(self, log: SqlLog) -> None:
        """A mistyped id is no run that is fine."""
        with pytest.raises(UnknownRunError):
            resume(log, "nobody")
