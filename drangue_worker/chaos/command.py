"""`scripts/chaos`: the options of a soak, and what is shown of it."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from drangue_client.console.shell import UNUSABLE, run_main, say, say_json
from drangue_client.errors import DrangueError
from drangue_worker.chaos.breaks import Pace
from drangue_worker.chaos.playing import Progress
from drangue_worker.chaos.soak import Options, Report, run_soak
from drangue_worker.chaos.table import recovery_figures, verdict_table

LINE_EVERY_S = 10.0  # where nobody looks on live
SECONDS = click.FloatRange(0, min_open=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--runs", type=click.IntRange(1), default=200, show_default=True, help="Runs to submit.")
@click.option("--seed", type=int, default=1, show_default=True, help="Chooses the runs and the order of the breaks.")
@click.option("--seconds", type=SECONDS, default=120.0, show_default=True, help="How long things are broken.")
@click.option("--kill-every", type=SECONDS, default=2.0, show_default=True, help="Seconds between two SIGKILLs.")
@click.option("--flush-every", type=SECONDS, default=15.0, show_default=True, help="Seconds between two FLUSHALLs.")
@click.option("--other-every", type=SECONDS, default=5.0, show_default=True, help="Seconds between two other breaks.")
@click.option("--postgres-restarts", type=click.IntRange(0), default=2, show_default=True, help="Every other at once.")
@click.option("--lease", type=SECONDS, default=15.0, show_default=True, help="Seconds a claim outlives its worker.")
@click.option("--model-workers", type=click.IntRange(1), default=2, show_default=True, help="Model-pool processes.")
@click.option("--tool-workers", type=click.IntRange(1), default=2, show_default=True, help="Tool-pool processes.")
@click.option("--calm", is_flag=True, help="Break nothing and submit all runs at once; then nothing may be sent again.")
@click.option(
    "--deadline", type=SECONDS, default=180.0, show_default=True, help="Seconds for the runs to end, after the breaks."
)
@click.option(
    "--logs", type=click.Path(file_okay=False, path_type=Path), help="Keep what the workers write in this folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for another program.")
def chaos(as_json: bool, **given: Any) -> int:
    """Break everything under a fleet while it works, and count what was lost or done twice.

    \b
    scripts/chaos --runs 200 --seed 7
    scripts/chaos --runs 1000 --seed 7 --seconds 600 --logs /tmp/chaos
    scripts/chaos --runs 20 --seconds 15 --lease 3 --flush-every 5 --json
    scripts/chaos --runs 300 --calm

    Servers and workers are its own, started in a temporary folder and gone at the end. Workers are killed, stopped past
    their lease and terminated; Redis is flushed, restarted and taken away; Postgres is restarted and drops every
    connection; messages are doubled, or come late and shuffled. Some runs are cancelled. The same seed gives the same
    runs and the same order of breaks.

    Exit codes: 0 every promise was kept, 1 one was not, 2 it could not be played, 130 interrupted.
    """
    pace = Pace(
        given["seconds"], given["kill_every"], given["flush_every"], given["other_every"], given["postgres_restarts"]
    )
    options = Options(
        runs=given["runs"],
        seed=given["seed"],
        pace=pace,
        lease_s=given["lease"],
        model_workers=given["model_workers"],
        tool_workers=given["tool_workers"],
        deadline_s=given["deadline"],
        calm=given["calm"],
        logs=given["logs"],
    )
    try:
        with _Screen() as screen:
            report = run_soak(options, screen.show)
    except DrangueError:
        raise
    except Exception:  # of the soak's own: with an exit code of 1 it would read as a verdict
        traceback.print_exc()
        return UNUSABLE
    if as_json:
        say_json(_told(report))
    else:
        say(verdict_table(report))
    if report.unsubmitted:
        click.echo(f"chaos: {report.unsubmitted} runs could not be submitted before the deadline", err=True)
    return report.verdict.code or int(report.unsubmitted > 0)


def main() -> None:
    """The entry point of `scripts/chaos`."""
    run_main(chaos)


class _Screen:
    """Progress on standard error: live on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, transient=True) if self._console.is_terminal else None
        self._told_at = 0.0

    def __enter__(self) -> _Screen:
        self._console.print("starting Postgres, Redis and workers ...")
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        if self._live:
            self._live.update(Text(str(progress), style="cyan"))
        elif time.monotonic() > self._told_at + LINE_EVERY_S:
            self._told_at = time.monotonic()
            self._console.print(str(progress), soft_wrap=True)


def _told(report: Report) -> dict[str, Any]:
    return {
        **report.verdict.to_json(),
        "unsubmitted": report.unsubmitted,
        "unsent": report.unsent,
        "seconds": round(report.seconds, 1),
        "breaks": dict(report.breaks),
        "skipped": dict(report.skipped),
        "recovery": recovery_figures(report.recoveries),
    }


if __name__ == "__main__":
    main()
