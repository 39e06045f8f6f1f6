"""`Run`: the control state of one run, as its log tells it; `folding` reads the log.

The snapshot is small (no text, no arguments), since it is rewritten with every step; the conversation is folded
apart, in `messages`, by whoever needs it. What should happen next is not decided here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from drangue_client.answer import FINAL_ANSWER
from drangue_client.budget import Spent
from drangue_client.terms import Terms

STATE_VERSION = 3
DEADLINE = "deadline"  # the reason of a turn that ended because its time was over

Status = Literal["queued", "running", "paused", "completed", "failed", "cancelled"]
Ended = Literal["completed", "failed", "cancelled"]
ENDED: tuple[Ended, ...] = get_args(Ended)
MOVING: tuple[Status, ...] = ("queued", "running")
ALIVE: tuple[Status, ...] = (*MOVING, "paused")
OVER: tuple[Ended, ...] = ("completed", "cancelled")  # nothing of the turn goes on; a failed one may be resumed
Verdict = Literal["none", "asked", "granted", "denied", "uncertain", "known", "expired"]
_VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True, slots=True)
class Request:
    """What a request for leave needs beyond one word: how many `people`, and whose it has; when it expires, and when
    others are to be asked too (epoch seconds, None: never)."""

    people: int = 1
    granted_by: tuple[str, ...] = ()
    expires_at: float | None = None
    escalates_at: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the latest decision: its own step number, the tool's name, and what has become of it.

    It is `uncertain` while a person is asked whether it took effect, `known` once its late outcome is in the log, and
    `expired` where nobody decided and its tool's fallback is to answer. `request` is None for a plain one.
    """

    step: int
    name: str
    settled: bool = False
    verdict: Verdict = "none"
    request: Request | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One run as its log tells it up to `seq` (-1: an empty log).

    `decision` is the step of the latest model call of this turn (0: none yet) and `decision_seq` its place in the log,
    `calls` what it asked for, `answer` its text where it asked for nothing, `accepted` the step of the call that
    delivered a structured answer. `last_step` is the highest step number given out. `ended` is how the latest turn
    ended (None while it goes on) and `reason` its machine-readable cause.

    Of this turn are also `screened` (its input has been judged), `blocked` (why it was refused), `corrections`
    (answers that were sent back) and `deadline_at` (epoch seconds). Of the whole run are `recalled`, `spent`, `unknown`
    (the steps whose outcome nobody knows), and `context`, the size of the conversation in bytes, which is kept for hard
    budgets only.
    """

    seq: int = -1
    terms: Terms | None = None
    turn: int = 0
    last_step: int = 0
    decision: int = 0
    decision_seq: int = -1
    calls: tuple[Call, ...] = ()
    answer: str | None = None
    accepted: int | None = None
    turn_model_calls: int = 0
    model_calls: int = 0
    ended: Ended | None = None
    reason: str | None = None
    screened: bool = False
    blocked: str | None = None
    corrections: int = 0
    recalled: bool = False
    spent: Spent = field(default_factory=Spent)
    context: int = 0
    deadline_at: float | None = None
    unknown: tuple[int, ...] = ()

    @property
    def cut_short(self) -> bool:
        """Whether the turn was ended with calls of its latest decision still open."""
        return self.ended == "cancelled" or (self.ended == "completed" and self.reason == DEADLINE)

    @property
    def unsettled(self) -> tuple[Call, ...]:
        """Calls of the latest decision that have no result yet, in call order."""
        return tuple(call for call in self.calls if not call.settled)

    @property
    def pending(self) -> tuple[Call, ...]:
        """Calls that wait for a person's verdict, in call order."""
        return tuple(call for call in self.unsettled if call.verdict == "asked" and self.ended not in OVER)

    @property
    def asked(self) -> int:
        """How many calls wait for a person's verdict while the turn goes on."""
        return 0 if self.ended else len(self.pending)

    @property
    def due_at(self) -> float | None:
        """When time alone moves the run on (epoch seconds): its deadline, or a request that expires or escalates."""
        requests = [call.request for call in self.pending if call.request]
        times = [at for one in requests for at in (one.expires_at, one.escalates_at) if at is not None]
        times += [self.deadline_at] if self.deadline_at is not None else []
        return None if self.ended else min(times, default=None)

    @property
    def uncertain(self) -> tuple[Call, ...]:
        """Calls that wait until a person has said what became of them, in call order."""
        return tuple(call for call in self.unsettled if call.verdict == "uncertain" and self.ended not in OVER)

    @property
    def status(self) -> Status:
        """The status by the latest turn; `paused` when nothing can move before a verdict."""
        if self.ended:
            return self.ended
        if self.seq < 0:
            return "queued"
        return "paused" if (self.pending or self.uncertain) and not self.free else "running"

    @property
    def free(self) -> tuple[Call, ...]:
        """Unsettled calls of tools that no person keeps from going on, in call order.

        An irreversible call waits until every earlier call of its decision has settled: what cannot be undone is done
        one at a time and in the order it was asked for.
        """
        free: list[Call] = []
        earlier_open = False
        for call in self.unsettled:
            if self.delivers(call):  # judged when every other call has settled
                continue
            tool = self.terms.tools.get(call.name) if self.terms else None
            asks = call.verdict == "none" and self.terms is not None and self.terms.mode_for(call.name) == "assisted"
            in_order = tool is None or tool.reversible or asks or not earlier_open  # asking harms nobody
            if call.verdict not in ("asked", "uncertain") and in_order:
                free.append(call)
            earlier_open = True
        return tuple(free)

    def delivers(self, call: Call) -> bool:
        """Whether a call delivers the structured answer instead of running a tool."""
        return call.name == FINAL_ANSWER and self.terms is not None and self.terms.output_schema is not None

    def call(self, step: int | None) -> Call | None:
        """The call of the latest decision with this step number."""
        return next((call for call in self.calls if call.step == step), None)

    def to_snapshot(self) -> dict[str, Any]:
        """The control state as small JSON, without the terms (they are stored once) and without `seq`."""
        return {
            "v": STATE_VERSION,
            "turn": self.turn,
            "last": self.last_step,
            "decision": self.decision,
            "decision_seq": self.decision_seq,
            "calls": [_packed(call) for call in self.calls],
            "answer": self.answer,
            "accepted": self.accepted,
            "turn_models": self.turn_model_calls,
            "models": self.model_calls,
            "ended": self.ended,
            "reason": self.reason,
            "screened": self.screened,
            "blocked": self.blocked,
            "corrections": self.corrections,
            "recalled": self.recalled,
            "spent": [self.spent.tokens, self.spent.usd, self.spent.unpriced],
            "context": self.context,
            "deadline": self.deadline_at,
            "unknown": list(self.unknown),
        }

    @classmethod
    def from_snapshot(cls, state: dict[str, Any] | None, seq: int, terms: Terms | dict[str, Any] | None) -> Run:
        """The run as of `seq`; an empty run if the snapshot is of another version (then fold the whole log)."""
        if not knows(state):
            return cls()
        assert state is not None
        return cls(
            seq=seq,
            terms=Terms.from_json(terms) if isinstance(terms, dict) else terms,
            turn=state["turn"],
            last_step=state["last"],
            decision=state["decision"],
            decision_seq=state["decision_seq"],
            calls=tuple(
                Call(state["decision"] + index, name, bool(settled), _VERDICTS[verdict], _unpacked(request))
                for index, (name, settled, verdict, *request) in enumerate(state["calls"], start=1)
            ),
            answer=state["answer"],
            accepted=state["accepted"],
            turn_model_calls=state["turn_models"],
            model_calls=state["models"],
            ended=state["ended"],
            reason=state["reason"],
            screened=state["screened"],
            blocked=state["blocked"],
            corrections=state["corrections"],
            recalled=state["recalled"],
            spent=Spent(*state["spent"]),
            context=state["context"],
            deadline_at=state["deadline"],
            unknown=tuple(state["unknown"]),
        )


def knows(state: dict[str, Any] | None) -> bool:
    """Whether a snapshot can be read by this program; None (nothing folded yet) cannot and needs not."""
    return state is not None and state.get("v") == STATE_VERSION


def outlives(state: dict[str, Any] | None) -> bool:
    """Whether a snapshot is of a program newer than this one, which then leaves it alone."""
    return state is not None and state.get("v", 0) > STATE_VERSION


def _packed(call: Call) -> list[Any]:
    packed: list[Any] = [call.name, int(call.settled), _VERDICTS.index(call.verdict)]
    if call.request is None:
        return packed
    request = call.request
    return [*packed, request.people, list(request.granted_by), request.expires_at, request.escalates_at]


def _unpacked(request: list[Any]) -> Request | None:
    if not request:
        return None
    people, granted_by, expires_at, escalates_at = request
    return Request(people, tuple(granted_by), expires_at, escalates_at)
