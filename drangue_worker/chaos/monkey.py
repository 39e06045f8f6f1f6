"""The monkey: plays the timetable on a fleet. It signals only processes that the soak started, by their ids.

The invariant: whatever it takes away it gives back. When `play` returns, nothing is stopped and both servers run.
"""

from __future__ import annotations

import heapq
import itertools
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import psycopg
import redis

from drangue_worker.chaos.breaks import Break
from drangue_worker.chaos.post import count, put_back, take_all
from drangue_worker.chaos.recovery import CONNECT_S, Recoveries
from drangue_worker.chaos.workers import Workers, begun, children_of, send
from drangue_worker.embedded import Servers

TICK_S = 0.1
STALL_S = (1.0, 3.0)  # beyond the lease
REDIS_AWAY_S = (2.0, 6.0)
SHUFFLED_S = (1.0, 4.0)
AGAIN_S = 0.5  # before messages are brought back again to a Redis that was away


@dataclass
class Monkey:
    """What it needs to break things. `done` counts the breaks by kind, `skipped` those that found nothing to break."""

    workers: Workers
    servers: Servers
    database_url: str
    redis_url: str
    lease_s: float
    recoveries: Recoveries
    done: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    last: str = ""
    last_at: float = 0.0
    over: bool = False
    _later: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _redis_away: bool = False
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def play(self, breaks: Sequence[Break], stopped: threading.Event) -> None:
        """Play the timetable from now on, or until `stopped`."""
        began = self.last_at = time.monotonic()
        try:
            for one in breaks:
                while time.monotonic() < began + one.at_s:
                    if stopped.wait(TICK_S):
                        return
                    self._tend()
                self._break(one)
            while self._later and not stopped.wait(TICK_S):
                self._tend()
        finally:
            self.over = True
            while self._later:
                heapq.heappop(self._later)[2]()

    def _break(self, one: Break) -> None:
        hit = getattr(self, f"_{one.kind}")(one.draw)
        (self.done if hit else self.skipped)[one.kind] += 1
        if hit:
            self.last, self.last_at = (
                f"{one.kind.replace('_', ' ')}{'' if hit is True else f' {hit}'}",
                time.monotonic(),
            )

    def _tend(self) -> None:
        self.workers.look()
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()
            self.last_at = time.monotonic()

    def _in(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), action))

    def _kill_worker(self, draw: float) -> str:
        child = self.workers.victim(draw)
        if child is None:
            return ""
        process = child.process
        process.kill()
        self.recoveries.note_kill(process.pid)
        return child.name

    def _kill_child(self, draw: float) -> str:
        child = self.workers.victim(draw, "tool")
        inner = children_of(child.process.pid) if child else []
        if child is None or not inner:
            return ""
        pid = inner[int(draw * 1000) % len(inner)]
        if not send(pid, signal.SIGKILL):
            return ""
        self.recoveries.note_kill(child.process.pid, pid)
        return f"of {child.name}"

    def _stall(self, draw: float) -> str:
        child = self.workers.victim(draw)
        if child is None:
            return ""
        name, main = child.name, child.process.pid
        stopped = {pid: begun(pid) for pid in (main, *children_of(main))}
        for pid in stopped:
            send(pid, signal.SIGSTOP)
        self.workers.stalled.add(name)

        def go_on() -> None:
            self.workers.stalled.discard(name)
            for pid, began in stopped.items():
                if began and begun(pid) == began:  # the id may be another process's by now
                    send(pid, signal.SIGCONT)

        self._in(self.lease_s + _between(STALL_S, draw), go_on)
        return name

    def _terminate(self, draw: float) -> str:
        child = self.workers.victim(draw)
        if child is None:
            return ""
        child.process.terminate()
        return child.name

    def _disconnect(self, _draw: float) -> bool:
        others = (
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where pid <> pg_backend_pid() and backend_type = 'client backend'"
        )
        try:
            with psycopg.connect(self.database_url, autocommit=True, connect_timeout=CONNECT_S) as connection:
                connection.execute(others)
        except psycopg.OperationalError:
            return False
        return True

    def _restart_postgres(self, _draw: float) -> bool:
        with self.recoveries.outage():
            self.servers.restart_postgres()
        return True

    def _crash_postgres(self, _draw: float) -> bool:
        pid = self.servers.postgres_pid
        with self.recoveries.outage():
            if pid is not None:
                send(pid, signal.SIGQUIT)  # PostgreSQL's immediate shutdown: no checkpoint, recovery at the next start
            self.servers.restart_postgres()
        return True

    def _flush_redis(self, _draw: float) -> bool:
        try:
            with self._redis() as client:
                client.flushall()
        except redis.RedisError:
            return False
        return True

    def _restart_redis(self, _draw: float) -> bool:
        if self._redis_away:
            return False
        self.servers.restart_redis()
        return True

    def _remove_redis(self, draw: float) -> bool:
        if self._redis_away:
            return False
        self._redis_away = True
        self.servers.stop_redis()

        def give_back() -> None:
            self.servers.start_redis()
            self._redis_away = False

        self._in(_between(REDIS_AWAY_S, draw), give_back)
        return True

    def _double(self, _draw: float) -> bool:
        try:
            with self._redis() as client:
                for queue in client.scan_iter("drangue.*", _type="list"):
                    waiting = client.lrange(queue, 0, -1)
                    if waiting:
                        client.lpush(queue, *waiting)
        except redis.RedisError:
            return False
        return True

    def _shuffle(self, draw: float) -> str:
        try:
            with self._redis() as client:
                taken = take_all(client)
        except redis.RedisError:
            return ""
        if not taken:
            return ""
        dice = Random(draw)

        def give_back() -> None:
            try:
                with self._redis() as client:
                    put_back(client, taken, dice)
            except redis.RedisError:
                if not self.over:  # else they are lost, as messages may be
                    self._in(AGAIN_S, give_back)

        self._in(_between(SHUFFLED_S, draw), give_back)
        return f"{count(taken)} messages"

    def _redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.redis_url, socket_timeout=5, socket_connect_timeout=3, retry=None)


def _between(bounds: tuple[float, float], draw: float) -> float:
    low, high = bounds
    return low + draw * (high - low)
