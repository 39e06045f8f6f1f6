"""Natural batching: whatever waited while the last round trip was on its way goes together in the next one.

There is no timer: who comes alone goes alone and at once, so that nobody waits for company.
"""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from drangue_client.store.values import MOST, PartlyFailed

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Batch = list[tuple[Any, "asyncio.Future[Any]"]]
Job = Callable[[], None]


class Batcher(Generic[Item, Answer]):
    """Gathers the items of one event loop for `work`, which blocks and gives one answer for each, in their order. It
    is done wherever `hand` sees to it, and has a thread of its own without."""

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[Item]], Sequence[Answer]],
        most: int = MOST,
        hand: Callable[[Job], object] | None = None,
    ) -> None:
        self._work = work
        self._most = most
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._busy = False
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._hand = hand or self._jobs.put
        if hand is None:
            threading.Thread(target=self._serve, name=name, daemon=True).start()

    def put(self, item: Item) -> asyncio.Future[Answer]:
        """The answer to an item, when it is there; or its own exception by PartlyFailed, or one that is everybody's."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if not self._busy:
            self._send()
        return answer

    def close(self) -> None:
        """Let the thread end, when it has done what it has begun."""
        self._jobs.put(None)

    def _send(self) -> None:
        self._busy = True
        batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        try:
            self._hand(functools.partial(self._do, asyncio.get_running_loop(), batch))
        except RuntimeError as error:  # its threads have been shut down: the process ends
            self._done(batch, [error] * len(batch))

    def _serve(self) -> None:
        for job in iter(self._jobs.get, None):
            job()

    def _do(self, loop: asyncio.AbstractEventLoop, batch: Batch) -> None:
        answers = self._ask([item for item, _ in batch])
        if asyncio._get_running_loop() is loop:
            self._done(batch, answers)
            return
        try:
            loop.call_soon_threadsafe(self._done, batch, answers)
        except RuntimeError:  # the loop was closed meanwhile, and with it everybody who asked
            self._busy = False

    def _ask(self, items: Sequence[Item]) -> Sequence[Answer | BaseException]:
        try:
            answers = self._work(items)
            if len(answers) != len(items):
                raise RuntimeError(f"{len(answers)} answers to {len(items)} questions")
            return answers
        except PartlyFailed as error:
            return error.answers
        except BaseException as error:  # also one that ends a program: nobody waits for ever
            return [error] * len(items)

    def _done(self, batch: Batch, answers: Sequence[Answer | BaseException]) -> None:
        self._busy = False
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():  # cancelled by whoever asked
                continue
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        if self._waiting:
            self._send()
