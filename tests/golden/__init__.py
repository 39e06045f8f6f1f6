"""Golden logs: yesterday's runs, and what was decided and read from them, so that today's program cannot do otherwise.

Beside each `<story>.log.json`, the log of a run that was really made, stands `<story>.read.json`: what the rules said
after every event of it, the snapshot that was written there, and what a user read from the whole. `tests/unit/
test_golden.py` holds every program to them. A run in somebody's database may be a year old when it is approved; it must
go on as it would have gone on then.

    python -m tests.golden                    records the stories that have no files yet, and touches no others
    python -m tests.golden --read NAME ...    reads these logs anew: the logs stay, what is expected of them changes
    python -m tests.golden --again NAME ...   makes these runs anew and replaces their logs

When a test of these files is red, a log in a database is decided or read otherwise than it was. That is a fault, and to
regenerate would hide it. `--read` is right where the difference is meant, is harmless to runs under way, and the commit
says which and why: a new field of Result, a snapshot of a new version. `--again` is right only before a release has
written such a log: what a released program wrote is never rewritten, a new kind of log is a new story beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drangue_client.events import FORMAT, Event, lift
from drangue_client.folding import fold
from drangue_client.result import Result
from drangue_worker.rules.commands import Command
from drangue_worker.rules.decide import decide

FOLDER = Path(__file__).parent
BEGAN = 1_700_000_000.0  # stands where a clock was read; each event is a second later than the one before


def names() -> list[str]:
    """The stories that are recorded."""
    return sorted(path.name.removesuffix(".log.json") for path in FOLDER.glob("*.log.json"))


def log_of(name: str) -> list[Event]:
    """A recorded log. FormatError where this program would not read it from a database."""
    recorded = json.loads((FOLDER / f"{name}.log.json").read_text())
    return [Event(**{**event, "type": lift(event["type"], recorded["format"])}) for event in recorded["events"]]


def expected(name: str) -> dict[str, Any]:
    """What was decided and read when it was recorded: {"prefixes": [{"snapshot", "commands"}], "result": {...}}."""
    read: dict[str, Any] = json.loads((FOLDER / f"{name}.read.json").read_text())
    return read


def told(commands: Sequence[Command]) -> list[dict[str, Any]]:
    """Commands as JSON: [{"do", and the command's own fields}]."""
    return [{"do": type(command).__name__, **asdict(command)} for command in commands]


def result_of(name: str, events: Sequence[Event]) -> dict[str, Any]:
    """All that a user reads from a log, as JSON."""
    result = Result.from_events(name, events)
    fields = ("status", "reason", "output", "error", "steps", "usage", "usage_estimated", "output_parsed")
    more = ("latency_ms", "truncated", "pending_approvals", "messages")
    read = {field: getattr(result, field) for field in (*fields, *more)}
    return read | {"trace": result.trace.render().splitlines()}


def reading_of(name: str, events: Sequence[Event]) -> dict[str, Any]:
    """What today's program decides and reads."""
    runs = [fold(events[:length]) for length in range(len(events) + 1)]
    prefixes = [{"snapshot": run.to_snapshot(), "commands": told(decide(run, BEGAN))} for run in runs]
    return {"prefixes": prefixes, "result": result_of(name, events)}


def write_log(name: str, events: Sequence[Event]) -> None:
    """Record a log, with the clock's readings made the same whenever it is recorded."""
    _write(f"{name}.log.json", {"format": FORMAT, "events": [_timeless(event.to_json()) for event in events]})


def write_reading(name: str) -> None:
    """Record what today's program decides and reads of a recorded log."""
    _write(f"{name}.read.json", reading_of(name, log_of(name)))


def _timeless(event: dict[str, Any]) -> dict[str, Any]:
    later = dict.fromkeys(("deadline_at", "expires_at", "escalates_at"), BEGAN + 60.0)
    read = {"recalled_at": BEGAN, **later}  # what else a clock was read for
    payload = event["payload"] | {name: value for name, value in read.items() if name in event["payload"]}
    taken = None if event["duration_ms"] is None else 100.0
    return event | {"payload": payload, "ts": BEGAN + event["seq"], "duration_ms": taken}


def _write(name: str, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    (FOLDER / name).write_text(text + "\n", encoding="utf-8")
