"""Aside: work that waits for Postgres, on the event loop's own thread and without holding the loop up.

Such work has a stack of its own, a greenlet. Where Postgres answers within moments it is over before the loop goes on,
and no thread had to be woken for it, nor the loop from there: with nothing else to do that is a third of a step's time.
Where Postgres does not, the work is left standing, and the loop goes on until there is an answer, however long that
takes. What waits for anything else has no place here.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet
from psycopg.waiting import Ready, Wait

T = TypeVar("T")
Asked = tuple[int, Wait]  # a socket, and what it is to be ready for

MOMENT_MS = 3  # longer than a commit on a disk of today; a loop that has one task misses nothing meanwhile


class _Work(greenlet):
    """Work on a stack of its own. It switches to its parent, the loop, with what it waits for."""


def inside() -> bool:
    """Whether the caller is such work: what may block otherwise than on Postgres belongs on a thread then."""
    return isinstance(getcurrent(), _Work)


async def do(work: Callable[[], T]) -> T:
    """What `work` gives or raises. A caller that is cancelled meanwhile still gets it, as what was written is known to
    have been; `asyncio.current_task().cancelling()` tells of it."""
    its = _Work(work)
    its.gr_context = getcurrent().gr_context
    asked = its.switch()
    answer: T = asked if its.dead else await whole(asyncio.ensure_future(_go_on(its, asked)))
    return answer


def wait(steps: Generator[Any, Any, T], socket: int) -> T:
    """Inside such work: go through what the driver does for a statement, which gives what it waits for and is sent what
    the socket is ready for."""
    loop, poll = getcurrent().parent, select.poll()
    assert loop is not None
    try:
        wanted = next(steps)
        while True:
            poll.register(socket, _events(wanted))
            found = poll.poll(MOMENT_MS)
            ready = _ready(found[0][1]) if found else loop.switch((socket, wanted))
            wanted = steps.send(ready)
    except StopIteration as ended:
        answer: T = ended.value
        return answer


async def whole(work: asyncio.Future[T]) -> T:
    """What `work` gives, also to a caller that was cancelled meanwhile; `asyncio.current_task().cancelling()` tells of
    it."""
    while True:
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if work.cancelled():
                raise


async def _go_on(its: _Work, asked: Any) -> Any:
    while not its.dead:
        try:
            ready = await _readiness(*asked)
        except BaseException as error:
            asked = its.throw(error)
        else:
            asked = its.switch(ready)
    return asked


async def _readiness(socket: int, wanted: Wait) -> Ready:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[Ready] = loop.create_future()

    def tell(what: Ready) -> None:
        if not ready.done():
            ready.set_result(what)

    if wanted & Wait.R:
        loop.add_reader(socket, tell, Ready.R)
    if wanted & Wait.W:
        loop.add_writer(socket, tell, Ready.W)
    try:
        return await ready
    finally:
        loop.remove_reader(socket)
        loop.remove_writer(socket)


def _events(wanted: Wait) -> int:
    return (select.POLLIN if wanted & Wait.R else 0) | (select.POLLOUT if wanted & Wait.W else 0)


def _ready(found: int) -> Ready:
    """What a poll has found, as the driver has it; a socket with an error is read, which says what it is."""
    able = (Ready.R if found & ~select.POLLOUT else 0) | (Ready.W if found & select.POLLOUT else 0)
    return Ready(able)
