"""Coordinate: take a run as it stands, decide, and say what to write and which steps to open.

`plan` is the pure part, shared by a coordinator, which has nothing to add, and by a settling step, which adds its
result: both decide in the transaction that writes, and decide again when the run has moved meanwhile.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

from drangue_client.errors import ConflictError, FormatError, ValidationError
from drangue_client.events import Event, Fact
from drangue_client.folding import fold
from drangue_client.limits import Limits
from drangue_client.outcomes import is_unknown
from drangue_client.run import Run
from drangue_client.store.values import OVERRIDES, Ask, Executor, Look, Move, Moved, Open, StepRef
from drangue_client.wire.queue import MODEL_QUEUE
from drangue_worker.engine.facts import Check, Evidence, fact_of
from drangue_worker.engine.runtime import Runtime
from drangue_worker.observability.logs import get_logger
from drangue_worker.rules.commands import CallModel, CallTool, Opening, Recall, Screen
from drangue_worker.rules.decide import decide
from drangue_worker.tools.invoke import check_arguments, unreadable

log = get_logger("drangue.coordinate")

ENDINGS = ("run_failed", "run_finished")
SCREEN, RECALL = "screen", "recall"  # what a preparing step prepares


@dataclass(frozen=True, slots=True)
class Plan:
    """What a decision comes to: the run after `facts`, and the steps to open."""

    run: Run
    facts: tuple[Fact, ...]
    opens: tuple[Open, ...]


def plan(
    look: Look, facts: Iterable[Fact], evidence: Evidence, check: Check = lambda _, arguments: unreadable(arguments)
) -> Plan:
    """Append `facts`, then decide until every command left is a step to open.

    `evidence` gives the events since the latest decision, for facts that repeat what a call asked for or what a person
    said; it is called only where one is needed. `check` keeps a person from being asked about a call that could not be
    made anyway.
    """
    run = look.run
    written: list[Fact] = []

    recorded: list[Sequence[Event]] = []  # asked for once, however many facts need it

    def known() -> list[Event]:
        if not recorded:
            recorded.append(evidence())
        return [*recorded[0], *(fact.at(0) for fact in written)]

    for fact in facts:
        run = fold([fact.at(run.seq + 1)], onto=run)
        written.append(fact)
    while True:
        steps: list[Open] = []
        fresh: list[Fact] = []
        for command in decide(run, look.now):
            if isinstance(command, Opening):
                steps.append(_open(command, look.row.executor))
            else:
                fresh.append(fact_of(command, run, look.now, known, check))
        if not fresh:
            return Plan(run, tuple(written), tuple(steps))
        for fact in fresh:
            run = fold([fact.at(run.seq + 1)], onto=run)
        written += fresh


def coordinate(runtime: Runtime, run_id: str, first: Sequence[Fact] = ()) -> list[StepRef]:
    """Move a run on from outside a step: after its submission, a verdict, a timer, or nothing at all.

    Returns the steps that were opened and are to be sent. Repeating is harmless. Raises UnknownRunError.
    """
    look = runtime.log.look(run_id)
    while True:
        if look.row.executor != runtime.executor or (look.run.ended and not first):
            if look.run.ended == "cancelled":
                runtime.ended(look.row, look.run)  # by a client, who traces nothing
            return []
        facts = [*first]
        if look.run.seq < 0:
            start = _start(runtime, look)
            if not start:
                return []
            facts += start
        decided = plan(look, facts, functools.partial(_since_decision, runtime, look), _check(runtime, look))
        move = Move(
            run_id,
            look.row.head_seq,
            decided.run,
            facts=decided.facts,
            opens=decided.opens,
            reopen=any(fact.type == "run_resumed" for fact in decided.facts),
            clear=decided.run.cut_short,
        )
        moved = runtime.log.settle([move])[0]
        if moved.verdict == "ok":
            announce(runtime, look, decided)
            return list(moved.opened)
        assert moved.look is not None
        look = moved.look


def settle(
    runtime: Runtime, claim: Ask, look: Look, facts: Sequence[Fact], *, park: bool = False
) -> tuple[Moved, Plan | None]:
    """Write a step's result and what follows from it, in one transaction.

    `look` is the run as the claim saw it. The verdict `lost`: nothing was written, the claim is no longer ours.
    """
    while True:
        # A turn ends once: the second of two failing siblings only gives its claim up.
        new = [_unasked(fact, look) for fact in facts if not (fact.type in ENDINGS and look.run.ended)]
        decided = plan(look, new, functools.partial(_since_decision, runtime, look), _check(runtime, look))
        move = Move(
            claim.run_id,
            look.row.head_seq,
            decided.run,
            facts=decided.facts,
            opens=decided.opens,
            claim=claim,
            park=park,
            clear=decided.run.cut_short,
        )
        moved = runtime.log.settle([move])[0]
        if moved.verdict == "ok":
            announce(runtime, look, decided)
            return moved, decided
        if moved.verdict == "lost":
            return moved, None
        assert moved.look is not None
        look = moved.look


def _unasked(fact: Fact, look: Look) -> Fact:
    """A question that need not be put any more: whoever made the call came back with its outcome meanwhile, and the
    conversation has that in the place of the unknown one."""
    call = look.run.call(fact.step)
    if fact.type != "outcome_requested" or call is None or call.verdict != "known":
        return fact
    told = {"call_id": fact.payload["call_id"], "name": fact.payload["tool"], "content": fact.payload["content"]}
    return Fact("tool_result", {**told, "unknown": True}, fact.step)


def correct(runtime: Runtime, claim: Ask, late: Fact) -> list[StepRef]:
    """Record the true outcome of an irreversible call whose step was taken over while it ran, and told as unknown.

    Where a person is asked, it is the answer, and it holds against what a person has said. Nothing is written where a
    worker has told it already. Returns the steps that were opened, to be sent.
    """
    known = [event for event in runtime.log.events(claim.run_id) if event.step == claim.step]
    results = [event for event in known if event.type == "tool_result"]
    by_people = {event.seq + 1 for event in known if event.type == "outcome_given"}  # what they found stands behind it
    outcomes = [event for event in known if event.type in ("tool_result", "outcome_corrected")]
    if any(event.seq not in by_people and not is_unknown(event.payload) for event in outcomes):
        return []
    asked = not results and any(event.type == "outcome_requested" for event in known)
    log.warning("outcome_corrected", run_id=claim.run_id, step=claim.step)
    try:
        return coordinate(runtime, claim.run_id, [late if asked else replace(late, type="outcome_corrected")])
    except ConflictError:  # a person has answered meanwhile: whoever made the call knows better
        return coordinate(runtime, claim.run_id, [replace(late, type="outcome_corrected")])


def announce(runtime: Runtime, look: Look, decided: Plan) -> None:
    """Ring for whoever waits, when the run has stopped; a lost ring costs a waiter a second."""
    status = decided.run.status
    asked = any(fact.type in ("approval_requested", "approval_escalated") for fact in decided.facts)
    if asked:
        runtime.doorbell.approval_waiting(look.row.run_id)
    if status == look.row.status or status == "running":
        return
    if decided.run.ended:
        runtime.ended(look.row, decided.run)
    log.info("run_stopped", run_id=look.row.run_id, status=status, reason=decided.run.reason)
    runtime.doorbell.moved(look.row.run_id)
    if status == "paused" and not asked:
        runtime.doorbell.approval_waiting(look.row.run_id)


def _start(runtime: Runtime, look: Look) -> list[Fact]:
    """The first facts of a run; none where it cannot begin here, or not yet."""
    blueprint = runtime.registry.get(look.row.agent)
    if blueprint is None:
        # The run stays due: a worker that has the agent takes it at the next sweep.
        log.warning("agent_missing", run_id=look.row.run_id, agent=look.row.agent)
        return []
    overrides = look.row.overrides
    begins = max(look.row.created_at, overrides.get("not_before", 0.0))
    if look.now < begins:
        return []  # it is due then, and nobody should have asked for it before
    newer, limits = sorted(overrides.keys() - OVERRIDES), Limits()
    if not newer and "limits" in overrides:
        try:
            limits = Limits.from_json(overrides["limits"])
        except FormatError:
            newer = ["limits"]
    if newer:
        # A worker that knows what it says takes the run at a later sweep.
        log.warning("override_unknown", run_id=look.row.run_id, override=", ".join(newer))
        return []
    terms = replace(blueprint.terms, output_schema=overrides.get("output_schema", blueprint.terms.output_schema))
    terms = limits.on(terms)
    times = [one for one in (terms.deadline_s, overrides.get("deadline_s")) if one is not None]
    terms = replace(terms, deadline_s=min(times, default=None))
    payload: dict[str, Any] = {"input": look.row.input, "config": terms.to_json()}
    payload |= terms.deadline(begins)  # waiting in a queue counts
    if terms.output_schema is not None:
        payload["output_schema"] = terms.output_schema
    if "turn_id" in overrides:
        payload["turn_id"] = overrides["turn_id"]
    started = Fact("run_started", payload)
    try:
        limits.check(terms.tools)
    except ValueError as error:
        told = f"{error} Submit it again with the right name; taken up again, it goes on without that limit."
        return [started, Fact("run_failed", {"error": told, "category": "limits"})]
    return [started]


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


def _since_decision(runtime: Runtime, look: Look) -> list[Event]:
    return runtime.log.events(look.row.run_id, after=look.run.decision_seq - 1)


def _open(command: Opening, executor: Executor) -> Open:
    match command:
        case CallModel(step):
            return Open(step, "model", None, MODEL_QUEUE if executor == "celery" else None)
        case CallTool(step, name, queue, on_cancel):
            return Open(step, "tool", name, queue if executor == "celery" else None, on_cancel)
        case Screen(step) | Recall(step):
            what = SCREEN if isinstance(command, Screen) else RECALL
            return Open(step, "prepare", what, MODEL_QUEUE if executor == "celery" else None)
        case _:
            assert_never(command)
