"""What is read from a run: its result, its times, its trace, the terms it was started under."""

from __future__ import annotations

import time
from typing import Any

import pytest

from drangue_client.errors import UnknownRunError
from drangue_client.result import Result
from drangue_worker.testing import Reply
from tests.surface import agents
from tests.surface.case import Case, calls, of

both_wires = pytest.mark.parametrize("wire", ["openai", "anthropic"])
LOOK = calls(("look", {"what": "disk"}), text="I look.", input_tokens=50, output_tokens=8)
DONE = Reply("It is fine.", input_tokens=70, output_tokens=9)


def begun(case: Case, text: Any, run_id: str) -> Result:
    """A run begun with what may not be right; here or there, it is said at the latest when the result is asked for."""
    case.driver.start("toolbox", text, run_id)
    return case.driver.result(run_id)


@both_wires
def test_a_result_has_every_attribute_of_a_finished_run(case: Case, wire: str) -> None:
    """One look at a run answers what a caller asks."""
    case.model(LOOK, DONE)
    result = case.run("toolbox", "How is the disk?")
    model = "gpt-scripted" if wire == "openai" else "claude-scripted"
    read = {
        "run_id": result.run_id,
        "status": result.status,
        "reason": result.reason,
        "output": result.output,
        "steps": result.steps,
        "usage": result.usage,
        "usage_estimated": result.usage_estimated,
        "cost": result.cost({model: agents.PRICES}),
        "error": result.error,
        "truncated": result.truncated,
        "output_parsed": result.output_parsed,
        "pending_approvals": result.pending_approvals,
    }
    assert read == {
        "run_id": case.run_id,
        "status": "completed",
        "reason": "answered",
        "output": "It is fine.",
        "steps": 2,
        "usage": {"input_tokens": 120, "output_tokens": 17},
        "usage_estimated": False,
        "cost": pytest.approx(0.154),
        "error": None,
        "truncated": False,
        "output_parsed": None,
        "pending_approvals": [],
    }
    ((call_id,),) = [[call["id"] for call in decision["tool_calls"]] for decision in of(result, "model_decision")[:1]]
    assert result.messages == [
        {"role": "user", "content": case.text("How is the disk?")},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": call_id, "name": "look", "arguments": {"what": "disk"}}],
        },
        {"role": "tool", "call_id": call_id, "name": "look", "content": "disk is fine"},
        {"role": "assistant", "content": "It is fine."},
    ]


@pytest.mark.parametrize(
    ("wire", "stop"), [("openai", ["tool_calls", "stop"]), ("anthropic", ["tool_use", "end_turn"])]
)
def test_a_decision_records_what_the_model_gave(case: Case, wire: str, stop: list[str]) -> None:
    """Text, calls, usage, the model's name and why it stopped, in the provider's own word."""
    case.model(LOOK, DONE)
    first, second = of(case.run("toolbox"), "model_decision")
    name = "gpt-scripted" if wire == "openai" else "claude-scripted"
    assert first == {
        "text": "I look.",
        "tool_calls": [{"id": first["tool_calls"][0]["id"], "name": "look", "arguments": {"what": "disk"}}],
        "usage": {"input_tokens": 50, "output_tokens": 8},
        "reasoning": None,
        "model": name,
        "stop_reason": stop[0],
    }
    assert (second["tool_calls"], second["stop_reason"]) == ([], stop[1])


@pytest.mark.parametrize("wire", ["anthropic"])
def test_thoughts_are_recorded_and_given_back_unchanged(case: Case) -> None:
    """A provider refuses a conversation whose signed thoughts were touched; a person wants to read them."""
    thoughts = (("Disks fail.", "sig-1"), (None, "opaque"))
    case.model(calls(("wire", {"amount": 5}), thinking=thoughts), Reply("done"))
    (request,) = case.run("assisted").pending_approvals
    assert request["reasoning"] == "Disks fail."
    result = case.approve()
    assert of(result, "model_decision")[0]["thinking_blocks"] == [
        {"type": "thinking", "thinking": "Disks fail.", "signature": "sig-1"},
        {"type": "redacted_thinking", "data": "opaque"},
    ]
    assert case.calls[1].body["messages"][1]["content"][:2] == of(result, "model_decision")[0]["thinking_blocks"]


def test_every_event_has_its_time_and_every_step_its_duration(case: Case) -> None:
    """When was it asked, granted, finished? An audit needs all of them, by one clock."""
    case.model(calls(("listen", {"what": "fan"}), ("look", {"what": "disk"})), Reply("done"))
    began = time.time()
    case.run("assisted")
    case.approve()
    result = case.say("and again?")
    ended = time.time()
    times = [event.ts for event in result.events]
    assert all(isinstance(ts, float) and began - 60 <= ts <= ended + 60 for ts in times)
    by_time = sorted(event.ts or 0 for event in result.events if event.duration_ms is None)
    assert by_time == [event.ts for event in result.events if event.duration_ms is None]
    timed = {event.type for event in result.events if event.duration_ms is not None}
    untimed = {event.type for event in result.events if event.duration_ms is None}
    assert timed == {"model_decision", "tool_result"}
    assert untimed == {"run_started", "approval_requested", "approval_granted", "user_message", "run_finished"}
    assert result.latency_ms == pytest.approx(sum(event.duration_ms or 0 for event in result.events))
    assert result.latency_ms > 0


def test_places_in_the_log_are_dense_and_steps_are_numbered_in_call_order(case: Case) -> None:
    """A reader can cite any event for ever."""
    case.model(calls(*(("look", {"what": what}) for what in "abc")), calls(("look", {"what": "d"})), Reply("done"))
    result = case.run("toolbox")
    assert [event.seq for event in result.events] == list(range(len(result.events)))
    assert [event.step for event in result.events if event.type == "model_decision"] == [1, 5, 7]
    assert sorted(event.step or 0 for event in result.events if event.type == "tool_result") == [2, 3, 4, 6]


def test_the_trace_is_a_tree_of_the_steps(case: Case) -> None:
    """What a person looks at first."""
    case.model(LOOK, DONE)
    result = case.run("toolbox")
    trace = result.trace
    assert (trace.name, trace.attrs, trace.duration_ms) == ("run", {"output": "It is fine."}, result.latency_ms)
    assert [(span.name, span.attrs["step"]) for span in trace.children] == [("model", 1), ("tool", 2), ("model", 3)]
    assert [line.split("  ")[-2].strip() for line in trace.render().splitlines()] == ["run", "model", "tool", "model"]
    assert trace.render().splitlines()[1].startswith("  model  ")


def test_a_log_alone_gives_the_same_result(case: Case) -> None:
    """Everything a result says is derived from events, so whoever has the log has the result."""
    case.model(LOOK, DONE)
    result = case.run("toolbox")
    again = Result.from_events(case.run_id, case.events())
    assert (again, again.trace) == (result, result.trace)


def test_the_terms_of_a_run_are_recorded_with_its_first_event(case: Case) -> None:
    """What rules a run must be readable years later, whatever the agent's code says then."""
    config: dict[str, Any] = of(case.run("capped"), "run_started")[0]["config"]
    look = agents.SERVED["capped"].tools["look"]
    assert config == {
        "models": ["gpt-scripted"],
        "instructions": agents.INSTRUCTIONS,
        "max_steps": 20,
        "autonomy": None,
        "tools": {
            "look": {
                "queue": "drangue.tool",
                "description": look.description,
                "reversible": True,
                "requires_approval": False,
                "timeout_s": None,
                "schema": look.parameters,
                "on_unknown": "model",
                "on_cancel": None,
            }
        },
        "window": config["window"],
        "asked_per_step": 1,
        "prompt_overhead": 0,
        "output_ceiling": agents.CEILING,
        "budget": {"max_tokens": 20_000, "max_usd": None, "prices": None, "hard": True},
        "guards": None,
        "memory": False,
        "output_schema": None,
        "deadline_s": None,
    }


@pytest.mark.parametrize("what", ["result", "approve"])
def test_an_unknown_run_is_an_error_that_names_it(case: Case, what: str) -> None:
    """A typo must not begin an empty run."""
    typo = f"{case.run_id}-typo"
    with pytest.raises(UnknownRunError, match=typo):
        case.driver.result(typo) if what == "result" else case.driver.approve(typo)
    assert case.driver.events(typo) == []


def test_a_cost_that_cannot_be_told_is_an_error_unless_told_otherwise(case: Case) -> None:
    """A sum that leaves out a model is wrong, and looks right."""
    result = case.run("toolbox")
    with pytest.raises(ValueError, match="no price for model 'gpt-scripted'"):
        result.cost({})
    assert result.cost({}, strict=False) == 0.0


def test_a_run_id_that_no_key_could_hold_is_refused(case: Case) -> None:
    """It stands in rows, keys and URLs."""
    for run_id in ("", "a b", "tab\t", "x" * 201):
        with pytest.raises(ValueError, match="run_id"):
            begun(case, "go", run_id)


def test_an_input_that_is_no_text_is_refused(case: Case) -> None:
    """Structured input goes into JSON, and is then text."""
    with pytest.raises(TypeError, match="input"):
        begun(case, {"q": 1}, case.run_id)
    assert case.events() == []
