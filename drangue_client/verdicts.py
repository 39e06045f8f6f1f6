"""Verdicts: a person's answer to a request that waits. One rule for applications and for agents in one process."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from drangue_client import answer, checks, terms
from drangue_client.appending import append
from drangue_client.autonomy import same_person
from drangue_client.errors import ChangedArgumentsError, NotPendingError, SamePersonError, ValidationError
from drangue_client.events import Fact, normalise
from drangue_client.result import pending_requests
from drangue_client.store.port import Log
from drangue_client.store.values import Look, RunRow
from drangue_client.wire.queue import HANDOFF_S

Verdict = Literal["approval_granted", "approval_denied"]


def record_verdict(
    log: Log,
    run_id: str,
    call_id: str | None,
    verdict: Verdict,
    by: str,
    reason: str,
    arguments: Mapping[str, Any] | None = None,
    arguments_hash: str | None = None,
) -> tuple[dict[str, Any], RunRow]:
    """Append a verdict under the run's lock; returns the request it is about, with how many people are still `missing`.

    With `arguments` the call is granted as if the model had given those. `arguments_hash` is that of the request which
    whoever decides has seen; once somebody has changed the arguments, a grant must name it. Raises NotPendingError,
    ChangedArgumentsError where others wait by now, ValidationError for arguments that the tool's schema refuses, and,
    of a request that needs several people, ValueError for nobody's word and SamePersonError for a second one by the
    same person; the run waits on then.
    """
    checks.text("run_id", run_id)
    checks.text("by", by)
    checks.text("reason", reason, hidden=True)
    checks.kind("arguments", arguments, Mapping, "the arguments by their names", optional=True)
    checks.text("arguments_hash", arguments_hash, "the arguments_hash of a request", blank=False, optional=True)
    chosen: list[dict[str, Any]] = []

    def decided(look: Look) -> Sequence[Fact]:
        request = _choose(log, look, call_id)
        unseen = arguments_hash is None and "asked_arguments" in request and arguments is None
        if (unseen and verdict == "approval_granted") or arguments_hash not in (None, request["arguments_hash"]):
            raise ChangedArgumentsError(run_id, request["call_id"])
        told = {"call_id": request["call_id"], "by": by, "reason": reason}
        if verdict == "approval_granted":
            told |= _granted(look, request, by, arguments)
        else:
            told["arguments_hash"] = request["arguments_hash"]
        granted = verdict == "approval_granted"
        shown = told.get("arguments", request["arguments"])
        chosen.append(request | {"arguments": shown, "missing": _missing(request, told) if granted else 0})
        return (Fact(verdict, told, step=request["step"]),)

    look, _ = append(log, run_id, decided, wake_in_s=HANDOFF_S)
    return chosen[-1], look.row


def _granted(look: Look, request: dict[str, Any], by: str, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a grant says of the arguments it is for."""
    shown = request["arguments"] if arguments is None else normalise(dict(arguments))
    edited = terms.arguments_hash(shown) != request["arguments_hash"]  # which tells 1 from true, as Python does not
    if edited:
        assert look.run.terms is not None
        tool = look.run.terms.tools.get(request["tool"])
        mistakes = answer.mistakes(tool.schema, shown) if tool else []
        if mistakes:
            raise ValidationError(f"arguments do not fit {request['tool']}: {'; '.join(mistakes)}. Correct them.")
    if request.get("people", 1) > 1:
        checks.text("by", by, "who decides", "Several people must grant this call, each another one.", blank=False)
        if same_person(by) in map(same_person, request["granted_by"]) and not edited:
            raise SamePersonError(look.row.run_id, request["call_id"], by)
    told = {"arguments_hash": terms.arguments_hash(shown)}
    told |= {"arguments": shown} if edited or "asked_arguments" in request else {}
    return told | ({"edited": True} if edited else {})


def _missing(request: dict[str, Any], told: dict[str, Any]) -> int:
    """How many people must still grant a call after this word."""
    if request.get("people", 1) == 1:
        return 0
    earlier = [] if told.get("edited") else request["granted_by"]
    return max(0, int(request["people"]) - len(set(map(same_person, [*earlier, told["by"]]))))


def _choose(log: Log, look: Look, call_id: str | None) -> dict[str, Any]:
    waiting = pending_requests(look.run, log.events(look.row.run_id)) if look.run.pending else []
    waiting = [one for one in waiting if look.now < one.get("expires_at", math.inf)]
    for request in waiting:
        if call_id in (None, request["call_id"]):
            return request
    raise NotPendingError(look.row.run_id, call_id, [request["call_id"] for request in waiting])
