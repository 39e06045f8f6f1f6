"""What a run is started under, as data: recorded with its first event, and the only settings its rules may read.

A worker deployed later with other settings goes on under the recorded ones. Nothing here holds a callable or a live
object, so a log alone is enough to decide what comes next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from drangue_client.events import canonical

Mode = Literal["shadow", "assisted", "autonomous"]
MODES: tuple[str, ...] = get_args(Mode)

DEFAULT_MAX_STEPS = 20
WINDOW = 32  # calls of one decision that are open at once: a wide fan-out must not starve the other runs of a queue


@dataclass(frozen=True, slots=True)
class Autonomy:
    """How much leave each tool has: `shadow` is only proposed, `assisted` waits for a person, `autonomous` runs.

    `modes` names tools, `default` holds for the others. Raises ValueError for a mode that does not exist: a typo must
    never run a tool.
    """

    default: Mode = "autonomous"
    modes: Mapping[str, Mode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, mode in [("default", self.default), *((f"modes[{name!r}]", m) for name, m in self.modes.items())]:
            if mode not in MODES:
                raise ValueError(f"Autonomy {place} is {mode!r}; it must be one of {', '.join(MODES)}.")
        object.__setattr__(self, "modes", dict(self.modes))

    def mode_for(self, name: str) -> Mode:
        """The mode of the tool called `name`."""
        return self.modes.get(name, self.default)

    def to_json(self) -> dict[str, Any]:
        return {"default": self.default, "modes": dict(self.modes)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Autonomy:
        return cls(default=value["default"], modes=value["modes"])


@dataclass(frozen=True, slots=True)
class ToolTerms:
    """What the rules know of one tool: where its calls are queued, and what they need before they may run."""

    queue: str
    reversible: bool = True
    requires_approval: bool = False
    timeout_s: float | None = None
    schema: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "queue": self.queue,
            "reversible": self.reversible,
            "requires_approval": self.requires_approval,
            "timeout_s": self.timeout_s,
            "schema": self.schema,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ToolTerms:
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Terms:
    """The recorded config of a run. `max_steps` counts model calls of one turn; times are seconds."""

    models: tuple[str | None, ...] = ()
    instructions: str = ""
    max_steps: int = DEFAULT_MAX_STEPS
    autonomy: Autonomy | None = None
    tools: Mapping[str, ToolTerms] = field(default_factory=dict)
    window: int = WINDOW

    def mode_for(self, name: str) -> Mode:
        """The mode that governs a call of this tool; a tool that requires approval is at least assisted."""
        mode: Mode = self.autonomy.mode_for(name) if self.autonomy else "autonomous"
        tool = self.tools.get(name)
        if mode == "autonomous" and tool is not None and tool.requires_approval:
            return "assisted"
        return mode

    def to_json(self) -> dict[str, Any]:
        return {
            "models": list(self.models),
            "instructions": self.instructions,
            "max_steps": self.max_steps,
            "autonomy": self.autonomy.to_json() if self.autonomy else None,
            "tools": {name: tool.to_json() for name, tool in sorted(self.tools.items())},
            "window": self.window,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Terms:
        return cls(
            models=tuple(value["models"]),
            instructions=value["instructions"],
            max_steps=value["max_steps"],
            autonomy=Autonomy.from_json(value["autonomy"]) if value["autonomy"] else None,
            tools={name: ToolTerms.from_json(tool) for name, tool in value["tools"].items()},
            window=value["window"],
        )


def arguments_hash(arguments: Mapping[str, Any]) -> str:
    """What an approval is bound to: equal for equal arguments whatever their order, 16 hex digits of SHA-256."""
    return hashlib.sha256(canonical(dict(arguments)).encode()).hexdigest()[:16]
