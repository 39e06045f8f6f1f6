"""The examination of a fleet: what would lose work or time, what stands still, what does not agree. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import redis

from drangue_client.errors import DrangueError
from drangue_client.settings import Settings
from drangue_client.store.log import SqlLog
from drangue_client.store.migrate import current, newest
from drangue_client.wire.queue import Sender

Level = Literal["ok", "warn", "bad"]

CLOCK_S = 2.0
LATE_S = 30.0
PATIENT_S = 24 * 3600.0
NEARLY_FULL = 0.8
SHOWN = 5  # of many


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `bad` loses work or stops it, `warn` may. `then` is what to do about it."""

    level: Level
    what: str
    told: str
    then: str = ""


def examine(settings: Settings, *, rebuild: bool = False, timeout_s: float = 2.0) -> Iterator[Finding]:
    """Look at everything, in order; with `rebuild` fold every log anew and compare, which takes its time.

    What cannot be reached is a finding, and what depends on it is left out. Repeating is safe.
    """
    log, sender = SqlLog(settings.require_database(), pool_size=2), Sender(settings)
    try:
        tables = list(_looked("Postgres", lambda: _tables(settings)))
        yield from tables
        there = all(one.level != "bad" for one in tables)
        if there:
            yield from _looked("Postgres", lambda: _postgres(log))
        reached = list(_looked("Redis", lambda: _redis(settings)))
        yield from reached
        found: list[dict[str, Any]] = []
        if all(one.level != "bad" for one in reached):
            yield from _looked("workers", lambda: _workers(sender, timeout_s, found))
        if there:
            yield from _looked("queues", lambda: _queues(log, found))
            yield from _looked("runs", lambda: _runs(log))
            if rebuild:
                yield from _looked("projections", lambda: _projections(log))
    finally:
        log.close()


def _looked(what: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except (DrangueError, redis.RedisError, OSError) as error:
        yield Finding("bad", what, " ".join(str(error).split()))


def _tables(settings: Settings) -> Iterator[Finding]:
    there, wanted = current(settings.require_database()), newest()
    if there == wanted:
        yield Finding("ok", "tables", f"at revision {there}, as this program wants them")
    else:
        told = f"at revision {there or 'none'}, this program wants {wanted}"
        newer = there is not None and there > wanted
        yield Finding("bad", "tables", told, "Upgrade this program." if newer else "Run `drangue migrate`.")


def _postgres(log: SqlLog) -> Iterator[Finding]:
    began = time.time()
    told = log.server()
    apart = told["now"] - (began + time.time()) / 2
    yield Finding("ok", "Postgres", f"version {told['server_version']}")
    if abs(apart) > CLOCK_S:
        text = f"the database's clock is {abs(apart):.1f} s {'ahead of' if apart > 0 else 'behind'} this machine's"
        yield Finding("warn", "clock", text, "Keep time with NTP: moments that you give are compared with its clock.")
    else:
        yield Finding("ok", "clock", f"{abs(apart):.2f} s from this machine's")
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        if told[name] == "off":
            yield Finding("bad", name, "off: a crash of the server loses what was committed", f"Set {name} = on.")
    used, most = told["connections"], int(told["max_connections"])
    level: Level = "warn" if used > NEARLY_FULL * most else "ok"
    yield Finding(level, "connections", f"{used} of {most}", "Raise max_connections." if level == "warn" else "")


def _redis(settings: Settings) -> Iterator[Finding]:
    with redis.Redis.from_url(settings.require_redis(), socket_timeout=5, decode_responses=True) as client:
        about: Any = client.info()
        yield Finding("ok", "Redis", f"version {about['redis_version']}, {about['used_memory_human']} used")
        if about.get("maxmemory_policy", "noeviction") != "noeviction":
            told = f"maxmemory-policy is {about['maxmemory_policy']}: messages may be evicted, and be sent again later"
            yield Finding("warn", "eviction", told, "Set maxmemory-policy noeviction.")
        if about.get("maxmemory") and about["used_memory"] > NEARLY_FULL * about["maxmemory"]:
            told = f"{about['used_memory_human']} of {about['maxmemory_human']} used"
            yield Finding("warn", "memory", told, "Raise maxmemory: when it is full nothing can be enqueued.")


def _workers(sender: Sender, timeout_s: float, found: list[dict[str, Any]]) -> Iterator[Finding]:
    found += sender.workers(timeout_s)
    names = ", ".join(worker["name"] for worker in found)
    if found:
        yield Finding("ok", "workers", f"{len(found)} answer: {names}")
    else:
        yield Finding("bad", "workers", "none answers", "Start `drangue worker`, or look again with more --timeout.")


def _queues(log: SqlLog, workers: list[dict[str, Any]]) -> Iterator[Finding]:
    served = {queue for worker in workers for queue in worker["queues"]}
    for queue in log.backlog():
        if workers and queue.queue not in served:
            told = f"{queue.due + queue.later} steps wait in {queue.queue}, which no worker that answers serves"
            yield Finding("bad", "queue", told, f"Start `drangue worker tool --queues {queue.queue}`, or its like.")
        elif queue.due and queue.oldest_s > LATE_S:
            told = f"{queue.due} steps are due in {queue.queue}, the oldest for {queue.oldest_s:.0f} s"
            yield Finding("warn", "queue", told, "Start more workers of its pool, if that goes on.")
    late = log.unbegun(LATE_S)
    if late:
        told = f"{late} runs should have begun {LATE_S:.0f} s ago and have not"
        yield Finding("warn", "runs", told, "Is there a worker that serves their agents? See `drangue agents`.")


def _runs(log: SqlLog) -> Iterator[Finding]:
    stuck = log.stuck()
    if stuck:
        names = ", ".join(row.run_id for row in stuck[:SHOWN])
        yield Finding("bad", "runs", f"{len(stuck)} stand still, with nothing to move them: {names}", "Report a bug.")
    else:
        yield Finding("ok", "runs", "none stands still")
    for agent, count in sorted(log.unserved().items()):
        told = f"{count} runs are of agent {agent!r}, which no worker serves by now"
        yield Finding("warn", "agent", told, "Start a worker whose DRANGUE_AGENTS names it.")
    waiting = log.runs(status="paused", limit=1000)
    old = [row for row in waiting if time.time() - row.updated_at > PATIENT_S]
    if waiting:
        told = f"{len(waiting)} runs wait for a person, {len(old)} of them for more than a day"
        yield Finding("warn" if old else "ok", "approvals", told, "See `drangue approvals`." if old else "")
    unknown = log.runs(unknown=True, limit=1000)
    if unknown:
        told = f"{len(unknown)} runs have a call of which nobody knows whether it took effect"
        yield Finding("warn", "unknown", told, "See `drangue runs --unknown`.")


def _projections(log: SqlLog) -> Iterator[Finding]:
    wrong = list(log.differing())
    for run_id, told in wrong[:SHOWN]:
        yield Finding("bad", "projections", f"run {run_id}: {told}", "Report a bug; the log is the truth.")
    if len(wrong) > SHOWN:
        yield Finding("bad", "projections", f"and {len(wrong) - SHOWN} runs more")
    if not wrong:
        yield Finding("ok", "projections", "every row says what its log says")
