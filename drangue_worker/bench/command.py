"""`scripts/bench`: what is measured, and what is shown of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console

from drangue_client.console.shell import UNUSABLE, run_main, say, say_json
from drangue_client.errors import DrangueError
from drangue_worker.bench.alone import Alone
from drangue_worker.bench.big import measure_big
from drangue_worker.bench.budgets import budgets
from drangue_worker.bench.measure import Bench, Measured
from drangue_worker.bench.profiling import check_profiler
from drangue_worker.bench.report import to_json
from drangue_worker.bench.stack import stack
from drangue_worker.bench.start import measure_start
from drangue_worker.bench.table import alone_table, counts_table, pairs_table, profile_table
from drangue_worker.bench.workloads import WORKLOADS

MET = 0
MISSED = 1  # something is slower than is wanted, here and now
ALONE: dict[str, Callable[[Bench, float, int], Alone]] = {"big": measure_big, "start": measure_start}
NAMES = (*WORKLOADS, *ALONE)


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str]:
    names = [name.strip() for name in value.split(",") if name.strip()] if value else list(NAMES)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is no workload; they are {', '.join(NAMES)}.")
    return names


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", callback=_names, metavar="NAME,...", help="These workloads instead of all.")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Repetitions; medians count.")
@click.option(
    "--scale", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Of the number of runs."
)
@click.option("--counts/--no-counts", default=True, show_default=True, help="Count statements, commits, commands.")
@click.option("--fsyncs/--no-fsyncs", default=True, show_default=True, help="Count them too: 21 s for each side.")
@click.option("--profile", is_flag=True, help="Show where the workers' processor time goes.")
@click.option(
    "--logs", type=click.Path(file_okay=False, path_type=Path), help="Keep workers' output and profiles in this folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for another program.")
def bench(
    only: list[str],
    repeat: int,
    scale: float,
    counts: bool,
    fsyncs: bool,
    profile: bool,
    logs: Path | None,
    as_json: bool,
) -> int:
    """Measure drangue beside a bare Celery chain that commits one row per task.

    \b
    scripts/bench
    scripts/bench --only w3,w3-seq --repeat 1 --no-counts
    scripts/bench --only w3 --profile --logs /tmp/bench
    scripts/bench --scale 0.1 --no-fsyncs --json

    \b
    w3         a burst of runs of three steps: model, tool, model
    w3-each    the same, each run submitted by itself by one of four threads
    w3-events  the same with the task events that Flower shows
    w3-seq     the same one run at a time
    slow       1,000 runs at once whose model takes 1 s; the chain is on gevent
    w50, w200  one long run whose results have 1 KiB
    fanout     one decision that asks for 20 tools of 0.2 s
    inline     49 steps in one process with a SQLite file, beside the chain; inline-w3 three steps
    big        a run of 100,000 events beside one of 1,000
    start      how soon a worker works, what it holds idle, with calls in flight and with runs waiting; imports

    Servers and workers are its own, started in a temporary folder and gone at the end. Both sides are real processes on
    the same Postgres and Redis; each side is stopped while the other has its turn. Ratios can be compared between
    machines, figures cannot. Nothing else should be at work on the machine.

    Exit codes: 0 every target was met, 1 one was not, 2 it could not be measured, 130 interrupted.
    """
    console = Console(stderr=True, highlight=False)
    if profile:
        check_profiler()
    pairs: list[Measured] = []
    alone: list[Alone] = []
    failure: DrangueError | None = None
    try:
        console.print("starting Postgres and Redis ...")
        with stack(logs) as where, Bench(where, console.print) as players:
            for name in only:
                if name in ALONE:
                    alone.append(ALONE[name](players, scale, repeat))
                else:
                    workload = WORKLOADS[name].scaled(scale)
                    pairs.append(players.measure(workload, repeat, counts=counts, fsyncs=fsyncs, profile=profile))
    except DrangueError as error:
        failure = error  # what was measured before it is shown all the same
    except Exception:  # of the benchmark's own: with an exit code of 1 it would read as a target missed
        traceback.print_exc()
        return UNUSABLE
    if pairs:
        alone.insert(0, budgets(pairs))
    if logs is not None:
        _keep_profiles(logs, pairs)
    if as_json:
        say_json(to_json(pairs, alone))
    else:
        _show(pairs, alone)
    if failure is not None:
        raise failure
    lines = [line.met for one in alone for line in one.lines]
    return MISSED if False in [*lines, *(one.met for one in pairs)] else MET


def main() -> None:
    """The entry point of `scripts/bench`."""
    run_main(bench)


def _show(pairs: list[Measured], alone: list[Alone]) -> None:
    if pairs:
        say(pairs_table(pairs))
    for reason in sorted({reason for one in pairs if one.raw is None and (reason := one.workload.missing())}):
        say(f"no chain beside some of them: {reason}")
    if any(one.ours.counts for one in pairs):
        say(counts_table(pairs))
    for one in pairs:
        if one.profile:
            say(profile_table(one))
    if any(one.lines for one in alone):
        say(alone_table(alone))


def _keep_profiles(folder: Path, pairs: list[Measured]) -> None:
    """As flame graph programs read them: a stack and its microseconds in a line."""
    for one in pairs:
        if one.profile:
            lines = (f"{stack} {round(1e6 * seconds)}\n" for stack, seconds in one.profile.items())
            (folder / f"{one.workload.name}.folded").write_text("".join(lines))


if __name__ == "__main__":
    main()
