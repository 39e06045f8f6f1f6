"""kombu's Redis transport, made to outlive what a worker of kombu 5.7 ends with.

A connection that is lost: kombu closes a channel again, or acknowledges a late message, when it has no address any more
to do that with, and raises an AttributeError that nobody expects. Here it is the connection error that it is. Nothing
is lost by it: what was under way is claimed in Postgres, and what had not begun is sent again by a sweep.

A message that is none: whoever can write to Redis can write anything there. What cannot be read is dropped and logged.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis
from redis.exceptions import DataError

from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.transport")

# What parts of the wrong kind come to, in kombu, in Celery and in redis.
MALFORMED = (TypeError, ValueError, AttributeError, LookupError, RecursionError, DataError)


class Channel(redis.Channel):
    """A channel that says so when its connection is gone, and reads past what is no JSON."""

    def _connparams(self, asynchronous: bool = False) -> Any:
        if getattr(self.connection, "client", None) is None:
            raise ConnectionError("the connection to Redis has been closed")
        return super()._connparams(asynchronous)  # type: ignore[misc]  # nor this

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # the stubs do not know it
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are the former
            _drop(error)
            return True


class Transport(redis.Transport):
    """A transport that hands on what can be handed on, and drops the rest."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str | None) -> None:
        if _foreign(queue):
            super()._deliver(message, queue)
            return
        try:
            _check(message)
            super()._deliver(message, queue)
        except self.connection_errors:
            raise
        except MALFORMED as error:  # what else is raised is no message's fault
            _drop(error)
            self._forget(message)

    def _forget(self, message: Any) -> None:
        """Take a message out of the books: one that stays unacknowledged would keep a place among those under way."""
        for channel in self.channels or ():
            under_way: dict[str, Any] = channel.qos._delivered or {}
            for tag in [tag for tag, kept in under_way.items() if kept._raw is message]:
                channel.basic_reject(tag, requeue=False)


_ours: set[str] | None = set()  # the queues whose messages are looked at; None: all


def use_it(only: set[str] | None = None) -> None:
    """Let `redis://` and `rediss://` mean this transport in this process. Repeating is safe. With `only`, messages of
    other queues are left to Celery as they are: an application's own tasks may have limits that none of ours has."""
    global _ours
    _ours = None if only is None or _ours is None else _ours | only
    place = f"{__name__}:{Transport.__name__}"
    TRANSPORT_ALIASES.update(redis=place, rediss=place)


def _foreign(queue: str | None) -> bool:
    return _ours is not None and queue not in _ours


def _check(message: Any) -> None:
    """Raise for what Celery reads when the task is begun, outside of all that looks after one message."""
    limits = message["headers"].get("timelimit")
    if limits is not None and limits != [None, None]:
        raise ValueError("a time limit that none of ours has")


def _drop(error: Exception) -> None:
    log.warning("message_dropped", kind=type(error).__name__)  # its text may quote the message
