"""`drangue metrics`: the exporter as a process, until it is told to end."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from drangue_client.console.shell import OK
from drangue_client.errors import DrangueError, SettingsError
from drangue_client.settings import Settings


def export(settings: Settings, host: str, port: int, prices: Path | None, *, once: bool) -> int:
    """Answer scrapes until SIGTERM or Ctrl-C, or print the metrics `once`. Returns an exit code.

    Raises DrangueError where the extra is missing, SettingsError where the address is taken, DatabaseUnavailable where
    Postgres is away at the start; later on it waits for it, and says so in the metrics.
    """
    try:
        from drangue_client.metrics import Exporter
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise DrangueError("metrics need prometheus_client. Install drangue-worker[metrics].") from None
    from drangue_worker.evals.loading import prices_at

    exporter = Exporter(settings, prices_at(prices) if prices else None)
    try:
        if once:
            click.echo(exporter.text(), nl=False)
            return OK
        try:
            server = exporter.serve(host, port)
        except OSError as error:
            raise SettingsError(
                f"cannot answer at {host}:{port}: {error.strerror}. Choose --host and --port."
            ) from None
        told = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: told.set())
        click.echo(f"metrics at http://{host}:{server.port}/metrics", err=True)
        told.wait()
        server.stop()
        return OK
    finally:
        exporter.close()
