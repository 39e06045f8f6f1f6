"""The examples as a whole: listed where a newcomer looks, harmless to import, and at ease with a model of one's own.

What each of them shows is tested in `stories`.
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from drangue_client import Client, Settings
from drangue_worker import PermanentError
from drangue_worker.testing import Provider
from tests.acceptance.shell import running
from tests.acceptance.stories.newcomer import ABOUT, FILES, FOLDER, Newcomer, commands_of


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    return Newcomer.at(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_each_example_says_how_it_is_started(name: str) -> None:
    """Its subject, what must run first, and one command of its own."""
    subject, *_ = ABOUT[name].splitlines()
    command = ["python", f"scripts/examples/{name}.py"]
    assert subject.endswith(".")
    assert "must run first" in ABOUT[name]
    assert commands_of(name)[-1] == command
    assert f"| `{shlex.join(command)}` | {subject} |" in (FOLDER / "README.md").read_text()


def test_the_list_of_examples_names_no_other() -> None:
    """What is gone must go from the list."""
    listed = re.findall(r"`python (scripts/examples/\S+)`", (FOLDER / "README.md").read_text())
    assert sorted(listed) == [f"scripts/examples/{name}.py" for name in FILES]


def test_importing_an_example_starts_nothing(newcomer: Newcomer) -> None:
    """Workers import agents; whoever reads `agent` from an example gets that and nothing else."""
    done = newcomer.types([sys.executable, "-c", f"import {', '.join(FILES)}"], FOLDER)
    assert (done.code, done.out, done.err) == (0, "", "")


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What an example defines, without starting it."""
    monkeypatch.syspath_prepend(FOLDER)
    return runpy.run_path(str(FILES[name]))


@contextmanager
def answering(script: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """A provider that plays an example's script, where the environment can name it."""
    monkeypatch.syspath_prepend(FOLDER)
    with Provider(runpy.run_path(str(FOLDER / "_model.py"))["replying"](script)) as provider:
        yield provider


def test_money_is_not_moved_above_the_cap_nor_for_a_fraud_nor_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refund's own code is the last word, whatever a model asks for."""
    refunds = example("refunds", monkeypatch)
    small_refund, ledger = refunds["small_refund"], refunds["LEDGER"]
    with pytest.raises(PermanentError, match="100 USD is not below 100 USD"):
        small_refund(order_id="A-17", amount_usd=100, idempotency_key="at the cap")
    with pytest.raises(PermanentError, match="C-99 is flagged: stolen card"):
        small_refund(order_id="C-99", amount_usd=1, idempotency_key="flagged")
    assert ledger == {}
    for _ in range(2):
        assert small_refund(order_id="A-17", amount_usd=99.5, idempotency_key="fine") == "99.5 USD for A-17"
    assert ledger == {"fine": "99.5 USD for A-17"}


@pytest.mark.parametrize(("wire", "model"), [("openai", "gpt-4o-mini"), ("anthropic", "claude-haiku-5-5")])
def test_refunds_ask_the_model_that_the_environment_names(
    wire: str, model: str, newcomer: Newcomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the provider's count: three calls, none for the ticket that came twice, four, none for the injected one."""
    with answering(example("refunds", monkeypatch)["SCRIPT"], monkeypatch) as provider:
        url = provider.base_url if wire == "openai" else provider.anthropic_base_url
        variables = {f"{wire.upper()}_BASE_URL": url, f"{wire.upper()}_API_KEY": "mine"}
        done = newcomer.types(commands_of("refunds")[0], **variables)
    assert (done.code, done.out.splitlines()[0]) == (0, f"({model} answers, at {url})"), done
    tickets = [call.last_user()[:10] for call in provider.calls]
    assert tickets == ["Order A-17"] * 3 + ["Order B-42"] * 4
    assert {call.model for call in provider.calls} == {model}
    assert [len(call.results()) for call in provider.calls] == [0, 5, 1, 0, 5, 1, 1]
    assert "480 USD is not below 100 USD" in provider.calls[5].results()[0]
    assert "the parcel was signed for at the door" in provider.calls[6].results()[0]


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_streaming_asks_for_a_stream(wire: str, newcomer: Newcomer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole answer printed word by word would look the same."""
    with answering(example("streaming", monkeypatch)["SCRIPT"], monkeypatch) as provider:
        url = provider.base_url if wire == "openai" else provider.anthropic_base_url
        command = [*commands_of("streaming")[0], "--provider", wire]
        done = newcomer.types(command, **{f"{wire.upper()}_BASE_URL": url, f"{wire.upper()}_API_KEY": "mine"})
    assert (done.code, [call.stream for call in provider.calls]) == (0, [True, True]), done


def test_an_unknown_provider_is_refused(newcomer: Newcomer) -> None:
    """A typo must not end at the wrong company."""
    done = newcomer.types([*commands_of("weather")[0], "--provider", "antropic"])
    assert (done.code, done.out, done.err) == (1, "", "--provider takes one of: openai, anthropic\n")


def test_the_fleet_says_how_to_start_one(newcomer: Newcomer) -> None:
    """Whoever starts it first is told the command that its docstring names."""
    serve, visit = commands_of("fleet")
    done = newcomer.types(visit)
    told = f"Nobody serves this agent here. Run in another terminal: {shlex.join(serve)}\n"
    assert (done.code, done.out, done.err) == (2, "", told)


def test_the_fleet_is_submitted_to_watched_approved_and_talked_to(newcomer: Newcomer, servers: Any) -> None:
    """Workers in one terminal, an application in another one of the same folder."""
    serve, visit = commands_of("fleet")
    named = {"DRANGUE_DATABASE_URL": servers.database_url, "DRANGUE_REDIS_URL": servers.redis_url}
    env = newcomer.env(PYTHONWARNINGS="default", **named)
    with running(serve, env, newcomer.folder, newcomer.folder / "serve.log") as stack:
        stack.waits_to_say("Ctrl-C stops it")
        done = newcomer.types(visit)
        assert done.code == 0, (done, stack.said())
        assert (stack.interrupt(), stack.family.left()) == (0, {})
        assert "(the scripted model was asked 4 times)" in stack.said()
    *lines, last = done.out.splitlines()
    assert [line.strip() for line in lines] == [
        "[run_started] [model_decision] [tool_result] [model_decision] [approval_requested]",
        "approving restart({'service': 'checkout'})",
        "[approval_granted] [step_started] [tool_result] "
        "Checkout failed 7.5 % of its requests, so it was restarted.[model_decision] [run_finished]",
        "[user_message] It is too early to tell; ask me again in five minutes.[model_decision] [run_finished]",
    ]
    run_id = last.removeprefix("completed; the whole of it: drangue show ")
    client = Client(Settings(database_url=servers.database_url, redis_url=servers.redis_url))
    try:
        results = [event.payload for event in client.events(run_id) if event.type == "tool_result"]
    finally:
        client.close()
    assert [result["content"] for result in results] == ["7.5 %", f"checkout restarted (request {run_id}:4)"]
