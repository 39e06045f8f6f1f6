"""How a soak's verdict looks: one table, and below it every finding that must not be there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from drangue_worker.chaos.recovery import SLACK_S, Recoveries, percentile
from drangue_worker.chaos.soak import Report
from drangue_worker.chaos.verdict import Verdict, mean

MOST_SHOWN = 20  # findings of one kind


def recovery_figures(recoveries: Recoveries) -> dict[str, Any]:
    """{"killed_steps", "p50_s", "p99_s", "max_s", "bound_s", "within_bound", "standing", "unmeasured_kills",
    "postgres_away"}; the last holds the same figures of the steps that Postgres kept waiting as well, and for how many
    seconds it was away ("away_s")."""
    disturbed = [one.seconds for one in recoveries.found if one.disturbed]
    bound_s = recoveries.lease_s + SLACK_S
    told = _figures([one.seconds for one in recoveries.found])
    within = told["p99_s"] is None or told["p99_s"] <= bound_s
    return told | {
        "bound_s": bound_s,
        "within_bound": within,
        "standing": recoveries.standing,
        "unmeasured_kills": recoveries.unmeasured,
        "postgres_away": {**_figures(disturbed), "away_s": recoveries.postgres_away_s},
    }


def verdict_table(report: Report) -> RenderableType:
    """The whole verdict, and a line for each finding."""
    verdict, recovery = report.verdict, recovery_figures(report.recoveries)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(
        "runs submitted", str(verdict.submitted), f"in {report.seconds:.0f} s; {report.unsent} while Redis was away"
    )
    table.add_row("runs finished", str(verdict.finished), "")
    table.add_row("runs cancelled", str(verdict.cancelled), f"{report.cancels} were to be")
    table.add_row("runs failed", str(sum(verdict.failed.values())), _told(verdict.failed))
    _zero(table, "runs lost", verdict.lost)
    table.add_row("effects expected", str(verdict.expected), "by the plan")
    table.add_row("effects done", str(verdict.done), "")
    table.add_row("effects not done, and told so", str(sum(verdict.excused.values())), _told(verdict.excused))
    _zero(table, "effects missing", verdict.missing)
    _zero(table, "effects doubled", verdict.doubled)
    _zero(table, "effects nobody asked for", verdict.unplanned)
    _zero(table, "irreversible calls done more than once", verdict.repeated)
    _zero(table, "effects denied by their result", verdict.untrue)
    _zero(table, "cancels that did not hold", verdict.unheeded)
    _zero(table, "effects begun after a cancel", verdict.late)
    table.add_row("unknown outcomes told to the model", str(verdict.unknown), f"{verdict.corrected} corrected later")
    table.add_row("executions per tool step", f"{mean(verdict.executions):.2f}", f"at most {_most(verdict.executions)}")
    table.add_row("asks per model step", f"{mean(verdict.asks):.2f}", f"at most {_most(verdict.asks)}")
    table.add_row("messages sent again", *_sent(verdict.resent, report))
    table.add_row("steps taken up again", *_sent(verdict.recovered, report))
    _zero(table, "log gaps", verdict.gaps)
    table.add_row("killed steps", str(recovery["killed_steps"]), f"{recovery['standing']} never went on")
    table.add_row("their recovery, p50", _seconds(recovery["p50_s"]), "")
    bound = f"bound {recovery['bound_s']:g} s; longest {_seconds(recovery['max_s'])}"
    style = "green" if recovery["within_bound"] else "bold red"
    table.add_row("their recovery, p99", Text(_seconds(recovery["p99_s"]), style=style), bound)
    away = recovery["postgres_away"]
    if away["killed_steps"]:
        longest = f"longest {_seconds(away['max_s'])}; it was away for {_seconds(away['away_s'])} in all"
        table.add_row(
            "  of those that waited for Postgres too, p50",
            _seconds(away["p50_s"]),
            f"{away['killed_steps']} steps; {longest}",
        )
    table.add_row("breaks", str(sum(report.breaks.values())), _told(report.breaks))
    table.add_row("breaks that found nobody fit", str(sum(report.skipped.values())), _told(report.skipped))
    return Group(table, *_findings(verdict))


def _zero(table: Table, what: str, findings: Sequence[str]) -> None:
    count = len(findings)
    table.add_row(what, Text(str(count), style="bold red" if count else "green"), "")


def _sent(count: int, report: Report) -> tuple[RenderableType, str]:
    if not report.calm:
        return str(count), "by sweeps"
    return Text(str(count), style="bold red" if count else "green"), "by sweeps, and nothing was broken"


def _findings(verdict: Verdict) -> list[Text]:
    lines = []
    for kind, findings in verdict.faults.items():
        lines += [Text(f"{kind}: {finding}", style="red") for finding in findings[:MOST_SHOWN]]
        if len(findings) > MOST_SHOWN:
            lines.append(Text(f"{kind}: and {len(findings) - MOST_SHOWN} more", style="red"))
    return lines


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _most(counts: Sequence[int]) -> int:
    return max(counts, default=0)


def _figures(seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "killed_steps": len(seconds),
        "p50_s": percentile(seconds, 0.5),
        "p99_s": percentile(seconds, 0.99),
        "max_s": max(seconds, default=None),
    }
