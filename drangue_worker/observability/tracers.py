"""Tracers: told of a run's spans while they happen, in the process that does the work.

Spans are `run`, `model` and `tool`. Replayed steps have none. A tracer must not raise; what the log says is read from
the log, not from here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TextIO

from drangue_client import checks

SHOWN = 200  # characters of a tool's result on the console


class LiveSpan(Protocol):
    """A span that is still open."""

    def set(self, key: str, value: Any) -> None:
        """Attach one more attribute."""


class Tracer(Protocol):
    """Opens spans; they nest by the call stack.

    A tracer that also has `joined(row, turn)`, a context manager, and `ended(row, run, events)` is told to which run
    the spans in a block belong, and when a turn of it has ended, in whatever process that happens. One whose `joins` is
    true makes the run's own span of that, and is given none.
    """

    def span(self, name: str, /, **attrs: Any) -> AbstractContextManager[LiveSpan]:
        """A span that lasts as long as the block."""


class Attributes:
    """A live span that keeps what it is given in `attrs`, a dict."""

    def __init__(self, attrs: dict[str, Any]) -> None:
        self.attrs = attrs

    def set(self, key: str, value: Any) -> None:
        """Attach one more attribute; the last value of a key counts."""
        self.attrs[key] = value


class NullTracer:
    """Sees nothing."""

    @contextmanager
    def span(self, name: str, /, **attrs: Any) -> Iterator[LiveSpan]:
        yield Attributes(attrs)


class ConsoleTracer:
    """Prints what was thought, called and returned, a line each, as it happens.

    A model's text and the calls it asks for are marked `*`, a result is indented behind `->` and cut after 200
    characters. Coloured on a terminal unless NO_COLOR is set. What cannot be written, because nobody reads any more or
    the terminal has no such character, is lost or becomes `?`. TypeError for a `stream` that is none.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        for method in ("write", "flush", "isatty"):
            checks.has("stream", stream, method, "a text stream, such as sys.stderr", optional=True)
        self._stream = stream

    @contextmanager
    def span(self, name: str, /, **attrs: Any) -> Iterator[LiveSpan]:
        span = Attributes(attrs)
        yield span
        try:
            self._print(name, span.attrs)
        except (OSError, ValueError):  # closed, or a pipe whose reader has gone: the run goes on, unwatched
            return

    def _print(self, name: str, attrs: dict[str, Any]) -> None:
        stream = self._stream or sys.stdout
        coloured = stream.isatty() and not os.environ.get("NO_COLOR")

        def paint(text: str, code: str) -> str:
            return f"\x1b[{code}m{text}\x1b[0m" if coloured else text

        lines = []
        if name == "model":
            if str(attrs.get("text") or "").strip():
                lines.append(f"{paint('*', '34')} model  {attrs['text']}")
            for call in attrs.get("tool_calls") or []:
                arguments = ", ".join(f"{key}={value!r}" for key, value in call["arguments"].items())
                lines.append(f"{paint('*', '32')} tool   {call['name']}({arguments})")
        elif name == "tool" and "content" in attrs:
            content = attrs["content"]
            shown = content if len(content) <= SHOWN else content[:SHOWN] + "..."
            lines.append(paint(f"       -> {shown}", "2"))
        elif name == "run":
            lines.append("")
        if lines:
            encoding = getattr(stream, "encoding", None) or "utf-8"  # a StringIO has none
            stream.write(("\n".join(lines) + "\n").encode(encoding, "replace").decode(encoding))
            stream.flush()
