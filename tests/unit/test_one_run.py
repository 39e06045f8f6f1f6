"""One run as an operator sees it: what it took and what it cost."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from drangue_client.console.one_run import dollars, run_view
from drangue_client.console.shell import FAILED, OK, UNFINISHED, WAITING, code_of
from drangue_client.result import Result
from drangue_worker import Agent, Autonomy, Budget, InMemoryStore, tool
from drangue_worker.testing import FakeModel

PRICES = {"fake": {"input": 1000.0, "output": 4000.0}}  # 10 + 5 tokens a call: 0.03 USD


@tool
def look() -> str:
    """Look."""
    return "seen"


def shown(agent: Agent, store: InMemoryStore) -> str:
    result = agent.run_sync("go", run_id="r")
    console = Console(width=160, file=io.StringIO())
    with console.capture() as printed:
        console.print(run_view(store.look("r").row, result))
    return printed.get()


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        (Budget(max_usd=0.5, prices=PRICES), "20 + 10 tokens, 0.0600 USD of 0.5"),
        (Budget(max_tokens=500, prices=PRICES), "20 + 10 tokens, 0.0600 USD\n"),
        (None, "20 + 10 tokens\n"),
    ],
)
def test_a_run_shows_what_it_cost_by_its_own_prices(budget: Budget | None, told: str) -> None:
    """Of the whole run and of each call: who asks where the money went finds the line."""
    store = InMemoryStore()
    agent = Agent(FakeModel([[("look", {})], "done"]), [look], store=store, budget=budget)
    text = "\n".join(line.rstrip() for line in shown(agent, store).splitlines())
    assert told in text
    assert text.count("10 + 5 tokens, 0.0300 USD") == (2 if budget else 0)


def test_no_cost_is_told_of_a_model_without_a_price() -> None:
    """A price list that lags behind the models must not read as a run that was free."""
    store = InMemoryStore()
    agent = Agent(FakeModel(["done"]), store=store, budget=Budget(max_tokens=99, prices={"other": {"input": 1.0}}))
    assert "USD" not in shown(agent, store)
    assert dollars(agent.run_sync("go", run_id="r")) is None


def test_an_exit_code_tells_how_a_run_stands() -> None:
    """A script that goes on as if there were an answer would act on none."""
    assisted = Agent(FakeModel([[("look", {})]]), [look], autonomy=Autonomy("assisted"))
    assert code_of(Agent(FakeModel(["x"])).run_sync("go")) == OK
    assert code_of(assisted.run_sync("go")) == WAITING
    assert code_of(Agent(FakeModel(["x"]), deadline=1e-9).run_sync("go")) == FAILED
    assert code_of(Result.from_events("r", [])) == UNFINISHED
