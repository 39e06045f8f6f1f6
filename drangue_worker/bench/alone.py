"""What is measured of drangue alone: lines of a figure and what is wanted of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Line:
    """One figure. `target` is the most, or with `least` the least, that is wanted; None where nothing is."""

    name: str
    what: str
    figure: float
    unit: str
    target: float | None = None
    kind: Literal["most", "least"] = "most"

    @property
    def met(self) -> bool | None:
        """Whether the figure is what is wanted; None where nothing is."""
        if self.target is None:
            return None
        return self.figure <= self.target if self.kind == "most" else self.figure >= self.target

    @property
    def wanted(self) -> str:
        """The target in words."""
        if self.target is None:
            return ""
        return f"{'<=' if self.kind == 'most' else '>='} {self.target:g}"


@dataclass(frozen=True, slots=True)
class Alone:
    """What one of these measurements found."""

    name: str
    lines: tuple[Line, ...]
