"""Coordinate: move runs on. Take each as it stands, decide, and write what follows, provided that nothing moved.

A coordinator moves a run on from outside its steps, a settling step by what it came to. What waits together is decided
and written together: a run may be there more than once, and then the second is decided from what the first will write.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from drangue_client.errors import DatabaseUnavailable, UnknownRunError, ValidationError
from drangue_client.events import Event, Fact
from drangue_client.store.values import Ask, Look, Move, Moved, PartlyFailed, Release, StepRef, Take, all_of
from drangue_worker.engine.facts import Check
from drangue_worker.engine.plan import Plan, plan
from drangue_worker.engine.runtime import Runtime
from drangue_worker.engine.start import first_facts
from drangue_worker.observability.logs import get_logger
from drangue_worker.tools.invoke import check_arguments, unreadable

log = get_logger("drangue.coordinate")

ENDINGS = ("run_failed", "run_finished")


@dataclass(slots=True)
class Next:
    """What is to move a run on: `facts` to be recorded before anything is decided. `claim` is the step that settles by
    them, None where a coordinator asks; `park` is as in Move. `look` is the run as it was seen, by the claim or at all:
    where it has moved since, or None was seen, it is looked at again. `token` begins those of the claims that are taken
    with it, so that they are the same when it is repeated: `asked` are the steps that the latest try would take, and
    `unsure` those that an earlier one may have taken without anybody's knowing, since its answer was lost."""

    run_id: str
    facts: tuple[Fact, ...] = ()
    claim: Ask | None = None
    look: Look | None = None
    park: bool = False
    token: str = field(default_factory=lambda: secrets.token_hex(12))
    asked: set[int] = field(default_factory=set)
    unsure: set[int] = field(default_factory=set)

    def ask(self, runtime: Runtime, step: int) -> Ask:
        """The claim of a step that is taken with this."""
        return runtime.ask(self.run_id, step, f"{self.token}{step:08x}")

    def unheard(self) -> None:
        """Take note that the latest try was refused, or its answer lost."""
        self.unsure.update(self.asked)
        self.asked.clear()

    def heard(self, opened: Sequence[StepRef]) -> None:
        """Take note of what the latest try has opened."""
        self.asked.clear()
        self.unsure.difference_update(ref.step for ref in opened)


@dataclass(slots=True)
class _Chain:
    """One run while it is decided about: as it stands in the database, as it will stand, and the events between."""

    stored: Look
    look: Look
    events: list[Event] = field(default_factory=list)


def coordinate(runtime: Runtime, run_id: str, first: Sequence[Fact] = ()) -> list[StepRef]:
    """Move a run on from outside a step: after its submission, a verdict, a timer, or nothing at all.

    Returns the steps that were opened. Repeating is harmless. Raises UnknownRunError.
    """
    return list(move_on(runtime, [Next(run_id, tuple(first))])[0].opened)


def move_on(runtime: Runtime, nexts: Sequence[Next]) -> list[Moved]:
    """Move runs on, each as it is when its turn comes; the steps that this opens are sent by `runtime.publish`.

    The verdict `lost`: nothing was written, the claim is no longer its asker's. Raises for one what it raises alone,
    and PartlyFailed for several.
    """
    for one in nexts:
        one.unheard()  # it may be repeated
    looks, unreadable = _looks(runtime, nexts)
    answers: dict[int, Moved | Exception] = {
        place: unreadable[one.run_id] for place, one in enumerate(nexts) if one.run_id in unreadable
    }
    todo = [place for place in range(len(nexts)) if place not in answers]
    while todo:
        runtime.dispatch.begin_round()
        chains = {run_id: _Chain(look, look) for run_id, look in looks.items()}
        decided: list[tuple[int, Look, Plan, Move]] = []
        for place in todo:
            try:
                found = _decide(runtime, nexts[place], chains.get(nexts[place].run_id))
            except DatabaseUnavailable:
                raise
            except Exception as error:
                answers[place] = error
            else:
                if found is None:
                    answers[place] = Moved("ok")
                else:
                    decided.append((place, *found))
        settled = list(zip(decided, _settle(runtime, [one[-1] for one in decided]), strict=True))
        todo = []
        for (place, _, _, move), moved in settled:
            if isinstance(moved, Moved) and moved.look is not None:
                looks[move.run_id] = moved.look
                todo.append(place)
            else:
                answers[place] = moved
            if _is_written(moved):
                nexts[place].heard(moved.opened)
            else:
                nexts[place].unheard()
        written = [(look, done, moved) for (_, look, done, _), moved in settled if _is_written(moved)]
        opened = [ref for _, _, moved in written for ref in moved.opened]
        runtime.go_on(opened, [one for _, _, moved in written for one in moved.taken])
        announce(runtime, [(look, done) for look, done, _ in written])
    _give_back_unsure(runtime, nexts)
    return all_of([answers[place] for place in range(len(nexts))])


def _give_back_unsure(runtime: Runtime, nexts: Sequence[Next]) -> None:
    """Give back what may have been taken by a move whose answer was lost, and is at nobody's hands."""
    asks = [one.ask(runtime, step) for one in nexts for step in sorted(one.unsure)]
    asks = [ask for ask in asks if ask.token not in runtime.going]
    for one in nexts:
        one.unsure.clear()
    if asks:
        runtime.tell(_give_back, runtime, asks)


def _give_back(runtime: Runtime, asks: Sequence[Ask]) -> None:
    """Where this fails the leases lapse: what was written meanwhile must not be asked for again."""
    try:
        given_back = runtime.log.release([Release(ask, category="unsure") for ask in asks])
        runtime.publish([ref for ref in given_back if ref])
    except Exception as error:
        log.warning("give_back_failed", steps=len(asks), kind=type(error).__name__)


def _is_written(moved: Moved | Exception) -> TypeGuard[Moved]:
    return isinstance(moved, Moved) and moved.verdict == "ok"


def _looks(runtime: Runtime, nexts: Sequence[Next]) -> tuple[dict[str, Look], dict[str, Exception]]:
    """The runs as they are known to stand: the newest look of those that the settling steps bring, else a new one. And
    what kept runs from being read, which is nothing to the others."""
    looks: dict[str, Look] = {}
    for one in nexts:
        if one.look is not None:
            other = looks.get(one.run_id, one.look)
            newer = max(other, one.look, key=lambda look: look.row.head_seq)
            looks[one.run_id] = replace(newer, now=max(other.now, one.look.now)) if other is not one.look else newer
    unknown = sorted({one.run_id for one in nexts} - looks.keys())
    failed: dict[str, Exception] = {}
    if unknown:
        try:
            return looks | runtime.log.looks(unknown), failed
        except DatabaseUnavailable:
            raise
        except Exception as error:
            failed = {unknown[0]: error} if len(unknown) == 1 else failed
    for run_id in unknown if len(unknown) > 1 else ():
        try:
            looks |= runtime.log.looks([run_id])
        except DatabaseUnavailable:
            raise
        except Exception as error:
            failed[run_id] = error
    return looks, failed


def _decide(runtime: Runtime, one: Next, chain: _Chain | None) -> tuple[Look, Plan, Move] | None:
    """What to write for one, and the run as it stood before; None where there is nothing to do."""
    if chain is None:
        raise UnknownRunError(one.run_id)
    look = chain.look
    facts = _begun(runtime, one, look) if one.claim is None else _settled(one, look)
    if facts is None:
        return None
    decided = plan(look, facts, functools.partial(_since_decision, runtime, chain), _check(runtime, look))
    row = replace(look.row, head_seq=look.row.head_seq + len(decided.facts), status=decided.run.status)
    asks = tuple(one.ask(runtime, opened.step) for opened in decided.opens if runtime.wants(opened))
    one.asked.update(ask.step for ask in asks)
    move = Move(
        one.run_id,
        look.row.head_seq,
        decided.run,
        facts=decided.facts,
        opens=decided.opens,
        claim=one.claim,
        park=one.park,
        reopen=any(fact.type == "run_resumed" for fact in decided.facts),
        clear=decided.run.cut_short,
        hasty=one.claim is None and [fact.type for fact in decided.facts] == ["run_started"],
        take=Take(asks, runtime.settings.lease_s, look.row) if asks else None,
    )
    places = range(look.row.head_seq + 1, look.row.head_seq + 1 + len(decided.facts))
    chain.events += [fact.at(place) for place, fact in zip(places, decided.facts, strict=True)]
    chain.look = Look(row, decided.run, look.now)
    return look, decided, move


def _begun(runtime: Runtime, one: Next, look: Look) -> list[Fact] | None:
    """What a coordinator records first; None where the run is not its to move."""
    if look.row.executor != runtime.executor or (look.run.ended and not one.facts):
        if look.run.ended == "cancelled":
            runtime.tell(runtime.ended, look.row, look.run)  # by a client, who traces nothing
        return None
    if look.run.seq >= 0:
        return list(one.facts)
    start = first_facts(runtime, look)
    return [*one.facts, *start] if start else None


def _settled(one: Next, look: Look) -> list[Fact]:
    """What a step records. A turn ends once: the second of two failing siblings only gives its claim up."""
    return [_unasked(fact, look) for fact in one.facts if not (fact.type in ENDINGS and look.run.ended)]


def _settle(runtime: Runtime, moves: Sequence[Move]) -> list[Moved | Exception]:
    """Write moves; what fails stands in the place of its own answer alone."""
    if not moves:
        return []
    try:
        return list(runtime.log.settle(moves))
    except PartlyFailed as error:
        return error.answers
    except DatabaseUnavailable:
        raise
    except Exception as error:
        return [error] if len(moves) == 1 else [answer for move in moves for answer in _settle(runtime, [move])]


def _unasked(fact: Fact, look: Look) -> Fact:
    """A question that need not be put any more: whoever made the call came back with its outcome meanwhile, and the
    conversation has that in the place of the unknown one."""
    call = look.run.call(fact.step)
    if fact.type != "outcome_requested" or call is None or call.verdict != "known":
        return fact
    told = {"call_id": fact.payload["call_id"], "name": fact.payload["tool"], "content": fact.payload["content"]}
    return Fact("tool_result", {**told, "unknown": True}, fact.step)


def announce(runtime: Runtime, done: Sequence[tuple[Look, Plan]]) -> None:
    """Ring for whoever waits, where a run has stopped since it was looked at; a lost ring costs a waiter a second."""
    moved: list[str] = []
    waiting: list[str] = []
    for look, decided in done:
        status, run_id = decided.run.status, look.row.run_id
        asked = any(fact.type in ("approval_requested", "approval_escalated") for fact in decided.facts)
        stopped = status not in (look.row.status, "running")
        if asked or (stopped and status == "paused"):
            waiting.append(run_id)
        if stopped:
            if decided.run.ended:
                runtime.tell(runtime.ended, look.row, decided.run)
            log.info("run_stopped", run_id=run_id, status=status, reason=decided.run.reason)
            moved.append(run_id)
    if moved or waiting:
        runtime.tell(runtime.doorbell.ring, moved, waiting)


def _check(runtime: Runtime, look: Look) -> Check:
    """The check by the tools themselves, where this process has them."""
    blueprint = runtime.registry.get(look.row.agent)

    def check(name: str, arguments: dict[str, Any]) -> str | None:
        tool = blueprint.tools.get(name) if blueprint else None
        try:
            check_arguments(tool, arguments) if tool else None
        except ValidationError as error:
            return str(error)
        return unreadable(arguments)

    return check


def _since_decision(runtime: Runtime, chain: _Chain) -> list[Event]:
    after = chain.stored.run.decision_seq - 1
    return [*runtime.log.events(chain.stored.row.run_id, after=after), *chain.events]
