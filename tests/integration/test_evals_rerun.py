"""What stands around the calls of a replay: people, guards, memory, schemas, turns. All of it as it was then, or as it
is today, and never for real."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest

from drangue_worker import (
    Agent,
    Autonomy,
    Guardrails,
    InMemoryStore,
    MemoryItem,
    Result,
    ToolError,
    TransientError,
    tool,
)
from drangue_worker.evals import Difference, Recording, Replay, replay
from drangue_worker.evals.rerun import MISSING
from drangue_worker.testing import FakeModel
from tests.kit.inline import contents, copy_of

ran: list[Any] = []
ASSISTED = Autonomy(modes={"wire": "assisted"})
WIRE = ("wire", {"amount": 5})


@tool
def look(order: int) -> str:
    """Look an order up."""
    ran.append(order)
    return f"order {order} is lost"


@tool(reversible=False)
def wire(amount: int) -> str:
    """Move money."""
    ran.append(amount)
    return f"{amount} sent"


class Level(Enum):
    LOW = "low"
    HIGH = "high"


@tool
def page(level: Level, times: int = 1, idempotency_key: str = "") -> str:
    """Page somebody."""
    ran.append(level)
    return level.name


@pytest.fixture(autouse=True)
def nothing_ran() -> Iterator[None]:
    ran.clear()
    yield
    ran.clear()


def agent(*script: Any, tools: Any = (look, wire), **options: Any) -> Agent:
    return Agent(FakeModel(list(script)), tools, **options)


def recorded(one: Agent, *verdicts: str, run_id: str = "r", text: str = "go", **options: Any) -> Recording:
    """A run, with what people said when it asked; what it did is forgotten."""

    async def work() -> Result:
        result = await one.run(text, run_id=run_id, **options)
        for verdict in verdicts:
            if verdict == "yes":
                await one.approve(run_id, by="ann", reason="owed")
            else:
                await one.reject(run_id, reason=verdict, by="bob")
            result = await one.resume(run_id)
        return result

    result = asyncio.run(work())
    ran.clear()
    return Recording(result, output_schema=options.get("output_schema"))


def again(one: Agent, recording: Recording, **options: Any) -> Replay:
    made = asyncio.run(replay(one, [recording], **options))
    assert ran == [], "a replay touched the world"
    return made.replays[0]


def same(made: Replay) -> bool:
    return made.same_calls and made.same_answer and made.recorded == made.replayed and not made.differences


def alike(one: Agent, recording: Recording) -> bool:
    """Whether a replay is the record again, also in what the model was told of its calls."""
    made = again(one, recording)
    told, then = (
        [m["content"] for m in messages if m["role"] == "tool"]
        for messages in (one.router.model.calls[-1]["messages"], recording.result.messages)
    )
    return same(made) and told == then[: len(told)]


class TestPeople:
    def test_approvals_are_granted_as_they_were(self) -> None:
        """Nobody is woken for what was decided last week."""
        script = ([WIRE], "sent")
        assert alike(agent(*script, autonomy=ASSISTED), recorded(agent(*script, autonomy=ASSISTED), "yes"))

    def test_and_refused_as_they_were(self) -> None:
        """The model is told the same reason, and the call that was granted at the second attempt is then."""
        script = ([WIRE], [WIRE], "sent")
        recording = recorded(agent(*script, autonomy=ASSISTED), "not without a look", "yes")
        model = FakeModel(list(script))
        assert alike(Agent(model, [look, wire], autonomy=ASSISTED), recording)
        told = [message["content"] for message in model.calls[2]["messages"] if message["role"] == "tool"]
        assert "not without a look" in told[0]
        assert told[1] == "5 sent"

    def test_a_run_that_waits_is_replayed_as_far(self) -> None:
        """A pause is an end like another."""
        script = ([WIRE], "sent")
        recording = recorded(agent(*script, autonomy=ASSISTED))
        made = again(agent(*script, autonomy=ASSISTED), recording)
        assert made.recorded.status == made.replayed.status == "paused"
        assert same(made)

    def test_an_agent_that_asks_more_than_it_did_is_reported(self) -> None:
        """It goes on to the same end: what it would do is compared, not whether it may."""
        script = ([WIRE], "sent")
        made = again(agent(*script, autonomy=ASSISTED), recorded(agent(*script)))
        assert (made.same_calls, made.same_answer) == (True, True)
        assert made.differences == (Difference("asks_now", *WIRE),)

    def test_an_agent_that_would_do_what_a_person_refused_is_reported(self) -> None:
        """It chose the same, and nobody would stop it any more."""
        script = ([WIRE], "so be it")
        made = again(agent(*script), recorded(agent(*script, autonomy=ASSISTED), "no"))
        assert (made.same_calls, made.same_answer) == (True, True)
        assert made.differences == (Difference("runs_now", *WIRE),)

    def test_a_request_that_nobody_ever_saw_is_granted_to_be_found_missing(self) -> None:
        """A replay must not wait for a person."""
        made = again(agent([("wire", {"amount": 500})], "sent", autonomy=ASSISTED), recorded(agent([WIRE], "sent")))
        assert made.replayed.status == "completed"
        assert made.differences == (Difference("missing", "wire", {"amount": 500}),)

    @pytest.mark.parametrize("granted", [True, False])
    def test_an_approver_is_not_asked(self, granted: bool) -> None:
        """It may be a person behind a chat; its verdict is in the record too."""
        asked: list[str] = []

        def approver(name: str, arguments: dict[str, Any]) -> bool:
            asked.append(name)
            return granted

        guards = Guardrails(require_approval_for_irreversible=True, approver=approver)
        script = ([WIRE], "done")
        recording = recorded(agent(*script, guardrails=guards))
        asked.clear()
        assert alike(agent(*script, guardrails=guards), recording)
        assert asked == []


class TestGuards:
    def test_todays_guards_judge(self) -> None:
        """They are part of what is evaluated: one that is new shows in what the model is told."""
        guards = Guardrails(result_guard=lambda name, content: "private" if "lost" in content else None)
        model = FakeModel([[("look", {"order": 7})], "done"])
        made = again(Agent(model, [look], guardrails=guards), recorded(agent([("look", {"order": 7})], "done")))
        assert made.same_calls
        assert "result_blocked" in model.calls[1]["messages"][-1]["content"]

    def test_an_input_that_is_refused_today_is_another_answer(self) -> None:
        """No model is asked about it."""
        guards = Guardrails(input_guard=lambda text: "no orders")
        made = again(agent("done", guardrails=guards), recorded(agent("done")))
        assert (made.replayed.answer, made.replayed.steps, made.same_answer) == ("(blocked: no orders)", 0, False)


class TestTools:
    def test_nothing_of_a_tool_is_used_but_its_face(self) -> None:
        """Neither its validation nor its retries or its fallback: a record has been through all of them."""

        def never(*given: Any, **more: Any) -> Any:
            raise AssertionError("a replay touched the world")

        real = tool(timeout=1, retries=3, backoff=0, validate=lambda result: f"[{result}]", fallback="none")(look.func)
        calls = ([("look", {"order": 7}), ("look", {"order": 8})], "done")
        recording = recorded(agent(*calls, tools=[real]))
        policy = tool(retries=3, retry_on=(Exception,), validate=never, fallback=never)(look.func).policy
        broken = copy_of(real, func=never, policy=policy)
        assert alike(agent(*calls, tools=[broken]), recording)

    def test_a_recorded_failure_is_told_as_it_was(self) -> None:
        """Today the tool might work; the question is what the model makes of it."""

        @tool
        def fails(order: int) -> str:
            """Fail."""
            raise TransientError("busy")

        script = ([("fails", {"order": 7})], "it is busy")
        store, model = InMemoryStore(), FakeModel(list(script))
        recording = recorded(Agent(FakeModel(list(script)), [fails], store=store))
        assert alike(Agent(model, [fails]), recording)
        assert model.calls[1]["messages"][-1]["content"] == contents(store)[0]

    def test_what_is_not_in_the_record_is_said_to_be_so(self) -> None:
        """In the words in which a model is told of any failure."""
        model = FakeModel([[("look", {"order": 8})], "done"])
        again(Agent(model, [look]), recorded(agent([("look", {"order": 7})], "done")))
        content = model.calls[1]["messages"][-1]["content"]
        assert '"not_recorded"' in content
        assert MISSING in content

    def test_a_stub_that_fails_is_a_tool_that_fails(self) -> None:
        """The run goes on, as with any other tool."""

        def stub(name: str, arguments: dict[str, Any]) -> str:
            raise ToolError("the stub knows no orders")

        model = FakeModel([[("look", {"order": 8})], "done"])
        made = again(Agent(model, [look]), recorded(agent("done")), stub=stub)
        assert made.replayed.status == "completed"
        assert "the stub knows no orders" in model.calls[1]["messages"][-1]["content"]

    def test_an_irreversible_call_is_answered_as_often_as_it_was_made(self) -> None:
        """Looking twice is one look too many; paying twice is another thing altogether."""
        recording = recorded(agent([("look", {"order": 7}), WIRE], "done"))
        made = again(agent([("look", {"order": 7}), ("look", {"order": 7}), WIRE, WIRE], "done"), recording)
        assert made.differences == (Difference("missing", *WIRE),)
        assert not made.same_calls

    def test_arguments_are_matched_as_the_model_gave_them(self) -> None:
        """Not as the function gets them: converted, and with its defaults."""

        script = ([("page", {"level": "low", "times": "2"}), ("page", {"level": "high"})], "paged")
        assert alike(agent(*script, tools=[page]), recorded(agent(*script, tools=[page])))

    def test_a_call_that_todays_tool_would_refuse_is_refused(self) -> None:
        """Its parameters have changed since: the record has a result, and today there would be none."""

        def narrow(order: bool) -> str:
            """Look an order up."""
            return ""

        model = FakeModel([[("look", {"order": 7})], "done"])
        recording = recorded(agent([("look", {"order": 7})], "done"))
        made = again(Agent(model, [tool(name="look")(narrow)]), recording)
        assert "invalid_arguments" in model.calls[1]["messages"][-1]["content"]
        assert made.same_calls


class TestWhole:
    def test_memory_recalls_what_it_did_then(self) -> None:
        """It has learnt since, and is not asked."""

        class Memory:
            known = "likes tea"

            async def recall(self, query: str, *, limit: int = 5) -> list[MemoryItem]:
                ran.append(query)
                return [MemoryItem("taste", self.known, expires_at=4e9)]

            async def remember(self, item: MemoryItem) -> None:
                ran.append(item)

        class Later(Memory):
            known = "likes coffee"

        recording = recorded(agent("done", memory=Memory()))
        model = FakeModel(["done"])
        assert alike(Agent(model, memory=Later()), recording)
        assert "likes tea" in model.calls[0]["system"]

    def test_a_conversation_is_replayed_turn_by_turn(self) -> None:
        """Also where the same is said twice."""
        one = agent("hello", "again?", [("look", {"order": 7})], "it is lost")
        recorded(one, text="hi")
        one.run_sync("hi", run_id="r", turn_id="2")
        recording = Recording(one.run_sync("order 7", run_id="r", turn_id="3"))
        ran.clear()
        assert recording.inputs == ["hi", "hi", "order 7"]
        made = again(agent("hello", "again?", [("look", {"order": 7})], "it is lost"), recording)
        assert (made.replayed.steps, made.replayed.answer) == (4, "it is lost")
        assert same(made)

    def test_a_conversation_that_waits_is_replayed_as_far(self) -> None:
        """Its second turn asked a person, and nobody has answered yet."""
        script = ("hello", [WIRE], "sent")
        one = agent(*script, autonomy=ASSISTED)
        recorded(one)
        made = again(agent(*script, autonomy=ASSISTED), Recording(one.run_sync("pay", run_id="r", turn_id="2")))
        assert (made.replayed.status, made.replayed.steps) == ("paused", 2)
        assert same(made)

    def test_the_schema_a_run_was_submitted_with_holds_for_its_replay(self) -> None:
        """It is the caller's, not the agent's; delivering the answer is no choice of a tool."""
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        script = ([("look", {"order": 7})], [("final_answer", {"n": 7})])
        made = again(agent(*script), recorded(agent(*script), output_schema=schema))
        assert made.recorded.answer == '{"n": 7}'
        assert made.recorded.tools == ("look",)
        assert same(made)
