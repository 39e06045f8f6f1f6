"""Guardrails at their four points: the input, each call, the action gate, each result."""

from __future__ import annotations

import pytest

from drangue_worker.testing import Reply
from tests.surface.case import Case, calls, contents, errors, of, shape

both_wires = pytest.mark.parametrize("wire", ["openai", "anthropic"])
DONE = Reply("done")


@both_wires
def test_a_blocked_input_ends_its_turn_before_the_model_sees_it(case: Case) -> None:
    """An injected text costs nothing and reaches nobody."""
    result = case.run("guarded", "something forbidden")
    assert (result.status, result.reason, result.output) == ("completed", "blocked", "(blocked: not about that)")
    assert case.calls == []
    assert shape(result) == [("run_started", None), ("input_screened", -1), ("run_finished", 0)]
    assert of(result, "input_screened") == [{"turn": 1, "blocked": True, "reason": "not about that"}]
    assert of(result, "run_finished")[0]["blocked"] is True


@both_wires
def test_a_later_turn_goes_on_and_the_model_never_sees_the_blocked_text(case: Case) -> None:
    """One bad message must neither end the conversation nor slip into it later."""
    case.model(Reply("hello"), Reply("fine"))
    case.run("guarded", "good morning")
    blocked = case.say("now the forbidden thing")
    assert (blocked.reason, blocked.output, len(case.calls)) == ("blocked", "(blocked: not about that)", 1)
    result = case.say("how are you?")
    assert (result.reason, result.output) == ("answered", "fine")
    assert [message["content"] for message in case.calls[-1].messages] == [
        case.text("good morning"),
        "hello",
        case.text("how are you?"),
    ]
    assert [message["content"] for message in result.messages] == [
        *[message["content"] for message in case.calls[-1].messages],
        "fine",
    ]


def test_a_conversation_can_begin_after_a_blocked_first_input(case: Case) -> None:
    """The first message is no different from the others."""
    case.run("guarded", "something forbidden")
    result = case.say("good morning")
    assert (result.reason, result.output) == ("answered", "done")
    assert [message["content"] for message in case.calls[0].messages] == [case.text("good morning")]


def test_every_input_is_judged_exactly_once(case: Case) -> None:
    """The verdict is recorded, so that nobody is judged again, or not at all."""
    case.model(calls(("look", {"what": "disk"})), DONE)
    case.run("guarded", "one")
    case.say("two")
    case.run("guarded", "one")
    assert case.effects("input_guard") == [["input_guard", case.text("one")], ["input_guard", case.text("two")]]


def test_names_that_are_not_allowed_are_refused_and_nobody_is_asked(case: Case) -> None:
    """A list is a hard denial: it comes before autonomy, before the guard and before any person."""
    case.model(
        calls(("listen", {"what": "fan"}), ("weigh", {"grams": 1}), ("phantom", {}), ("look", {"what": "x"})), DONE
    )
    result = case.run("guarded")
    assert [(error["category"], error["message"]) for error in errors(result)] == [
        ("blocked", "listen is on the deny-list of this agent"),
        ("blocked", "weigh is not on the allow-list of this agent"),
        ("unknown_tool", "there is no tool named 'phantom'"),
    ]
    assert (result.status, of(result, "approval_requested")) == ("completed", [])
    assert case.effects("look") == [
        ["look", case.key(5), "x"],
    ]


def test_nobody_is_asked_about_a_denied_call_where_no_guard_looks_first(case: Case) -> None:
    """The lists are data: they are enough, without any function of the author's."""
    case.model(calls(("listen", {"what": "fan"})), DONE)
    result = case.run("asking")
    assert [error["category"] for error in errors(result)] == ["blocked"]
    assert (result.status, of(result, "approval_requested")) == ("completed", [])


def test_the_output_guard_refuses_a_call_and_the_run_goes_on(case: Case) -> None:
    """A guard judges arguments; `True` alone is a refusal, and what it does to its copy reaches nobody."""
    case.model(calls(("look", {"what": "vault"}), ("look", {"what": "disk"})), DONE)
    result = case.run("guarded")
    assert errors(result) == [{"category": "blocked", "message": "refused by the output guard"}]
    assert contents(result)[1] == "disk is fine"
    assert case.effects("look") == [["look", case.key(3), "disk"]]
    assert result.output == "done"


def test_the_output_guard_comes_before_the_person(case: Case) -> None:
    """Nobody is asked about a call that the author's own guard would refuse."""
    case.model(calls(("wire", {"amount": 5_000})), DONE)
    result = case.run("guarded")
    assert errors(result) == [{"category": "blocked", "message": "too much"}]
    assert (result.status, of(result, "approval_requested"), case.effects("wire")) == ("completed", [], [])


def test_a_call_that_passed_the_guard_still_waits_for_its_person(case: Case) -> None:
    """The guard's leave is not the person's."""
    case.model(calls(("wire", {"amount": 5})), DONE)
    paused = case.run("guarded")
    assert (paused.status, [request["tool"] for request in paused.pending_approvals]) == ("paused", ["wire"])
    assert case.effects("wire") == []
    assert contents(case.approve()) == ["5 sent"]


@both_wires
def test_the_result_guard_keeps_a_result_from_the_model_and_its_effect_stays_single(case: Case) -> None:
    """The tool has run; only its text is withheld. Running it again would not help."""
    case.model(calls(("look", {"what": "password"}), ("look", {"what": "disk"})), DONE)
    result = case.run("guarded")
    assert errors(result) == [{"category": "result_blocked", "message": "holds a password"}]
    assert contents(result)[1] == "disk is fine"
    assert sorted(case.effects("look")) == [["look", case.key(2), "password"], ["look", case.key(3), "disk"]]
    assert case.calls[1].results() == contents(result)
    assert result.output == "done"


def test_the_result_guard_judges_failures_too(case: Case) -> None:
    """An error message can leak as well as a result."""
    case.model(calls(("fail", {"kind": "leak"}), ("fail", {"kind": "error"})), DONE)
    assert errors(case.run("guarded")) == [
        {"category": "result_blocked", "message": "holds a password"},
        {"category": "error", "message": "it broke"},
    ]


def test_an_approver_decides_about_gated_calls_and_nobody_is_asked(case: Case) -> None:
    """Where code may decide, no person has to: tools that require approval, and irreversible ones by policy."""
    wanted = [("wire", {"amount": 5}), ("pay", {"amount": 6}), ("pay", {"amount": 700}), ("wire", {"amount": 800})]
    case.model(calls(*wanted, ("look", {"what": "disk"})), DONE)
    result = case.run("approving")
    told = contents(result)
    assert (told[0], told[1], told[4]) == ("5 sent", "6 paid", "disk is fine")
    assert errors(result) == [
        {"category": "blocked", "message": f"{name} needs an approval, and the approver refused this call"}
        for name in ("pay", "wire")
    ]
    assert sorted(case.effects("pay", "wired")) == [["pay", case.key(3), 6], ["wired", case.key(2), 5]]
    assert (result.status, of(result, "approval_requested")) == ("completed", [])


def test_a_gate_without_an_approver_asks_a_person(case: Case) -> None:
    """Fail closed does not mean fail: somebody can still say yes."""
    case.model(calls(("wire", {"amount": 5}), ("look", {"what": "disk"})), DONE)
    paused = case.run("asking")
    assert (paused.status, contents(paused)) == ("paused", ["disk is fine"])
    assert contents(case.approve(by="ann")) == ["5 sent", "disk is fine"]


def test_a_persons_approval_satisfies_the_gate(case: Case) -> None:
    """Two systems of approval must not contradict each other: the approver would have refused this amount."""
    case.model(calls(("wire", {"amount": 5_000})), DONE)
    case.run("overruled")
    result = case.approve(by="ann")
    assert contents(result) == ["5000 sent"]
    assert case.effects("approver") == []


@pytest.mark.parametrize(
    ("agent", "models", "effects"), [("unguardable", 0, 0), ("unapprovable", 1, 0), ("unjudgeable", 1, 1)]
)
def test_a_guard_that_raises_lets_nothing_pass(case: Case, agent: str, models: int, effects: int) -> None:
    """No leave was given, so the run fails and says why; a call that had run by then has run once."""
    name = "wire" if agent == "unjudgeable" else "pay"
    case.model(calls((name, {"amount": 5})), DONE)
    result = case.run(agent)
    assert (result.status, result.reason, result.error) == ("failed", "error", "the guard is out")
    assert (len(case.calls), len(case.effects("pay", "wired"))) == (models, effects)
    assert of(result, "tool_result") == []


def test_a_call_whose_judge_failed_is_judged_and_not_made_again(case: Case) -> None:
    """The money is gone by then: when the run is taken up again, only what is missing is done."""
    case.model(calls(("wire_to", {"whom": case.run_id})), DONE)
    failed = case.run("moody")
    assert (failed.status, failed.error, of(failed, "tool_result")) == ("failed", "not today", [])
    result = case.resume()
    assert (result.status, contents(result)) == ("completed", [f"sent to {case.run_id}"])
    assert case.effects("wire") == [["wire", case.key(2)]]
    assert len(case.calls) == 2


def test_a_guard_that_is_busy_is_asked_again_and_the_call_is_not_repeated(case: Case) -> None:
    """Judging is a step of its own: what the tool came to is kept while its judge is away."""
    case.model(calls(("wire_to", {"whom": case.run_id})), DONE)
    result = case.run("hesitant")
    assert (result.status, contents(result)) == ("completed", [f"sent to {case.run_id}"])
    tried = [{"phase": "guard", "category": "rate_limit", "error": "the guard is busy", "delay_s": 0.0}]
    assert [of(result, name)[0]["retries"] for name in ("input_screened", "tool_result")] == [tried, tried]
    assert case.effects("wire") == [["wire", case.key(2)]]
    assert [about for _, *about in case.effects("hesitant")] == [
        [case.text("go")],
        [case.text("go")],
        ["wire_to", f"sent to {case.run_id}"],
        ["wire_to", f"sent to {case.run_id}"],
    ]
