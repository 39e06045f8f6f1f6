"""What a benchmark found, as tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from drangue_worker.bench.alone import Alone
from drangue_worker.bench.measure import Measured, Played
from drangue_worker.bench.profiling import group_of

COLOURS = {True: "green", False: "red", None: ""}
FRAMES = 15  # of a profile
PER_STEP = {"sql": "SQL", "commits": "commits", "durable_commits": "durable", "fsyncs": "fsyncs"}


def pairs_table(found: Sequence[Measured]) -> Group:
    """A line per workload: both figures, their ratio and what is wanted, and what a repetition took."""
    table = _table("drangue beside a bare Celery chain", "workload", "")
    for name in ("ours", "workers", "raw", "ratio", "target", "CPU s per 1,000 runs", "raw", "peak MB", "raw"):
        table.add_column(name, justify="right")
    for one in found:
        target = f"{'>=' if one.workload.more_is_better else '<='} {one.workload.target:g}"
        ratio = "-" if one.ratio is None else f"{one.ratio:.2f}"
        table.add_row(
            one.workload.name,
            one.workload.unit,
            shown(one.ours.figure),
            str(one.ours.side.processes),
            shown(one.raw.figure) if one.raw else "-",
            Text(ratio, style=COLOURS[one.met]),
            target,
            *(_cpu(side) for side in (one.ours, one.raw)),
            *(_megabytes(side) for side in (one.ours, one.raw)),
        )
    return _with(table, "CPU: workers and client + Postgres + Redis. Peak: resident memory of the workers together.")


def counts_table(found: Sequence[Measured]) -> Group:
    """A line per side: what a step costs the servers."""
    table = _table("per step, counted in a repetition of its own", "workload", "")
    for name in (*PER_STEP.values(), "WAL bytes", "Redis commands"):
        table.add_column(name, justify="right")
    for one in found:
        for who, side in (("ours", one.ours), ("raw", one.raw)):
            if side is not None and side.counts is not None:
                told = side.per_step
                table.add_row(
                    one.workload.name,
                    who,
                    *(_count(told[name]) for name in PER_STEP),
                    f"{told['wal_bytes']:.0f}",
                    _count(told["redis"]),
                )
    return _with(
        table,
        "With submission and first tick, without what is done by time (sweeps, heartbeats), BEGIN and COMMIT.",
        "Durable: commits of changes that waited for the disk.",
    )


def alone_table(found: Sequence[Alone]) -> Table:
    """Figures that nothing is compared with in the same run."""
    table = _table("of drangue alone", "what")
    for name in ("figure", "target"):
        table.add_column(name, justify="right")
    for one in found:
        for line in one.lines:
            table.add_row(line.what, Text(f"{shown(line.figure)} {line.unit}", style=COLOURS[line.met]), line.wanted)
    return table


def profile_table(one: Measured) -> Table:
    """Where the workers' processor time went: by group, then the functions that used most themselves."""
    total = sum(one.profile.values()) or 1.0
    groups: defaultdict[str, float] = defaultdict(float)
    functions: defaultdict[str, float] = defaultdict(float)
    for stack, seconds in one.profile.items():
        frames = stack.split(";")
        groups[group_of(frames)] += seconds
        functions[_short(frames[-1])] += seconds
    table = _table(f"{one.workload.name}: {total:.2f} s of the workers' processor time", "where")
    table.add_column("share", justify="right")
    for name, seconds in _most(groups):
        table.add_row(name, f"{seconds / total:.0%}")
    table.add_section()
    for name, seconds in _most(functions)[:FRAMES]:
        table.add_row(name, f"{seconds / total:.1%}")
    return table


def shown(value: float) -> str:
    """Three digits, and no more than a reader compares."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in names:
        table.add_column(name)
    return table


def _with(table: Table, *notes: str) -> Group:
    return Group(table, *(Text(note, style="dim") for note in notes), "")


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _cpu(one: Played | None) -> str:
    if one is None:
        return "-"
    parts = (one.usage.workers + one.usage.client, one.usage.postgres, one.usage.redis)
    return " + ".join(f"{one.per_1000_runs(part):.1f}" for part in parts)


def _megabytes(one: Played | None) -> str:
    return "-" if one is None else f"{one.peak / 1e6:.0f}"


def _most(seconds: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda item: -item[1])


def _short(frame: str) -> str:
    """Of `function (path:line)` the path's last two parts."""
    function, _, path = frame.partition(" (")
    return "/".join(path.rstrip(")").rpartition(":")[0].split("/")[-2:]) + " " + function
