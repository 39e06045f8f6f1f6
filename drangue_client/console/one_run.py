"""One run, drawn: its state, its steps as a tree with what people said, what it waits for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from drangue_client.budget import Prices, Spent, spent
from drangue_client.console.views import (
    LONG,
    approvals_list,
    arguments_shown,
    cut,
    shown,
    status_text,
    unknown_list,
    when,
)
from drangue_client.events import Event
from drangue_client.result import Result
from drangue_client.store.values import RunRow


def run_view(row: RunRow, result: Result) -> RenderableType:
    """One run: its state, its steps as a tree, what waits. Its answer is `answer`."""
    usage, took = result.usage, ""
    if row.finished_at is not None:
        took = f" ({row.finished_at - row.created_at:.1f} s)"
    head = Text.assemble(
        (row.run_id, "bold"),
        f"  {row.agent}  ",
        status_text(result.status),
        f"  {result.reason or ''}\n",
        f"submitted {when(row.created_at)} UTC{took}, {result.steps} model calls, "
        f"{usage['input_tokens']} + {usage['output_tokens']} tokens{_cost(result)}",
    )
    parts: list[RenderableType] = [head, trace_tree(row, result)]
    if result.pending_approvals:
        parts.append(approvals_list([{"run_id": row.run_id, **item} for item in result.pending_approvals]))
    if result.unknown_outcomes:
        parts.append(unknown_list([{"run_id": row.run_id, **item} for item in result.unknown_outcomes]))
    return Group(*parts)


def dollars(result: Result) -> float | None:
    """What a run has cost in USD by the prices that were recorded with it; None where they do not tell."""
    budget = result.run.terms.budget if result.run.terms else None
    if budget is None or not budget.prices:
        return None
    total = spent(result.events, budget.prices)
    return None if total.unpriced is not None else total.usd


def _cost(result: Result) -> str:
    usd = dollars(result)
    if usd is None:
        return ""
    limit = result.run.terms.budget.max_usd if result.run.terms and result.run.terms.budget else None
    return f", {usd:.4f} USD" + ("" if limit is None else f" of {limit:g}")


def answer(result: Result) -> str:
    """What came out of a run, whole: neither wrapped nor cut, so that it can be piped on."""
    return shown(f"failed: {result.error}" if result.error else result.output)


def trace_tree(row: RunRow, result: Result) -> Tree:
    """The steps in the order they were decided, each model call with the tool calls it asked for below it, and what
    people said between them."""
    tree = Tree(Text(cut(row.input, LONG)))
    budget = result.run.terms.budget if result.run.terms else None
    prices = budget.prices if budget else None
    of_step: dict[int | None, list[Event]] = {}
    for event in result.events:
        of_step.setdefault(event.step, []).append(event)
    for event in result.events:
        if event.type == "model_decision":
            branch = tree.add(_model_line(event, prices))
            for own_step, call in enumerate(event.payload["tool_calls"], start=(event.step or 0) + 1):
                _add_call(branch, own_step, call, of_step.get(own_step, ()))
        elif event.type in _SAID:
            tree.add(Text(f"{_SAID[event.type]}{_by_whom(event)}{_gist(event)}", style="yellow"))
    return tree


_SAID = {"user_message": "said", "run_cancelled": "cancelled", "run_resumed": "taken up again"}


def _gist(event: Event) -> str:
    told = cut(str(event.payload.get("text") or event.payload.get("reason") or ""), LONG)
    return f": {told}" if told else ""


def _by_whom(event: Event) -> str:
    by = event.payload.get("by")
    return f"{f' by {shown(by)}' if by else ''} {when(event.ts)} UTC"


def _model_line(event: Event, prices: Prices | None) -> Text:
    usage = event.payload.get("usage") or {}
    tokens = f"{usage.get('input_tokens', 0)} + {usage.get('output_tokens', 0)} tokens"
    if prices and (cost := Spent().plus(usage, event.payload.get("model"), prices)).unpriced is None:
        tokens += f", {cost.usd:.4f} USD"
    said = cut(event.payload["text"], LONG)
    return Text.assemble(
        (f"{event.step} ", "dim"),
        ("model ", "blue"),
        f"{shown(event.payload.get('model') or '')} ",
        (f"{event.duration_ms or 0:.0f} ms, {tokens}", "dim"),
        f"  {said}" if said else "",
    )


def _add_call(branch: Tree, step: int, call: dict[str, Any], events: Sequence[Event]) -> None:
    results = [event for event in events if event.type == "tool_result"]
    took = results[-1].duration_ms if results else None
    timing = "" if took is None else f" {took:.0f} ms"
    asked = f"{call['name']}({arguments_shown(call['arguments'])})"
    node = branch.add(Text.assemble((f"{step} ", "dim"), ("tool ", "green"), cut(asked, LONG), timing))
    for event in events:
        match event.type:
            case "approval_granted" if "arguments" in event.payload:
                told = cut(arguments_shown(event.payload["arguments"]), LONG)
                node.add(Text(f"granted{_by_whom(event)} as ({told}){_gist(event)}", style="yellow"))
            case "approval_granted" | "approval_denied" | "approval_expired" | "approval_escalated":
                node.add(Text(f"{event.type.removeprefix('approval_')}{_by_whom(event)}{_gist(event)}", style="yellow"))
            case "outcome_given":
                word = "happened" if event.payload["happened"] else "did not happen"
                node.add(Text(f"{word}{_by_whom(event)}{_gist(event)}", style="yellow"))
            case "step_started" if not results:
                node.add(Text(f"begun {when(event.ts)} UTC", style="dim"))
            case "tool_result" | "outcome_corrected":
                node.add(Text(f"-> {cut(event.payload['content'], LONG)}", style="dim"))
            case _:
                continue
