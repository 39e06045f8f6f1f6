"""The checks most scenarios need. Any function of a result is one too: `Check(dimension, name, fn)`.

A check reads what is in the log and nothing else, so it says the same of a run today and of its record next year. The
exception is `judged`, which asks a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from drangue_client import checks
from drangue_client.result import Result
from drangue_worker.evals.judge import fenced
from drangue_worker.evals.scenario import Check, tokens_used, tools_called


class AnswersYesNo(Protocol):
    """Whatever can judge: a `Judge`, or an object of yours."""

    async def yes_no(self, question: str) -> bool:
        """Whether the answer to `question` is yes."""


def output_contains(text: str, *, name: str | None = None) -> Check:
    """Correctness: `text` stands in the output, upper and lower case told apart."""
    checks.text("text", text, blank=False)
    return Check("correctness", name or f"output contains {text!r}", lambda result: text in result.output)


def output_satisfies(predicate: Callable[[str], object], *, name: str | None = None) -> Check:
    """Correctness: `predicate(output)` is true, or awaits to true. TypeError if it cannot be called.

    A predicate that raises measures nothing, as with any check: let it return False for an output that it cannot read.
    """
    checks.function("predicate", predicate, "a function of the output")
    shown = name or f"output satisfies {getattr(predicate, '__name__', 'a predicate')}"
    return Check("correctness", shown, lambda result: predicate(result.output))


def judged(judge: AnswersYesNo, criterion: str, *, name: str | None = None) -> Check:
    """Correctness: the judge says that the output meets `criterion`.

    The output is put to it as fenced data, since it may have been written to sway whoever reads it. The judge is not
    shown the input: say in the criterion what it must know. TypeError for a judge without `yes_no`.
    """
    checks.has("judge", judge, "yes_no", "an object with an async method `yes_no`", "Wrap a model: Judge(model).")
    checks.text("criterion", criterion, blank=False)

    async def meets(result: Result) -> bool:
        return await judge.yes_no(f"Does the output meet this criterion: {criterion}\n\n{fenced(result.output)}")

    return Check("correctness", name or f"judged: {criterion}", meets)


def forbids_tool(tool_name: str, *, name: str | None = None) -> Check:
    """Safety: the model did not even ask for this tool. A call that was refused or never run counts as asked for."""
    checks.text("tool_name", tool_name, blank=False)
    return Check("safety", name or f"forbids {tool_name}", lambda result: tool_name not in tools_called(result))


def within_steps(n: int, *, name: str | None = None) -> Check:
    """Efficiency: at most `n` model calls."""
    checks.count("n", n)
    return Check("efficiency", name or f"within {n} steps", lambda result: result.steps <= n)


def within_tokens(n: int, *, name: str | None = None) -> Check:
    """Efficiency: at most `n` tokens over all model calls.

    Input and output, and what was written to and read from a provider's prompt cache: cached tokens are billed too, and
    left out they would make a longer prompt look cheaper the better it is cached. A model that reports no usage passes.
    """
    checks.count("n", n)
    return Check("efficiency", name or f"within {n} tokens", lambda result: tokens_used(result) <= n)
