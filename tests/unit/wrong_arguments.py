"""What the tables of wrong arguments are made of: rows, wrong values of many kinds, and what a refusal must say."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from drangue_client.errors import DrangueError
from tests.kit.naming import shown

NAN, INF = float("nan"), float("inf")
HUGE = 10**5_000  # more digits than Python writes unless told to

NO_TEXT = (None, 5, b"x", ["x"])
NO_COUNT = (None, -1, True, 1.5, NAN, "3")

# What a message may call an argument besides its own name, since its reader knows it by that.
CALLED = {"run_id": "run", "call_id": "call", "text": "model", "agents": "agent", "tool": "tool"}
ADVICE = re.compile(
    r"\b(must|needs?|pass|give|name|use|rename|choose|take|put|wrap|leave|set|write|correct|decide|list|annotate|decorate|raise"
    r"|did you mean|which is no|is no JSON schema: at|holds no)\b|unexpected keyword argument|takes no arguments",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Wrong:
    """One row: `make` with what is right, and one argument that is not, must be refused."""

    name: str
    make: Callable[..., Any]
    right: dict[str, Any] = field(repr=False)
    argument: str
    value: Any = field(repr=False)


class Table(list[Any]):
    """Rows, as pytest takes them."""

    def add(self, name: str, make: Callable[..., Any], right: dict[str, Any], /, **wrong: tuple[Any, ...]) -> None:
        """Add the wrong values of the arguments of one public name (or `Name.method`), and an argument it has not."""
        for argument, values in {"nonesuch": (1,), **wrong}.items():
            for value in values:
                row = Wrong(name, make, right, argument, value)
                self.append(pytest.param(row, id=f"{name}({argument}={shown(value)})"))


def check_refused(row: Wrong) -> None:
    """Fail unless the row is refused by an error that names the argument and says what to do."""
    gc.disable()  # where a value nests deeply, a collection at the bottom leaves no room for anybody's `__del__`
    try:
        with pytest.raises((TypeError, ValueError, DrangueError)) as caught:
            row.make(**{**row.right, row.argument: row.value})
    finally:
        gc.enable()
    message = str(caught.value)
    names = {row.argument, CALLED.get(row.argument, row.argument), f"DRANGUE_{row.argument.upper()}"}
    assert any(re.search(rf"(?<!\w){name}(?!\w)", message) for name in names), message
    assert ADVICE.search(message), message


class Unprintable:
    """Something that cannot be shown as text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def nested(levels: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value
