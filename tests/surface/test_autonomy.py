"""Leave: what runs, what is only proposed, what waits for a person; and what a person's word is worth."""

from __future__ import annotations

import json

import pytest

from drangue_client.errors import NotPendingError, UnknownRunError
from drangue_client.result import Result
from drangue_client.terms import arguments_hash
from drangue_worker.testing import Reply
from tests.kit.fleet import wait_until
from tests.surface.case import Case, calls, contents, errors, of, shape
from tests.surface.effects import open_gate

both_wires = pytest.mark.parametrize("wire", ["openai", "anthropic"])
DONE = Reply("done")
PAUSED = "(paused: awaiting approval)"


@both_wires
def test_an_assisted_call_waits_for_a_person_and_then_runs(case: Case) -> None:
    """The whole pause: the run holds, shows what it wants and why, and goes on by itself once granted."""
    case.model(calls(("wire", {"amount": 5}), text="The invoice is due."), DONE)
    paused = case.run("assisted")
    assert (paused.status, paused.output, case.effects()) == ("paused", PAUSED, [])
    (request,) = paused.pending_approvals
    decided = of(paused, "model_decision")[0]["tool_calls"][0]
    assert request == {
        "step": 2,
        "call_id": decided["id"],
        "tool": "wire",
        "arguments": {"amount": 5},
        "arguments_hash": arguments_hash({"amount": 5}),
        "reasoning": None,
        "text": "The invoice is due.",
    }
    assert case.driver.pending(case.run_id) == [request]
    result = case.approve(by="ann", reason="seen it")
    assert (result.status, result.output, result.pending_approvals) == ("completed", "done", [])
    assert shape(result)[2:5] == [("approval_requested", 2), ("approval_granted", 2), ("step_started", 2)]
    assert of(result, "approval_granted") == [
        {
            "call_id": decided["id"],
            "by": "ann",
            "reason": "seen it",
            "arguments_hash": request["arguments_hash"],
        }
    ]
    assert case.effects() == [["wire", case.key(2), 5], ["wired", case.key(2), 5]]


@both_wires
def test_a_rejected_call_tells_the_model_why_and_does_not_run(case: Case) -> None:
    """A refusal is an answer: the model can explain it, or try something else."""
    case.model(calls(("wire", {"amount": 5})), Reply("I may not."))
    case.run("assisted")
    result = case.reject(by="bob", reason="too early")
    assert errors(result) == [{"category": "denied", "message": "too early"}]
    assert (result.status, result.output, case.effects()) == ("completed", "I may not.", [])
    (denied,) = of(result, "approval_denied")
    assert (denied["by"], denied["reason"]) == ("bob", "too early")


def test_a_rejection_without_a_reason_says_that_a_person_refused(case: Case) -> None:
    """An empty message would tell the model nothing."""
    case.model(calls(("wire", {"amount": 5})), DONE)
    case.run("assisted")
    (error,) = errors(case.reject())
    assert error == {"category": "denied", "message": "a person refused this call"}


def test_shadow_calls_are_proposed_and_not_executed(case: Case) -> None:
    """A new tool can be watched before it is trusted; also one that would be gated otherwise."""
    case.model(calls(("wire", {"amount": 5}), ("pay", {"amount": 6}), ("look", {"what": "disk"})), DONE)
    result = case.run("shadowing")
    proposed = [json.loads(content) for content in contents(result)[:2]]
    assert [{"shadow": one["shadow"], "proposed": one["proposed"]} for one in proposed] == [
        {"shadow": True, "proposed": {"tool": "wire", "arguments": {"amount": 5}}},
        {"shadow": True, "proposed": {"tool": "pay", "arguments": {"amount": 6}}},
    ]
    assert not any("ok" in one for one in proposed)
    assert case.effects() == [["look", case.key(4), "disk"]]
    assert (result.status, of(result, "step_started"), of(result, "approval_requested")) == ("completed", [], [])


def test_requires_approval_holds_without_guardrails_and_whatever_the_autonomy(case: Case) -> None:
    """The tool's author knows best what it can do; `autonomous` does not take that back."""
    case.model(calls(("pay", {"amount": 5}), ("look", {"what": "disk"})), DONE)
    paused = case.run("gated")
    assert paused.status == "paused"
    assert [request["tool"] for request in paused.pending_approvals] == ["pay"]
    assert case.effects() == [["look", case.key(3), "disk"]]
    assert contents(case.approve()) == ["5 paid", "disk is fine"]


def test_nobody_is_asked_about_a_call_that_cannot_run(case: Case) -> None:
    """A person's attention is dear: unknown tools and unreadable arguments are answered without it."""
    case.model(calls(("teleport", {}), ("wire", "5 dollars")), DONE)
    result = case.run("assisted")
    assert [error["category"] for error in errors(result)] == ["unknown_tool", "invalid_arguments"]
    assert (result.status, of(result, "approval_requested")) == ("completed", [])


def test_nobody_is_asked_about_arguments_that_will_be_refused(case: Case) -> None:
    """The schema is known before the question is put; after an approval the call fails all the same."""
    case.model(calls(("wire", {"amount": "much"}), ("listen", {})), DONE)
    result = case.run("assisted")
    assert (result.status, of(result, "approval_requested")) == ("completed", [])


def test_siblings_that_need_nobody_run_while_a_call_waits(case: Case) -> None:
    """One question must not hold up the rest of the work, and does not make a working run look idle."""
    gate = f"{case.run_id}-sibling"
    case.model(calls(("wire", {"amount": 5}), ("hold_async", {"gate": gate}), ("look", {"what": "disk"})), DONE)
    case.start("assisted")
    wait_until(lambda: [e for e in case.events() if e.step == 4])  # recorded, while the others are not
    (request,) = case.driver.pending(case.run_id)
    assert (request["tool"], Result.from_events(case.run_id, case.events()).status) == ("wire", "running")
    open_gate(gate)
    paused = case.result()
    assert (paused.status, contents(paused)) == ("paused", [f"{gate} passed", "disk is fine"])
    assert contents(case.approve()) == ["5 sent", f"{gate} passed", "disk is fine"]


def test_a_verdict_given_while_siblings_run_counts(case: Case) -> None:
    """Whoever is quick must not be told to come back when the run is idle."""
    gate = f"{case.run_id}-sibling"
    case.model(calls(("listen", {"what": "fan"}), ("hold_async", {"gate": gate})), DONE)
    case.start("assisted")
    wait_until(lambda: case.driver.pending(case.run_id))
    case.driver.approve(case.run_id)
    open_gate(gate)
    result = case.result()
    assert (result.status, contents(result)) == ("completed", ["fan hums", f"{gate} passed"])


def test_several_calls_wait_at_once_and_are_decided_in_any_order(case: Case) -> None:
    """Three questions are one visit to the inbox; each verdict is for its own call."""
    wanted = [("listen", {"what": what}) for what in ("a", "b", "c")]
    case.model(calls(*wanted), DONE)
    paused = case.run("assisted")
    ids = [request["call_id"] for request in paused.pending_approvals]
    assert [request["arguments"]["what"] for request in paused.pending_approvals] == ["a", "b", "c"]
    after_c = case.approve(ids[2], by="ann")
    assert (after_c.status, contents(after_c)) == ("paused", ["c hums"])
    assert [request["call_id"] for request in after_c.pending_approvals] == ids[:2]
    after_a = case.reject(ids[0], reason="not that one")
    assert [request["call_id"] for request in after_a.pending_approvals] == [ids[1]]
    assert len(case.calls) == 1  # the model is asked again when every call has its result
    result = case.approve()
    assert contents(result)[1:] == ["b hums", "c hums"]
    assert errors(result) == [{"category": "denied", "message": "not that one"}]
    assert sorted(case.effects()) == [["listen", case.key(3), "b"], ["listen", case.key(4), "c"]]


def test_without_an_id_the_oldest_request_is_decided(case: Case) -> None:
    """What most people mean by `approve RUN`."""
    case.model(calls(("listen", {"what": "a"}), ("listen", {"what": "b"})), DONE)
    case.run("assisted")
    assert contents(case.approve()) == ["a hums"]


def test_irreversible_calls_that_were_granted_still_run_in_call_order(case: Case) -> None:
    """The second transfer was decided after the first one; a quick verdict must not turn that around."""
    case.model(calls(("wire", {"amount": 1}), ("wire", {"amount": 2})), DONE)
    first, second = case.run("assisted").pending_approvals
    still = case.approve(second["call_id"])
    assert (still.status, case.effects()) == ("paused", [])
    assert [request["call_id"] for request in still.pending_approvals] == [first["call_id"]]
    assert contents(case.approve(first["call_id"])) == ["1 sent", "2 sent"]
    assert [amount for _, _, amount in case.effects("wired")] == [1, 2]


def test_the_first_verdict_on_a_call_holds(case: Case) -> None:
    """Two people at two desks: the second is told, whatever he wanted."""
    case.model(calls(("listen", {"what": "a"}), ("listen", {"what": "b"})), DONE)
    first, second = case.run("assisted").pending_approvals
    case.approve(first["call_id"])
    with pytest.raises(NotPendingError, match="is not pending") as refused:
        case.reject(first["call_id"])
    assert refused.value.pending == (second["call_id"],)
    assert second["call_id"] in str(refused.value)
    assert len(of(case.result(), "approval_denied")) == 0


def test_deciding_where_nothing_waits_is_refused_and_writes_nothing(case: Case) -> None:
    """A verdict that decides nothing must not lie in the log until something matches it."""
    done = case.run("toolbox")
    for decide in (case.driver.approve, case.driver.reject):
        with pytest.raises(NotPendingError, match="no pending approval"):
            decide(case.run_id)
        with pytest.raises(UnknownRunError):
            decide(f"{case.run_id}-typo")
    assert case.events() == done.events
    assert case.driver.pending(f"{case.run_id}-typo") == []


@pytest.mark.parametrize("ids", [("same", "same"), ("one", "two")], ids=["the id again", "another id"])
def test_an_approval_is_for_one_call_and_never_for_the_next_one(case: Case, ids: tuple[str, str]) -> None:
    """Providers reuse ids: the million must not go out on the approval of the one."""
    first, second = (
        Reply(tool_calls=(("wire", {"amount": amount}, one),)) for amount, one in zip((1, 1_000_000), ids, strict=True)
    )
    case.model(first, second, DONE)
    case.run("assisted")
    again = case.approve()
    assert (again.status, len(again.pending_approvals)) == ("paused", 1)
    assert again.pending_approvals[0]["arguments"] == {"amount": 1_000_000}
    assert [amount for _, _, amount in case.effects("wired")] == [1]
    assert contents(case.reject(reason="no")) == ["1 sent", contents(case.result())[1]]
    assert [amount for _, _, amount in case.effects("wired")] == [1]


def test_looking_at_a_paused_run_again_changes_nothing(case: Case) -> None:
    """Whoever asks twice gets the same answer, and the log stays as it is."""
    case.model(calls(("wire", {"amount": 5})), DONE)
    paused = case.run("assisted")
    again = case.run("assisted")
    assert (again.status, again.events, len(case.calls)) == ("paused", paused.events, 1)
