"""When the provider fails: what is tried again, how it shows, and what ends a run."""

from __future__ import annotations

import pytest

from drangue_worker.testing import Reply
from tests.surface import agents
from tests.surface.case import Case, calls, errors, of, shape

both_wires = pytest.mark.parametrize("wire", ["openai", "anthropic"])
DONE = Reply("done")
LIMITED = Reply(status=429, error="slow down", headers={"retry-after": "0"})
PAST = {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}


@both_wires
def test_a_rate_limit_is_waited_out_and_shows_in_the_record_of_its_step(case: Case, wire: str) -> None:
    """The server's own wait, as a number of seconds or as a date; every attempt under one key, one decision."""
    waits = [LIMITED, Reply(status=429, error="slower", headers={"retry-after": "0.25"})]
    case.model_in_turn(*waits, DONE)
    result = case.run("toolbox")
    (decision,) = of(result, "model_decision")
    assert [(tried["category"], tried["delay_s"]) for tried in decision["retries"]] == [
        ("rate_limit", 0.0),
        ("rate_limit", 0.25),
    ]
    assert ["slow down" in decision["retries"][0]["error"], "slower" in decision["retries"][1]["error"]] == [True, True]
    assert (result.status, result.output, result.steps, len(case.calls)) == ("completed", "done", 1, 3)
    if wire == "openai":
        assert {call.idempotency_key for call in case.calls} == {case.key(1)}


def test_a_wait_may_be_a_date(case: Case) -> None:
    """HTTP allows both; a date that has passed is no wait."""
    case.model_in_turn(Reply(status=429, headers=PAST), DONE)
    (decision,) = of(case.run("toolbox"), "model_decision")
    assert [tried["delay_s"] for tried in decision["retries"]] == [0.0]


@pytest.mark.parametrize(
    ("wire", "failure"), [("openai", Reply(status=500, error="oops")), ("anthropic", Reply(hang_up=True))], ids=str
)
def test_an_outage_is_tried_again_after_a_backoff(case: Case, failure: Reply) -> None:
    """Half a second at first, half of it by chance, so that callers that failed together return apart."""
    case.model_in_turn(failure, DONE)
    (decision,) = of(case.run("toolbox"), "model_decision")
    (tried,) = decision["retries"]
    assert tried["category"] == "transient"
    assert 0.25 <= tried["delay_s"] <= 0.5


@both_wires
def test_retries_end_and_the_run_has_failed_with_its_reason(case: Case) -> None:
    """Three attempts by default; then the run says why it failed, once, and nothing more is asked."""
    case.model_in_turn(LIMITED)
    result = case.run("toolbox")
    assert (result.status, result.reason, result.output) == ("failed", "rate_limit", "")
    assert "slow down" in (result.error or "")
    assert shape(result) == [("run_started", None), ("run_failed", 0)]
    assert len(case.calls) == 3


REFUSALS = [
    ("openai", 401, "auth"),
    ("anthropic", 401, "auth"),
    ("openai", 400, "permanent"),
    ("anthropic", 404, "permanent"),
]


@pytest.mark.parametrize(("wire", "status", "category"), REFUSALS)
def test_what_another_attempt_cannot_mend_fails_at_once(case: Case, status: int, category: str) -> None:
    """A refused key stays refused; trying again would only hide it."""
    case.model(Reply(status=status, error="not you"))
    result = case.run("toolbox")
    assert (result.status, result.reason, len(case.calls)) == ("failed", category, 1)
    assert "not you" in (result.error or "")


def test_money_that_is_spent_is_not_waited_for(case: Case) -> None:
    """A used-up quota comes as a 429 too, and no wait mends it."""
    case.model(Reply(status=429, error="pay first", error_code="insufficient_quota"))
    result = case.run("toolbox")
    assert (result.status, result.reason, len(case.calls)) == ("failed", "permanent", 1)


def test_a_failure_in_a_later_step_keeps_what_was_done(case: Case) -> None:
    """What is recorded stays recorded."""
    case.model(calls(("look", {"what": "disk"})), Reply(status=401))
    result = case.run("toolbox")
    assert shape(result) == [
        ("run_started", None),
        ("model_decision", 1),
        ("tool_result", 2),
        ("run_failed", 2),
    ]
    assert (result.status, result.steps, case.effects()) == ("failed", 1, [["look", case.key(2), "disk"]])


@both_wires
def test_a_failed_run_goes_on_where_it_failed_when_it_is_taken_up_again(case: Case, wire: str) -> None:
    """The cause is mended, the work is kept: no call is made twice, and the failed step keeps its key."""
    look = calls(("look", {"what": "disk"}))
    case.model_in_turn(look, LIMITED, LIMITED, LIMITED, LIMITED, DONE)
    failed = case.run("toolbox")
    assert (failed.status, failed.reason, len(case.calls)) == ("failed", "rate_limit", 4)
    result = case.resume()
    assert (result.status, result.output, result.error) == ("completed", "done", None)
    assert shape(result)[3:] == [
        ("run_failed", 2),
        ("run_resumed", None),
        ("model_decision", 3),
        ("run_finished", 3),
    ]
    assert case.effects() == [["look", case.key(2), "disk"]]
    if wire == "openai":
        assert [call.idempotency_key for call in case.calls] == [case.key(1), *[case.key(3)] * 5]


def test_taking_up_a_run_that_has_not_failed_changes_nothing(case: Case) -> None:
    """Whoever is not sure may try."""
    finished = case.run("toolbox")
    assert case.resume().events == finished.events


@pytest.mark.parametrize(("wire", "cut"), [("openai", "length"), ("anthropic", "max_tokens")])
def test_the_calls_of_a_cut_off_answer_are_refused_and_the_model_goes_on(case: Case, cut: str) -> None:
    """Half a call may be a different call; the model is told to ask for less at a time."""
    case.model(calls(("wire", {"amount": 1}), ("look", {"what": "d"}), finish_reason=cut), DONE)
    result = case.run("toolbox")
    assert [error["category"] for error in errors(result)] == ["truncated", "truncated"]
    assert (case.effects(), result.output, result.truncated) == ([], "done", False)


@pytest.mark.parametrize(("wire", "cut"), [("openai", "length"), ("anthropic", "max_tokens")])
def test_a_cut_off_text_is_the_answer_and_says_so(case: Case, cut: str) -> None:
    """Half an answer is still an answer; the caller can tell."""
    case.model(Reply("It is fi", finish_reason=cut))
    result = case.run("toolbox")
    assert (result.output, result.truncated, result.reason) == ("It is fi", True, "answered")


def test_the_model_of_each_step_is_the_routers_choice_and_is_recorded(case: Case) -> None:
    """Routing is visible, and every step is priced by the model that took it."""
    case.model(calls(("look", {"what": "disk"})), DONE, Reply("again"))
    case.run("routed")
    result = case.say("and now?")
    assert [decision["model"] for decision in of(result, "model_decision")] == ["gpt-small", "gpt-large", "gpt-large"]
    assert [call.model for call in case.calls] == ["gpt-small", "gpt-large", "gpt-large"]


def test_a_fallback_answers_when_the_first_model_fails_for_good(case: Case) -> None:
    """One provider's refusal need not be the end; the record says who answered."""
    case.script(lambda call: Reply(status=401) if call.model == "gpt-small" else Reply("I can."))
    result = case.run("falling")
    assert (result.status, result.output) == ("completed", "I can.")
    assert [call.model for call in case.calls] == ["gpt-small", "gpt-large"]
    assert of(result, "model_decision")[0]["model"] == "gpt-large"


def test_a_router_that_raises_fails_the_run(case: Case) -> None:
    """Nobody was chosen, so nobody is asked."""
    result = case.run("lost")
    assert (result.status, result.reason, result.error, case.calls) == ("failed", "error", "which way?", [])


def test_a_silent_provider_is_given_up_and_asked_again(case: Case) -> None:
    """A connection that hangs must not hang the run: the model's `timeout` bounds each silence."""
    case.model_in_turn(Reply("too late", delay_s=30), DONE)
    result = case.run("impatient")
    assert result.output == "done"
    tried = of(result, "model_decision")[0]["retries"][0]
    assert (tried["category"], tried["error"]) == ("transient", "the provider was silent for 0.5 s")


def test_any_object_with_generate_is_a_model(case: Case) -> None:
    """No class to inherit, no provider to have: what it does not say is recorded as not said."""
    result = case.run("homemade")
    assert (result.output, result.usage) == ("it says: disk is fine", {"input_tokens": 0, "output_tokens": 0})
    first, _ = of(result, "model_decision")
    assert (first["model"], first["usage"], first["stop_reason"], first["reasoning"]) == (None, None, None, None)
    assert case.effects("homemade") == [["homemade", case.key(1), agents.INSTRUCTIONS, ["look"]]]
