"""What a benchmark found, for another program."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from drangue_worker.bench.alone import Alone
from drangue_worker.bench.counting import Tally
from drangue_worker.bench.measure import Measured, Played
from drangue_worker.bench.profiling import group_of


def to_json(pairs: Sequence[Measured], alone: Sequence[Alone]) -> dict[str, Any]:
    """Everything, by the name of each workload. Sizes are in bytes, times in seconds."""
    return {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "workloads": {one.workload.name: _pair(one) for one in pairs},
        "alone": {line.name: _line(line) for one in alone for line in one.lines},
    }


def _pair(one: Measured) -> dict[str, Any]:
    groups: defaultdict[str, float] = defaultdict(float)
    for stack, seconds in one.profile.items():
        groups[group_of(stack.split(";"))] += seconds
    return {
        "about": one.workload.about,
        "unit": one.workload.unit,
        "runs": one.workload.runs,
        "steps_per_run": one.workload.shape.steps,
        "ratio": one.ratio,
        "target": one.workload.target,
        "met": one.met,
        "ours": _side(one.ours),
        "tried": [{"processes": tried.side.processes, "figures": list(tried.figures)} for tried in one.tried],
        "raw": _side(one.raw) if one.raw else None,
        "why_no_raw": None if one.raw else one.workload.missing(),
        "profile": dict(groups),
    }


def _side(one: Played) -> dict[str, Any]:
    return {
        "figure": one.figure,
        "figures": list(one.figures),
        "processes": one.side.processes,
        "cpu_per_1000_runs": {name: one.per_1000_runs(seconds) for name, seconds in asdict(one.usage).items()},
        "peak_bytes": one.peak,
        "per_step": one.per_step or None,
        "counted": _counted(one),
    }


def _counted(one: Played) -> dict[str, Any] | None:
    if one.counts is None:
        return None
    return {
        "steps": one.counted_steps,
        "written": one.counts.written,
        "client": _tally(one.counts.client),
        "others": _tally(one.counts.others),
    }


def _tally(one: Tally) -> dict[str, Any]:
    return asdict(one)


def _line(line: Any) -> dict[str, Any]:
    return {**asdict(line), "met": line.met}
