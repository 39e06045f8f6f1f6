"""What is wanted besides the ratios: limits on what was counted, and figures beside an ideal or beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from drangue_worker.bench.alone import Alone, Line
from drangue_worker.bench.measure import Measured

# By workload: durable commits by workers, SQL statements and Redis commands by everybody, each per step.
MOST_PER_STEP = {"w3": (0.7, 1.0, 2.0), "w3-seq": (1.0, 3.0, 3.0)}
FLAT = 1.1  # WAL per step of a long run by that of a short one
LONG_BY_SHORT = 4.1  # seconds of 200 steps by those of 50
IDEAL = 1.2  # a fan-out's seconds by those of one tool


def budgets(found: Sequence[Measured]) -> Alone:
    """The lines that the measured workloads allow."""
    by_name = {one.workload.name: one for one in found}
    lines: list[Line] = []
    for name, limits in MOST_PER_STEP.items():
        if name in by_name:
            lines += _counted(by_name[name], limits)
    if "w50" in by_name and "w200" in by_name:
        lines += _long(by_name["w50"], by_name["w200"])
    if "fanout" in by_name:
        one = by_name["fanout"]
        ideal = one.ours.figure / one.workload.shape.tool_s
        lines.append(Line("fanout_by_ideal", "fanout: seconds by those of one tool", ideal, "", IDEAL))
    return Alone("budgets", tuple(lines))


def _counted(one: Measured, limits: tuple[float, float, float]) -> Iterator[Line]:
    counts, steps, name = one.ours.counts, one.ours.counted_steps, one.workload.name
    if counts is None:
        return
    durable, statements, commands = limits
    yield Line(
        f"{name}_durable", f"{name}: workers' durable commits a step", counts.others.durable / steps, "", durable
    )
    yield Line(f"{name}_sql", f"{name}: SQL statements a step", counts.all.statements / steps, "", statements)
    yield Line(f"{name}_redis", f"{name}: Redis commands a step", counts.all.commands / steps, "", commands)


def _long(short: Measured, long: Measured) -> Iterator[Line]:
    per_step = [one.ours.figure / one.workload.shape.steps for one in (short, long)]
    ratio = 4 * per_step[1] / per_step[0]
    yield Line("t200_by_t50", "T(200) / T(50), at exactly 4 times the steps", ratio, "", LONG_BY_SHORT)
    if short.ours.counts and long.ours.counts:
        wal = [one.ours.per_step["wal_bytes"] or 0.0 for one in (short, long)]
        yield Line("wal200_by_wal50", "WAL a step of w200 by w50's", wal[1] / wal[0], "", FLAT)
