"""Logs for the tests of this folder: made by hand from short words, or by chance.

A log by chance holds what a log can hold and no more: decisions of one to four calls, each with the facts its tool's
terms allow, in any order between siblings; perhaps a failure that was mended; an answer. One of `turns` has everything
besides: an input guard, a memory, a budget, structured answers that miss and match, and several turns. Both are made
without the rules under test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from drangue_client.answer import FINAL_ANSWER
from drangue_client.autonomy import Autonomy
from drangue_client.budget import Budget
from drangue_client.events import Event, Fact
from drangue_client.folding import apply
from drangue_client.outcomes import unknown_outcome
from drangue_client.run import Run
from drangue_client.terms import Guards, Terms, ToolTerms

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

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
PRICES = {"fake": {"input": 3.0, "output": 15.0}}
FULL_TERMS = replace(
    TERMS,
    guards=Guards(input=True, output=True, result=True),
    memory=True,
    output_schema=SCHEMA,
    output_ceiling=100,
    budget=Budget(max_tokens=10**9, max_usd=1e6, prices=PRICES),
)

by_chance: Callable[[Any], Any] = settings(max_examples=25, deadline=None, derandomize=True)


def log_of(*facts: Fact) -> list[Event]:
    """The facts at their places in a log."""
    return [fact.at(seq) for seq, fact in enumerate(facts)]


def started(terms: Terms = TERMS, text: str = "hello", **more: Any) -> Fact:
    return Fact("run_started", {"input": text, "config": terms.to_json(), **more})


def decided(step: int, *names: str, text: str = "", **more: Any) -> Fact:
    """A model's answer: calls of these tools, `call_<step>` each, with the step's number as their only argument."""
    calls = [{"id": f"call_{own}", "name": name, "arguments": {"n": own}} for own, name in enumerate(names, step + 1)]
    payload = {"text": text, "tool_calls": calls, "usage": None, "reasoning": None, "model": "fake", **more}
    return Fact("model_decision", payload, step)


def result(step: int, name: str = "read", content: str = "ok", **timing: Any) -> Fact:
    return Fact("tool_result", {"call_id": f"call_{step}", "name": name, "content": content}, step, **timing)


def begun(step: int, name: str = "send", attempt: int = 1, **timing: Any) -> Fact:
    return Fact("step_started", {"call_id": f"call_{step}", "tool": name, "attempt": attempt}, step, **timing)


def unknown(step: int, name: str = "send") -> Fact:
    """The result of a call of which nobody knows whether it took effect."""
    told = {"call_id": f"call_{step}", "name": name, "content": unknown_outcome(name), "unknown": True}
    return Fact("tool_result", told, step)


def wondered(step: int, name: str = "send") -> Fact:
    """A person is asked what became of a call."""
    told = {"call_id": f"call_{step}", "tool": name, "arguments": {"n": step}, "content": unknown_outcome(name)}
    return Fact("outcome_requested", told, step)


def found(step: int, happened: bool = True) -> Fact:
    """A person has said what became of a call; its result, or its correction, stands right after."""
    return Fact("outcome_given", {"call_id": f"call_{step}", "happened": happened, "by": "ann", "reason": ""}, step)


def corrected(step: int, name: str = "send", content: str = "sent") -> Fact:
    return Fact("outcome_corrected", {"call_id": f"call_{step}", "name": name, "content": content}, step)


def asked(step: int, name: str = "pay") -> Fact:
    payload = {"call_id": f"call_{step}", "tool": name, "arguments": {"n": step}, "reasoning": None, "text": ""}
    return Fact("approval_requested", payload, step)


def granted(step: int) -> Fact:
    return Fact("approval_granted", {"call_id": f"call_{step}", "by": "ann", "reason": ""}, step)


def denied(step: int, reason: str = "") -> Fact:
    return Fact("approval_denied", {"call_id": f"call_{step}", "by": "ann", "reason": reason}, step)


def called(step: int, *calls: tuple[str, dict[str, Any]], **more: Any) -> Fact:
    """A model's answer: calls of these tools with these arguments."""
    decision = decided(step, *(name for name, _ in calls), **more)
    for call, (_, arguments) in zip(decision.payload["tool_calls"], calls, strict=True):
        call["arguments"] = arguments
    return decision


def accepted(step: int) -> Fact:
    """The result of a call that delivered an answer as the schema has it."""
    payload = {"call_id": f"call_{step}", "name": FINAL_ANSWER, "content": '{"ok": true}', "accepted": True}
    return Fact("tool_result", payload, step)


def missed(step: int) -> Fact:
    """The result of a call that delivered something else."""
    return result(step, FINAL_ANSWER, '{"ok": false}')


def sent_back(text: str = "The answer did not match.") -> Fact:
    return Fact("schema_feedback", {"text": text})


def said(text: str = "and now?", turn_id: str | None = None, **more: Any) -> Fact:
    return Fact("user_message", {"text": text} | ({} if turn_id is None else {"turn_id": turn_id}) | more)


def screened(turn: int = 1, reason: str | None = None) -> Fact:
    """The verdict on a turn's input: blocked for a reason, or let pass."""
    return Fact("input_screened", {"turn": turn, "blocked": reason is not None, "reason": reason}, -turn)


def recalled(*values: Any) -> Fact:
    items = [{"key": f"k{n}", "value": value, "expires_at": None} for n, value in enumerate(values)]
    return Fact("memory_recalled", {"items": items, "recalled_at": 1.0}, 0)


def finished(output: str = "done", reason: str = "answered", **more: Any) -> Fact:
    return Fact("run_finished", {"output": output, "reason": reason, **more})


def failed(error: str = "gone", category: str = "permanent") -> Fact:
    return Fact("run_failed", {"error": error, "category": category})


def resumed(**more: Any) -> Fact:
    return Fact("run_resumed", {"by": "ann", "reason": "", **more})


def cancelled(last_step: int = 0) -> Fact:
    return Fact("run_cancelled", {"by": "ann", "reason": "", "last_step": last_step})


def late(last_step: int = 0) -> Fact:
    """The end of a turn whose time was over."""
    return finished("(stopped: its time was over)", "deadline", last_step=last_step)


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


Block = list[list[Fact]]  # facts that may come in any order between these stories, and in a story's own order


@st.composite
def scripts(draw: st.DrawFn) -> list[Block]:
    """A log of one to three turns, before anything is said about the order of what happens side by side."""
    budget = replace(FULL_TERMS.budget, hard=draw(st.booleans()))  # type: ignore[type-var]
    blocks: list[Block] = []
    last, remembered = 0, False
    for turn in range(1, draw(st.integers(1, 3)) + 1):
        blocks.append([[said(f"input {turn}", draw(st.none() | st.just(f"t{turn}")))]])
        if turn == 1:
            blocks[0] = [[started(replace(FULL_TERMS, budget=budget), "input 1")]]
        if draw(st.integers(0, 3)) == 0:
            blocks += [[[screened(turn, "no")]], [[finished("(blocked: no)", "blocked", blocked=True)]]]
            continue
        blocks.append([[screened(turn)]])
        if not remembered:
            blocks.append([[recalled("likes tea", {"city": "Oslo"})]])
            remembered = True
        more, last = draw(_turns_of_thought(last))
        blocks += more
    return blocks


@st.composite
def turns(draw: st.DrawFn) -> list[Event]:
    """A log of one to three turns, under FULL_TERMS with a soft or a hard budget."""
    facts = draw(laid_out(draw(scripts())))
    going_on = [place for place in range(1, len(facts)) if facts[place - 1].type != "run_finished"]
    broken_at = draw(st.none() | st.sampled_from(going_on))
    if broken_at is not None:
        facts[broken_at:broken_at] = [failed(), resumed()]
    return log_of(*facts)


@st.composite
def laid_out(draw: st.DrawFn, blocks: list[Block]) -> list[Fact]:
    """The facts of a script in one of the orders they can have come in."""
    return [fact for block in blocks for fact in draw(_interleaved(block))]


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


@st.composite
def _turns_of_thought(draw: st.DrawFn, last: int) -> tuple[list[Block], int]:
    """The decisions of one turn, from the step after `last` to its end; and the highest step given out."""
    blocks: list[Block] = []
    corrections = 0
    while True:
        step = last + 1
        usage = draw(st.none() | st.builds(dict, input_tokens=st.integers(0, 99), output_tokens=st.integers(0, 99)))
        more = {"usage": usage} | draw(st.just({}) | st.just({"lost": {"tokens": 7, "usd": 0.5}}))
        names = draw(st.lists(st.sampled_from((*TOOLS, FINAL_ANSWER)), max_size=3))
        last = step + len(names)
        blocks.append([[decided(step, *names, text="" if names else "prose", **more)]])
        own = list(enumerate(names, step + 1))
        blocks.append([draw(_story(at, name)) for at, name in own if name != FINAL_ANSWER])
        answers = [at for at, name in own if name == FINAL_ANSWER]
        matching = draw(st.none() | st.sampled_from(answers)) if answers else None
        for at in answers:
            late = matching is not None and at > matching
            answered = accepted(at) if at == matching else result(at, FINAL_ANSWER, "late") if late else missed(at)
            blocks.append([[answered]])
        if matching is not None:
            return [*blocks, [[finished('{"n": 1}', structured=True)]]], last
        corrections += len(answers)
        if corrections > 2 or (not names and corrections == 2):
            return [*blocks, [[finished("prose", "schema")]]], last
        if draw(st.integers(0, 2)) == 0:
            return [*blocks, [[finished("(stopped: budget exhausted)", "budget")]]], last
        if not names:
            blocks.append([[sent_back()]])
            corrections += 1
