"""Logs for the tests of this folder: made by hand from short words, or by chance.

A log by chance holds what a log can hold and no more: decisions of one to four calls, each with the facts its tool's
terms allow, in any order between siblings; perhaps a failure that was mended; an answer. It is made without the rules
under test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from drangue_client.events import Event, Fact
from drangue_client.run import Run, apply
from drangue_client.terms import Autonomy, Terms, ToolTerms

QUEUE = "drangue.tool"

# read: free. send: cannot be undone. pay: waits for a person. wire: both. sketch: only proposed. ghost: no such tool.
TERMS = Terms(
    models=("fake",),
    instructions="Be brief.",
    max_steps=10,
    autonomy=Autonomy(modes={"sketch": "shadow"}),
    tools={
        "read": ToolTerms(QUEUE),
        "send": ToolTerms(QUEUE, reversible=False),
        "pay": ToolTerms(QUEUE, requires_approval=True),
        "wire": ToolTerms(QUEUE, reversible=False, requires_approval=True),
        "sketch": ToolTerms(QUEUE),
    },
)
TOOLS = (*TERMS.tools, "ghost")
WAITING = ("pay", "wire")
IRREVERSIBLE = ("send", "wire")

by_chance: Callable[[Any], Any] = settings(max_examples=25, deadline=None, derandomize=True)


def log_of(*facts: Fact) -> list[Event]:
    """The facts at their places in a log."""
    return [fact.at(seq) for seq, fact in enumerate(facts)]


def started(terms: Terms = TERMS, text: str = "hello") -> Fact:
    return Fact("run_started", {"input": text, "config": terms.to_json()})


def decided(step: int, *names: str, text: str = "", **more: Any) -> Fact:
    """A model's answer: calls of these tools, `call_<step>` each, with the step's number as their only argument."""
    calls = [{"id": f"call_{own}", "name": name, "arguments": {"n": own}} for own, name in enumerate(names, step + 1)]
    payload = {"text": text, "tool_calls": calls, "usage": None, "reasoning": None, "model": "fake", **more}
    return Fact("model_decision", payload, step)


def result(step: int, name: str = "read", content: str = "ok", **timing: Any) -> Fact:
    return Fact("tool_result", {"call_id": f"call_{step}", "name": name, "content": content}, step, **timing)


def begun(step: int, name: str = "send") -> Fact:
    return Fact("step_started", {"call_id": f"call_{step}", "tool": name, "attempt": 1}, step)


def asked(step: int, name: str = "pay") -> Fact:
    payload = {"call_id": f"call_{step}", "tool": name, "arguments": {"n": step}, "reasoning": None, "text": ""}
    return Fact("approval_requested", payload, step)


def granted(step: int) -> Fact:
    return Fact("approval_granted", {"call_id": f"call_{step}", "by": "ann", "reason": ""}, step)


def denied(step: int, reason: str = "") -> Fact:
    return Fact("approval_denied", {"call_id": f"call_{step}", "by": "ann", "reason": reason}, step)


def finished(output: str = "done", reason: str = "answered") -> Fact:
    return Fact("run_finished", {"output": output, "reason": reason})


def failed(error: str = "gone", category: str = "permanent") -> Fact:
    return Fact("run_failed", {"error": error, "category": category})


def resumed() -> Fact:
    return Fact("run_resumed", {"by": "ann", "reason": ""})


@st.composite
def logs(draw: st.DrawFn, window: int = TERMS.window) -> list[Event]:
    """A log of one run. Every beginning of it is a log too: tests look at the run after each event."""
    facts = [started(replace(TERMS, window=window))]
    step = 1
    for names in draw(st.lists(st.lists(st.sampled_from(TOOLS), min_size=1, max_size=4), max_size=3)):
        facts.append(decided(step, *names))
        facts += draw(_interleaved([draw(_story(own, name)) for own, name in enumerate(names, step + 1)]))
        step += 1 + len(names)
    broken_at = draw(st.none() | st.integers(1, len(facts)))
    if broken_at is not None:
        facts[broken_at:broken_at] = [failed(), resumed()]
    return log_of(*facts, decided(step, text="answer"), finished("answer"))


def runs_of(log: list[Event]) -> list[Run]:
    """The run after each event of its log, and before the first."""
    return list(accumulate(log, apply, initial=Run()))


@st.composite
def _story(draw: st.DrawFn, step: int, name: str) -> list[Fact]:
    """All that happens to one call, in its order."""
    ran = [*([begun(step, name)] if name in IRREVERSIBLE else []), result(step, name)]
    if name not in WAITING:
        return ran
    if draw(st.booleans()):
        return [asked(step, name), granted(step), *ran]
    return [asked(step, name), denied(step, "no"), result(step, name, "denied")]


@st.composite
def _interleaved(draw: st.DrawFn, stories: Sequence[list[Fact]]) -> list[Fact]:
    turns = draw(st.permutations([i for i, story in enumerate(stories) for _ in story]))
    rest = [iter(story) for story in stories]
    return [next(rest[i]) for i in turns]
