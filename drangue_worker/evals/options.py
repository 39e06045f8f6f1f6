"""The options of `drangue eval` as a value, and what is wrong with them before anything is looked up or run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drangue_client.errors import DrangueError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for; a name is that of its option, a time in seconds. `filters` are keywords of `Log.runs`."""

    scenarios: str | None = None
    agent: str | None = None
    from_runs: bool = False
    filters: Mapping[str, Any]
    stub: str | None = None
    checks: str | None = None
    prices: Path | None = None
    tolerance: float
    fleet: bool = False
    runs: int | None = None
    concurrency: int
    timeout: float | None = None
    prefix: str | None = None
    baseline: Path | None = None
    save: Path | None = None
    override: str | None = None
    by: str = ""
    record: Path | None = None
    as_json: bool = False


def check(options: Options) -> None:
    """Raise DrangueError for options that contradict each other, or name a place that cannot be written."""
    if (options.scenarios is None) != options.from_runs:
        raise DrangueError(
            "name what to evaluate: pkg.module:scenarios, or --from-runs for recorded runs; one of them."
        )
    for name, value in (("--stub", options.stub), ("--checks", options.checks), ("--prices", options.prices)):
        if value is not None and not options.from_runs:
            raise DrangueError(f"{name} is for replays of recorded runs. Leave it out, or add --from-runs.")
    if options.from_runs and options.fleet:
        raise DrangueError("--fleet does not go with --from-runs: replays are answered from the log, in this process.")
    if (options.override is None) != (options.record is None):
        raise DrangueError("--override REASON and --record FILE go together: an override that nobody can find is none.")
    if options.override is not None and not options.override.strip():
        raise DrangueError("an override needs a reason: say why this may be deployed all the same.")
    for name, path in (("--save", options.save), ("--record", options.record)):
        if path is not None and not _writable(path, whole=name == "--save"):
            raise DrangueError(f"{name} cannot be written to {str(path)!r}. Make the folder, or name another place.")


def _writable(path: Path, *, whole: bool) -> bool:
    """Whether a file can be appended to, or, as a `whole`, be put in the place of an older one."""
    if path.exists() and not whole:
        return not path.is_dir() and os.access(path, os.W_OK)
    return path.parent.is_dir() and os.access(path.parent, os.W_OK) and not path.is_dir()
