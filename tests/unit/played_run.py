"""A run played by chance: the rules write its log, and the world around it does what it will.

Steps end in any order, people decide or do not, workers ask where the terms did not, runs fail, are cancelled or late,
go on, nobody knows what became of a call, and somebody tells it late. The player keeps its own account of what is open,
settled, granted, in doubt and over, and holds every move against it; it never asks the fold for what it checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from drangue_client.answer import FINAL_ANSWER
from drangue_client.budget import Budget
from drangue_client.events import Event, Fact
from drangue_client.run import Run
from drangue_client.store.values import Open
from drangue_client.terms import Guards, Terms
from drangue_worker.rules.decide import decide
from tests.unit.made_logs import (
    IRREVERSIBLE,
    PRICES,
    SCHEMA,
    TERMS,
    TOOLS,
    asked,
    begun,
    called,
    cancelled,
    corrected,
    decided,
    denied,
    failed,
    found,
    granted,
    recalled,
    result,
    resumed,
    said,
    screened,
    started,
    unknown,
    wondered,
)
from tests.unit.test_plan import planned

# Facts about one call; those of siblings may stand in any order between each other.
VERDICTS = ("approval_granted", "approval_denied", "approval_expired")
OF_A_CALL = (
    "step_started",
    "tool_result",
    "approval_requested",
    *VERDICTS,
    "outcome_requested",
    "outcome_given",
)
DECISION = "model_decision"
BEGINNINGS = ("user_message", "run_resumed")
ENDINGS = ("run_finished", "run_failed", "run_cancelled")
SETTLES = ("model_decision", "tool_result", "input_screened", "memory_recalled")
ANSWER = '{"n": 1}'  # as SCHEMA has it
TIME_S = 12.0  # a turn has, where it has not for ever

BUDGETS = st.sampled_from([None, Budget(max_tokens=200), Budget(max_usd=1.0, prices=PRICES, hard=True)])
GUARDS = st.none() | st.builds(
    Guards,
    deny=st.sampled_from([frozenset[str](), frozenset({"read"})]),
    gate_irreversible=st.booleans(),
    input=st.booleans(),
    output=st.booleans(),
    approver=st.booleans(),
)
SOME_TERMS = st.builds(
    replace,
    st.just(TERMS),
    window=st.integers(1, 3),
    max_steps=st.integers(2, 5),
    guards=GUARDS,
    memory=st.booleans(),
    output_schema=st.sampled_from([None, SCHEMA]),
    output_ceiling=st.just(10),
    budget=BUDGETS,
    deadline_s=st.sampled_from([None, None, TIME_S]),
)
CALLS = st.lists(st.sampled_from((*TOOLS, FINAL_ANSWER)), max_size=5)


def expired(step: int) -> Fact:
    """Nobody answered a question in time."""
    return Fact("approval_expired", {}, step)


class PlayedRun(RuleBasedStateMachine):
    """One run and the world around it."""

    @initialize(terms=SOME_TERMS)
    def submit(self, terms: Terms) -> None:
        self.terms = terms
        self.log: list[Event] = []
        self.run = Run()
        self.open: dict[int, Open] = {}
        self.settled: set[int] = set()
        self.begun: set[int] = set()
        self.corrected: set[int | None] = set()
        self.nobody_knows: set[int] = set()
        self.known: set[int] = set()  # before anybody has said that they are not
        self.asked_of_a_person: set[int] = set()  # what became of these
        self.now = 1000.0
        self.without_leave: set[int] = set()  # asked about, and not granted
        self.judged: set[int] = set()
        self.over = False
        self.failures = 0
        self.cancelled = False
        self.write(started(terms, **self.deadline()))

    def deadline(self) -> dict[str, float]:
        """As the first event of a turn that begins now has it."""
        return {} if self.terms.deadline_s is None else {"deadline_at": self.now + self.terms.deadline_s}

    def write(self, *facts: Fact) -> None:
        """Append facts and all that follows from them, as a settling step and a coordinator do."""
        over_before = self.over
        decided_on = planned(self.log, *facts, now=self.now)
        fresh = [fact.at(seq) for seq, fact in enumerate(decided_on.facts, start=len(self.log))]
        for event in fresh:
            self.take_note(event)
        self.log += fresh
        self.run = decided_on.run
        if over_before and not any(fact.type in BEGINNINGS for fact in facts):
            assert (len(fresh), decided_on.opens) == (len(facts), ())
        for step in decided_on.opens:
            assert step.step not in self.settled | self.without_leave | self.asked_of_a_person
            self.check_order(step)
            self.open[step.step] = step

    def take_note(self, event: Event) -> None:
        step = event.step if event.step is not None else 1_000_000
        if event.type in SETTLES:
            assert step not in self.settled, "the database would refuse this fact, and the run would stand still"
            self.settled.add(step)
        if event.type in (*SETTLES, "approval_requested", "outcome_requested"):  # who asks lets go of the step
            self.open.pop(step, None)
        if event.type == "outcome_requested" or event.payload.get("unknown"):
            self.nobody_knows |= {step} - self.known
        elif event.type in ("tool_result", "outcome_given", "outcome_corrected"):
            self.nobody_knows.discard(step)
        if event.type == "outcome_requested":
            self.asked_of_a_person.add(step)
        if event.type in ENDINGS:
            self.over = True
        elif event.type in BEGINNINGS:
            self.over = False
        if event.type == "approval_requested":
            self.without_leave.add(step)
        elif event.type == "approval_granted" and step not in self.judged:
            self.without_leave.discard(step)
        if event.type in VERDICTS:
            self.judged.add(step)
        if event.type in ("user_message", "step_stopped"):  # what nobody holds of a cancelled turn is deleted
            self.open.clear()

    def check_order(self, opened: Open) -> None:
        """An irreversible call that may run has no open call before it in its decision."""
        call = self.run.call(opened.step)
        if call is None or call.name not in IRREVERSIBLE or self.only_asks(opened.step):
            return
        assert [step for step in range(self.run.decision + 1, call.step) if self.unsettled(step)] == []

    def only_asks(self, step: int) -> bool:
        """Whether all that its worker will do with a call is to put the question whether it may run."""
        call = self.run.call(step)
        return call is not None and call.verdict == "none" and self.terms.mode_for(call.name) == "assisted"

    def unsettled(self, step: int) -> bool:
        call = self.run.call(step)
        return call is not None and not self.run.delivers(call) and step not in self.settled

    def tools(self) -> list[int]:
        """The open steps in which a tool may run now."""
        return sorted(step for step, opened in self.open.items() if opened.kind == "tool" and not self.only_asks(step))

    @property
    def names(self) -> dict[int, str]:
        """The tool of every call there ever was, by step."""
        decisions = [event for event in self.log if event.type == "model_decision"]
        return {
            step: call["name"]
            for event in decisions
            for step, call in enumerate(event.payload["tool_calls"], start=(event.step or 0) + 1)
        }

    # One rule for all: Hypothesis leaves some out of each of its plays, and then a run has no way on.
    @rule(data=st.data())
    def let_something_happen(self, data: st.DataObject) -> None:
        self.data = data
        moves = [*self.steps_that_end(), *self.people_that_speak(), *self.accidents(), *self.late_news()]
        data.draw(st.sampled_from(moves))()

    def steps_that_end(self) -> Iterator[Callable[[], None]]:
        """Also after a failure or a cancellation: whoever held the step hands in what it has."""
        for step, opened in self.open.items():
            if opened.kind == "tool" and (step in self.tools() or not self.run.ended):
                yield partial(self.return_from, step)
            elif opened.kind == "model" and self.run.cut_short:
                yield partial(self.write, Fact("step_stopped", {"kind": "model"}, step))
                yield partial(self.think, step)
            elif not self.run.ended and opened.kind == "model":
                yield from [partial(self.think, step)] * 3
            elif not self.run.ended:
                yield partial(self.prepare, step)

            if step in self.begun and step not in self.asked_of_a_person:  # interrupted, and nobody could tell
                yield partial(self.write, unknown(step, self.names[step]))
                if step not in self.known:
                    yield partial(self.write, wondered(step, self.names[step]))

    def return_from(self, step: int) -> None:
        self.write(asked(step, self.names[step]) if self.only_asks(step) else result(step, self.names[step]))

    def prepare(self, step: int) -> None:
        passed = st.sampled_from([None, None, None, "no"])
        self.write(screened(self.run.turn, self.data.draw(passed)) if step < 0 else recalled("likes tea"))

    def think(self, step: int) -> None:
        usage = {"input_tokens": self.data.draw(st.integers(0, 40)), "output_tokens": 1}
        names = self.data.draw(CALLS)
        if names:
            answer = {"n": 1} if self.data.draw(st.booleans()) else {}
            calls = [(name, answer if name == FINAL_ANSWER else {"m": place}) for place, name in enumerate(names)]
            self.write(called(step, *calls, usage=usage))
        else:
            self.write(decided(step, text=self.data.draw(st.sampled_from(["prose", ANSWER])), usage=usage))

    def people_that_speak(self) -> Iterator[Callable[[], None]]:
        for call in self.run.pending:
            yield from (partial(self.judge, call.step, verdict) for verdict in (granted, denied, expired))
        for step in self.nobody_knows:
            yield partial(self.find_out, step)
        if self.run.ended:
            again = resumed if self.run.ended == "failed" else said
            yield partial(self.write, again(**self.deadline()))

    def find_out(self, step: int) -> None:
        """What became of a call is its result where the run waits for it, and else told besides."""
        name = self.names[step]
        if self.waits_for_word(step):
            self.write(found(step), result(step, name, "found"))
        else:
            self.tell(found(step), corrected(step, name, "found"))

    def waits_for_word(self, step: int) -> bool:
        """Whether the turn goes on, or may be taken up again, and stands still for this outcome."""
        return step in self.asked_of_a_person - self.settled and step in self.calls_of_now() and not self.run.cut_short

    def calls_of_now(self) -> set[int]:
        return {call.step for call in self.run.calls}

    def judge(self, step: int, verdict: Callable[[int], Fact]) -> None:
        """Twice at once, by two people, and the second says the opposite."""
        self.write(verdict(step))
        self.tell(denied(step) if verdict is granted else granted(step))

    def accidents(self) -> Iterator[Callable[[], None]]:
        yield self.write  # a coordinator comes for nothing
        yield self.let_time_pass
        if self.run.ended:
            return
        for step in set(self.tools()) - self.begun:
            call = self.run.call(step)
            if call is not None and call.name in IRREVERSIBLE:
                yield partial(self.begin, step)
            if call is not None and call.verdict == "none":  # gated today, and free when the run began
                yield partial(self.write, asked(step, call.name))
        if self.open and self.failures < 2:
            yield self.fail
        if self.run.decision and not self.cancelled:
            yield self.cancel

    def late_news(self) -> Iterator[Callable[[], None]]:
        for step in self.begun - self.settled - self.asked_of_a_person - self.known:
            if step in self.open:
                yield partial(self.come_to_light, step)
        for step in (self.begun & self.settled) - self.corrected:
            yield partial(self.tell, corrected(step, self.names[step]))
        for step in self.nobody_knows:
            if self.waits_for_word(step):
                yield partial(self.write, result(step, self.names[step], "late and true"))

    def come_to_light(self, step: int) -> None:
        """Whoever was taken for dead hands in what came of a call while another looks for just that."""
        self.known.add(step)
        self.tell(corrected(step, self.names[step]))

    def tell(self, *facts: Fact) -> None:
        """Record what came late: nothing is to be done about it."""
        before = decide(self.run, self.now)
        self.corrected |= {fact.step for fact in facts if fact.type == "outcome_corrected"}
        self.write(*facts)
        assert decide(self.run, self.now) == before

    def let_time_pass(self) -> None:
        """And a coordinator come, as one is sent for at the deadline."""
        self.now += TIME_S / 3
        self.write()

    def begin(self, step: int) -> None:
        self.begun.add(step)
        self.write(begun(step, self.names[step]))

    def fail(self) -> None:
        self.failures += 1
        self.write(failed())

    def cancel(self) -> None:
        self.cancelled = True
        self.write(cancelled(self.run.last_step + 1))

    def thought_too_late(self) -> bool:
        """Whether a decision was recorded after its turn was cut short: see the test of that below."""
        types = [event.type for event in self.log if event.type not in (*OF_A_CALL, "outcome_corrected")]
        return any(first in ("run_cancelled", "run_finished") for first, then in pairwise(types) if then == DECISION)
