"""The rules: from a folded run to everything that is due, as values and an equals sign."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drangue_client.autonomy import Autonomy
from drangue_client.events import Event, Fact
from drangue_client.folding import fold
from drangue_client.run import Run
from drangue_client.terms import Terms, ToolTerms
from drangue_worker.rules.commands import (
    AskApproval,
    CallModel,
    CallTool,
    Command,
    Deny,
    Finish,
    Propose,
    Refuse,
)
from drangue_worker.rules.decide import decide
from tests.unit.made_logs import (
    IRREVERSIBLE,
    QUEUE,
    TERMS,
    WAITING,
    asked,
    begun,
    by_chance,
    decided,
    denied,
    failed,
    finished,
    granted,
    log_of,
    logs,
    result,
    resumed,
    runs_of,
    started,
)


def due(*facts: Fact) -> tuple[Command, ...]:
    return decide(fold(log_of(*facts)), now=0.0)


def call(step: int, name: str = "read") -> CallTool:
    return CallTool(step, name, QUEUE)


NO_GHOST = Refuse(2, "ghost", "unknown_tool", "there is no tool named 'ghost'")


def test_a_run_that_has_not_started_yields_nothing() -> None:
    """Its first event comes from whoever knows the agent."""
    assert decide(Run(), now=0.0) == ()


@pytest.mark.parametrize(
    ("facts", "commands"),
    [
        ([], (CallModel(1),)),
        ([decided(1, text="42")], (Finish("42", "answered"),)),
        ([decided(1, text="")], (Finish("", "answered"),)),
        ([decided(1, text="42"), finished("42")], ()),
        ([decided(1, "read")], (call(2),)),
        ([decided(1, "read", text="Let me look.")], (call(2),)),
        ([decided(1, "read", "read")], (call(2), call(3))),
        ([decided(1, "read", "read"), result(3)], (call(2),)),
        ([decided(1, "read", "read"), result(3), result(2)], (CallModel(4),)),
        ([decided(1, "read"), result(2), decided(3, text="done")], (Finish("done", "answered"),)),
        ([decided(1, "read"), failed()], ()),
        ([decided(1, "read"), failed(), resumed()], (call(2),)),
        ([failed(), resumed()], (CallModel(1),)),
        ([Fact("run_cancelled", {})], ()),
    ],
)
def test_a_run_thinks_acts_and_answers(facts: list[Fact], commands: tuple[Command, ...]) -> None:
    """The whole walk: a thought, its calls side by side, the join as a fact of the fold, the answer."""
    assert due(started(), *facts) == commands


@pytest.mark.parametrize(
    ("facts", "commands"),
    [
        ([decided(1, "pay")], (AskApproval(2, "pay"),)),
        ([decided(1, "pay"), asked(2)], ()),
        ([decided(1, "pay"), asked(2), granted(2)], (call(2, "pay"),)),
        ([decided(1, "pay"), asked(2), denied(2)], (Deny(2, "pay"),)),
        ([decided(1, "pay"), asked(2), denied(2), result(2)], (CallModel(3),)),
        ([decided(1, "pay", "pay")], (AskApproval(2, "pay"), AskApproval(3, "pay"))),
        ([decided(1, "pay", "read"), asked(2)], (call(3),)),
        ([decided(1, "pay", "read"), asked(2), result(3)], ()),
        ([decided(1, "sketch")], (Propose(2, "sketch"),)),
        ([decided(1, "ghost")], (NO_GHOST,)),
    ],
)
def test_leave_is_asked_for_once_and_obeyed(facts: list[Fact], commands: tuple[Command, ...]) -> None:
    """Nobody is asked twice, a refusal is told to the model, and siblings that need nobody go on."""
    assert due(started(), *facts) == commands


def test_refusals_come_before_questions() -> None:
    """Nobody may be asked about anything while a call that cannot run still stands unanswered."""
    log = [started(), decided(1, "pay", "ghost", "sketch", "pay"), asked(2), denied(2)]
    kinds = [type(command).__name__ for command in due(*log)]
    assert kinds == ["Deny", "Refuse", "Propose", "AskApproval"]


def test_an_unknown_tool_is_refused_rather_than_asked_about() -> None:
    """A person's yes could not make it run."""
    terms = replace(TERMS, autonomy=Autonomy("assisted"))
    assert due(started(terms), decided(1, "ghost")) == (NO_GHOST,)


def test_a_mode_recorded_for_a_tool_governs_it() -> None:
    """The terms were written once; they alone decide."""
    modes = Autonomy("shadow", {"read": "assisted", "send": "autonomous"})
    terms = Terms(autonomy=modes, tools={n: ToolTerms(f"q.{n}") for n in ("read", "send", "else")})
    assert due(started(terms), decided(1, "read", "send", "else"))[:1] == (Propose(4, "else"),)
    assert due(started(terms), decided(1, "read", "send", "else"), result(4), asked(2)) == (
        CallTool(3, "send", "q.send"),
    )


def test_a_question_raised_by_a_stricter_worker_is_waited_for() -> None:
    """A tool may be gated today that was free when the run began; the worker then records the question."""
    log = [started(), decided(1, "read"), asked(2, "read")]
    assert due(*log) == ()
    assert due(*log, granted(2)) == (call(2),)
    assert due(*log, denied(2)) == (Deny(2, "read"),)


@pytest.mark.parametrize(
    ("facts", "steps"),
    [
        ([], [2, 5]),
        ([result(5)], [2]),
        ([result(2)], [3, 5]),
        ([result(2), begun(3)], [3, 5]),
        ([result(2), begun(3), result(3, "send"), result(5)], [4]),
        ([result(2), result(3, "send")], [4, 5]),
    ],
)
def test_irreversible_calls_go_one_at_a_time_in_call_order(facts: list[Fact], steps: list[int]) -> None:
    """What cannot be undone waits for everything asked before it; what can be goes on beside it."""
    commands = due(started(), decided(1, "read", "send", "send", "read"), *facts)
    assert [command.step for command in commands if isinstance(command, CallTool)] == steps
    assert len(commands) == len(steps)


def test_only_a_window_of_calls_is_open_at_once() -> None:
    """One run that asks for a thousand calls must not starve the others of their queue."""
    log = [started(replace(TERMS, window=2)), decided(1, "read", "read", "read", "read")]
    assert due(*log) == (call(2), call(3))
    assert due(*log, result(3)) == (call(2), call(4))


def test_the_ceiling_stops_the_next_thought() -> None:
    """A model that never stops calling tools must not run for ever."""
    terms = replace(TERMS, max_steps=2)
    log = [started(terms), decided(1, "read"), result(2), decided(3, "read"), result(4)]
    assert due(*log[:3]) == (CallModel(3),)
    assert due(*log) == (Finish("(stopped: reached max_steps=2)", "max_steps"),)


def test_the_ceiling_stops_no_call_and_no_answer() -> None:
    """Calls that were asked for are answered, and an answer on the last permitted step is an answer."""
    terms = replace(TERMS, max_steps=1)
    assert due(started(terms), decided(1, "read", "pay")) == (AskApproval(3, "pay"),)
    assert due(started(terms), decided(1, "read")) == (call(2),)
    assert due(started(terms), decided(1, text="42")) == (Finish("42", "answered"),)


WINDOW = 2


@by_chance
@given(logs(window=WINDOW))
def test_nothing_that_may_not_run_is_ever_started(log: list[Event]) -> None:
    """Whatever the order of facts: no settled call again, no shadow, no ungranted, no refused, no unknown one."""
    for run in runs_of(log):
        calls = [command for command in decide(run, now=0.0) if isinstance(command, CallTool)]
        assert len(calls) <= WINDOW
        for one in calls:
            known = run.call(one.step)
            assert known is not None
            assert (known.name, known.settled) == (one.name, False)
            assert one.name in ("read", "send", "pay", "wire")
            assert known.verdict == ("granted" if one.name in WAITING else "none")


@by_chance
@given(logs())
def test_no_irreversible_call_overtakes_an_earlier_one(log: list[Event]) -> None:
    """The order of effects is the order the model asked for."""
    for run in runs_of(log):
        for one in decide(run, now=0.0):
            if isinstance(one, CallTool) and one.name in IRREVERSIBLE:
                assert [earlier for earlier in run.unsettled if earlier.step < one.step] == []


@by_chance
@given(logs())
def test_each_open_call_is_named_at_most_once_and_a_thought_waits_for_all(log: list[Event]) -> None:
    """Two answers to one call could not be put right afterwards; a model must see every result, in one place."""
    for run in runs_of(log):
        commands = decide(run, now=0.0)
        steps = [one.step for one in commands if not isinstance(one, CallModel | Finish)]
        assert len(steps) == len(set(steps))
        assert set(steps) <= {known.step for known in run.unsettled}
        if len(steps) < len(commands):
            assert (len(commands), run.unsettled) == (1, ())
        assert [one.step for one in commands if isinstance(one, CallModel)] in ([], [run.last_step + 1])


@by_chance
@given(logs())
def test_a_running_run_always_has_something_due_and_a_paused_one_nothing_to_start(log: list[Event]) -> None:
    """A run with nothing due and nobody to wait for would be stuck for ever, and no sweep could tell."""
    for run in runs_of(log):
        commands = decide(run, now=0.0)
        if run.status == "running":
            assert commands != ()
        else:
            assert [one for one in commands if isinstance(one, CallTool | CallModel | Finish)] == []


@by_chance
@given(logs(), st.floats(0, 4e9))
def test_deciding_again_at_another_time_gives_the_same(log: list[Event], now: float) -> None:
    """No rule of today depends on the clock; two coordinators must agree."""
    assert [decide(run, now) for run in runs_of(log)] == [decide(run, 0.0) for run in runs_of(log)]
