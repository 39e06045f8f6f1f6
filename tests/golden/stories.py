"""The runs that golden logs are recorded from: real ones in one process, with a model that says what stands here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from drangue_client.errors import LeaseHeldError, RunFailedError
from drangue_client.events import Event
from drangue_client.messages import ModelResponse
from drangue_client.turns import cancel, say
from drangue_worker import Agent, Approval, Autonomy, Budget, Guardrails, InMemoryStore, MemoryItem, tool
from drangue_worker.testing import FakeModel
from tests.contract.log_scenes import elapse
from tests.kit.inline import RUN, Scripted, kinds, leave, until

STORIES: dict[str, Callable[[], list[Event]]] = {}
FAILURES = (RunFailedError, RuntimeError)  # what failed a run is raised in the process that saw it
PRICES = {"fake": {"input": 1000.0, "output": 2000.0}}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@tool
def look(what: str = "disk") -> str:
    """Look at something."""
    return f"the {what} is fine"


@tool(reversible=False)
def wire(amount: int) -> str:
    """Send money."""
    return f"wired {amount}"


@tool(requires_approval=True)
def pay(amount: int) -> str:
    """Pay a bill."""
    return f"paid {amount}"


TOOLS = [look, wire, pay]


def story(play: Callable[[Any], object]) -> Callable[[Any], object]:
    """Register a run; what it raises because it failed is part of it."""

    def record() -> list[Event]:
        store = InMemoryStore()
        with suppress(*FAILURES):
            play(store)
        events = store.events(RUN)
        store.close()
        return events

    STORIES[play.__name__] = record
    return play


def says(store: Any, *script: Any, **options: Any) -> Agent:
    """An agent whose model says this."""
    return Agent(Scripted(*script, ceiling=20), options.pop("tools", TOOLS), "Be brief.", store=store, **options)


def _a_minute_later(store: Any) -> None:
    """Whoever looks at a run from now on sees a clock that has gone on."""
    look = store.look

    def look_later(run_id: str) -> Any:
        seen = look(run_id)
        return replace(seen, now=seen.now + 60)

    store.look = look_later


@story
def plain_answer(store: Any) -> None:
    says(store, "It is 42.").run_sync("What is six times seven?", run_id=RUN)


@story
def tools_in_parallel(store: Any) -> None:
    """The later calls end first."""
    ended: list[int] = []

    @tool
    async def wait(place: int) -> str:
        """Ends after the calls behind it."""
        await until(lambda: len([e for e in store.events(RUN) if e.type == "tool_result"]) >= 3 - place)
        ended.append(place)
        return f"I was number {place}"

    says(store, [("wait", {"place": n}) for n in (1, 2, 3)], "done", tools=[wait]).run_sync("go", run_id=RUN)


@story
def irreversible(store: Any) -> None:
    """One reversible call, two that cannot be undone."""
    script = [("look", {}), ("wire", {"amount": 1}), ("wire", {"amount": 2})]
    says(store, script, "done").run_sync("pay them", run_id=RUN)


def _judged(store: Any, verdict: str) -> None:
    agent = says(store, [("look", {}), ("pay", {"amount": 5})], "done")
    agent.run_sync("pay it", run_id=RUN)

    async def go_on() -> None:
        if verdict == "granted":
            await agent.approve(RUN, by="ann", reason="it is due")
        else:
            await agent.reject(RUN, reason="not before Friday", by="ann")
        await agent.resume(RUN)

    asyncio.run(go_on())


@story
def approval_granted(store: Any) -> None:
    _judged(store, "granted")


@story
def approval_denied(store: Any) -> None:
    _judged(store, "denied")


@story
def approval_pending(store: Any) -> None:
    """Left as it is: two questions, and nobody has said anything yet."""
    agent = says(
        store, [("pay", {"amount": 5}), ("wire", {"amount": 6})], autonomy=Autonomy(modes={"wire": "assisted"})
    )
    agent.run_sync("pay both", run_id=RUN)


@story
def approval_expired(store: Any) -> None:
    """Nobody says anything in time, and so nothing is paid."""
    autonomy = Autonomy(approvals={"pay": Approval(group="finance", expires_s=60)})
    agent = says(store, [("look", {}), ("pay", {"amount": 5})], "done", autonomy=autonomy)
    agent.run_sync("pay it", run_id=RUN)
    _a_minute_later(store)
    asyncio.run(agent.resume(RUN))


@story
def input_blocked(store: Any) -> None:
    guardrails = Guardrails(input_guard=lambda text: "forbidden" in text and "not about that")
    agent = says(store, "Gladly.", guardrails=guardrails)
    agent.run_sync("something forbidden", run_id=RUN)
    agent.run_sync("something else", run_id=RUN)


@story
def calls_refused(store: Any) -> None:
    """Forbidden, unknown, of a shape that does not fit, refused by a guard, only proposed, with a result withheld."""

    @tool
    def recite() -> str:
        """Says too much."""
        return "the password is swordfish"

    calls = [("wire", {"amount": 1}), ("ghost", {}), ("pay", {"amount": "much"}), ("look", {"what": "vault"})]
    guardrails = Guardrails(
        deny={"wire"},
        output_guard=lambda name, arguments: arguments.get("what") == "vault" and "not there",
        result_guard=lambda name, content: "password" in content and "it holds a password",
    )
    options: dict[str, Any] = {"guardrails": guardrails, "autonomy": Autonomy(modes={"pay": "shadow"})}
    says(store, [*calls, ("recite", {})], "done", tools=[*TOOLS, recite], **options).run_sync("try all", run_id=RUN)


@story
def memory(store: Any) -> None:
    class Book:
        async def recall(self, query: str, *, limit: int = 5) -> list[MemoryItem]:
            return [MemoryItem("tea", "likes tea"), MemoryItem("place", {"city": "Oslo"})]

        async def remember(self, item: MemoryItem) -> None:
            """Nothing is kept."""

    says(store, "Tea, then.", memory=Book()).run_sync("What shall I drink?", run_id=RUN)


@story
def budget_soft(store: Any) -> None:
    """Each answer uses 15 tokens; what was asked for is done, the next thought is not."""
    agent = says(store, [("look", {})], budget=Budget(max_tokens=30, max_usd=1.0, prices=PRICES))
    agent.run_sync("look for ever", run_id=RUN)


@story
def budget_hard(store: Any) -> None:
    says(store, [("look", {})], budget=Budget(max_tokens=2000, hard=True)).run_sync("look for ever", run_id=RUN)


@story
def structured_with_corrections(store: Any) -> None:
    """Prose, then an answer that misses beside a call, then one that matches."""
    script = ("It is one.", [("final_answer", {"n": "one"}), ("look", {})], [("final_answer", {"n": 1})])
    says(store, *script, output_schema=SCHEMA).run_sync("how many?", run_id=RUN)


@story
def structured_given_up(store: Any) -> None:
    says(store, "One.", "One, I say.", "Uno.", output_schema=SCHEMA).run_sync("how many?", run_id=RUN)


@story
def three_turns(store: Any) -> None:
    agent = says(store, "Hello.", [("look", {})], "It is fine.", "Goodbye.")
    for number, text in enumerate(("hello", "how is the disk?", "bye"), start=1):
        agent.run_sync(text, run_id=RUN, turn_id=f"t{number}")


@story
def failure_and_resume(store: Any) -> None:
    """The model is gone after a call was made, and answers when somebody tries again."""
    agent = says(store, [("look", {})], RuntimeError("the model is gone"), "It is fine.")
    with suppress(*FAILURES):
        agent.run_sync("how is the disk?", run_id=RUN)
    asyncio.run(agent.resume(RUN))


@story
def failed(store: Any) -> None:
    says(store, RuntimeError("the model is gone")).run_sync("hello", run_id=RUN)


@story
def unknown_outcome(store: Any) -> None:
    """The caller goes away while money is on its way."""
    reached = asyncio.Event()

    @tool(reversible=False)
    async def send() -> str:
        """Never comes back."""
        reached.set()
        await asyncio.Event().wait()
        return "never"

    agent = Agent(FakeModel([[("send", {})], "done"]), [send], store=store)
    leave(agent, reached)
    asyncio.run(agent.resume(RUN))


@story
def outcome_corrected(store: Any) -> None:
    """Taken for dead, told as unknown, and yet it was sent; the model has read of the unknown by then."""
    sent = asyncio.Event()

    @tool(reversible=False)
    async def send() -> str:
        """Ends after somebody else has taken its step over."""
        sent.set()
        await until(lambda: "run_finished" in kinds(store))
        return "sent"

    agent = Agent(FakeModel([[("send", {})], "done", "So it was."]), [send], store=store)

    async def work() -> None:
        first = asyncio.create_task(agent.run("go", run_id=RUN))
        await sent.wait()
        elapse(store, 60)
        await agent.resume(RUN)
        with suppress(LeaseHeldError):
            await first
        await agent.run("was it sent?", run_id=RUN)

    asyncio.run(work())


@story
def outcome_asked(store: Any) -> None:
    """Two transfers nobody hears of again: a person finds one of them, and not the other."""
    agent = says(store, [("send", {}), ("look", {}), ("send", {})], "done", tools=[look, _lost(on_unknown="ask")])
    agent.run_sync("pay them", run_id=RUN)

    async def find_out() -> None:
        await agent.give_outcome(RUN, happened=True, note="entry 4711", by="ann", reason="asked the bank")
        await agent.resume(RUN)
        await agent.give_outcome(RUN, happened=False, note="no entry", by="ben")
        await agent.resume(RUN)

    asyncio.run(find_out())


@story
def outcome_left_open(store: Any) -> None:
    """Left as it is: a transfer nobody hears of again, and nobody has looked for it yet."""
    agent = says(store, [("send", {}), ("send", {})], "done", tools=[_lost(on_unknown="ask")])
    agent.run_sync("pay them", run_id=RUN)


@story
def outcome_given_late(store: Any) -> None:
    """The model has gone on with an unknown outcome by the time somebody finds out."""
    agent = says(store, [("send", {})], "I do not know.", "Then it was not.", tools=[_lost()])
    agent.run_sync("pay them", run_id=RUN)
    asyncio.run(agent.give_outcome(RUN, happened=False, by="ann", reason="asked the bank"))
    agent.run_sync("was it sent?", run_id=RUN)


def _lost(**options: Any) -> Any:
    @tool(reversible=False, timeout=0.05, **options)
    async def send() -> str:
        """Its answer never comes."""
        await asyncio.Event().wait()
        return "never"

    return send


@story
def deadline(store: Any) -> None:
    """Three calls: one has ended by then, one that cannot be undone ends later, one is never begun."""
    script = [("look", {}), ("send", {}), ("send", {})]

    @tool(reversible=False)
    async def send() -> str:
        """Ends when the turn is over, which another process has found."""
        await until(lambda: "tool_result" in kinds(store))
        _a_minute_later(store)
        await says(store, script, tools=tools, deadline=60).resume(RUN)
        return "sent"

    tools = [look, send]
    says(store, script, tools=tools, deadline=60).run_sync("go", run_id=RUN)


@story
def step_stopped(store: Any) -> None:
    """Cancelled in the middle of a thought, whose process is not heard of again; and then spoken to."""

    class Leaving(Scripted):
        """Thinks until its run is cancelled and its claim has lapsed."""

        async def generate(self, **asked: Any) -> ModelResponse:
            answer = await super().generate(**asked)
            if len(self.calls) == 1:
                cancel(store, RUN, by="ann", reason="enough")
                elapse(store, 60)
                await asyncio.to_thread(say, store, RUN, "why did you think so long?")
            return answer

    agent = Agent(Leaving("too late", "Sorry."), TOOLS, "Be brief.", store=store)
    agent.run_sync("go", run_id=RUN)
    asyncio.run(agent.resume(RUN))


@story
def max_steps(store: Any) -> None:
    says(store, [("look", {})], max_steps=2).run_sync("look for ever", run_id=RUN)


@story
def cancelled(store: Any) -> None:
    """In the middle of a call, and then spoken to again."""

    @tool
    def look_away() -> str:
        """Is told to stop while it looks."""
        cancel(store, RUN, by="ann", reason="enough")
        return "seen"

    agent = says(store, [("look_away", {}), ("pay", {"amount": 5})], "Sorry.", tools=[look_away, pay])
    agent.run_sync("go", run_id=RUN)
    agent.run_sync("why did you do that?", run_id=RUN)
