"""Budgets: what a run may use over all its turns, softly or for certain; and what it has used."""

from __future__ import annotations

import json

import pytest

from drangue_worker import Budget
from drangue_worker.testing import ProviderCall, Reply
from tests.surface import agents
from tests.surface.case import Case, calls, of

EXHAUSTED = "(stopped: budget exhausted)"


def look(input_tokens: int, output_tokens: int, **more: int) -> Reply:
    """A decision that goes on, at a price."""
    return calls(("look", {"what": "disk"}), input_tokens=input_tokens, output_tokens=output_tokens, **more)


def test_a_soft_budget_stops_the_run_once_it_is_used_up(case: Case) -> None:
    """It is looked at before every thought: 60 of 100 leave room for one more, 120 for none."""
    case.model(look(50, 10))
    result = case.run("thrifty")
    assert (result.status, result.reason, result.output) == ("completed", "budget", EXHAUSTED)
    assert (len(case.calls), result.usage) == (2, {"input_tokens": 100, "output_tokens": 20})
    assert [event.type for event in result.events][-2:] == ["tool_result", "run_finished"]  # calls are still done
    assert of(result, "run_finished") == [{"output": EXHAUSTED, "reason": "budget"}]


def test_a_budget_that_is_reached_exactly_is_used_up(case: Case) -> None:
    """The limit is what may be used, and all of it has been."""
    case.model(look(90, 10))
    assert (case.run("thrifty").reason, len(case.calls)) == ("budget", 1)


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_cached_tokens_count(case: Case, wire: str) -> None:
    """They are cheaper, not free; and none is counted twice, whichever way the provider counts."""
    more = {"cached_tokens": 30} | ({"cache_write_tokens": 20} if wire == "anthropic" else {})
    case.model(look(95, 5, **more))
    result = case.run("thrifty")
    assert (result.reason, len(case.calls)) == ("budget", 1)
    assert result.usage == {"input_tokens": 95 - sum(more.values()), "output_tokens": 5} | {
        name: count
        for name, count in (("cache_read_input_tokens", 30), ("cache_creation_input_tokens", 20))
        if name == "cache_read_input_tokens" or wire == "anthropic"
    }


def test_a_budget_of_nothing_buys_nothing(case: Case) -> None:
    """Zero means: stop before the first call."""
    result = case.run("broke")
    assert (result.reason, result.output, case.calls) == ("budget", EXHAUSTED, [])


def test_a_budget_is_for_the_run_and_not_for_the_turn(case: Case) -> None:
    """A conversation cannot be talked into spending for ever."""
    case.model(Reply("one", input_tokens=70, output_tokens=10), Reply("two", input_tokens=70, output_tokens=10))
    assert case.run("thrifty").reason == "answered"
    assert case.say("go on").reason == "answered"
    assert (case.say("go on, please").reason, len(case.calls)) == ("budget", 2)


def test_dollars_are_counted_by_the_recorded_model(case: Case) -> None:
    """A thousandth of a dollar per token in and two per token out: 0.06 of 0.1 leave room, 0.12 do not."""
    case.model(look(40, 10))
    result = case.run("dollars")
    assert (result.reason, len(case.calls)) == ("budget", 2)
    assert result.cost({"gpt-scripted": agents.PRICES}) == pytest.approx(0.12)


def test_a_model_without_a_price_stops_the_run_and_says_so(case: Case) -> None:
    """What cannot be counted cannot be limited; a silent zero would be a blank cheque."""
    case.model(look(40, 10))
    result = case.run("unpriced")
    assert (result.status, result.reason, len(case.calls)) == ("completed", "budget", 1)
    assert result.output.startswith("(stopped: budget unenforceable: no price for model 'gpt-scripted'")


@pytest.mark.parametrize(
    ("agent", "wire", "limit"),
    [("capped", "openai", 20_000), ("capped", "anthropic", 20_000), ("capped_usd", "openai", 20.0)],
)
def test_a_hard_budget_is_never_overshot(case: Case, agent: str, limit: float) -> None:
    """Even if the provider bills every byte as a token and every answer is as long as it may be."""

    def dearest(call: ProviderCall) -> Reply:
        billed = len(json.dumps(call.body, ensure_ascii=False).encode())
        return calls(("look", {"what": "x" * 300}), input_tokens=billed, output_tokens=agents.CEILING)

    case.script(dearest)
    result = case.run(agent)
    tokens = Budget(max_tokens=1).tokens(result.events)
    spent = tokens if agent == "capped" else result.cost({"gpt-scripted": agents.PRICES})
    assert (result.status, result.reason, result.output) == ("completed", "budget", EXHAUSTED)
    assert len(case.calls) > 1
    assert limit / 2 < spent <= limit  # it holds, and is of use
    turn = case.say("go on")
    assert (turn.reason, Budget(max_tokens=1).tokens(turn.events)) == ("budget", tokens)


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_a_hard_budget_refuses_the_call_that_would_just_not_fit(case: Case) -> None:
    """Twenty tokens too many are too many: instructions, tools and the provider's own framing are counted too."""
    limit, short = 20_000, "x" * 10
    sizes: list[int] = []

    def script(call: ProviderCall) -> Reply:
        sizes.append(len(json.dumps(call.body, ensure_ascii=False).encode()))
        what = short
        if len(sizes) == 2:  # what is asked for comes back in the result: the next prompt grows by it twice
            framing = sizes[1] - sizes[0] - 2 * len(short)
            spent = sum(sizes) + 2 * agents.CEILING
            what = "x" * ((limit + 20 - spent - sizes[1] - framing - agents.CEILING) // 2)
        return calls(("look", {"what": what}), input_tokens=sizes[-1], output_tokens=agents.CEILING)

    case.script(script)
    result = case.run("capped")
    assert (result.reason, len(case.calls)) == ("budget", 2)
    assert Budget(max_tokens=1).tokens(result.events) <= limit


def test_a_hard_budget_holds_in_every_script(case: Case) -> None:
    """A character is one to four bytes where it is counted, and must not be more where it is sent."""

    def texts(call: ProviderCall) -> Reply:
        sent = [call.system, *(message.get("content") or "" for message in call.body["messages"])]
        sent += [one["function"]["arguments"] for m in call.body["messages"] for one in m.get("tool_calls") or ()]
        billed = len("".join(sent).encode())
        return calls(("look", {"what": "\N{GRINNING FACE}" * 2000}), input_tokens=billed, output_tokens=agents.CEILING)

    case.script(texts)
    result = case.run("capped")
    assert (result.reason, len(case.calls) > 1) == ("budget", True)
    assert Budget(max_tokens=1).tokens(result.events) <= 20_000


@pytest.mark.parametrize(("status", "asked", "reason"), [(500, 1, "budget"), (429, 2, "answered")])
def test_an_answer_that_never_came_counts_in_a_hard_budget(case: Case, status: int, asked: int, reason: str) -> None:
    """It may have been billed, so there is no second call where only one is paid for; a refusal costs nothing."""
    case.model_in_turn(Reply(status=status, headers={"retry-after": "0"} if status == 429 else {}), Reply("done"))
    result = case.run("frugal")
    assert (result.status, result.reason, len(case.calls)) == ("completed", reason, asked)


def test_a_model_that_counts_nothing_is_estimated_where_a_budget_asks(case: Case) -> None:
    """Silence must not be free; and an estimate is marked as one."""
    result = case.run("homemade_thrifty")
    assert (result.reason, result.steps, result.usage_estimated) == ("budget", 1, True)
    assert result.usage["input_tokens"] > 50


def test_the_methods_of_a_budget_read_a_log(case: Case) -> None:
    """An application can ask what is left with the same arithmetic."""
    case.model(look(50, 10), Reply("done", input_tokens=10, output_tokens=5))
    events = case.run("thrifty").events
    budget = Budget(max_tokens=100, max_usd=1.0, prices={"gpt-scripted": agents.PRICES})
    assert (budget.tokens(events), budget.remaining_tokens(events), budget.exceeded(events)) == (75, 25, False)
    assert budget.usd(events) == pytest.approx(0.09)
    assert Budget(max_tokens=75).exceeded(events)
