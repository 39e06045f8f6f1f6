"""The agent people write, over real HTTP with the real SDK, in one process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drangue_client.errors import AuthError, InFlightError, NoCredentials, ValidationError
from drangue_worker import Agent, Autonomy, InMemoryStore, OpenAIModel, PostgresStore, SQLiteStore, Tool, harden, tool
from drangue_worker.testing.provider import Provider, Reply


@tool
def error_rate(service: str) -> str:
    """Error rate of a service.

    Args:
        service: its name
    """
    return f"{service}: 7.5 %"


@tool(reversible=False)
def wire(amount: int, idempotency_key: str) -> str:
    """Move money."""
    return f"{amount} sent as {idempotency_key}"


ASK = Reply(text="I look.", tool_calls=(("error_rate", {"service": "checkout"}),), input_tokens=50, output_tokens=8)


@pytest.fixture(params=["memory", "file", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Every place a log can live."""
    if request.param == "memory":
        made: Any = InMemoryStore()
    elif request.param == "file":
        made = SQLiteStore(tmp_path / "runs.db")
    else:
        made = PostgresStore(request.getfixturevalue("database_url"))
    yield made
    made.close()


def model_of(provider: Provider, **options: Any) -> OpenAIModel:
    return OpenAIModel("scripted", base_url=provider.base_url, api_key="test", **options)


def test_the_happy_path_prints_its_trace(store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The seed's first example: one tool, one question, trace on."""
    with Provider([ASK, Reply(text="It is checkout.", input_tokens=70, output_tokens=9)]) as provider:
        agent = Agent(model_of(provider), [error_rate], "You are on call.", store=store)
        result = agent.run_sync("Which service fails?", trace=True)
    assert result.status == "completed"
    assert result.output == "It is checkout."
    assert result.usage == {"input_tokens": 120, "output_tokens": 17}
    assert capsys.readouterr().out.splitlines() == [
        "* model  I look.",
        "* tool   error_rate(service='checkout')",
        "       -> checkout: 7.5 %",
        "* model  It is checkout.",
        "",
    ]
    assert [(event.type, event.step) for event in result.events] == [
        ("run_started", None),
        ("model_decision", 1),
        ("tool_result", 2),
        ("model_decision", 3),
        ("run_finished", 3),
    ]
    first, second = provider.calls
    assert first.system == "You are on call."
    assert first.tools == ("error_rate",)
    assert [call.idempotency_key for call in provider.calls] == [f"{result.run_id}:1", f"{result.run_id}:3"]
    assert second.results() == ["checkout: 7.5 %"]


def test_a_pause_outlives_the_process_and_the_verdict_is_bound_to_its_call(store: Any) -> None:
    """An assisted call waits in the log; whoever has the log can decide, and the run goes on from there."""
    both = Reply(tool_calls=(("wire", {"amount": 10}), ("error_rate", {"service": "a"}), ("wire", {"amount": 20})))
    with Provider([both, Reply(text="done")]) as provider:

        def agent() -> Agent:
            autonomy = Autonomy(modes={"wire": "assisted"})
            return Agent(model_of(provider), [wire, error_rate], store=store, autonomy=autonomy)

        paused = agent().run_sync("pay", run_id="r")
        assert (paused.status, paused.output) == ("paused", "(paused: awaiting approval)")
        assert [item["arguments"] for item in paused.pending_approvals] == [{"amount": 10}, {"amount": 20}]
        assert [m["content"] for m in paused.messages if m["role"] == "tool"] == ["a: 7.5 %"]  # needed nobody
        second = paused.pending_approvals[1]["call_id"]

        async def decide() -> None:
            await agent().approve("r", second, by="ann", reason="ok")
            await agent().reject("r", reason="too early")

        asyncio.run(decide())
        result = agent().run_sync(run_id="r")
    assert result.status == "completed"
    contents = [m["content"] for m in result.messages if m["role"] == "tool"]
    assert json.loads(contents[0])["error"] == {"category": "denied", "message": "too early"}
    assert contents[2] == "20 sent as r:4"


def test_shadow_tools_are_only_proposed() -> None:
    """A new tool can be watched before it is trusted."""
    with Provider([Reply(tool_calls=(("wire", {"amount": 10}),)), Reply(text="ok")]) as provider:
        agent = Agent(model_of(provider), [wire], autonomy=Autonomy(default="shadow"))
        result = agent.run_sync("pay")
    (content,) = [m["content"] for m in result.messages if m["role"] == "tool"]
    assert json.loads(content)["proposed"] == {"tool": "wire", "arguments": {"amount": 10}}
    assert not [event for event in result.events if event.type == "step_started"]


def test_a_finished_run_is_read_and_not_repeated(store: Any) -> None:
    """Replaying makes no model call and writes nothing."""
    with Provider([Reply(text="once")]) as provider:
        agent = Agent(model_of(provider), store=store)
        first = agent.run_sync("hi", run_id="r")
        again = agent.run_sync("hi", run_id="r")
        assert again.output == "once"
        assert again.events == first.events
        assert provider.received == 1


def test_new_input_for_an_unfinished_run_is_refused(store: Any) -> None:
    """What is in flight must not be mixed with another question."""
    with Provider([Reply(tool_calls=(("wire", {"amount": 1}),))]) as provider:
        agent = Agent(model_of(provider), [wire], store=store, autonomy=Autonomy(default="assisted"))
        agent.run_sync("pay", run_id="r")
        with pytest.raises(InFlightError, match="in flight"):
            agent.run_sync("pay more", run_id="r")


def test_a_failing_provider_is_retried_under_one_key_and_then_fails_the_run(store: Any) -> None:
    """Retries are counted with the step; when they are used up the run says why and can be resumed."""
    answers = iter([Reply(status=429, headers={"retry-after": "0"})] + [Reply(status=500)] * 2 + [Reply(text="ok")])
    with Provider(lambda call: next(answers)) as provider:
        agent = Agent(model_of(provider), store=store, model_retries=2)
        with pytest.raises(Exception, match="500"):
            agent.run_sync("hi", run_id="r")
        assert provider.received == 3
        assert {call.idempotency_key for call in provider.calls} == {"r:1"}
        failed = store.look("r").row
        assert failed.status == "failed"
        assert "500" in str(failed.error)
        result = agent.run_sync(run_id="r")
    assert result.output == "ok"
    assert [event.type for event in result.events][1:3] == ["run_failed", "run_resumed"]
    assert provider.calls[-1].idempotency_key == "r:1"


def test_refused_credentials_fail_at_once() -> None:
    """Another attempt with the same key would fail alike."""
    with Provider(lambda call: Reply(status=401, error="bad key")) as provider:
        agent = Agent(model_of(provider))
        with pytest.raises(AuthError):
            agent.run_sync("hi")
        assert provider.received == 1


def test_a_missing_key_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thing every newcomer forgets."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(NoCredentials, match="Set OPENAI_API_KEY"):
        Agent(OpenAIModel("gpt-4o")).run_sync("hi")


def test_malformed_and_unknown_calls_are_answered_and_the_run_goes_on(store: Any) -> None:
    """What the model gets wrong is for the model to mend, whatever ids the provider gives its calls."""
    wrong = Reply(
        tool_calls=(
            ("error_rate", '{"service": ', "same"),
            ("error_rate", {"service": {"nested": 1}}, "same"),
            ("nothing_like_it", {}, ""),
            ("error_rate", {"service": "b", "extra": 1}),
        )
    )
    with Provider([wrong, Reply(text="done")]) as provider:
        result = Agent(model_of(provider), [error_rate], store=store).run_sync("go")
    categories = [json.loads(m["content"])["error"]["category"] for m in result.messages if m["role"] == "tool"]
    assert categories == ["invalid_arguments", "invalid_arguments", "unknown_tool", "invalid_arguments"]
    ids = [m["call_id"] for m in result.messages if m["role"] == "tool"]
    assert len(set(ids)) == 4
    assert result.status == "completed"


def test_tools_of_one_decision_run_together_and_read_back_in_call_order() -> None:
    """Each result is recorded the moment it ends, and presented in the order that was asked for."""
    store = InMemoryStore()

    @tool
    async def wait_for_later_ones(n: int) -> str:
        """Returns when the call after it has been recorded: only possible if they run at once and record at once."""
        later = {"type": "tool_result", "step": 2 + n + 1}
        while n < 4 and not any(later.items() <= e.to_json().items() for e in store.events("r")):  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # a log announces nothing to the tools of its own run
        return str(n)

    calls = tuple(("wait_for_later_ones", {"n": n}) for n in range(5))
    with Provider([Reply(tool_calls=calls), Reply(text="done")]) as provider:
        result = Agent(model_of(provider), [wait_for_later_ones], store=store).run_sync("go", run_id="r")
    store.close()
    recorded = [event.payload["content"] for event in result.events if event.type == "tool_result"]
    assert recorded == ["4", "3", "2", "1", "0"]
    assert [m["content"] for m in result.messages if m["role"] == "tool"] == ["0", "1", "2", "3", "4"]


def test_irreversible_calls_run_one_at_a_time_in_call_order() -> None:
    """What cannot be undone is done in the order it was decided."""
    running: list[int] = []
    order: list[int] = []

    @tool(reversible=False)
    async def move(n: int) -> str:
        """Irreversible."""
        running.append(n)
        assert len(running) == 1
        await asyncio.sleep(0.01)
        order.append(running.pop())
        return "moved"

    with Provider([Reply(tool_calls=tuple(("move", {"n": n}) for n in range(4))), Reply(text="done")]) as provider:
        result = Agent(model_of(provider), [move]).run_sync("go")
    assert order == [0, 1, 2, 3]
    assert [m["content"] for m in result.messages if m["role"] == "tool"] == ["moved"] * 4


def test_a_tool_that_raises_or_hangs_is_told_to_the_model() -> None:
    """A tool never fails a run."""

    @tool(timeout=0.05)
    async def hang() -> str:
        """Never returns."""
        await asyncio.Event().wait()
        return "never"

    @tool
    def leave() -> str:
        """Tries to end the process."""
        raise SystemExit(3)

    @tool(retries=2, backoff=0.0)
    def flaky() -> str:
        """Works at the third attempt."""
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError("try again")
        return "third time lucky"

    attempts: list[int] = []
    flaky_tool = Tool(**{**{name: getattr(flaky, name) for name in Tool.__slots__}, "policy": flaky.policy})
    calls = (("hang", {}), ("leave", {}), ("flaky", {}))
    with Provider([Reply(tool_calls=calls), Reply(text="done")]) as provider:
        result = Agent(model_of(provider), [hang, leave, flaky_tool]).run_sync("go")
    hung, left, unlucky = [json.loads(m["content"]) for m in result.messages if m["role"] == "tool"]
    assert hung["error"]["category"] == "timeout"
    assert "SystemExit" in left["error"]["message"]
    assert unlucky["error"]["category"] == "error"  # a ConnectionError is not in the default list of what is retried
    assert len(attempts) == 1


def test_a_step_ceiling_ends_the_turn_with_its_reason() -> None:
    """A loop of thoughts has an end, and a machine can tell which."""
    with Provider([ASK]) as provider:
        result = Agent(model_of(provider), [error_rate], max_steps=3).run_sync("go")
    assert (result.status, result.reason, result.steps) == ("completed", "max_steps", 3)
    assert result.output == "(stopped: reached max_steps=3)"


def test_stream_gives_every_event_as_it_is_written(store: Any) -> None:
    """What happens is seen while it happens, once and in order."""

    async def collect(agent: Agent, **options: Any) -> list[Any]:
        return [event async for event in agent.stream(**options)]

    with Provider([ASK, Reply(text="done")]) as provider:
        agent = Agent(model_of(provider), [error_rate], store=store)

        async def both() -> tuple[list[Any], list[Any]]:
            try:
                first = await collect(agent, input="go", run_id="r")
                return first, await collect(agent, run_id="r")
            finally:
                await agent.router.model.aclose()

        events, again = asyncio.run(both())
    assert [event for event in events if event.seq >= 0] == store.events("r")
    assert "".join(event.payload["text"] for event in events if event.type == "model_delta") == "I look.done"
    assert again == []  # nothing new


def test_cancelling_a_run_gives_its_steps_back(store: Any) -> None:
    """A caller that goes away leaves a run that anybody can resume at once."""
    with Provider([Reply(text="slow", delay_s=30)]) as provider:
        agent = Agent(model_of(provider), store=store)

        async def start_and_leave() -> None:
            work = asyncio.create_task(agent.run("go", run_id="r"))
            await asyncio.to_thread(provider.wait_for, lambda p: p.received == 1, 10)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            await agent.router.model.aclose()

        asyncio.run(start_and_leave())
    ((ref, delay_s, live),) = store.open_steps("r")
    assert (ref.step, delay_s, live) == (1, 0.0, False)


def test_run_sync_inside_a_loop_says_what_to_do() -> None:
    """The other thing every newcomer does."""

    async def inside() -> None:
        with pytest.raises(RuntimeError, match=r"await agent\.run"):
            Agent(OpenAIModel("x", api_key="x")).run_sync("hi")

    asyncio.run(inside())


def test_a_cut_off_answer_calls_nothing_and_the_run_goes_on(store: Any) -> None:
    """The provider ran out of tokens in the middle of a call; the tool must not run on what was left of it."""
    cut = Reply(tool_calls=(("wire", {"amount": 1}),), finish_reason="length")
    with Provider([cut, Reply(text="done")]) as provider:
        result = Agent(model_of(provider), [wire], store=store).run_sync("pay")
    assert [event.type for event in result.events].count("step_started") == 0
    assert result.output == "done"


def test_a_tool_is_hardened_by_what_its_author_declares() -> None:
    """Results are checked, failures are softened, and what softens them may fail too."""

    async def positive(result: int) -> int | None:
        if result < 0:
            raise ValidationError("negative")
        return result * 10 if result == 1 else None

    def broken() -> str:
        raise RuntimeError("no cache either")

    def measure(value: int) -> int:
        """Give back what is given."""
        return value

    checked = tool(name="checked", validate=positive)(measure)
    soft = harden(tool(name="soft", retries=5)(measure), validate=positive, fallback=lambda: [1, 2])
    brittle = tool(name="brittle", validate=positive, fallback=broken)(measure)
    calls = (
        ("checked", {"value": 1}),
        ("checked", {"value": 2}),
        *((name, {"value": -1}) for name in ("soft", "brittle")),
    )
    with Provider([Reply(tool_calls=calls), Reply(text="done")]) as provider:
        result = Agent(model_of(provider), [checked, soft, brittle]).run_sync("go")
    contents = [json.loads(m["content"]) for m in result.messages if m["role"] == "tool"]
    assert contents[:2] == [10, 2]
    assert contents[2] == {
        "ok": False,
        "tool": "soft",
        "error": {"category": "validation", "message": "negative"},
        "degraded": True,
        "fallback": [1, 2],
    }
    assert contents[3]["error"] == {
        "category": "validation",
        "message": "negative",
        "fallback_error": "no cache either",
    }
    assert "degraded" not in contents[3]
    assert soft.policy.retries == 0
