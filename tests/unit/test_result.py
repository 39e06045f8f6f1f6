"""What a user reads from a run."""

from __future__ import annotations

import pytest

from drangue_client.events import Event, Fact
from drangue_client.result import Result
from tests.unit.made_logs import (
    PRICES,
    asked,
    decided,
    denied,
    failed,
    finished,
    granted,
    log_of,
    result,
    resumed,
    said,
    screened,
    started,
)


def read(*facts: Fact) -> Result:
    return Result.from_events("r1", log_of(*facts))


@pytest.mark.parametrize(
    ("facts", "status", "output"),
    [
        ([], "queued", ""),
        ([started()], "running", ""),
        ([started(), decided(1, "pay"), asked(2)], "paused", "(paused: awaiting approval)"),
        ([started(), decided(1, "pay"), asked(2), granted(2)], "running", ""),
        ([started(), decided(1, text="42"), finished("42")], "completed", "42"),
        ([started(), decided(1, "read"), failed()], "failed", ""),
        ([started(), Fact("run_cancelled", {})], "cancelled", ""),
    ],
)
def test_status_and_output_follow_the_log(facts: list[Fact], status: str, output: str) -> None:
    """Callers loop on the status and match the bracketed texts."""
    run = read(*facts)
    assert (run.status, run.output) == (status, output)


def test_the_reason_is_for_machines() -> None:
    """A step ceiling and an answer both read `completed`; only the reason tells them apart."""
    assert read(started(), finished("(stopped: reached max_steps=1)", "max_steps")).reason == "max_steps"


def test_the_error_is_shown_only_while_the_run_is_failed() -> None:
    """A run that was mended and went on must not be taken for a broken one."""
    facts = [started(), decided(1, "read"), failed("no route")]
    assert read(*facts).error == "no route"
    assert read(*facts, resumed()).error is None


def test_the_latest_failure_is_the_error() -> None:
    """A redriven run that fails again fails for a reason of its own."""
    assert read(started(), failed("first"), resumed(), failed("second")).error == "second"


@pytest.mark.parametrize(
    ("ending", "read_off", "expected"),
    [(finished("42"), "output", "42"), (failed("no route"), "error", "no route")],
    ids=["finished", "failed"],
)
def test_a_result_that_came_late_does_not_hide_the_ending(ending: Fact, read_off: str, expected: str) -> None:
    """A sibling that was at work when the turn ended may still be recorded after it."""
    assert getattr(read(started(), decided(1, "read", "read"), ending, result(3)), read_off) == expected


def test_steps_counts_model_calls() -> None:
    """Evals bound it."""
    assert read(started(), decided(1, "read", "read"), result(2), result(3), decided(4, text="x")).steps == 2


def test_usage_sums_every_count_of_every_model_call() -> None:
    """Cached tokens are billed too; an answer without usage counts nothing."""
    log = [
        started(),
        decided(1, "read", usage={"input_tokens": 10, "output_tokens": 2, "cache_read_input_tokens": 5}),
        result(2),
        decided(3, "read", usage=None),
        result(4),
        decided(5, text="x", usage={"input_tokens": 1, "output_tokens": 1, "note": "nan"}),
    ]
    assert read(*log).usage == {"input_tokens": 11, "output_tokens": 3, "cache_read_input_tokens": 5}


def test_usage_has_both_counts_before_any_model_call() -> None:
    """Dashboards add it up without asking."""
    assert read(started()).usage == {"input_tokens": 0, "output_tokens": 0}


def test_latency_adds_up_steps_and_leaves_waits_out() -> None:
    """A night of waiting for a person is not slowness."""
    log = [
        Event(0, "run_started", started().payload, ts=0.0),
        Event(1, "model_decision", decided(1, "pay").payload, ts=1.0, duration_ms=100.0, step=1),
        Event(2, "approval_requested", asked(2).payload, ts=2.0, step=2),
        Event(3, "tool_result", result(2).payload, ts=9_000.0, duration_ms=50.5, step=2),
    ]
    assert Result.from_events("r1", log).latency_ms == 150.5


@pytest.mark.parametrize(
    ("stops", "truncated"),
    [(["stop"], False), (["length"], True), (["max_tokens"], True), (["length", "stop"], False), ([None], False)],
)
def test_truncated_tells_whether_the_last_answer_was_cut(stops: list[str | None], truncated: bool) -> None:
    """A cut answer looks like a whole one."""
    decisions = [decided(step, text="x", stop_reason=stop) for step, stop in enumerate(stops, start=1)]
    assert read(started(), *decisions, finished("x")).truncated is truncated


def test_pending_approvals_are_the_undecided_requests_in_call_order() -> None:
    """An inbox shows what waits and nothing that was decided."""
    log = [started(), decided(1, "pay", "pay", "pay", "pay"), asked(5), asked(4), asked(3), asked(2)]
    run = read(*log, granted(3), denied(4))
    assert [request["step"] for request in run.pending_approvals] == [2, 5]


def test_a_pending_request_says_what_the_call_would_do_and_why() -> None:
    """A person decides by it."""
    request = read(started(), decided(1, "pay"), asked(2)).pending_approvals[0]
    expected = {"step": 2, "call_id": "call_2", "tool": "pay", "arguments": {"n": 2}, "reasoning": None, "text": ""}
    assert request == expected


def test_a_request_waits_beside_siblings_that_are_at_work() -> None:
    """The run reads `running`; the question can be answered already."""
    run = read(started(), decided(1, "pay", "read"), asked(2))
    assert (run.status, [request["step"] for request in run.pending_approvals]) == ("running", [2])


def test_an_ended_run_has_nothing_pending() -> None:
    """A verdict on it would change nothing."""
    assert read(started(), decided(1, "pay"), asked(2), failed()).pending_approvals == []


def test_a_result_holds_the_conversation_and_the_whole_log() -> None:
    """Everything else can be derived from them."""
    log = log_of(started(text="hi"), decided(1, text="ho"), finished("ho"))
    run = Result.from_events("r1", log)
    assert (run.run_id, run.events) == ("r1", log)
    assert [m["content"] for m in run.messages] == ["hi", "ho"]


def test_the_trace_shows_the_output_at_its_root() -> None:
    """A reader of the tree starts there."""
    assert read(started(), decided(1, text="ho"), finished("ho")).trace.attrs == {"output": "ho"}


# Money


CACHED = {
    "input_tokens": 1000,
    "output_tokens": 200,
    "cache_creation_input_tokens": 400,
    "cache_read_input_tokens": 10_000,
}


def test_the_cost_is_that_of_all_model_calls_by_their_own_models() -> None:
    """A night of cheap thoughts and one dear one must not be billed at one price."""
    log = [
        started(),
        decided(1, "read", usage=CACHED),
        result(2),
        decided(3, text="x", usage={"input_tokens": 10, "output_tokens": 10}, model="dear"),
        finished("x"),
    ]
    prices = {**PRICES, "dear": {"input": 100.0, "output": 200.0}}
    # 1000 * 3 + 200 * 15 + 400 * 3.75 + 10_000 * 0.3 = 10_500, and 10 * 100 + 10 * 200 = 3000.
    assert read(*log).cost(prices) == pytest.approx(0.0135)


def test_a_model_without_a_price_is_named_or_left_out_if_asked() -> None:
    """A bill that leaves something out must have been asked to."""
    log = [started(), decided(1, text="x", usage=CACHED), decided(2, text="y", usage=CACHED, model="other")]
    with pytest.raises(ValueError, match="no price for model 'other'"):
        read(*log).cost(PRICES)
    assert read(*log).cost(PRICES, strict=False) == pytest.approx(0.0105)


def test_a_run_that_called_no_model_costs_nothing() -> None:
    """Also by no prices at all."""
    assert read(started(), screened(1, "no"), finished("(blocked: no)", "blocked")).cost({}) == 0.0


@pytest.mark.parametrize(
    ("marks", "estimated"), [([], False), ([{}], False), ([{}, {"usage_estimated": True}], True)], ids=str
)
def test_usage_says_whether_part_of_it_was_estimated(marks: list[dict[str, bool]], estimated: bool) -> None:
    """A bill drawn up from an estimate must not be taken for the provider's."""
    decisions = [decided(step, text="x", **mark) for step, mark in enumerate(marks, start=1)]
    assert read(started(), *decisions).usage_estimated is estimated


# Structured answers


@pytest.mark.parametrize(
    ("ending", "parsed"),
    [
        (finished('{"n": 1}', structured=True), {"n": 1}),
        (finished("[1, null]", structured=True), [1, None]),
        (finished("null", structured=True), None),
        (finished('{"n": 1}'), None),
        (finished("prose", "schema"), None),
        (finished("(stopped: reached max_steps=1)", "max_steps"), None),
    ],
    ids=["object", "array", "null", "unasked", "missed", "stopped"],
)
def test_an_answer_is_parsed_only_where_it_matched_the_schema(ending: Fact, parsed: object) -> None:
    """Who reads it relies on the form; JSON that nobody judged has none."""
    assert read(started(), decided(1, text="x"), ending).output_parsed == parsed


def test_the_parsed_answer_is_that_of_the_latest_turn_that_ended() -> None:
    """An answer to an earlier question must not be taken for one to the latest."""
    first = [started(), decided(1, text='{"n": 1}'), finished('{"n": 1}', structured=True)]
    assert read(*first, said()).output_parsed == {"n": 1}
    assert read(*first, said(), finished("(stopped: budget exhausted)", "budget")).output_parsed is None
    assert read(*first, said(), finished('{"n": 2}', structured=True)).output_parsed == {"n": 2}


@pytest.mark.parametrize(
    ("later", "status", "output"),
    [
        ([], "running", ""),
        ([decided(2, "pay"), asked(3)], "paused", "(paused: awaiting approval)"),
        ([failed()], "failed", ""),
        ([finished("no", "answered")], "completed", "no"),
    ],
    ids=["running", "paused", "failed", "completed"],
)
def test_status_and_output_are_those_of_the_latest_turn(later: list[Fact], status: str, output: str) -> None:
    """A second turn that waits for a person once read `completed`, and the loop around it ended early."""
    run = read(started(), decided(1, text="yes"), finished("yes"), said(), *later)
    assert (run.status, run.output) == (status, output)
