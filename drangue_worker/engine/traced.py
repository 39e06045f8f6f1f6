"""What a tracer is told of the work. It is only looking on: what it raises is logged and costs nobody anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from drangue_client.run import Run
from drangue_client.store.port import Log
from drangue_client.store.values import RunRow
from drangue_worker.observability.logs import get_logger
from drangue_worker.observability.tracers import Attributes, LiveSpan, Tracer

log = get_logger("drangue.runtime")


class Traced:
    """The part of a Runtime that tells its tracer."""

    log: Log
    tracer: Tracer

    @contextmanager
    def span(self, name: str, /, **attrs: Any) -> Iterator[LiveSpan]:
        """A span of the tracer, which is only looking on: what it raises is logged and costs nobody anything."""
        with ExitStack() as closing:
            live: LiveSpan = Attributes(attrs)
            if name == "run" and getattr(self.tracer, "joins", False):
                yield live  # it is told of the run when that ends, wherever that may be
                return
            try:
                manager = self.tracer.span(name, **attrs)
                live = _Onlooker(manager.__enter__())
                closing.push(_closing(manager))
            except Exception:
                log.exception("tracer_failed")
            yield live

    @contextmanager
    def joined(self, row: RunRow, turn: int) -> Iterator[None]:
        """What is traced in the block belongs to this turn of the run, where the tracer can put it there."""
        with ExitStack() as closing:
            try:
                if hasattr(self.tracer, "joined"):
                    manager = self.tracer.joined(row, turn)
                    manager.__enter__()
                    closing.push(_closing(manager))
            except Exception:
                log.exception("tracer_failed")
            yield

    def ended(self, row: RunRow, run: Run) -> None:
        """Tell the tracer, where it asks for that, that a turn has ended. Blocks: it reads the log."""
        if not hasattr(self.tracer, "ended"):
            return
        try:
            self.tracer.ended(row, run, self.log.events(row.run_id))
        except Exception:
            log.exception("tracer_failed")


class _Onlooker:
    """A live span whose failures are its own."""

    def __init__(self, live: LiveSpan) -> None:
        self._live = live

    def set(self, key: str, value: Any) -> None:
        try:
            self._live.set(key, value)
        except Exception:
            log.exception("tracer_failed")


def _closing(manager: AbstractContextManager[Any]) -> Callable[..., bool]:
    """What closes a span, with the exception that ended its block if there was one, and swallows none."""

    def close(*raised: Any) -> bool:
        try:
            manager.__exit__(*raised)
        except Exception as error:
            if error is not raised[1]:  # a tracer may raise the block's own exception again
                log.exception("tracer_failed")
        return False

    return close
