"""The run of a soak: servers and workers of its own, the runs, the monkey, and at the end the verdict.

Everything it starts ends with it, also after a Ctrl-C: processes, servers, and the folder they were kept in.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from drangue_client.client import Client
from drangue_client.errors import DrangueError, UnknownRunError
from drangue_client.run import OVER
from drangue_client.settings import PREFIX, Settings
from drangue_client.store.migrate import migrate
from drangue_worker.chaos import world
from drangue_worker.chaos.breaks import Pace, timetable
from drangue_worker.chaos.drivers import Approver, Canceller, Submitter
from drangue_worker.chaos.monkey import STALL_S, Monkey
from drangue_worker.chaos.plan import PlannedRun, plan
from drangue_worker.chaos.playing import Playing, Progress
from drangue_worker.chaos.recovery import Recoveries
from drangue_worker.chaos.script import PlannedModel
from drangue_worker.chaos.swept import swept
from drangue_worker.chaos.verdict import Ran, Verdict, judge
from drangue_worker.chaos.workers import Workers
from drangue_worker.dev import start_workers, wait_for_workers
from drangue_worker.embedded import EmbeddedError, Servers
from drangue_worker.embedded.root import home_of
from drangue_worker.supervisor import Supervisor
from drangue_worker.testing.provider import Provider

SUBMITTING = 0.7  # of the time in which things break: the last runs meet breaks too
SLOWEST = 1.3  # leases that the slowest calls take
HEARD_S = 6.0  # within which workers that do not stand still have heard of a cancel, and ended what may be ended
MAX_CRASHES = 50  # the ceiling against steps that kill workers is not for workers that are killed


@dataclass(frozen=True, slots=True)
class Options:
    """What a soak is given. `deadline_s` is how long after the last break every run must have ended. A `calm` one has
    no breaks, and all its runs are submitted at once."""

    runs: int
    seed: int
    pace: Pace
    lease_s: float
    model_workers: int
    tool_workers: int
    deadline_s: float
    calm: bool = False
    logs: Path | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a soak. `skipped` are breaks that found nobody fit, or their server away; `unsubmitted` counts runs
    that no submit acknowledged before the deadline, `cancels` those runs that were to be cancelled."""

    verdict: Verdict
    breaks: Counter[str]
    skipped: Counter[str]
    recoveries: Recoveries
    seconds: float
    unsent: int
    unsubmitted: int
    cancels: int
    calm: bool


def run_soak(options: Options, show: Callable[[Progress], None]) -> Report:
    """Play a soak and judge it; `show` is told how far it is, four times a second.

    Call it on the main thread. Raises SystemExit where a signal ended it, DrangueError where it cannot be played.
    """
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]  # its servers are its own
    plans = plan(options.seed, options.runs, round(SLOWEST * options.lease_s, 2))
    model = PlannedModel(plans)
    supervisor = Supervisor()
    supervisor.heed_signals()
    with ExitStack() as stack:
        folder = stack.enter_context(_folder())
        servers = stack.enter_context(_servers(folder))
        supervisor.check()
        settings = _settings(options, servers)
        world_url = world.create(settings.database_url)
        provider = stack.enter_context(Provider(model, keep_calls=0))
        supervisor.log_folder = options.logs or folder / "logs"
        supervisor.grace_s = settings.drain_grace_s
        supervisor.env = {
            **settings.to_env(),
            world.URL: world_url,
            "OPENAI_BASE_URL": provider.base_url,
            "OPENAI_API_KEY": "scripted",
            "TMPDIR": str(folder),  # a killed worker leaves its temporary files
        }
        stack.callback(supervisor.stop)
        wait_for_workers(settings, start_workers(supervisor, options.model_workers, options.tool_workers), supervisor)
        client = Client(settings)
        stack.callback(client.close)
        recoveries = Recoveries(settings.database_url, settings.lease_s)
        workers = Workers(supervisor, settings.database_url)
        monkey = Monkey(workers, servers, settings.database_url, settings.redis_url, settings.lease_s, recoveries)
        submitter = Submitter(client, plans, 0.0 if options.calm else options.pace.seconds * SUBMITTING)
        approver = Approver(client, {call.key: call for one in plans for call in one.calls})
        canceller = Canceller(client, plans)
        breaks = () if options.calm else timetable(options.seed, options.pace)
        began = time.monotonic()
        Playing(supervisor, monkey, breaks, submitter, approver, canceller, options.deadline_s, show).play()
        seconds = time.monotonic() - began
        ran = {one.run_id: ran for one in submitter.acknowledged if (ran := _ran(client, one))}
        verdict = judge(
            submitter.acknowledged,
            ran,
            world.executions(world_url),
            model.asks,
            model.mistaken,
            canceller.asked,
            HEARD_S if options.calm else HEARD_S + options.lease_s + STALL_S[1],
            swept(supervisor.log_folder),
            options.calm,
        )
        if options.logs is not None:
            _keep_evidence(options.logs, ran.values(), recoveries)
        return Report(
            verdict,
            monkey.done,
            monkey.skipped,
            recoveries,
            seconds,
            unsent=submitter.unsent,
            unsubmitted=len(plans) - len(submitter.acknowledged),
            cancels=sum(one.cancel_at is not None for one in submitter.acknowledged),
            calm=options.calm,
        )


def _settings(options: Options, servers: Servers) -> Settings:
    """Start the servers and say how the fleet is to use them."""
    try:
        addresses = servers.start()
    except EmbeddedError as error:
        raise DrangueError(str(error)) from error
    migrate(addresses.database_url)
    lease_s = options.lease_s
    return Settings(
        database_url=addresses.database_url,
        redis_url=addresses.redis_url,
        agents=("drangue_worker.chaos.agents",),
        lease_s=lease_s,
        sweep_s=min(1.0, lease_s / 5),
        patience_s=min(5.0, lease_s / 2),
        drain_grace_s=min(5.0, lease_s),
        max_crashes=MAX_CRASHES,
        log_format="json",
    )


@contextmanager
def _servers(folder: Path) -> Iterator[Servers]:
    """Servers that are gone without a trace afterwards; for root part of them is outside `folder`."""
    servers = Servers(folder / "servers")
    try:
        yield servers
    finally:
        servers.stop()
        shutil.rmtree(home_of(servers.folder), ignore_errors=True)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="drangue-chaos-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _ran(client: Client, planned: PlannedRun) -> Ran | None:
    try:
        status, events = client.get(planned.run_id).status, tuple(client.events(planned.run_id))
        return Ran(planned.run_id, status, events, len(client.log.held(planned.run_id)) if status in OVER else 0)
    except UnknownRunError:
        return None


def _keep_evidence(folder: Path, ran: Iterable[Ran], recoveries: Recoveries) -> None:
    """Write every run's log and every killed step beside what the workers wrote: one line of JSON each."""
    with (folder / "runs.jsonl").open("w") as file:
        for one in ran:
            events = [event.to_json() for event in one.events]
            file.write(json.dumps({"run_id": one.run_id, "status": one.status, "events": events}) + "\n")
    with (folder / "recoveries.jsonl").open("w") as file:
        for recovery in recoveries.found:
            file.write(json.dumps(asdict(recovery)) + "\n")
