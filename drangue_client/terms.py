"""What a run is started under, as data: recorded with its first event, and the only settings its rules may read.

A worker deployed later with other settings goes on under the recorded ones. Nothing here holds a callable or a live
object, so a log alone is enough to decide what comes next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from drangue_client import answer
from drangue_client.autonomy import Approval, Autonomy, Mode
from drangue_client.budget import Budget
from drangue_client.events import canonical

OnUnknown = Literal["model", "ask"]  # who is told of an outcome that nobody knows: the model, or a person first
OnCancel = Literal["stop", "finish"]

DEFAULT_MAX_STEPS = 20
WINDOW = 32  # calls of one decision that are open at once: a wide fan-out must not starve the other runs of a queue


@dataclass(frozen=True, slots=True)
class ToolTerms:
    """What the rules know of one tool: where its calls are queued, what they need before they may run, and how the
    model is told of it. `on_cancel` is None where a call may be stopped unless it is irreversible and has begun."""

    queue: str
    reversible: bool = True
    requires_approval: bool = False
    timeout_s: float | None = None
    schema: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    on_unknown: OnUnknown = "model"
    on_cancel: OnCancel | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "queue": self.queue,
            "description": self.description,
            "reversible": self.reversible,
            "requires_approval": self.requires_approval,
            "timeout_s": self.timeout_s,
            "schema": self.schema,
            "on_unknown": self.on_unknown,
            "on_cancel": self.on_cancel,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ToolTerms:
        return cls(**{name: value[name] for name in cls.__dataclass_fields__ if name in value})


@dataclass(frozen=True, slots=True)
class Guards:
    """What the guardrails of a run allow, as far as it is data, and which guards of the author's are to be asked.

    `allow` names the tools that may be called (None: all), `deny` those that may not, `gate_irreversible` holds
    irreversible calls as `requires_approval` does. `input`, `output`, `result` and `approver` say that there is such a
    guard; it runs in a worker.
    """

    allow: frozenset[str] | None = None
    deny: frozenset[str] = frozenset()
    gate_irreversible: bool = False
    input: bool = False
    output: bool = False
    result: bool = False
    approver: bool = False

    def refusal(self, name: str) -> str | None:
        """Why no call of this tool may run, or None."""
        if self.allow is not None and name not in self.allow:
            return f"{name} is not on the allow-list of this agent"
        return f"{name} is on the deny-list of this agent" if name in self.deny else None

    def to_json(self) -> dict[str, Any]:
        return {
            "allow": None if self.allow is None else sorted(self.allow),
            "deny": sorted(self.deny),
            "gate_irreversible": self.gate_irreversible,
            "input": self.input,
            "output": self.output,
            "result": self.result,
            "approver": self.approver,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Guards:
        known = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        allow = None if value["allow"] is None else frozenset(value["allow"])
        return cls(**{**known, "allow": allow, "deny": frozenset(value["deny"])})


@dataclass(frozen=True, slots=True)
class Terms:
    """The recorded config of a run. `max_steps` counts model calls of one turn.

    `models` are the names of those that may be asked, `asked_per_step` how many of them one step may ask in turn,
    `output_ceiling` the most output tokens each may give (None: unknown) and `prompt_overhead` the most bytes each adds
    to a prompt by its own settings. `output_schema` is the JSON schema an answer
    must match, `memory` whether there is one to recall from, `deadline_s` how long one turn may take.
    """

    models: tuple[str | None, ...] = ()
    instructions: str = ""
    max_steps: int = DEFAULT_MAX_STEPS
    autonomy: Autonomy | None = None
    tools: Mapping[str, ToolTerms] = field(default_factory=dict)
    window: int = WINDOW
    asked_per_step: int = 1
    output_ceiling: int | None = None
    prompt_overhead: int = 0
    budget: Budget | None = None
    guards: Guards | None = None
    memory: bool = False
    output_schema: dict[str, Any] | None = None
    deadline_s: float | None = None

    def mode_for(self, name: str) -> Mode:
        """How much leave calls of this tool have. A gated tool that no approver decides about waits for a person."""
        mode: Mode = self.autonomy.mode_for(name) if self.autonomy else "autonomous"
        decided_by_code = self.guards is not None and self.guards.approver
        return "assisted" if mode == "autonomous" and self.gated(name) and not decided_by_code else mode

    def approval_of(self, name: str) -> Approval:
        """How a call of this tool gets its leave, where a person must give it."""
        return self.autonomy.approval_of(name) if self.autonomy else Approval()

    def gated(self, name: str) -> bool:
        """Whether each call of this tool needs an approval, by a person or by the author's approver."""
        tool = self.tools.get(name)
        if tool is None:
            return False
        return tool.requires_approval or (
            self.guards is not None and self.guards.gate_irreversible and not tool.reversible
        )

    def refusal(self, name: str) -> str | None:
        """Why no call of this tool may run, or None."""
        return self.guards.refusal(name) if self.guards else None

    def deadline(self, began: float) -> dict[str, float]:
        """When a turn that was asked for at `began` (epoch seconds) must have ended, as its first event has it:
        {"deadline_at"}, or {} where it may take for ever."""
        return {} if self.deadline_s is None else {"deadline_at": began + self.deadline_s}

    def offered(self) -> list[dict[str, Any]]:
        """The tools as a model is told of them, {name, description, input_schema}; the answer's pseudo-tool last."""
        told = [
            {"name": name, "description": tool.description, "input_schema": tool.schema}
            for name, tool in self.tools.items()
        ]
        if self.output_schema is not None:
            schema = answer.parameters(self.output_schema)
            told.append({"name": answer.FINAL_ANSWER, "description": answer.DESCRIPTION, "input_schema": schema})
        return told

    def to_json(self) -> dict[str, Any]:
        return {
            "models": list(self.models),
            "instructions": self.instructions,
            "max_steps": self.max_steps,
            "autonomy": self.autonomy.to_json() if self.autonomy else None,
            "tools": {name: tool.to_json() for name, tool in self.tools.items()},
            "window": self.window,
            "asked_per_step": self.asked_per_step,
            "output_ceiling": self.output_ceiling,
            "prompt_overhead": self.prompt_overhead,
            "budget": self.budget.to_json() if self.budget else None,
            "guards": self.guards.to_json() if self.guards else None,
            "memory": self.memory,
            "output_schema": self.output_schema,
            "deadline_s": self.deadline_s,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Terms:
        """Terms as recorded.

        What an older program did not record yet has its default. What a newer one records beside is left out: whatever
        must be obeyed comes with a new format of the event, which is refused as a whole.
        """
        budget, guards = value.get("budget"), value.get("guards")
        return cls(
            models=tuple(value["models"]),
            instructions=value["instructions"],
            max_steps=value["max_steps"],
            autonomy=Autonomy.from_json(value["autonomy"]) if value["autonomy"] else None,
            tools={name: ToolTerms.from_json(tool) for name, tool in value["tools"].items()},
            window=value["window"],
            asked_per_step=value.get("asked_per_step", 1),
            output_ceiling=value.get("output_ceiling"),
            prompt_overhead=value.get("prompt_overhead", 0),
            budget=Budget.from_json(budget) if budget else None,
            guards=Guards.from_json(guards) if guards else None,
            memory=value.get("memory", False),
            output_schema=value.get("output_schema"),
            deadline_s=value.get("deadline_s"),
        )


def arguments_hash(arguments: Mapping[str, Any]) -> str:
    """What an approval is bound to: equal for equal arguments whatever their order, 16 hex digits of SHA-256."""
    return hashlib.sha256(canonical(dict(arguments)).encode()).hexdigest()[:16]
