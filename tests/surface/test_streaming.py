"""Streams: every event as it is written, and answers while they are being written, from any process."""

from __future__ import annotations

import pytest

from drangue_client.events import Event
from drangue_worker.testing import Reply
from tests.surface.case import Case, calls
from tests.surface.effects import open_gate

both_wires = pytest.mark.parametrize("wire", ["openai", "anthropic"])
TEXT = "The disk is fine, and so are the fans, the lamps and the people."


def of_log(events: list[Event]) -> list[Event]:
    return [event for event in events if event.seq >= 0]


def texts(events: list[Event]) -> dict[int, str]:
    """What was shown of each step while it was written."""
    shown: dict[int, str] = {}
    for event in events:
        if event.type == "model_delta":
            shown[event.payload["step"]] = shown.get(event.payload["step"], "") + event.payload["text"]
    return shown


@both_wires
def test_a_stream_is_the_log_in_order_with_each_answer_shown_before_it_is_recorded(case: Case) -> None:
    """Whoever watches sees all of it, once, and the answer grow."""
    case.model(calls(("look", {"what": "disk"}), text="I look at it."), Reply(TEXT))
    seen = list(case.stream("toolbox"))
    assert of_log(seen) == case.events()
    assert texts(seen) == {1: "I look at it.", 3: TEXT}
    decisions = {event.step: place for place, event in enumerate(seen) if event.type == "model_decision"}
    for place, event in enumerate(seen):
        if event.type == "model_delta":
            assert place < decisions[event.payload["step"]]
            assert (event.seq, event.ts, event.step) == (-1, None, event.payload["step"])
    assert all(call.stream for call in case.calls)


def test_an_answer_comes_in_pieces_while_it_is_written(case: Case) -> None:
    """A person reads along: the pieces are numbered, and together they are the text."""
    case.model(Reply(TEXT, chunk_delay_s=0.1))
    pieces = [event.payload for event in case.stream("toolbox") if event.type == "model_delta"]
    assert len(pieces) > 1
    assert [piece["index"] for piece in pieces] == list(range(len(pieces)))
    assert {(piece["step"], piece["attempt"], "retry" in piece) for piece in pieces} == {(1, 1, False)}
    assert "".join(piece["text"] for piece in pieces) == TEXT


def test_what_is_recorded_is_the_same_whether_somebody_watches_or_not(case: Case) -> None:
    """Watching is a view: usage, text and stop reason do not depend on it."""
    case.model(calls(("look", {"what": "disk"}), text="I look."), Reply(TEXT, input_tokens=30, output_tokens=12))
    watched = [event.payload for event in of_log(list(case.stream("toolbox"))) if event.type == "model_decision"]
    assert [payload["usage"] for payload in watched] == [
        {"input_tokens": 10, "output_tokens": 5},
        {"input_tokens": 30, "output_tokens": 12},
    ]
    assert [(payload["text"], payload["stop_reason"]) for payload in watched] == [
        ("I look.", "tool_calls"),
        (TEXT, "stop"),
    ]
    assert watched[0]["tool_calls"][0]["arguments"] == {"what": "disk"}


def test_an_event_is_seen_before_the_next_one_exists(case: Case) -> None:
    """A stream that waits for the end is no stream: a call's result shows while its sibling still works."""
    gate = f"{case.run_id}-sibling"
    case.model(calls(("hold_async", {"gate": gate}), ("look", {"what": "disk"})), Reply("done"))
    seen = []
    for event in case.stream("toolbox"):
        seen.append((event.type, event.step))
        if seen[-1] == ("tool_result", 3):
            open_gate(gate)  # only now can the other one end
    assert seen.index(("tool_result", 3)) < seen.index(("tool_result", 2))
    assert seen[-1] == ("run_finished", 4)


def test_another_attempt_is_marked_since_it_voids_what_was_shown(case: Case) -> None:
    """A stream that broke in the middle begins anew; whoever shows it must clear the screen."""
    broken = Reply(TEXT, error="overloaded", headers={"retry-after": "0"})
    case.model_in_turn(broken, Reply(TEXT))
    seen = list(case.stream("toolbox"))
    pieces = [event.payload for event in seen if event.type == "model_delta"]
    shown = {attempt: "".join(one["text"] for one in pieces if one["attempt"] == attempt) for attempt in (1, 2, 3)}
    marked = [(one["attempt"], one["index"]) for one in pieces if "retry" in one]
    tried = [one["error"] for event in of_log(seen) for one in event.payload.get("retries", ())]
    assert (shown, marked, len(tried)) == ({1: TEXT, 2: TEXT, 3: ""}, [(2, 0)], 1), tried
    assert of_log(seen) == case.events()


def test_a_stream_ends_where_the_run_waits_and_another_one_goes_on_from_there(case: Case) -> None:
    """Nobody misses an event between two looks: a place in the log says where to go on."""
    case.model(calls(("wire", {"amount": 5})), Reply("done"))
    first = of_log(list(case.stream("assisted")))
    assert [event.type for event in first] == ["run_started", "model_decision", "approval_requested"]
    case.driver.approve(case.run_id)
    rest = of_log(list(case.driver.follow(case.run_id, first[-1].seq)))
    assert first + rest == case.events()
    assert rest[-1].type == "run_finished"


def test_a_finished_run_can_be_read_as_a_stream_from_any_place(case: Case) -> None:
    """Late is not too late."""
    log = case.run("toolbox").events
    assert list(case.driver.follow(case.run_id, -1)) == log
    assert list(case.driver.follow(case.run_id, 0)) == log[1:]
    assert list(case.driver.follow(case.run_id, log[-1].seq)) == []


def test_a_late_watcher_is_shown_the_same_in_the_same_order(case: Case) -> None:
    """Events from the log, and answers while they were written where somebody kept them."""
    case.model(calls(("look", {"what": "disk"}), text="I look at it."), Reply(TEXT))
    live = list(case.stream("toolbox"))
    late = list(case.driver.follow(case.run_id, -1))
    assert of_log(late) == of_log(live) == case.events()
    assert texts(late) == (texts(live) if case.driver.replays else {})
    decided = 0
    for event in late:
        assert event.seq >= 0 or event.payload["step"] > decided
        decided = (event.step or 0) if event.type == "model_decision" else decided


def test_a_stream_shows_the_failure_it_ends_with(case: Case) -> None:
    """The last thing seen is why."""
    case.model(Reply(status=401, error="bad key"))
    seen = list(case.stream("toolbox"))
    assert [event.type for event in seen] == ["run_started", "run_failed"]
    assert "bad key" in seen[-1].payload["error"]
