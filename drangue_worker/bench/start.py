"""What a process costs before it does anything, and while it waits: seconds to its first run, memory, imports."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from statistics import median

import psutil

from drangue_client.store.values import NewRun
from drangue_client.wire.queue import Sender
from drangue_worker.bench.alone import Alone, Line
from drangue_worker.bench.measure import Bench
from drangue_worker.bench.ours import AGENTS, Fleet
from drangue_worker.bench.shapes import AGENT, ASKING_AGENT, Shape
from drangue_worker.bench.usage import memory
from drangue_worker.supervisor import worker_command

CALLS = 1_000
WAITING = 10_000
LONGEST_S = 600.0
FOR_EVER_S = 3_000.0
BATCH = 500
QUIET_S = 1.0  # after work, before memory is read
MOST_KB = 40.0  # per call in flight
KB, MB = 1e3, 1e6

IMPORTS = {
    "python": ["-c", "pass"],
    "client": ["-c", "import drangue_client"],
    "help": ["-m", "drangue_worker.cli", "--help"],
}


def measure_start(bench: Bench, scale: float, repeat: int) -> Alone:
    """Imports, starts, idle memory, calls in flight, runs that wait; numbers of runs follow `scale`."""
    return Alone(
        "start",
        (
            *_imports(repeat),
            *_starts(bench, repeat),
            *_in_flight(bench, max(10, round(CALLS * scale))),
            *_waiting(bench, max(20, round(WAITING * scale))),
        ),
    )


def _imports(repeat: int) -> list[Line]:
    seconds = {name: [] for name in IMPORTS}  # type: dict[str, list[float]]
    for _ in range(2 * repeat + 1):
        for name, arguments in IMPORTS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - began)
    bare = median(seconds["python"])
    return [
        Line("import_client_s", "import drangue_client, above a bare Python", median(seconds["client"]) - bare, "s"),
        Line("help_s", "drangue --help, above a bare Python", median(seconds["help"]) - bare, "s"),
    ]


def _starts(bench: Bench, repeat: int) -> list[Line]:
    """Seconds from the start of a model worker until it has ended a run that waited for it; then idle memory."""
    seconds = []
    for number in range(repeat):
        bench.stack.workers.use(())
        run_id = f"start-{number}"
        bench.ours.client.submit(AGENT, Shape().to_input(), run_id=run_id, allow_unknown=True)
        began = time.monotonic()
        bench.ours.use(Fleet(f"start{number}"), wait=False)
        bench.ours.await_end(run_id, LONGEST_S)
        seconds.append(time.monotonic() - began)
        bench.tell(f"{'start':10}first run after {seconds[-1]:.3g} s")
    lines = [Line("start_s", "start of a model worker to the end of its first run", median(seconds), "s")]
    lines += _idle("model", "an idle model worker", [bench.ours.use(Fleet(f"start{repeat - 1}"))[0]])
    lines += _idle("tool", "an idle tool worker and its children", [_tool_worker(bench)])
    return lines


def _tool_worker(bench: Bench) -> int:
    settings = replace(bench.ours.settings_of(Fleet()), agents=AGENTS)
    name = "start-tool-1"
    bench.stack.workers.start(name, worker_command("tool", "--name", f"{name}@%h"), settings.to_env())
    bench.ours.answer(settings, [name])
    return bench.stack.workers.supervisor.children[name].process.pid


def _idle(name: str, what: str, pids: list[int]) -> list[Line]:
    time.sleep(QUIET_S)
    everyone = [one.pid for pid in pids for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
    told = [memory(pid) for pid in everyone]
    lines = [Line(f"idle_{name}_rss_mb", f"{what}: resident", sum(one.resident for one in told) / MB, "MB")]
    own = [one.own for one in told if one.own is not None]
    if len(own) == len(told):
        lines.append(Line(f"idle_{name}_uss_mb", f"{what}: its own", sum(own) / MB, "MB"))
    shared = [one.proportional for one in told if one.proportional is not None]
    if len(shared) == len(told):
        lines.append(Line(f"idle_{name}_pss_mb", f"{what}: its share", sum(shared) / MB, "MB"))
    return lines


def _in_flight(bench: Bench, calls: int) -> list[Line]:
    """What a model call costs in memory while it waits for its answer."""
    fleet = Fleet("flight", concurrency=calls + 100)
    (pid,) = bench.ours.use(fleet)
    bench.ours.burst(Shape(), max(2, calls // 10))
    time.sleep(QUIET_S)
    before = memory(pid).resident
    shape = Shape(rounds=0, think_s=FOR_EVER_S)
    _submit(bench, AGENT, shape, "flight", calls)
    _await_count(bench, "select count(*) from steps where claim is not null and run_id like 'flight-%%'", calls)
    time.sleep(QUIET_S)
    each = (memory(pid).resident - before) / calls
    bench.tell(f"{'start':10}{calls} calls in flight")
    bench.stack.workers.end(fleet.members)
    _forget(bench, "flight")
    return [Line("in_flight_kb", f"each of {calls:,} model calls in flight", each / KB, "KB", MOST_KB)]


def _waiting(bench: Bench, runs: int) -> list[Line]:
    """What runs that wait for a person cost a process. The first tenth is not counted: it warms what is bounded."""
    fleet = Fleet("waiting")
    (pid,) = bench.ours.use(fleet)
    paused = "select count(*) from runs where status = 'paused' and run_id like 'waiting-%%'"
    warm = runs // 10
    _submit(bench, ASKING_AGENT, Shape(), "waiting-a", warm)
    _await_count(bench, paused, warm)
    time.sleep(QUIET_S)
    before = memory(pid).resident
    _submit(bench, ASKING_AGENT, Shape(), "waiting-b", runs - warm)
    _await_count(bench, paused, runs)
    time.sleep(QUIET_S)
    after = memory(pid).resident
    bench.tell(f"{'start':10}{runs} runs wait for a person")
    bench.stack.workers.end(fleet.members)
    _forget(bench, "waiting")
    return [
        Line("waiting_before_mb", f"a model worker with {warm:,} runs waiting for a person", before / MB, "MB"),
        Line("waiting_after_mb", f"the same with {runs:,}", after / MB, "MB"),
        Line("waiting_bytes", "each of those that came", (after - before) / (runs - warm), "bytes"),
    ]


def _submit(bench: Bench, agent: str, shape: Shape, prefix: str, count: int) -> None:
    """In bulk, through the log: how they are submitted is not what is measured here."""
    log = bench.ours.client.log
    sender = Sender(bench.ours.settings_of(Fleet()))
    new = [NewRun(f"{prefix}-{n:06}", agent, shape.to_input(), wake_in_s=30.0) for n in range(count)]
    for begin in range(0, count, BATCH):
        sender.coordinate([row for row, _ in log.submit(new[begin : begin + BATCH])])


def _await_count(bench: Bench, query: str, wanted: int) -> None:
    def reached() -> bool:
        row = bench.ours.connection.execute(query.replace("%%", "%").encode()).fetchone()
        return row is not None and row[0] >= wanted

    bench.stack.workers.wait(reached, f"until {wanted} of: {query}", LONGEST_S, 0.1)


def _forget(bench: Bench, prefix: str) -> None:
    """What was left unfinished must not be worked on beside what is measured next."""
    for table in ("steps", "events", "runs"):
        bench.ours.connection.execute(f"delete from {table} where run_id like %s".encode(), (f"{prefix}%",))
