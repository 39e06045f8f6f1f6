"""Natural batching: whatever waited while the last round trip was on its way goes together in the next one.

There is no timer: who comes alone goes alone and at once, so that nobody waits for company.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from drangue_client.store.values import PartlyFailed

Item = TypeVar("Item")
Answer = TypeVar("Answer")

MOST = 32  # in one batch: twice as many gain next to nothing


class Batcher(Generic[Item, Answer]):
    """Gathers items for `work`, which gives one answer for each, in their order. Of one event loop."""

    def __init__(self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]], most: int = MOST) -> None:
        self._work = work
        self._most = most
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._serving: asyncio.Task[None] | None = None

    def put(self, item: Item) -> asyncio.Future[Answer]:
        """The answer to an item, when it is there. An item that raises does so for itself alone."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((item, answer))
        if self._serving is None:
            self._serving = loop.create_task(self._serve())
        return answer

    async def _serve(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
                answers = await self._ask([item for item, _ in batch])
                for (_, future), answer in zip(batch, answers, strict=True):
                    if future.done():  # cancelled by whoever asked
                        continue
                    if isinstance(answer, asyncio.CancelledError):
                        future.cancel()
                    elif isinstance(answer, BaseException):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
        finally:
            self._serving = None

    async def _ask(self, items: Sequence[Item]) -> Sequence[Answer | BaseException]:
        try:
            return await self._work(items)
        except PartlyFailed as error:
            return error.answers
        except BaseException as error:  # also one that ends a program, or this loop: nobody waits for ever
            return [error] * len(items)
