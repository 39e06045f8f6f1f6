"""`MortalLog`: a store as one process sees it that dies at a chosen call.

The invariant: once the process is dead, nothing it still attempts reaches the store, and it hears no answer. The store
itself lives on; it is the same for the next process.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from drangue_client.store.port import Log
from drangue_client.store.values import Ask, Moved, all_of

WRITES = ("submit", "settle", "claim", "begin", "keep", "release")  # a death around a reading changes nothing
TOGETHER = ("settle", "claim", "release")  # of which one call may do many
LAPSED_S = -1.0  # a lease that is over already


class ProcessDied(BaseException):
    """Ends the life of a process that is only played. Not an Exception: nothing may handle it and go on."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call that wrote something: the `nth` of its name for a step (None: of no step). Equal calls of two runs are
    the same point of both, whatever siblings do in between, and however often a write was refused before."""

    name: str
    step: int | None
    nth: int


class MortalLog:
    """`log` until its process dies: `after` the call `at` took effect, or else before. None: it does not die.

    `calls` are those that wrote, in order, with the types of events each wrote; `names` says what the claimed steps
    are, `tools` which of them are tool calls. `dead` is whether the process has died.
    """

    def __init__(self, log: Log, at: Call | None = None, *, after: bool = False) -> None:
        self._log = log
        self._at = at
        self._after = after
        self._changed = threading.Condition()
        self._under_way = 0
        self._claims: list[Ask] = []
        self.dead = False
        self.calls: dict[Call, tuple[str, ...]] = {}
        self.names: dict[int, str] = {}
        self.tools: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        given = getattr(self._log, name)
        if inspect.iscoroutinefunction(given):
            return partial(self._awaited, given)
        return partial(self._made, name, given) if callable(given) else given

    def ends(self) -> dict[int, Call]:
        """Of each step that is a tool call, the first writing after it was done: a death before that repeats it."""
        ends: dict[int, Call] = {}
        for call, facts in self.calls.items():
            if call.step in self.tools and (call.name == "keep" or "tool_result" in facts):
                ends.setdefault(call.step, call)
        return ends

    def window(self, call: Call, *, after: bool) -> str:
        """When a process died, in words: before one of `calls`, or `after` it."""
        facts = self.calls[call]
        what = self.names.get(call.step, f"step {call.step}") if call.step is not None else "the run"
        if call.name == "settle":
            written = f"{' and '.join(facts) or 'what comes next'} {'were' if len(facts) > 1 else 'was'} recorded"
            words = (f"before {written}", f"after {written}")
            if call.step is not None:
                words = (f"after {what} was done, before {written}", f"after {what} was done and {written}")
        else:
            words = {
                "submit": ("before the run was submitted", "after the run was submitted, before it began"),
                "claim": (f"before {what} was claimed", f"after {what} was claimed, before it was done"),
                "begin": (
                    f"before the beginning of {what} was recorded",
                    f"after the beginning of {what} was recorded, before it was done",
                ),
                "keep": (
                    f"after {what} was done, before its outcome was kept",
                    f"after the outcome of {what} was kept, before it was judged",
                ),
                "release": (f"before {what} was given back", f"after {what} was given back"),
            }[call.name]
        return words[after] + (f" (time {call.nth})" if call.nth > 1 and call.step is not None else "")

    def bury(self) -> None:
        """Wait for what was under way when the process died, and let the leases of its claims lapse."""
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0)
        if self._claims:
            self._log.renew(self._claims, LAPSED_S)

    async def _awaited(self, given: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._alive():
            return await given(*args, **kwargs)

    def _made(self, name: str, given: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._alive():
            if name not in WRITES:
                return given(*args, **kwargs)
            if name in TOGETHER and len(args[0]) > 1:
                return self._one_by_one(name, given, *args, **kwargs)
            first = args[0] if name in ("begin", "keep") else args[0][0]
            step = _step_of(name, first)
            if not self._after and self._next(name, step) == self._at:
                self._die()
            answer = given(*args, **kwargs)
            if name == "claim":
                self._note_claims(args[0], answer)
            if _wrote(name, answer):
                call = self._next(name, step)
                with self._changed:
                    self.calls[call] = tuple(fact.type for fact in first.facts) if name == "settle" else ()
                if call == self._at:
                    self._die()
        return answer

    def _one_by_one(self, name: str, given: Callable[..., Any], items: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        """What waited together, so that each has windows of its own. Behind a refused move all of its run are."""
        answers: list[Any] = []
        refused: set[str] = set()
        for item in items:
            if name == "settle" and item.run_id in refused:
                answers.append(Moved("moved", look=self._log.look(item.run_id)))
                continue
            try:
                answers += self._made(name, given, [item], *args, **kwargs)
            except Exception as error:
                answers.append(error)
            if name == "settle" and getattr(answers[-1], "verdict", "") != "ok":
                refused.add(item.run_id)
        return all_of(answers)

    def _next(self, name: str, step: int | None) -> Call:
        with self._changed:
            return Call(name, step, 1 + sum((call.name, call.step) == (name, step) for call in self.calls))

    def _note_claims(self, asks: list[Ask], answers: list[Any]) -> None:
        for ask, claimed in zip(asks, answers, strict=True):
            if claimed is not None:
                self._claims.append(ask)
                what = {"model": "the model call", "tool": claimed.name}.get(claimed.kind, f"the {claimed.name}")
                self.names[ask.step] = f"{what} (step {ask.step})"
                if claimed.kind == "tool":
                    self.tools.add(ask.step)

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """A call that is sent by a living process and answered to one."""
        with self._changed:
            if self.dead:
                raise ProcessDied
            self._under_way += 1
        try:
            yield
            if self.dead:
                raise ProcessDied
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def _die(self) -> None:
        self.dead = True
        raise ProcessDied


def say_unless_dead(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler: the dead say nothing."""
    if not isinstance(context.get("exception"), ProcessDied):  # what nobody waits for any more
        loop.default_exception_handler(context)


def _step_of(name: str, first: Any) -> int | None:
    """The step a call is about, from the first thing it is given."""
    match name:
        case "submit":
            return None
        case "settle":
            return first.claim.step if first.claim else None
        case "release":
            return int(first.ask.step)
        case _:
            return int(first.step)


def _wrote(name: str, answer: Any) -> bool:
    """Whether a call took effect: one that was refused changed nothing, and a death around it neither."""
    if name in ("begin", "keep"):
        return bool(answer)
    first = answer[0]
    match name:
        case "submit":
            return bool(first[1])
        case "settle":
            return bool(first.verdict == "ok")
        case _:
            return first is not None
