"""The model of the soak, as a script for the loopback provider: it decides what the plan says, after some trouble."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from drangue_worker.chaos.plan import PlannedRun
from drangue_worker.testing.provider import ProviderCall, Reply

FAULTS = {
    "429": Reply(status=429, error="slow down", error_code="rate_limit_exceeded", headers={"retry-after": "0.5"}),
    "500": Reply(status=500, error="the provider is in trouble", delay_s=0.1),
    "hang_up": Reply(hang_up=True, delay_s=0.3),
}


class PlannedModel:
    """Answers by the plan. `asks` counts calls by step key, `mistaken` says which came under another key than theirs.

    The first asks of a step get its planned faults, whoever asks, so a fault may meet the attempt of a second worker.
    """

    def __init__(self, plans: Iterable[PlannedRun]) -> None:
        self._plans = {plan.input: plan for plan in plans}
        self.asks: Counter[str] = Counter()
        self.mistaken: list[str] = []

    def __call__(self, call: ProviderCall) -> Reply:
        decision = self._plans[call.last_user()].decisions[call.turn]
        if call.idempotency_key != decision.key:
            self.mistaken.append(f"model step {decision.key} was asked for under the key {call.idempotency_key}")
        earlier = self.asks[decision.key]
        self.asks[decision.key] += 1
        if earlier < len(decision.faults):
            return FAULTS[decision.faults[earlier]]
        calls = tuple((one.tool, one.arguments) for one in decision.calls)
        return Reply(text="" if calls else f"answered {decision.key}", tool_calls=calls, delay_s=decision.delay_s)
