"""Correct: an irreversible call was told as unknown, since its step was taken over, and whoever made it came back."""

from __future__ import annotations

from dataclasses import replace

from drangue_client.errors import ConflictError
from drangue_client.events import Fact
from drangue_client.outcomes import is_unknown
from drangue_client.store.values import Ask, StepRef
from drangue_worker.engine.coordinate import coordinate
from drangue_worker.engine.runtime import Runtime
from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.coordinate")


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
