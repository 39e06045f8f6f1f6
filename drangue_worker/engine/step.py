"""What one attempt at one claimed step has in hand, and the two ways it can end: settled, or given back."""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass, replace
from typing import Any

from drangue_client.errors import TransientError, may_have_cost
from drangue_client.events import Fact
from drangue_client.run import Run
from drangue_client.store.values import Claimed
from drangue_client.terms import Terms
from drangue_client.turns import called_at, stopped
from drangue_worker.blueprint import Blueprint
from drangue_worker.engine.facts import tool_result
from drangue_worker.engine.runtime import Runtime
from drangue_worker.observability.logs import get_logger
from drangue_worker.rules.budget import reserve
from drangue_worker.rules.retry import MAX_BACKOFF_S, MODEL_BACKOFF_S, delay_s
from drangue_worker.tools.invoke import category_of, text_of

log = get_logger("drangue.step")

MISSING_BACKOFF_S = 5.0
GRACE_S = 600.0  # how long what a run was started with may be missing from the workers before it goes on without
GUARD_RETRIES = 2  # extra attempts for a guard that could not be asked
_SHOWN_CHARS = 500


@dataclass(frozen=True, slots=True)
class Settle:
    """Record these facts; `error` is what failed the run. `begun` says that they are the true outcome of an
    irreversible call that this attempt made: it is worth recording whoever holds the step by now."""

    facts: tuple[Fact, ...]
    error: BaseException | None = None
    begun: bool = False


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Try again in `delay_s`. `failed` counts against the retries, `lost` says that a call may have had its effect."""

    delay_s: float
    category: str
    failed: bool = False
    lost: bool = False
    tries: tuple[dict[str, Any], ...] | None = None


Outcome = Settle | GiveBack


class Attempt:
    """One attempt at one claimed step, by the agent's `blueprint`. `key` is the same for every attempt."""

    def __init__(self, runtime: Runtime, claimed: Claimed, blueprint: Blueprint) -> None:
        self.runtime = runtime
        self.claimed = claimed
        self.blueprint = blueprint
        self.step = claimed.ask.step
        self.key = f"{claimed.ask.run_id}:{claimed.ask.step}"
        self.begun = False  # by this attempt
        self._had_begun = any(event.type == "step_started" for event in claimed.facts)
        self._started = time.monotonic()

    @property
    def run(self) -> Run:
        """The run as the claim saw it."""
        return self.claimed.look.run

    @property
    def terms(self) -> Terms:
        """What the run was started under."""
        assert self.run.terms is not None
        return self.run.terms

    def again(
        self, error: BaseException, retries: int, base_s: float, cap_s: float, phase: str = "call"
    ) -> GiveBack | None:
        """Another attempt after a wait, while `retries` of this phase of the step are left; None when they are used up.

        The call itself and the guards around it are counted apart: a guard out of reach costs the call no retry.
        """
        failures = sum(tried.get("phase", "call") == phase for tried in self.claimed.tries)
        if failures >= retries:
            return None
        wait = delay_s(error, failures, base_s, cap_s, random.random())
        category, text = category_of(error), text_of(error)[:_SHOWN_CHARS]
        tried = {"phase": phase, "category": category, "error": text, "delay_s": round(wait, 3)}
        return GiveBack(
            wait,
            category,
            failed=True,
            lost=phase == "call" and may_have_cost(error),
            tries=(*self.claimed.tries, tried),
        )

    def guard_failed(self, error: Exception) -> Outcome:
        """What to do about a guard that could not be asked: ask again, soon; it never lets anything pass."""
        again = self.again(error, GUARD_RETRIES, MODEL_BACKOFF_S, MAX_BACKOFF_S, phase="guard")
        return again if again and isinstance(error, TransientError) else self.raised(error)

    def elsewhere(self, what: str) -> GiveBack | None:
        """Leave the step to a worker that has what the recorded terms ask for; None where no other can have it."""
        log.warning("part_missing", part=what, agent=self.claimed.look.row.agent)
        waiting_s = self.claimed.look.now - self.claimed.look.row.updated_at
        alone = self.runtime.executor != "celery" or waiting_s >= GRACE_S
        return None if alone else GiveBack(MISSING_BACKOFF_S, "part_missing")

    def guard_missing(self, what: str) -> Outcome:
        """What to do without a guard the run was started with: nothing passes."""
        told = f"this run was started with {what}, which the agent no longer has"
        return self.elsewhere(what) or self.failed(told, "guard_missing", None)

    def failed(self, error: str, category: str, cause: BaseException | None, **more: Any) -> Settle:
        """The end of the run, by failure."""
        payload = {"error": error, "category": category, **self.retries(), **more}
        return Settle((Fact("run_failed", payload, step=self.run.last_step),), cause)

    def raised(self, error: Exception, **more: Any) -> Settle:
        """The end of the run, by an exception."""
        log.warning("step_failed", category=category_of(error), kind=type(error).__name__)
        return self.failed(text_of(error), category_of(error), error, **more)

    def may_stop(self) -> bool:
        """Whether the work may be stopped when its turn is over: by the terms of its tool; else what cannot be undone
        and has begun may not. The judging of what a call came to never may."""
        tool = self.terms.tools.get(self.claimed.name or "") if self.claimed.kind == "tool" else None
        if self.claimed.outcome is not None:
            return False
        if tool is not None and tool.on_cancel is not None:
            return tool.on_cancel == "stop"
        return not (self.begun or self._had_begun)

    def stopped(self) -> Settle:
        """The end of a step whose turn was ended from outside."""
        step, name = self.step, self.claimed.name
        call_id = called_at(step, [self.claimed.decision] if self.claimed.decision else [])
        fact = stopped(self.claimed.kind, step, name, call_id, self.begun or self._had_begun)
        return Settle((replace(fact, payload=fact.payload | self.lost(self.claimed.lost + 1)),))

    def result(self, name: str, call_id: str, content: str, **timing: Any) -> Settle:
        """The result of a call."""
        fact = tool_result(self.step, name, call_id, content, self.retries(), **timing)
        return Settle((fact,), begun=self.begun)

    def dispatched(self, name: str, call_id: str, content: str) -> Settle:
        """The result of a call that a worker took up, with the time it took."""
        return self.result(name, call_id, content, **self.timing())

    def lost(self, attempts: int, calls: int = 0) -> dict[str, Any]:
        """What a hard budget counts for attempts at a model step, and for single `calls` of this attempt, whose answers
        never came: {"lost": {"tokens", "usd"}}; {} for other steps and budgets."""
        budget = self.terms.budget if self.claimed.kind == "model" else None
        if budget is None or not budget.hard or not attempts + calls:
            return {}
        most = reserve(self.run, self.terms, budget)
        times = attempts + calls / self.terms.asked_per_step
        return {"lost": {"tokens": math.ceil(times * most.tokens), "usd": times * most.usd}}

    def retries(self) -> dict[str, Any]:
        """What a step's record shows of its failed attempts: {"retries": [{"phase", "category", "error", "delay_s"}]}.

        `phase` is `call`, or `guard` where a guard around the call could not be asked.
        """
        return {"retries": list(self.claimed.tries)} if self.claimed.tries else {}

    def timing(self) -> dict[str, float]:
        """When this attempt began, by the database's clock, and how long it has taken."""
        return {"ts": self.claimed.look.now, "duration_ms": self.duration_ms()}

    def now(self) -> float:
        """The database's clock by now, as far as this process can tell."""
        return self.claimed.look.now + time.monotonic() - self._started

    def duration_ms(self) -> float:
        return round((time.monotonic() - self._started) * 1000, 3)


def told_to_stop() -> bool:
    """Whether the running task was cancelled from outside, as by a drain or a lost claim."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
