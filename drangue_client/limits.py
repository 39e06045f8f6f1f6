"""`Limits`: what one run may do less than its agent does. Data, given with a submission and merged into its terms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from drangue_client import checks
from drangue_client.autonomy import Autonomy, stricter
from drangue_client.budget import Budget
from drangue_client.errors import FormatError
from drangue_client.events import normalise
from drangue_client.terms import Guards, Terms


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for one run beside its agent's own terms; of each the stricter, so that nothing is ever loosened.

    `max_steps` per turn, a `budget` for the whole run, an `autonomy` that takes leave from tools or asks more people,
    and `deny`, tools that may not be called. Where both have prices, the agent's rule. Who is asked for approval, and
    who next, stays as the agent has it where it says so. Raises TypeError or ValueError, naming what cannot be used; a
    tool that the agent has not fails the run where `submit` cannot tell yet.
    """

    max_steps: int | None = None
    budget: Budget | None = None
    autonomy: Autonomy | None = None
    deny: Iterable[str] = ()

    def __post_init__(self) -> None:
        checks.count("max_steps", self.max_steps, least=1, optional=True)
        checks.kind("budget", self.budget, Budget, "a Budget", optional=True)
        checks.kind("autonomy", self.autonomy, Autonomy, "an Autonomy", optional=True)
        for name in checks.many("deny", self.deny, "a list of the names of tools"):
            checks.text("a name in deny", name, "the name of a tool")
        object.__setattr__(self, "deny", tuple(sorted(set(self.deny))))

    def check(self, tools: Iterable[str]) -> None:
        """Raise ValueError for a tool that is not among these: a misspelt name would be a limit that is not there."""
        known = sorted(tools)
        named = {*self.deny, *(self.autonomy.modes if self.autonomy else ())}
        named |= {*(self.autonomy.approvals if self.autonomy else ())}
        for name in sorted(named - set(known)):
            checks.one_of("a tool in limits", name, known)

    def on(self, terms: Terms) -> Terms:
        """The terms with these limits: what holds where both do."""
        guards = terms.guards or Guards()
        return replace(
            terms,
            max_steps=min(terms.max_steps, self.max_steps or terms.max_steps),
            budget=_both_budgets(terms.budget, self.budget),
            autonomy=_both_autonomies(terms.autonomy, self.autonomy, terms.tools),
            guards=replace(guards, deny=guards.deny | frozenset(self.deny)) if self.deny else terms.guards,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "max_steps": self.max_steps,
            "budget": self.budget.to_json() if self.budget else None,
            "autonomy": self.autonomy.to_json() if self.autonomy else None,
            "deny": list(self.deny),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Limits:
        """Limits as recorded. FormatError for those of a newer program: what they limit must not be left out."""
        try:
            limits = cls(
                value["max_steps"],
                Budget.from_json(value["budget"]) if value["budget"] else None,
                Autonomy.from_json(value["autonomy"]) if value["autonomy"] else None,
                value["deny"],
            )
        except (TypeError, ValueError, LookupError):
            limits = None
        if limits is None or normalise(limits.to_json()) != value:
            raise FormatError("the run holds limits that this program does not know. Upgrade it; the run waits.")
        return limits


def _both_budgets(own: Budget | None, other: Budget | None) -> Budget | None:
    if own is None or other is None:
        return own or other
    prices = own.prices if own.max_usd is not None else {**(other.prices or {}), **(own.prices or {})}
    tokens = [one.max_tokens for one in (own, other) if one.max_tokens is not None]
    dollars = [one.max_usd for one in (own, other) if one.max_usd is not None]
    return Budget(
        min(tokens, default=None),
        min(dollars, default=None),
        prices or None,  # where the agent limits dollars, a model that it has no price for stays without one
        own.hard or other.hard,
    )


def _both_autonomies(own: Autonomy | None, other: Autonomy | None, tools: Iterable[str]) -> Autonomy | None:
    if other is None:
        return own
    own = own or Autonomy()
    names = {*own.modes, *other.modes, *tools}
    named = {*own.approvals, *other.approvals}
    return Autonomy(
        stricter(own.default, other.default),
        {name: stricter(own.mode_for(name), other.mode_for(name)) for name in sorted(names)},
        own.approval.stricter(other.approval),
        {name: own.approval_of(name).stricter(other.approval_of(name)) for name in sorted(named)},
    )
