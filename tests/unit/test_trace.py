"""A log as a tree of spans."""

from __future__ import annotations

from drangue_client.events import Event
from drangue_client.trace import Span, spans

DECISION = {"text": "", "tool_calls": [], "model": "fake"}
LOG = [
    Event(0, "run_started", {"input": "x"}, ts=100.0),
    Event(1, "model_decision", DECISION, ts=101.0, duration_ms=20.0, step=1),
    Event(2, "approval_requested", {"tool": "pay"}, ts=102.0, step=2),
    Event(3, "tool_result", {"name": "pay", "content": "ok"}, ts=103.0, duration_ms=4.25, step=2),
    Event(4, "tool_result", {"name": "sketch", "content": "{}"}, ts=103.5, step=3),
    Event(5, "run_finished", {"output": "done"}, ts=104.0),
]


def test_every_step_is_a_child_of_the_run_in_log_order() -> None:
    """Verdicts and endings are no work, so they are no spans."""
    assert [(child.name, child.attrs["step"]) for child in spans(LOG, "done").children] == [
        ("model", 1),
        ("tool", 2),
        ("tool", 3),
    ]


def test_a_span_carries_what_its_event_says() -> None:
    """An exporter shows model, usage and content without reading the log again."""
    assert spans(LOG, "done").children[1] == Span(
        "tool", {"name": "pay", "content": "ok", "step": 2}, ts=103.0, duration_ms=4.25
    )


def test_the_root_has_the_output_the_start_and_the_sum_of_its_steps() -> None:
    """Parallel steps count in full: it is work, not wall time."""
    root = spans(LOG, "done")
    assert (root.name, root.attrs, root.ts, root.duration_ms) == ("run", {"output": "done"}, 100.0, 24.25)


def test_a_run_without_events_has_a_tree_too() -> None:
    """The console draws queued runs."""
    assert spans([], "") == Span("run", {"output": ""}, duration_ms=0.0)


def test_a_tree_renders_one_line_a_node_two_spaces_a_level() -> None:
    """People paste it into tickets."""
    inner = Span("tool", children=[Span("child", duration_ms=0.0)])
    assert Span("run", children=[Span("model", duration_ms=12.34), inner], duration_ms=2000).render() == (
        "run  2000.0ms\n  model  12.3ms\n  tool\n    child  0.0ms"
    )


def test_a_tree_can_start_further_in() -> None:
    """It may be part of a larger drawing."""
    assert Span("run", children=[Span("model")]).render(indent=1) == "  run\n    model"
