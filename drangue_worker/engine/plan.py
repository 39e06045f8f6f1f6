"""Plan: what facts and a decision come to. Pure but for what it is given to ask.

Shared by a coordinator, which has nothing to add, and by a settling step, which adds its result: both decide from the
run as it stands, and decide again when it has moved meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import assert_never

from drangue_client.events import Event, Fact
from drangue_client.folding import fold
from drangue_client.run import Run
from drangue_client.store.values import Executor, Look, Open
from drangue_client.wire.queue import MODEL_QUEUE
from drangue_worker.engine.facts import Check, Evidence, fact_of
from drangue_worker.rules.commands import CallModel, CallTool, Opening, Recall, Screen
from drangue_worker.rules.decide import decide
from drangue_worker.tools.invoke import unreadable

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
