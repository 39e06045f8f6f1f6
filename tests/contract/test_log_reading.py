"""The log as it is read: the same run whichever way it is folded, the same event as was written."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from drangue_client.errors import FormatError, UnknownRunError
from drangue_client.events import FORMAT, Event, Fact, normalise
from drangue_client.store.log import SqlLog
from drangue_client.store.values import NewRun
from tests.contract.log_scenes import (
    NOTE,
    STARTED,
    TERMS,
    ask,
    begun,
    claim,
    decision,
    elapse,
    failed,
    fan_out,
    finished,
    open_rows,
    result,
    resumed,
    sql,
    start,
    stored,
    whole,
    write,
)

STORY = (
    STARTED,
    decision(1, "read_logs", "restart", "read_logs"),
    result(4),
    Fact("approval_requested", {"call_id": "call_3"}, 3),
    result(2),
    Fact("approval_granted", {"call_id": "call_3", "by": "ops"}, 3),
    begun(3),
    result(3),
    decision(5, text="is it?"),
    NOTE,
    decision(6, text="it is"),
    finished(6),
    Fact("user_message", {"text": "and now?", "turn_id": "t2"}),
    decision(7, "restart"),
    Fact("approval_requested", {"call_id": "call_8"}, 8),
    Fact("approval_denied", {"call_id": "call_8", "by": "ops"}, 8),
    result(8),
    failed(8),
    resumed(),
    decision(9, text="done"),
    Fact("run_cancelled", {"by": "ops"}, 9),
)


class TestLook:
    def test_snapshot_and_tail_equal_the_fold_of_all_events_wherever_a_run_stands(self, log: SqlLog) -> None:
        """Coordination reads a snapshot and never the whole log; a difference would decide a run wrongly for ever."""
        log.submit([NewRun("r", "oncall", "disk full")])
        for fact in STORY:
            write(log, "r", fact)
            look = log.look("r")
            assert look.run == whole(log)
            assert look.run.seq == look.row.head_seq
            assert look.row.status == look.run.status
        assert len(log.events("r")) == len(STORY)

    def test_a_tail_behind_the_snapshot_is_folded(self, log: SqlLog) -> None:
        """`begin` appends without rewriting the snapshot: what follows must not be decided from a run too old."""
        fan_out(log, name="restart")
        claimed = claim(log, step=2)
        assert log.begin(claimed.ask, begun(2))
        look = log.look("r")
        assert look.run == whole(log)
        assert look.run.seq == look.row.head_seq == claimed.look.row.head_seq + 1

    def test_looking_does_not_read_what_the_snapshot_holds(self, log: SqlLog) -> None:
        """The cost of a step must not grow with the log it stands in."""
        fan_out(log)
        before = log.look("r").run
        sql(log, "delete from events")
        assert log.look("r").run == before

    def test_a_snapshot_of_an_unknown_version_is_ignored_and_the_whole_log_folded(self, log: SqlLog) -> None:
        """During a deploy old and new workers share runs: an old one must do without a snapshot it cannot read."""
        fan_out(log)
        claimed = claim(log, step=2)
        before = log.look("r")
        sql(log, """update runs set state = '{"v": 99, "strange": true}'""")
        assert log.look("r").run == before.run
        again = log.claim([claimed.ask], 15.0)[0]
        assert again is not None
        assert again.look.run == before.run
        assert again.decision == log.events("r")[1]

    def test_terms_are_the_recorded_ones_whichever_way_they_are_read(self, log: SqlLog) -> None:
        """Terms are stored beside the snapshot and within the first event; the rules must see one value."""
        config = TERMS.to_json() | {"instructions": "say \x00 and \ud800"}
        log.submit([NewRun("r", "oncall", "disk full")])
        write(log, "r", Fact("run_started", {"input": "disk full", "config": config}))
        assert log.look("r").run.terms == whole(log).terms

    def test_an_answer_is_the_recorded_one_whichever_way_it_is_read(self, log: SqlLog) -> None:
        """The answer waits in the snapshot between its decision and the finish that repeats it."""
        start(log)
        write(log, "r", decision(1, text="it was \x00"))
        assert log.look("r").run.answer == whole(log).answer

    def test_the_clock_comes_with_the_look(self, log: SqlLog) -> None:
        """`decide` is handed the time; it is the database's, so that every worker decides alike."""
        start(log)
        first = log.look("r").now
        assert log.look("r").now >= first >= log.look("r").row.created_at

    def test_an_unknown_run_is_said_to_be_unknown(self, log: SqlLog) -> None:
        """A mistyped id deserves an answer that says so and what to do."""
        with pytest.raises(UnknownRunError, match="drangue runs") as raised:
            log.look("nobody")
        assert raised.value.run_id == "nobody"


class TestEvents:
    def test_events_are_read_in_order_and_after_a_place(self, log: SqlLog) -> None:
        """A reader who attaches later asks for the rest only."""
        log.submit([NewRun("r", "oncall", ""), NewRun("s", "oncall", "")])
        write(log, "r", *STORY[:3])
        write(log, "s", STARTED)
        write(log, "r", *STORY[3:])
        assert [event.seq for event in log.events("r")] == list(range(len(STORY)))
        assert [event.type for event in log.events("r")] == [fact.type for fact in STORY]
        assert log.events("r", after=18) == log.events("r")[19:]
        assert log.events("r", after=len(STORY) - 1) == []
        assert log.events("nobody") == []

    def test_an_event_is_read_as_it_was_written(self, log: SqlLog) -> None:
        """The log is the truth: place, type, step, payload, time and duration come back unchanged."""
        payload = {"z": 1, "a": {"nested": [1, 2.5, None, True, "π ✓ \U0001f389"]}, "empty": {}, "big": 2**70, "": []}
        log.submit([NewRun("r", "oncall", "")])
        write(log, "r", STARTED, Fact("memory_recalled", payload, 0, ts=1_700_000_000.125, duration_ms=12.5))
        event = log.events("r")[1]
        assert event == Event(1, "memory_recalled", payload, 1_700_000_000.125, 12.5, 0)
        assert list(event.payload) == list(payload)

    def test_what_json_cannot_hold_is_written_as_what_it_can(self, log: SqlLog) -> None:
        """A tool may return anything; its result must be recorded on either database, and alike."""
        payload = {
            "nul": "a\x00b",
            "surrogate": "a\udfffb",
            "nan": float("nan"),
            "inf": [float("inf"), -float("inf")],
            "tuple": (1, (2,)),
            "set": {3, 1, 2},
            "bytes": b"\xff\x00",
            "object": ValueError("odd"),
            7: {"\x00key": None},
        }
        log.submit([NewRun("r", "oncall", "")])
        write(log, "r", STARTED, Fact("memory_recalled", payload))
        assert log.events("r")[1].payload == normalise(payload)

    def test_an_event_without_a_time_gets_the_databases(self, log: SqlLog) -> None:
        """Only what was timed by its step has a time of its own."""
        start(log)
        ts = log.events("r")[0].ts
        assert ts is not None
        assert log.look("r").row.created_at - 0.01 <= ts <= log.look("r").now

    def test_the_log_loads_for_those_who_await(self, log: SqlLog) -> None:
        """Users of a store read it from coroutines; it is the same log."""
        fan_out(log)
        assert asyncio.run(log.load("r")) == log.events("r")


class TestNewerFormats:
    @pytest.mark.parametrize("change", [f"format = {FORMAT + 1}", "type = 'turned_blue'"])
    def test_an_event_this_program_does_not_know_is_refused_and_nothing_is_touched(
        self, log: SqlLog, change: str
    ) -> None:
        """An old worker that met a newer log and guessed would corrupt a run; it must leave the step to others."""
        start(log)
        sql(log, f"update events set {change}")
        before = stored(log)
        with pytest.raises(FormatError, match="Upgrade"):
            log.events("r")
        with pytest.raises(FormatError):
            log.claim([ask()], 15.0)
        assert stored(log) == before
        assert open_rows(log)[1]["attempt"] == 0


class TestRuns:
    """Which runs a list shows: what a person or an evaluation goes through is chosen by the same words."""

    def listed(self, log: SqlLog, **filters: Any) -> list[str]:
        return sorted(row.run_id for row in log.runs(**filters))

    def test_a_time_is_from_a_moment_on_and_before_another(self, log: SqlLog) -> None:
        """Two days in a row have no run in common and none between them."""
        for name in ("a", "b", "c"):
            log.submit([NewRun(name, "oncall", "")])
            elapse(log, 10)
        moment = log.look("b").row.created_at
        assert self.listed(log, since=moment) == ["b", "c"]
        assert self.listed(log, until=moment) == ["a"]
        assert self.listed(log, since=moment, until=moment + 0.001) == ["b"]
        assert self.listed(log, since=moment, until=moment) == []
        assert self.listed(log, until=0.0) == []

    def test_a_run_must_bear_every_label_that_is_asked_for(self, log: SqlLog) -> None:
        """It may bear more. Names and values are anybody's: quotes, dots and percent signs are just characters."""
        odd = {'the "team"': "it's 100 %", "a.b": "", "$.x": "[*]", "nul\x00": "é\ud800"}
        for name, labels in {"a": {"team": "sre"}, "b": {"team": "sre", "tier": "1"}, "c": odd, "d": {}}.items():
            log.submit([NewRun(name, "oncall", "", labels=labels)])
        assert self.listed(log, labels={"team": "sre"}) == ["a", "b"]
        assert self.listed(log, labels={"team": "sre", "tier": "1"}) == ["b"]
        assert self.listed(log, labels={"team": "tier"}) == []
        assert self.listed(log, labels={"sre": "team"}) == []
        assert self.listed(log, labels={"tier": ""}) == []
        for name, value in odd.items():
            assert self.listed(log, labels={name: value}) == ["c"]
        assert self.listed(log, labels=odd) == ["c"]
        assert self.listed(log, labels={}) == ["a", "b", "c", "d"]

    def test_what_is_asked_for_holds_together(self, log: SqlLog) -> None:
        """Each word narrows the list."""
        for name, agent in {"a": "oncall", "b": "oncall", "c": "clerk"}.items():
            log.submit([NewRun(name, agent, "", labels={"team": "sre"} if name != "b" else {})])
        write(log, "a", STARTED)
        assert self.listed(log, agent="oncall") == ["a", "b"]
        assert self.listed(log, status="running") == ["a"]
        assert self.listed(log, agent="oncall", labels={"team": "sre"}, status="queued") == []
        assert self.listed(log, agent="clerk", labels={"team": "sre"}, status="queued", since=0.0) == ["c"]
