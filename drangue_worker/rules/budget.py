"""Whether a run may afford its next model call, from what it has used and what the call could use at most."""

from __future__ import annotations

import json
from dataclasses import dataclass

from drangue_client.budget import Budget, no_price, worst_usd
from drangue_client.run import Run
from drangue_client.terms import Terms

EXHAUSTED = "(stopped: budget exhausted)"
# What a provider adds to a prompt of its own: the frame of a tool list is the largest, some hundreds of tokens.
PROMPT_FRAME_TOKENS = 1000
TOOL_FRAME_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Reserve:
    """The most that one model step can use: `tokens`, and `usd` at the dearest of the models that may be asked."""

    tokens: int
    usd: float


def stop(run: Run, lost: int = 0) -> str | None:
    """The output of a run that may not make its next model call, or None where it may.

    `lost` counts attempts at this very step whose answers never came: under a hard budget each may have cost as much as
    the next one can.
    """
    terms = run.terms
    budget = terms.budget if terms else None
    if terms is None or budget is None:
        return None
    tokens, usd = run.spent.tokens, run.spent.usd
    if budget.hard:
        unknown = _unenforceable(terms, budget)
        if unknown is not None:
            return f"(stopped: budget unenforceable: {unknown})"
        most = reserve(run, terms, budget)
        over_tokens = budget.max_tokens is not None and tokens + (lost + 1) * most.tokens > budget.max_tokens
        over_usd = budget.max_usd is not None and usd + (lost + 1) * most.usd > budget.max_usd
    else:
        over_tokens = budget.max_tokens is not None and tokens >= budget.max_tokens
        over_usd = budget.max_usd is not None and usd >= budget.max_usd
    unpriced = run.spent.unpriced if budget.max_usd is not None else None
    if unpriced is not None and not over_tokens:
        return f"(stopped: budget unenforceable: {no_price(unpriced)})"
    return EXHAUSTED if over_tokens or over_usd else None


def _unenforceable(terms: Terms, budget: Budget) -> str | None:
    """What a hard budget lacks to know the most a call can cost: an agent's own is checked when the agent is made, one
    that came with a submission meets the agent here."""
    if terms.output_ceiling is None:
        return "a model has no output ceiling. Give it `max_tokens`."
    for model in terms.models if budget.max_usd is not None else ():
        if not {"input", "output"} <= set((budget.prices or {}).get(str(model), ())):
            return no_price(str(model))
    return None


def reserve(run: Run, terms: Terms, budget: Budget) -> Reserve:
    """The worst case of the next model step: every byte of the prompt a token, and the whole output ceiling.

    No tokenizer in use makes more tokens than there are bytes: byte-pair encodings start from single bytes and only
    ever merge (Sennrich et al. 2016; Radford et al. 2019 for bytes).
    """
    prompt = len(terms.instructions.encode()) + PROMPT_FRAME_TOKENS + terms.prompt_overhead + run.context
    for one in terms.offered():
        prompt += len(json.dumps(one, ensure_ascii=False).encode()) + TOOL_FRAME_TOKENS
    ceiling = terms.output_ceiling or 0
    prices = budget.prices or {}
    usd = max((worst_usd(prompt, ceiling, prices.get(str(model), {})) for model in terms.models), default=0.0)
    return Reserve(terms.asked_per_step * (prompt + ceiling), terms.asked_per_step * usd)
