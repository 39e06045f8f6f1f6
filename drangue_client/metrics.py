"""Metrics: what Prometheus is told of a fleet, read from Postgres and Redis by one process of its own.

Workers are not asked: what they have done is in the log, whichever process did it and whether it still lives. Gauges
are read at every scrape; counters go up by the events recorded since the last one, and begin at 0 with the exporter.
Needs the extra `metrics`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, start_http_server
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from drangue_client.budget import INPUT_COUNTS, OUTPUT_COUNTS, Prices, Spent, spent_on
from drangue_client.errors import DatabaseUnavailable, QueueUnavailable
from drangue_client.run import ALIVE
from drangue_client.settings import Settings
from drangue_client.store.counting import Recorded, Standing
from drangue_client.store.log import SqlLog
from drangue_client.wire.queue import QUEUES, Sender

BEHIND_S = 5.0  # a commit may take that long and still be counted
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
KINDS = {"model_decision": "model", "tool_result": "tool"}


@dataclass(frozen=True)
class Serving:
    """An exporter that answers."""

    server: WSGIServer
    thread: threading.Thread

    @property
    def port(self) -> int:
        return self.server.server_port

    def stop(self) -> None:
        """Answer no more."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Exporter:
    """Collects a fleet's metrics; `text()` is what a scrape gets, `serve` answers scrapes. Safe from any thread.

    `prices` ({model: {"input", "output"}} in USD per million tokens) are for runs that have no budget with prices of
    their own; what neither knows is not in the dollars. Raises DatabaseUnavailable where the log cannot be read at all.
    """

    def __init__(self, settings: Settings, prices: Prices | None = None) -> None:
        self._log = SqlLog(settings.require_database(), pool_size=2)
        self._log.standing()
        self._sender = Sender(settings)
        self._prices = prices or {}
        self._one_at_a_time = threading.Lock()
        self._counted_to: float | None = None
        self.registry = CollectorRegistry()
        self.registry.register(self)  # first, so that a scrape finds the counters as it has brought them up to date
        count = self._counter
        self._ended = count("runs_ended", "Turns of runs that have ended.", "status", "reason")
        self._steps = count("steps", "Steps that were recorded.", "kind")
        self._retries = count("step_retries", "Attempts at recorded steps that had failed.", "kind")
        self._tokens = count("tokens", "Tokens that models reported.", "model", "type")
        self._dollars = count("dollars", "US dollars, by the prices of each run's budget or the exporter's.", "model")
        self._seconds = Histogram(
            "drangue_step_seconds",
            "How long the attempts took that were recorded.",
            ["kind"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        for kind in KINDS.values():  # there from the first scrape on: a rate needs a 0 to begin with
            self._steps.labels(kind)
            self._retries.labels(kind)
            self._seconds.labels(kind)
        for status, reason in (("completed", "answered"), ("failed", ""), ("cancelled", "")):
            self._ended.labels(status, reason)

    def text(self) -> str:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry).decode()

    def serve(self, host: str, port: int) -> Serving:
        """Answer scrapes at this address (port 0: a free one), on threads of this process. Raises OSError."""
        return Serving(*start_http_server(port, host, self.registry))

    def describe(self) -> list[Metric]:
        """Nothing, so that registering asks no server. Part of prometheus_client's collector protocol."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The gauges, and on the way the counters. Part of prometheus_client's collector protocol."""
        with self._one_at_a_time:  # two scrapes at once count nothing twice
            return iter(list(self._collected()))

    def _collected(self) -> Iterator[Metric]:
        try:
            since, recorded = self._log.recorded(self._counted_to, BEHIND_S)
            standing, backlog = self._log.standing(), {row.queue: row for row in self._log.backlog()}
            unserved = self._log.unserved()
        except DatabaseUnavailable:
            yield _number("up", "Whether Postgres answered.", 0)
            return
        self._counted_to = since
        for event in recorded:
            self._count(event)
        yield _number("up", "Whether Postgres answered.", 1)
        yield from _standing(standing)
        yield _gauge("runs_unserved", "Runs that have not ended, of agents that no worker serves.", unserved, "agent")
        names = sorted({*QUEUES, *backlog})
        for name, about, of in (
            ("steps_due", "Steps that could be begun now.", "due"),
            ("steps_held", "Steps that a worker is at.", "held"),
            ("steps_backoff", "Steps that wait before they are tried again.", "later"),
            ("due_lag_seconds", "For how long the oldest step has been due.", "oldest_s"),
        ):
            values = {queue: getattr(backlog.get(queue), of, 0) for queue in names}
            yield _gauge(name, about, values, "queue")
        yield from self._redis(names)

    def close(self) -> None:
        """Close the connections."""
        self._log.close()

    def _redis(self, names: list[str]) -> Iterator[Metric]:
        try:
            waiting = self._sender.waiting(names)
        except QueueUnavailable:
            yield _number("redis_up", "Whether Redis answered.", 0)
            return
        yield _number("redis_up", "Whether Redis answered.", 1)
        yield _gauge("queue_messages", "Messages that wait in Redis.", waiting, "queue")

    def _count(self, event: Recorded) -> None:
        kind, payload = KINDS.get(event.type), event.payload
        if kind is None:
            status = {"run_finished": "completed", "run_failed": "failed", "run_cancelled": "cancelled"}[event.type]
            self._ended.labels(status, payload.get("reason") or "" if status == "completed" else "").inc()
            return
        self._steps.labels(kind).inc()
        self._retries.labels(kind).inc(len(payload.get("retries") or ()))
        if event.duration_ms is not None:
            self._seconds.labels(kind).observe(event.duration_ms / 1000)
        if event.type == "model_decision":
            model, usage = str(payload.get("model") or ""), payload.get("usage")
            self._tokens.labels(model, "input").inc(spent_on(usage, INPUT_COUNTS))
            self._tokens.labels(model, "output").inc(spent_on(usage, OUTPUT_COUNTS))
            self._dollars.labels(model).inc(Spent().plus(usage, model, self._priced(event.prices, model)).usd)

    def _priced(self, own: Mapping[str, Any] | None, model: str) -> Prices:
        return own if own and model in own else self._prices

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"drangue_{name}", about, labels, registry=self.registry)


def _standing(standing: Standing) -> Iterator[Metric]:
    runs: dict[str, float] = {status: standing.runs.get(status, 0) for status in ALIVE}
    yield _gauge("runs", "Runs that have not ended.", runs, "status")
    yield _number("approvals_waiting", "Calls that wait for a person's leave.", standing.approvals)
    yield _number("approval_oldest_seconds", "For how long the oldest of them has waited.", standing.oldest_s)
    about = "Calls of which nobody knows whether they took effect."
    yield _number("unknown_outcomes", about, standing.unknown)
    about = "For how long the run has been due that workers should have looked after first."
    yield _number("wake_lag_seconds", about, standing.wake_lag_s)


def _gauge(name: str, about: str, values: Mapping[str, float], label: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"drangue_{name}", about, labels=[label])
    for of, value in values.items():
        family.add_metric([of], value)
    return family


def _number(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"drangue_{name}", about, value)
