"""Leave: every reason not to make a call, in the order of their authority, and what a person's word made of it.

The stricter of what was recorded and what the agent says today holds. Nothing here makes the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from drangue_client.autonomy import Approval, same_person, stricter
from drangue_client.errors import ValidationError
from drangue_client.events import Event
from drangue_client.outcomes import approved_as, failure, shadow
from drangue_client.terms import arguments_hash
from drangue_worker.engine.facts import EXPIRED, approval_request
from drangue_worker.engine.step import Attempt, Outcome, Settle
from drangue_worker.tools.guards import approved, refusal
from drangue_worker.tools.invoke import check_arguments, give_up
from drangue_worker.tools.tool import Tool


async def answered_without_running(attempt: Attempt, tool: Tool, call: dict[str, Any]) -> Outcome | None:
    """Permissions, in their order: names, shadow, arguments, the author's guard, a person, the author's approver.

    The stricter of what was recorded and what the agent says today holds. Raises what a guard raises.
    """
    name, call_id, arguments = tool.name, call["id"], call["arguments"]
    terms, today, guards = attempt.terms, attempt.blueprint.terms, attempt.blueprint.guardrails
    limit_s = attempt.runtime.settings.call_timeout_s
    forbidden = terms.refusal(name) or today.refusal(name)
    if forbidden:
        return attempt.dispatched(name, call_id, failure(name, "blocked", forbidden))
    mode = stricter(terms.mode_for(name), today.mode_for(name))
    if mode == "shadow":
        return attempt.result(name, call_id, shadow(name, arguments))
    if any(event.type == "approval_expired" for event in attempt.claimed.facts):
        return attempt.dispatched(name, call_id, await give_up(tool, "expired", EXPIRED, limit_s))
    granted = next((event for event in reversed(attempt.claimed.facts) if event.type == "approval_granted"), None)
    if granted and granted.payload.get("arguments_hash") != arguments_hash(arguments):
        return attempt.result(name, call_id, failure(name, "denied", "the approval is for other arguments"))
    try:
        check_arguments(tool, arguments)
    except ValidationError as error:
        return attempt.dispatched(name, call_id, failure(name, "invalid_arguments", str(error)))
    if terms.guards and terms.guards.output and not (guards and guards.output_guard):
        return attempt.guard_missing("an output guard")
    if guards and guards.output_guard:
        blocked = await refusal(guards.output_guard, name, arguments, of="the output guard", limit_s=limit_s)
        if blocked:
            return attempt.dispatched(name, call_id, failure(name, "blocked", blocked))
    policy = terms.approval_of(name).stricter(today.approval_of(name))
    given_by = _granted_by(attempt.claimed.facts)
    if granted:
        return None if len(given_by) >= policy.people else _ask(attempt, call, policy, given_by)
    approver, gated = guards.approver if guards else None, _gated(attempt, tool)
    if mode == "assisted" or (gated and approver is None):
        # Stricter today than when the run began, or a guard came first: the question becomes a fact, the rules go on.
        return _ask(attempt, call, policy)
    if gated and approver and not await approved(approver, name, arguments, limit_s):
        message = f"{name} needs an approval, and the approver refused this call"
        return attempt.dispatched(name, call_id, failure(name, "blocked", message))
    return None


def _granted_by(facts: Sequence[Event]) -> tuple[str, ...]:
    """Who has granted a call as it stands: who changes its arguments puts the question anew."""
    given_by: tuple[str, ...] = ()
    for grant in filter(None, map(_grant, facts)):
        given_by = () if grant.get("edited") else given_by
        known = same_person(grant["by"]) in map(same_person, given_by)
        given_by = given_by if known else (*given_by, grant["by"])
    return given_by


def _ask(attempt: Attempt, call: dict[str, Any], policy: Approval, granted_by: Sequence[str] = ()) -> Settle:
    """Put a call as it stands to people: the question becomes a fact, and the rules go on from there."""
    decision, name = attempt.claimed.decision, str(attempt.claimed.name)
    assert decision is not None
    request = approval_request(attempt.step, name, [decision], policy, attempt.now(), granted_by)
    if call.get("edited"):
        now = {"arguments": call["arguments"], "arguments_hash": arguments_hash(call["arguments"])}
        request = replace(request, payload={**request.payload, **now, "asked_arguments": request.payload["arguments"]})
    return Settle((request,))


def reversible(attempt: Attempt, tool: Tool) -> bool:
    """Whether a call may be repeated, by what was recorded and by what the agent says today, taken together."""
    recorded = attempt.terms.tools.get(tool.name)
    return tool.reversible and (recorded is None or recorded.reversible)


def _gated(attempt: Attempt, tool: Tool) -> bool:
    """Whether the call needs an approval, by what was recorded and by what the agent says today, taken together."""
    recorded = attempt.terms.tools.get(tool.name)
    if tool.requires_approval or (recorded is not None and recorded.requires_approval):
        return True
    both = (attempt.terms.guards, attempt.blueprint.terms.guards)
    return not reversible(attempt, tool) and any(guards.gate_irreversible for guards in both if guards)


def as_granted(call: dict[str, Any], facts: Sequence[Event]) -> dict[str, Any]:
    """A call with the arguments under which it was granted, which a person may have changed (`edited`)."""
    changed = [event.payload["arguments"] for event in facts if "arguments" in _grant(event)]
    return {**call, "arguments": changed[-1], "edited": True} if changed else call


def as_approved(call: dict[str, Any], content: str) -> str:
    """What a call came to, and under which arguments where those are not the model's."""
    return approved_as(call["arguments"], content) if call.get("edited") else content


def _grant(event: Event) -> dict[str, Any]:
    return event.payload if event.type == "approval_granted" else {}
