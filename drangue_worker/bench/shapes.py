"""What a run of the benchmark is: its steps, their sizes, and the time that its model and its tools take.

A shape travels as the input of a run, so that one agent serves every workload and no process has to be told of it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

AGENT = "bench"
ASKING_AGENT = "bench-asks"  # a person is asked about its calls


@dataclass(frozen=True, slots=True)
class Shape:
    """`rounds` times the model asks for `calls` tools, then it answers.

    Every result has `size` bytes. The model takes `think_s` seconds and a tool `tool_s`; both wait and do not work.
    """

    rounds: int = 1
    calls: int = 1
    size: int = 8
    think_s: float = 0.0
    tool_s: float = 0.0

    @property
    def steps(self) -> int:
        """Model calls and tool calls of one run."""
        return self.rounds * (1 + self.calls) + 1

    def to_input(self) -> str:
        """The input of a run of this shape."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def of_input(cls, text: str) -> Shape:
        """The shape that an input was made from."""
        return cls(**json.loads(text))
