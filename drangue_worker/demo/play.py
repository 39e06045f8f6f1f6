"""The story: a fleet is started, 20 runs are worked on, a worker is killed, money waits for a person.

What is shown is what happened: every claim at the end is checked against the log and against a table that the runtime
does not own, and the exit code is 0 only if all of them hold.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg
from rich.console import Console
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from drangue_client.client import Client
from drangue_client.console.one_run import answer, run_view
from drangue_client.console.shell import wide_console
from drangue_client.console.views import approvals_list, runs_table
from drangue_client.result import Result
from drangue_client.run import ENDED
from drangue_client.settings import PREFIX, Settings
from drangue_client.stackfile import FOLDER
from drangue_worker.demo.agents import TABLES
from drangue_worker.demo.script import script
from drangue_worker.dev import start_servers, start_workers, wait_for_workers
from drangue_worker.supervisor import Child, Supervisor
from drangue_worker.testing.provider import Provider

RUNS = 20
SERVICES = ("checkout", "search", "billing", "login", "mail")
PATIENCE_S = 90.0
REFRESH_S = 0.1


@dataclass
class Story:
    """What the scenes share. `checks` are the claims, each with whether it held."""

    console: Console
    client: Client
    supervisor: Supervisor
    settings: Settings
    prefix: str
    checks: list[tuple[str, bool]] = field(default_factory=list)

    def check(self, claim: str, held: bool) -> None:
        self.checks.append((claim, held))

    @contextmanager
    def database(self) -> Iterator[psycopg.Connection]:
        with psycopg.connect(self.settings.database_url, autocommit=True) as connection:
            yield connection

    def held_by(self, worker_pid: int) -> int:
        """How many steps the worker with this main process holds right now."""
        with self.database() as connection:
            query = "select count(*) from steps where worker like %s or worker like %s"  # its own, its children's
            row = connection.execute(query, (f"%/{worker_pid}", f"%/{worker_pid}.%")).fetchone()
        return int(row[0]) if row else 0


def play() -> int:
    """Play it in the current folder's `.drangue/demo`. Returns the exit code."""
    console = wide_console()
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]  # the story is told with its own servers and the settings as they come
    folder = Path.cwd() / FOLDER / "demo"
    with ExitStack() as stack:
        settings = start_servers(Settings(), folder, stack)
        settings = replace(settings, agents=("drangue_worker.demo.agents",), log_format="console")
        supervisor = Supervisor(
            env={**settings.to_env(), **_provider_env(console, stack)}, log_folder=folder / FOLDER / "logs"
        )
        stack.callback(supervisor.stop)
        names = start_workers(supervisor, 2, 2)
        console.print(f"Postgres and Redis are up; starting worker processes {', '.join(names)} ...")
        wait_for_workers(settings, names, supervisor)
        client = Client(settings)
        stack.callback(client.close)
        story = Story(console, client, supervisor, settings, f"demo-{secrets.token_hex(2)}")
        with story.database() as connection:
            for table in TABLES:
                connection.execute(table)
        _scene_of_the_killed_worker(story)
        _scene_of_the_wire(story)
        return _verdict(story)


def _provider_env(console: Console, stack: ExitStack) -> dict[str, str]:
    """The provider that the workers talk to: the user's, or a scripted one on loopback."""
    if os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL"):
        console.print(f"The models are real: {os.environ.get('OPENAI_BASE_URL', 'OpenAI')}.")
        return {}
    provider = stack.enter_context(Provider(script, keep_calls=10))
    console.print(
        "[yellow]No OPENAI_API_KEY and no OPENAI_BASE_URL: a scripted server on loopback answers in the place of a "
        "model. Everything else is real, the OpenAI SDK included.[/]"
    )
    return {"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "scripted", "OPENAI_MODEL": "scripted"}


def _scene_of_the_killed_worker(story: Story) -> None:
    story.console.print(Rule(f"{RUNS} runs, four worker processes, one of them killed"))
    ids = [f"{story.prefix}-{number:02}" for number in range(1, RUNS + 1)]
    for number, run_id in enumerate(ids):
        story.client.submit("oncall", f"What is wrong with {SERVICES[number % len(SERVICES)]}?", run_id=run_id)
    victim = story.supervisor.children["tool-1"]
    killed: list[int] = []

    def kill_in_the_middle(counts: Counter[str]) -> None:
        holding = 0 if killed or not counts["completed"] else story.held_by(victim.process.pid)
        if holding:
            victim.process.send_signal(signal.SIGKILL)
            killed.append(holding)
            story.console.print(
                Text(
                    f"SIGKILL to {victim.name} (pid {victim.process.pid}) while it holds {holding} steps: their leases "
                    f"lapse within {story.settings.lease_s:g} s, then {_others(story, victim)} takes over",
                    style="bold red",
                )
            )

    _watch(story, ids, kill_in_the_middle)
    rows = [story.client.get(run_id) for run_id in ids]
    story.check(f"{RUNS} of {RUNS} runs completed", all(row.status == "completed" for row in rows))
    story.check("a worker process was killed while it held steps", bool(killed))
    booked = {
        f"{run_id}:{event.step}"
        for run_id in ids
        for event in story.client.events(run_id)
        if event.type == "tool_result" and event.payload["name"] == "file_incident"
    }
    with story.database() as connection:
        ours = (f"{story.prefix}-%",)
        found = [key for (key,) in connection.execute("select key from demo_bookings where key like %s", ours)]
        calls = connection.execute("select key, tool, process from demo_calls where key like %s", ours).fetchall()
    attempts = sum(tool == "file_incident" for _, tool, _ in calls)
    story.check(
        f"each of {len(booked)} incidents is filed exactly once (the tool was called {attempts} times in all)",
        sorted(found) == sorted(booked) and len(booked) >= RUNS,
    )
    processes: dict[str, set[int]] = {}
    for key, _, process in calls:
        processes.setdefault(key.partition(":")[0], set()).add(process)
    fanned_out = sum(len(used) > 1 for used in processes.values())
    story.check(f"the tools of one decision ran in several processes ({fanned_out} of {RUNS} runs)", fanned_out > 0)


def _others(story: Story, victim: Child) -> str:
    return next(name for name in story.supervisor.children if name.startswith("tool") and name != victim.name)


def _watch(story: Story, ids: list[str], each_look: Callable[[Counter[str]], None]) -> None:
    """Show the runs' statuses live until all have ended."""
    deadline = time.monotonic() + PATIENCE_S
    shown: Counter[str] = Counter()
    with Live(console=story.console, refresh_per_second=10, transient=True) as live:
        while True:
            rows = [row for row in story.client.runs(limit=RUNS * 2) if row.run_id in ids]
            counts = Counter(str(row.status) for row in rows)
            each_look(counts)
            live.update(_progress(counts))
            if counts != shown and not story.console.is_terminal:
                story.console.print(_progress(counts))
                shown = counts
            if sum(counts[status] for status in ENDED) == len(ids) or time.monotonic() > deadline:
                return
            time.sleep(REFRESH_S)


def _progress(counts: Counter[str]) -> Text:
    parts = [
        f"{counts[name]} {name}" for name in ("queued", "running", "paused", "completed", "failed") if counts[name]
    ]
    return Text("   ".join(parts), style="cyan")


def _scene_of_the_wire(story: Story) -> None:
    story.console.print(Rule("a run that wants to wire money"))
    run_id = f"{story.prefix}-pay"
    story.client.submit("treasurer", "Pay invoice 4711 of ACME Hosting, 1,250 USD, if it is due.", run_id=run_id)
    paused = story.client.result(run_id, timeout=PATIENCE_S)
    story.check("the transfer waits for a person", paused.status == "paused")
    with story.database() as connection:
        steps = connection.execute("select step from steps where run_id = %s", (run_id,)).fetchall()
        moved = connection.execute("select 1 from demo_calls where key like %s", (f"{run_id}:%",)).fetchall()
    story.check("while it waits it holds no worker and no step, and no money has moved", not steps and not moved)
    story.console.print(approvals_list(story.client.pending_approvals(run_id)))
    command = [*_manage(), "approve", run_id, "--by", "demo", "--reason", "invoice checked"]
    shown = " ".join([Path(part).name if i == 0 else part for i, part in enumerate(command)])
    story.console.print(Text(f"$ {shown}", style="bold"))
    done = subprocess.run(command, env={**os.environ, **story.settings.to_env()}, capture_output=True, text=True)
    story.console.print(Text((done.stdout + done.stderr).strip()))
    result = story.client.result(run_id, timeout=PATIENCE_S)
    with story.database() as connection:
        transfers = connection.execute("select tool from demo_calls where key like %s", (f"{run_id}:%",)).fetchall()
    story.check("approved, it went on by itself and the money moved once", transfers == [("wire_funds",)])
    story.check("and the run completed", result.status == "completed")


def _manage() -> list[str]:
    """The management script of a checkout; without one, the same command of the installed program."""
    manage = Path(__file__).resolve().parents[2] / "scripts" / "manage.py"
    return [sys.executable, str(manage)] if manage.exists() else [sys.executable, "-m", "drangue_worker.cli"]


def _verdict(story: Story) -> int:
    console, client = story.console, story.client
    console.print(Rule("the trace of one run"))
    one = f"{story.prefix}-pay"
    result = Result.from_events(one, client.events(one))
    console.print(run_view(client.get(one), result))
    console.print(answer(result), markup=False)
    console.print(Rule("all runs"))
    rows = [row for row in client.runs(limit=RUNS * 2) if row.run_id.startswith(story.prefix)]
    console.print(runs_table(rows))
    usage: Counter[str] = Counter()
    for row in rows:
        usage.update({k: int(v) for k, v in Result.from_events(row.run_id, client.events(row.run_id)).usage.items()})
    console.print(f"tokens: {usage['input_tokens']} in, {usage['output_tokens']} out, {len(rows)} runs")
    table = Table(box=None, show_header=False, pad_edge=False)
    for claim, held in story.checks:
        table.add_row(Text("held" if held else "BROKEN", style="green" if held else "bold red"), claim)
    console.print(Rule("what was promised"), table)
    console.print(
        "\nNext: put your agents into a module of your own, then\n"
        "  DRANGUE_AGENTS=your.module .venv/bin/drangue dev     servers, workers and Flower in one terminal\n"
        '  .venv/bin/drangue submit AGENT "..."                 from another terminal of this folder\n'
        "  scripts/test                                         the suite that keeps the promises"
    )
    return 0 if all(held for _, held in story.checks) else 1
