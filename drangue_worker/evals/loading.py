"""What the command line of an evaluation names: objects in modules, files, agents, recorded runs.

Everything is looked at before a model is asked. What cannot be used is a DrangueError that names the option; what an
author's own module raises is the author's, and keeps its traceback.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from drangue_client.budget import Prices, checked_prices
from drangue_client.checks import shown
from drangue_client.errors import DrangueError
from drangue_client.result import Result
from drangue_client.settings import Settings
from drangue_client.store.port import Log
from drangue_client.store.values import RunRow
from drangue_worker.blueprint import Blueprint
from drangue_worker.evals.gate import GATED, Gate
from drangue_worker.evals.places import LABEL
from drangue_worker.evals.recording import Recording
from drangue_worker.evals.scenario import Check, Scenario
from drangue_worker.registry import Registry

T = TypeVar("T")

PAGE = 200  # runs that are read at once


def object_at(place: str, what: str) -> Any:
    """The object that `pkg.module:name` names, in the current folder or installed. `what` is what it should be."""
    module_name, _, attribute = place.partition(":")
    if not module_name or module_name.startswith(".") or not attribute:
        raise DrangueError(f"{what} are looked for at {place!r}, which names no object. Write pkg.module:name.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name and not module_name.startswith(f"{error.name}."):
            raise
        raise DrangueError(
            f"{what} are looked for at {place!r}, but there is no module {module_name!r}. Correct it, or start in the "
            "folder that holds it."
        ) from None
    if not hasattr(module, attribute):
        raise DrangueError(f"{what} are looked for at {place!r}, but the module holds no {attribute!r}. Correct it.")
    return getattr(module, attribute)


def scenarios_at(place: str) -> list[Scenario]:
    """The scenarios at `pkg.module:name`: a list of them, or a function without arguments that gives one."""
    found = object_at(place, "scenarios")
    return _all_of(Scenario, found() if callable(found) else found, place, "scenarios")


def checks_at(place: str) -> list[Check] | Callable[[Result], list[Check]]:
    """The checks at `pkg.module:name`: a list of them, or a function of a recorded result that gives one."""
    found = object_at(place, "checks")
    if not callable(found):
        return _all_of(Check, found, place, "checks")
    return lambda recorded: _all_of(Check, found(recorded), place, "checks")


def stub_at(place: str) -> Callable[[str, dict[str, Any]], Any]:
    """The function at `pkg.module:name`, of a tool's name and the arguments of a call."""
    found = object_at(place, "stubs")
    if not callable(found):
        raise DrangueError(f"the stub at {place!r} cannot be called. Make it a function of (tool, arguments).")
    stub: Callable[[str, dict[str, Any]], Any] = found
    return stub


def baseline_at(path: Path) -> tuple[dict[str, Any], list[str] | None]:
    """The profile in a file that an evaluation saved, and the names of its scenarios; or a bare profile, and None.

    A file that measures nothing the gate looks at is refused: whatever it was compared with would pass.
    """
    found = _json_at(path, "baseline")
    profile = found.get("profile", found) if isinstance(found, Mapping) else None
    if not isinstance(profile, Mapping) or not any(dimension in profile for dimension in GATED):
        raise DrangueError(
            f"the baseline {str(path)!r} holds no profile with {', '.join(GATED)}. Save one with --save."
        )
    try:
        Gate().evaluate(profile, profile)
    except (TypeError, ValueError) as error:
        raise DrangueError(f"the baseline {str(path)!r} cannot be read: {error} Save one with --save.") from error
    names = found.get("scenarios")
    return dict(profile), [str(name) for name in names] if isinstance(names, list) else None


def prices_at(path: Path) -> Prices:
    """The price table in a JSON file, {model: {"input": ..., "output": ...}}."""
    try:
        return checked_prices(_json_at(path, "prices"))
    except (TypeError, ValueError) as error:
        raise DrangueError(f"the prices in {str(path)!r} cannot be used: {error}") from error


def agents_of(settings: Settings) -> Registry:
    """The agents that DRANGUE_AGENTS names."""
    if not settings.agents:
        raise DrangueError(
            "DRANGUE_AGENTS is not set, so there is no agent to evaluate. Set it to the module that holds your agents, "
            "such as DRANGUE_AGENTS=shop.agents."
        )
    return Registry.load(settings.agents)


def agent_named(registry: Registry, name: str | None) -> Blueprint:
    """The agent of this name, or the only one there is; its models could be called. DrangueError, NoCredentials."""
    found = registry.get(the_one([blueprint.name for blueprint in registry], name))
    assert found is not None
    found.check()
    return found


def the_one(names: Sequence[str], name: str | None) -> str:
    """`name` if it is among `names`, the only one of them if it is None."""
    known = ", ".join(sorted(names)) or "none"
    if name is None and len(names) != 1:
        raise DrangueError(f"which agent is to be evaluated? Name one with --agent; there are: {known}.")
    if name is not None and name not in names:
        raise DrangueError(f"there is no agent named {name!r}; there are: {known}. Correct --agent.")
    return name or names[0]


def recordings_in(
    log: Log, registry: Registry, *, labels: Mapping[str, str], limit: int, **filters: Any
) -> tuple[list[Recording], list[tuple[str, str]]]:
    """The newest `limit` recorded runs that can be replayed, newest first, and (run id, why not) of the others that
    match and were met on the way. Reads on until there are as many, or no more."""
    found: list[Recording] = []
    left_out: list[tuple[str, str]] = []
    for row in _rows(log, labels=labels, **filters):
        if len(found) == limit:
            break
        why_not = _why_not(row, registry, labels)
        if not why_not:
            result = Result.from_events(row.run_id, log.events(row.run_id))
            recording = Recording(result, row.agent, row.overrides.get("output_schema"))
            if recording.inputs:
                found.append(recording)
                continue
            why_not = "it ended before it had begun"
        left_out.append((row.run_id, why_not))
    return found, left_out


def _rows(log: Log, *, until: float | None, **filters: Any) -> Iterator[RunRow]:
    """All runs that match, newest first, read page by page; a run that begins meanwhile is not among them."""
    size, seen = PAGE, set[str]()  # of the moment at which the last page ended
    while True:
        page = log.runs(until=until, limit=size, **filters)
        fresh = [row for row in page if row.run_id not in seen]
        yield from fresh
        if len(page) < size:
            return
        # The next page begins with the moment at which this one ended: others of it may not have had room. A
        # microsecond is what Postgres tells apart.
        until = page[-1].created_at + 1e-6
        seen = {row.run_id for row in page if row.created_at < until}
        size = max(PAGE, 2 * len(seen))  # also where one moment fills a page


def _why_not(row: RunRow, registry: Registry, labels: Mapping[str, str]) -> str | None:
    if row.status in ("queued", "running"):
        return "it has not ended"
    if LABEL in row.labels and LABEL not in labels:
        return f"an evaluation made it; ask for it with --label {LABEL}={row.labels[LABEL]}"
    if registry.get(row.agent) is None:
        return f"DRANGUE_AGENTS names no agent {row.agent!r}"
    return None


def _all_of(kind: type[T], found: Any, place: str, what: str) -> list[T]:
    items = list(found) if isinstance(found, Iterable) and not isinstance(found, str | bytes) else None
    if items is None or not all(isinstance(item, kind) for item in items):
        raise DrangueError(
            f"{what} are looked for at {place!r}, which gives {shown(found)}. Make it a list of {kind.__name__} "
            "objects, or a function that returns one."
        )
    return items


def _json_at(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        made = " Make one: leave --baseline out, and pass --save." if what == "baseline" else " Correct the path."
        raise DrangueError(f"there is no {what} file {str(path)!r}.{made}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DrangueError(f"the {what} file {str(path)!r} cannot be read: {error}. Correct it.") from error
