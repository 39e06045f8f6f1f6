"""kombu's Redis transport, made to outlive what a worker of kombu 5.7 ends with, and to fetch many messages at once.

A connection that is lost: kombu closes a channel again, or acknowledges a late message, when it has no address any more
to do that with, and raises an AttributeError that nobody expects. Here it is the connection error that it is. Nothing
is lost by it: what was under way is claimed in Postgres, and what had not begun is sent again by a sweep.

A message that is none: whoever can write to Redis can write anything there. What cannot be read is dropped and logged.

A backlog: where a message comes at once there are more, and as many as the worker may take are fetched by one command.
It takes them from the list that Redis chose, in its order: one by one they would come in the same. All this is for a
worker of ours that keeps no copies in Redis; with copies, or on an application's app, messages are fetched one by one.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from time import monotonic
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis import Redis
from redis.exceptions import DataError, NoPermissionError, RedisError, ResponseError

from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.transport")

# What parts of the wrong kind come to, in kombu, in Celery and in redis.
MALFORMED = (TypeError, ValueError, AttributeError, LookupError, RecursionError, DataError)

MOST = 32  # messages that are fetched at once; more do not make a batch of claims cheaper. With 1 they come one by one
AT_ONCE_S = 0.002  # a message that came sooner was waiting already

KombuQoS: Any = virtual.QoS  # the stubs know little of what is in them
KombuChannel: Any = redis.Channel


class Client(Redis):
    """Remembers the list that a BRPOP took its message from; kombu keeps the name of the queue alone."""

    chosen: str | None = None

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        answer = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name == "BRPOP":
            self.chosen = bytes_to_str(answer[0]) if answer else None
        return answer


class QoS(KombuQoS):  # type: ignore[misc]
    """What a worker has fetched and not acknowledged: its limit, with no copy of it in Redis."""

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        message = self._delivered.get(delivery_tag)
        if requeue and message is not None:
            self.channel.put_back([message], "lpush")  # to the end of its list: it has had its turn
        self._quick_ack(delivery_tag)

    def restore_unacked(self) -> list[Any]:
        """Put back what was fetched and has not ended, in its order. What Redis does not take is sent by a sweep."""
        self._flush()
        messages = list(self._delivered.values())
        self._delivered.clear()
        try:
            self.channel.put_back(messages[::-1], "rpush")  # the first is to be the last, which is served first
        except (*self.channel.connection_errors, RedisError) as error:
            log.warning("messages_not_put_back", messages=len(messages), kind=type(error).__name__)
        return []  # of what kombu would write to a file


class Channel(KombuChannel):  # type: ignore[misc]
    """A channel that says so when its connection is gone, reads past what is no JSON, and fetches many messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._many = not self.ack_emulation and _ours is None
        self._more = False  # whether the last list had more
        self._backlog = False  # whether more may wait than could be taken
        if self._many:
            self.QoS = QoS

    def _get_client(self) -> Any:
        client = super()._get_client()
        return Client if client is Redis else client

    def _connparams(self, asynchronous: bool = False) -> Any:
        if getattr(self.connection, "client", None) is None:
            raise ConnectionError("the connection to Redis has been closed")
        return super()._connparams(asynchronous)

    def _brpop_read(self, **options: Any) -> Any:
        at_once = monotonic() - (self._brpop_sent_at or 0.0) < AT_ONCE_S
        try:
            super()._brpop_read(**options)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are the former
            _drop(error)
        if at_once or self._more:
            self._fetch()
        else:
            self._backlog = False
        return True

    def room(self, queue: str | None) -> int:
        """How many messages of a queue that is served here would be begun at once; none where others are known to wait.
        From any thread. It is none, too, for a worker that keeps copies in Redis, and on an application's app."""
        if not self._many or self._backlog or self._serving(queue) is None:
            return 0
        return self.qos.can_consume_max_estimate() or 0

    def hand_on(self, message: str, queue: str | None) -> None:
        """Hand on a message as if Redis had brought it, where its queue is still served. On Celery's own thread."""
        transport = self._serving(queue)
        if transport is not None:
            transport._deliver(loads(message), queue)

    def _serving(self, queue: str | None) -> Any:
        """The transport that has somebody to hand messages of a queue to; None where there is none, or none now."""
        transport = self.connection
        return transport if transport is not None and queue in transport._callbacks else None

    def _fetch(self) -> None:
        """Fetch what else the list holds, within the limit of what the worker may take, and hand it on."""
        self._more = False
        name: str | None = getattr(self.client, "chosen", None)
        queue = (name or "").rsplit(self.sep, 1)[0]
        credit = min(MOST - 1, self.qos.can_consume_max_estimate() or 0)  # None: there is no limit, so no worker
        self._backlog = credit < 1  # whoever can take nothing cannot tell
        if not self._many or credit < 1 or self._closing or queue not in self.active_queues:
            return
        fetched = deque(self._pop(name, credit))
        self._more, self._backlog = bool(fetched), len(fetched) == credit
        try:
            while fetched:
                self._hand_on(fetched.popleft(), queue)
        finally:
            if fetched:  # something ended the loop
                with suppress(*self.connection_errors), self.conn_or_acquire() as client:
                    client.rpush(name, *reversed(fetched))

    def _pop(self, name: str | None, count: int) -> list[bytes]:
        """Take messages on the connection that waits for them: it is idle until the next BRPOP."""
        connection = self.client.connection
        try:
            connection.send_command("RPOP", name, count)
            popped: list[bytes] | None = self.client.parse_response(connection, "RPOP")
            return popped or []
        except self.connection_errors:
            connection.disconnect()  # as kombu does, so that it is made anew
            raise
        except ResponseError as error:
            log.warning("messages_fetched_one_by_one", error=str(error))
            # A user that may not, or a Redis before 6.2; a failover passes.
            self._many = not (isinstance(error, NoPermissionError) or "number of arguments" in str(error))
            return []

    def _hand_on(self, item: bytes, queue: str) -> None:
        try:
            message = loads(bytes_to_str(item))
        except (ValueError, RecursionError) as error:
            _drop(error)
            return
        self.connection._deliver(message, queue)

    def put_back(self, messages: list[Any], command: str) -> None:
        """Push fetched messages back to their lists, in this order; a part of the wrong kind makes one be dropped."""
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            for message in messages:
                try:
                    raw = message._raw
                    priority = self._get_message_priority(raw, reverse=False)
                    name = self._q_for_pri(raw["properties"]["delivery_info"]["routing_key"], priority)
                    getattr(pipe, command)(name, dumps(raw))
                except MALFORMED as error:
                    _drop(error)
            pipe.execute()


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
        except MALFORMED as error:  # also a KeyError, which kombu takes for a lost connection
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
