"""The words in which a test says what a model answers, the same for every provider's wire format.

The invariant: no wire format shows through, except in the fields that say so. Nothing is served, parsed or judged here:
a reply may call tools that nobody offered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ProviderCall:
    """One model call as a script sees it, the same whatever wire format brought it."""

    model: str
    system: str  # all system texts, joined by a blank line
    # {"role": "user", "content"}, {"role": "tool", "call_id", "content"} or {"role": "assistant", "content",
    # "tool_calls": [{"id", "name", "arguments"}]}. Contents are text; arguments a dict, or raw text if no JSON object.
    messages: tuple[Json, ...]
    tools: tuple[str, ...]  # names of the tools offered
    idempotency_key: str | None
    stream: bool
    number: int  # 1 for the first call this provider received
    headers: Mapping[str, str]  # names in lower case
    body: Json  # the request as it came

    @property
    def turn(self) -> int:
        """How many decisions the conversation holds already: 0 when the model is asked for its first."""
        return sum(message["role"] == "assistant" for message in self.messages)

    def last_user(self) -> str:
        """The newest user text, "" if there is none."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    def results(self) -> list[str]:
        """The tool results since the last decision, in the order sent; [] if there are none."""
        last = max((i for i, m in enumerate(self.messages) if m["role"] == "assistant"), default=-1)
        return [m["content"] for m in self.messages[last + 1 :] if m["role"] == "tool"]


@dataclass(frozen=True, slots=True)
class Reply:
    """What to answer. Streamed if the call asks for it: text word by word, arguments in pieces of a few characters."""

    text: str = ""
    # (name, arguments) or (name, arguments, call id). Arguments given as a str are sent verbatim, well-formed or not.
    tool_calls: tuple[tuple[str, Json | str] | tuple[str, Json | str, str], ...] = ()
    input_tokens: int = 10  # the whole prompt, cached or not
    output_tokens: int = 5
    cached_tokens: int = 0  # the part of input_tokens that came from the provider's cache
    cache_write_tokens: int = 0  # the part that was written into it; Anthropic's format only, like the next
    thinking: tuple[tuple[str | None, str], ...] = ()  # (thought, signature); a thought of None is a redacted one
    finish_reason: str | None = None  # in the wire format's own words; None picks what fits the reply
    delay_s: float = 0.0  # before the answer starts
    chunk_delay_s: float = 0.0  # between the chunks of a stream
    status: int = 200  # any other: an error body in the wire format's shape, with error and error_code
    error: str = ""  # with status 200: what comes in place of the end of a stream, or of the whole answer
    error_code: str | None = None  # such as "insufficient_quota"; in Anthropic's format the error's type
    headers: Mapping[str, str] = field(default_factory=dict)  # such as {"retry-after": "2"}
    hang_up: bool = False  # close the connection instead of answering
    hang_up_after: int = 0  # with hang_up: how many chunks of a stream are sent before that


Script = Callable[[ProviderCall], Reply | Awaitable[Reply]]


class Wire(Protocol):
    """A provider's wire format: one class with these methods, and its path in the provider's `_WIRES`."""

    def read(self, body: Json) -> tuple[str, list[Json], tuple[str, ...]]:
        """A request: its system text, its messages and the names of its tools, as ProviderCall has them."""

    def error(self, reply: Reply) -> bytes:
        """The body of a refusal."""

    def answer(self, call: ProviderCall, reply: Reply) -> bytes:
        """The body of a whole answer."""

    def stream(self, call: ProviderCall, reply: Reply) -> Iterator[bytes]:
        """The chunks of a streamed answer."""


def check_results(messages: list[Json]) -> None:
    """Refuse tool calls without results and results without calls: what a faulty conversation builder sends."""
    missing: set[str] = set()
    for message in [*messages, {"role": "end"}]:
        if message["role"] == "tool" and message["call_id"] in missing:
            missing.remove(message["call_id"])
        elif message["role"] == "tool":
            raise ValueError(f"the tool result {message['call_id']!r} answers no open call of the message before it")
        elif missing:
            raise ValueError(f"tool calls must be followed by their results; missing: {', '.join(sorted(missing))}")
        else:
            missing = {call["id"] for call in message.get("tool_calls", ())}
