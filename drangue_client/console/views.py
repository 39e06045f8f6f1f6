"""Views: what the client returns, as rich renderables. Pure: the same value gives the same picture."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from drangue_client.doctor import Finding
from drangue_client.events import Event
from drangue_client.store.values import AgentRow, RunRow

COLOURS = {
    "completed": "green",
    "failed": "red",
    "cancelled": "magenta",
    "paused": "yellow",
    "running": "cyan",
    "queued": "blue",
}
SHORT = 60
LONG = 160


def when(seconds: float | None) -> str:
    """A moment, in UTC to the second; `-` where there is none."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def shown(text: str) -> str:
    """Text as it may reach a terminal: a model or a tool must not move the operator's cursor or recolour a line."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text.expandtabs(4))


def cut(text: str, length: int) -> str:
    """One line of at most `length` characters."""
    line = " ".join(shown(text).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def status_text(status: str) -> Text:
    return Text(status, style=COLOURS.get(status, ""))


def runs_table(rows: Sequence[RunRow]) -> RenderableType:
    """A line per run."""
    if not rows:
        return Text("no runs")
    table = Table(box=None, pad_edge=False, header_style="bold")
    # On a narrow terminal the input gives way; an id that was cut could not be copied.
    table.add_column("run", no_wrap=True, min_width=max(len(row.run_id) for row in rows))
    table.add_column("agent", no_wrap=True, min_width=max(len(row.agent) for row in rows))
    table.add_column("status", no_wrap=True, min_width=9)
    table.add_column("submitted (UTC)", no_wrap=True, min_width=19)
    table.add_column("took", no_wrap=True, min_width=7, justify="right")
    table.add_column("input", no_wrap=True)
    for row in rows:
        took = "" if row.finished_at is None else f"{row.finished_at - row.created_at:.1f} s"
        note = cut(row.input, SHORT) + (f"  [{cut(row.error, SHORT)}]" if row.error else "")
        table.add_row(
            Text(row.run_id), Text(row.agent), status_text(row.status), when(row.created_at), took, Text(note)
        )
    return table


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def agents_table(rows: Sequence[AgentRow]) -> RenderableType:
    """A line per agent."""
    if not rows:
        return Text("no worker has registered an agent")
    table = _table("agent", "models", "tools", "seen (UTC)")
    for row in rows:
        models = ", ".join(str(model) for model in row.summary["models"])
        table.add_row(Text(row.name), Text(models), Text(", ".join(row.summary["tools"])), when(row.seen_at))
    return table


def queues_table(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """A line per queue."""
    numbers = ("due", "oldest", "held", "backoff", "messages")
    table = _table("queue", *numbers, right=numbers)
    for row in rows:
        messages = "-" if row["messages"] is None else str(row["messages"])
        oldest = f"{row['oldest_s']:.1f} s" if row["due"] else ""
        table.add_row(Text(row["queue"]), str(row["due"]), oldest, str(row["held"]), str(row["later"]), messages)
    return table


def workers_table(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """A line per worker process that answered."""
    if not rows:
        return Text("no worker answers")
    table = _table("worker", "pool", "concurrency", "taken", "queues", right=("concurrency", "taken"))
    for row in rows:
        size, tasks = str(row["concurrency"]), str(row["tasks"])
        table.add_row(Text(row["name"]), Text(row["pool"]), size, tasks, Text(", ".join(row["queues"])))
    return table


def finding_line(finding: Finding) -> Text:
    """One finding of an examination as one line."""
    then = f"  {finding.then}" if finding.then else ""
    colour = {"ok": "green", "warn": "yellow", "bad": "bold red"}[finding.level]
    return Text.assemble((f"{finding.level:<5}", colour), f"{finding.what:<13}", shown(finding.told), (then, "italic"))


def event_line(event: Event) -> Text:
    """One event as one line: its place, when, what, of which step, and the gist of it."""
    payload = event.payload
    match event.type:
        case "model_decision":
            asked = ", ".join(f"{call['name']}({arguments_shown(call['arguments'])})" for call in payload["tool_calls"])
            gist = " ".join(part for part in (payload["text"], asked) if part)
        case "tool_result" | "outcome_corrected":
            gist = f"{payload['name']} -> {payload['content']}"
        case "approval_requested" | "outcome_requested":
            gist = f"{payload['tool']}({arguments_shown(payload['arguments'])})"
        case "run_started" | "user_message":
            gist = str(payload.get("input") or payload.get("text") or "")
        case _:
            told = ("output", "error", "by", "reason", "group", "outcome", "happened", "call_id", "tool", "text")
            gist = ", ".join(f"{name} {payload[name]}" for name in told if payload.get(name) not in (None, ""))
    return Text.assemble(
        (f"{event.seq:>4}  {when(event.ts)}  ", "dim"),
        (f"{event.type:<19}", "cyan"),
        (f"{'' if event.step is None else event.step:>4}  ", "dim"),
        cut(gist, LONG),
    )


def arguments_shown(arguments: dict[str, Any]) -> str:
    """Arguments as in a call."""
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())


def approvals_list(pending: Sequence[dict[str, Any]]) -> RenderableType:
    """A block per request: what the call would do, why, and what to type."""
    if not pending:
        return Text("nothing waits for approval")
    return Group(*(_approval(item) for item in pending))


def approval_case(item: dict[str, Any], asked_at: float | None) -> RenderableType:
    """One request with all that whoever decides it now must know."""
    asked = f"asked by agent {item['agent']} at {when(asked_at)} UTC"
    return _request(item, [asked, *_policy(item)])


def _approval(item: dict[str, Any]) -> RenderableType:
    call = f"{item['run_id']} {shlex.quote(item['call_id'])}"
    tree = _request(item, _policy(item))
    seen = f" --as-shown {item['arguments_hash']}" if "asked_arguments" in item else ""
    tree.add(Text(shown(f"drangue approve {call}{seen}   or   drangue reject {call} --reason ..."), style="dim"))
    return tree


def _request(item: dict[str, Any], about: Sequence[str]) -> Tree:
    """What a call would do, what is said about the request, and why the model wants it."""
    tree = Tree(
        Text.assemble((shown(item["tool"]), "bold yellow"), f"  {item['run_id']} ", (shown(item["call_id"]), "dim"))
    )
    now = _written(item["arguments"])
    for name, value in now.items():  # in full: nobody approves what was cut off
        tree.add(Text(shown(f"{name} = {value}")))
    for name, value in _written(item.get("asked_arguments") or {}).items():
        if now.get(name) != value:
            tree.add(Text(shown(f"{name} was {value} in the model's call"), style="yellow"))
    for told in about:
        tree.add(Text(shown(told), style="yellow"))
    why = item.get("reasoning") or item.get("text")
    if why:
        tree.add(Text(f"because: {shown(why)}", style="italic"))
    return tree


def _written(arguments: dict[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value, ensure_ascii=False) for name, value in arguments.items()}


def _policy(item: dict[str, Any]) -> list[str]:
    """What a request needs beyond one word, a line each."""
    told = []
    if item.get("people", 1) > 1:
        so_far = ", ".join(item["granted_by"]) or "nobody yet"
        told.append(f"needs {item['people']} people; granted by {so_far}")
    groups = [item[name] for name in ("group", "escalated_to") if item.get(name)]
    told += [f"for {' and '.join(groups)}"] if groups else []
    told += [f"expires at {when(item['expires_at'])} UTC"] if "expires_at" in item else []
    return told


def unknown_list(unknown: Sequence[dict[str, Any]]) -> RenderableType:
    """A block per call of which nobody knows whether it took effect: what it was to do, and what to type."""
    return Group(*(_unknown(item) for item in unknown))


def _unknown(item: dict[str, Any]) -> RenderableType:
    call = f"{item['run_id']} {shlex.quote(item['call_id'])}"
    waits = "the run waits for your word" if item["asked"] else "the model was told that it is unknown"
    tree = Tree(
        Text.assemble((shown(item["tool"]), "bold red"), f"  {item['run_id']} ", (shown(item["call_id"]), "dim"))
    )
    for name, value in item["arguments"].items():
        tree.add(Text(shown(f"{name} = {json.dumps(value, ensure_ascii=False)}")))
    tree.add(Text(f"begun {when(item['since'])} UTC, and interrupted; {waits}", style="italic"))
    tree.add(Text(shown(f"drangue outcome {call} --happened   or   --did-not-happen"), style="dim"))
    return tree
