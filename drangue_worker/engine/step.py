"""What one attempt at one claimed step has in hand, and the two ways it can end: settled, or given back."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

from drangue_client.events import Fact
from drangue_client.run import Run
from drangue_client.store.port import Claimed
from drangue_client.terms import Terms
from drangue_worker.blueprint import Blueprint
from drangue_worker.engine.runtime import Runtime
from drangue_worker.observability.logs import get_logger
from drangue_worker.rules.retry import delay_s
from drangue_worker.tools.invoke import category_of, text_of

log = get_logger("drangue.step")

MISSING_BACKOFF_S = 5.0
GUARD_RETRIES = 2  # extra attempts for a guard that could not be asked
_SHOWN_CHARS = 500


@dataclass(frozen=True, slots=True)
class Settle:
    """Record these facts; `error` is what failed the run."""

    facts: tuple[Fact, ...]
    error: BaseException | None = None


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
        self._began = time.monotonic()

    @property
    def run(self) -> Run:
        """The run as the claim saw it."""
        return self.claimed.look.run

    @property
    def terms(self) -> Terms:
        """What the run was started under."""
        assert self.run.terms is not None
        return self.run.terms

    def again(self, error: BaseException, retries: int, base_s: float, cap_s: float) -> GiveBack | None:
        """Another attempt after a wait, while `retries` are left; None when they are used up."""
        failures = self.claimed.failures
        if failures >= retries:
            return None
        wait = delay_s(error, failures, base_s, cap_s, random.random())
        category = category_of(error)
        tried = {"category": category, "error": text_of(error)[:_SHOWN_CHARS], "delay_s": round(wait, 3)}
        lost = category != "rate_limit"  # who refuses for being asked too often has done nothing
        return GiveBack(wait, category, failed=True, lost=lost, tries=(*self.claimed.tries, tried))

    def missing(self, what: str) -> Outcome:
        """What to do without something the recorded terms ask for: elsewhere in a fleet, a worker may have it."""
        log.warning("guard_missing", guard=what, agent=self.claimed.look.row.agent)
        if self.runtime.executor == "celery":
            return GiveBack(MISSING_BACKOFF_S, "guard_missing")
        return self.failed(f"this run was started with {what}, which the agent no longer has", "guard_missing", None)

    def failed(self, error: str, category: str, cause: BaseException | None) -> Settle:
        """The end of the run, by failure."""
        return Settle((Fact("run_failed", {"error": error, "category": category}, step=self.run.last_step),), cause)

    def raised(self, error: Exception) -> Settle:
        """The end of the run, by an exception."""
        log.warning("step_failed", category=category_of(error), kind=type(error).__name__)
        return self.failed(text_of(error), category_of(error), error)

    def retries(self) -> dict[str, Any]:
        """What a step's record shows of its failed attempts: {"retries": [{"category", "error", "delay_s"}]}."""
        return {"retries": list(self.claimed.tries)} if self.claimed.tries else {}

    def timing(self) -> dict[str, float]:
        """When this attempt began, by the database's clock, and how long it has taken."""
        return {"ts": self.claimed.look.now, "duration_ms": self.duration_ms()}

    def duration_ms(self) -> float:
        return round((time.monotonic() - self._began) * 1000, 3)


def told_to_stop() -> bool:
    """Whether the running task was cancelled from outside, as by a drain or a lost claim."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
