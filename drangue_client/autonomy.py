"""How much leave the tools of an agent have, and who gives it: data, recorded with the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from drangue_client import checks

Mode = Literal["shadow", "assisted", "autonomous"]
MODES: tuple[Mode, ...] = get_args(Mode)  # from least leave to most
OnExpiry = Literal["reject", "fallback"]


def stricter(one: Mode, other: Mode) -> Mode:
    """The mode that gives less leave."""
    return min(one, other, key=MODES.index)


def same_person(name: str) -> str:
    """What of a name tells people apart: neither its case nor the blanks around it. Names are taken at their word."""
    return name.strip().casefold()


@dataclass(frozen=True, slots=True)
class Approval:
    """How a call that waits for people gets its leave.

    `people` must grant it, each another one. `group` says who is asked, for those who show requests to people; after
    `escalate_s` seconds `escalate_to` is asked too. A request that nobody has decided `expires_s` seconds after it was
    made is answered by `on_expiry`: "reject", or "fallback", the fallback of the tool. Raises TypeError or ValueError.
    """

    people: int = 1
    group: str = ""
    escalate_s: float | None = None
    escalate_to: str = ""
    expires_s: float | None = None
    on_expiry: OnExpiry = "reject"

    def __post_init__(self) -> None:
        checks.count("people", self.people, least=1, most=100)
        checks.text("group", self.group)
        checks.seconds("escalate_s", self.escalate_s, optional=True)
        checks.text("escalate_to", self.escalate_to)
        checks.seconds("expires_s", self.expires_s, optional=True)
        checks.one_of("on_expiry", self.on_expiry, get_args(OnExpiry))
        if self.escalate_s is not None and not self.escalate_to:
            raise ValueError(checks.refusal("escalate_s", self.escalate_s, "given together with escalate_to"))
        if self.escalate_to and self.escalate_s is None:
            raise ValueError(checks.refusal("escalate_to", self.escalate_to, "given together with escalate_s"))

    def stricter(self, other: Approval) -> Approval:
        """What holds where both do: more people, the shorter time, and no fallback where one of them rejects. Who is
        asked, and who next, is as here, or as there where nothing is said here."""
        times = [one for one in (self.expires_s, other.expires_s) if one is not None]
        outcome: OnExpiry = self.on_expiry
        if other.expires_s is not None and (self.expires_s is None or other.on_expiry == "reject"):
            outcome = other.on_expiry
        next_ones = self if self.escalate_to else other
        return Approval(
            max(self.people, other.people),
            self.group or other.group,
            next_ones.escalate_s,
            next_ones.escalate_to,
            min(times, default=None),
            outcome,
        )

    def asked(self, now: float) -> dict[str, Any]:
        """What a request made at `now` (epoch seconds) says of it, as far as it is not the default."""
        told: dict[str, Any] = {"people": self.people} if self.people > 1 else {}
        told |= {"group": self.group} if self.group else {}
        told |= {"escalates_at": now + self.escalate_s} if self.escalate_s is not None else {}
        if self.expires_s is not None:
            told |= {"expires_at": now + self.expires_s, "on_expiry": self.on_expiry}
        return told


@dataclass(frozen=True, slots=True)
class Autonomy:
    """How much leave each tool has: `shadow` is only proposed, `assisted` waits for a person, `autonomous` runs.

    `modes` names tools, `default` holds for the others. `approval` says how calls that wait for people get their leave,
    `approvals` names tools for which that is different. Raises TypeError or ValueError for what does not exist: a typo
    must never run a tool.
    """

    default: Mode = "autonomous"
    modes: Mapping[str, Mode] = field(default_factory=dict)
    approval: Approval = field(default_factory=Approval)
    approvals: Mapping[str, Approval] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.one_of("default", self.default, MODES)
        checks.kind("modes", self.modes, Mapping, "{tool: mode}")
        for name, mode in self.modes.items():
            checks.text("a name in modes", name, "the name of a tool")
            checks.one_of(f"modes[{name!r}]", mode, MODES)
        checks.kind("approval", self.approval, Approval, "an Approval")
        checks.kind("approvals", self.approvals, Mapping, "{tool: Approval}")
        for name, approval in self.approvals.items():
            checks.text("a name in approvals", name, "the name of a tool")
            checks.kind(f"approvals[{name!r}]", approval, Approval, "an Approval")
        object.__setattr__(self, "modes", dict(self.modes))
        object.__setattr__(self, "approvals", dict(self.approvals))

    def mode_for(self, name: str) -> Mode:
        """The mode of the tool called `name`."""
        return self.modes.get(name, self.default)

    def approval_of(self, name: str) -> Approval:
        """How calls of the tool called `name` get their leave, where a person must give it."""
        return self.approvals.get(name, self.approval)

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {"default": self.default, "modes": dict(self.modes)}
        if self.approval != Approval():
            told["approval"] = asdict(self.approval)
        if self.approvals:
            told["approvals"] = {name: asdict(approval) for name, approval in self.approvals.items()}
        return told

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Autonomy:
        approvals = {name: Approval(**one) for name, one in value.get("approvals", {}).items()}
        return cls(value["default"], value["modes"], Approval(**value.get("approval", {})), approvals)
