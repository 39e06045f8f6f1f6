"""Start: the first facts of a run, from what it was submitted with and from its agent as it is now."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from drangue_client.errors import FormatError
from drangue_client.events import Fact
from drangue_client.limits import Limits
from drangue_client.store.values import OVERRIDES, Look
from drangue_worker.engine.runtime import Runtime
from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.coordinate")


def first_facts(runtime: Runtime, look: Look) -> list[Fact]:
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
