"""One test's run: its token, what its model answers, and what came of it.

The provider is one for all cases and all shapes. A case is told from the others by its token, which is the run's id and
stands in every input; its model's answers are indexed by how many the conversation holds already, so that a call that
is made again is answered alike.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any

from drangue_client.events import Event
from drangue_client.result import Result
from drangue_worker.testing import ProviderCall, Reply
from tests.surface.driver import Driver
from tests.surface.effects import counted

TOKEN = re.compile(r"case-[0-9a-f]{8}")

Script = Callable[[ProviderCall], Reply]


class Board:
    """The provider's script: every case's own, by its token."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        self.calls: dict[str, list[ProviderCall]] = {}

    def __call__(self, call: ProviderCall) -> Reply:
        said = [message["content"] for message in call.messages if message["role"] == "user"]
        found = TOKEN.search(" ".join([call.idempotency_key or "", *said]))
        assert found, f"a conversation of no case: {said}"
        self.calls[found[0]].append(call)
        return self.scripts[found[0]](call)


class Case:
    """A run of an agent on some shape, with its model, under the id `run_id`."""

    def __init__(self, driver: Driver, board: Board, wire: str) -> None:
        self.driver = driver
        self.wire = wire
        self.run_id = f"case-{secrets.token_hex(4)}"
        self.calls: list[ProviderCall] = []
        self._board = board
        board.calls[self.run_id] = self.calls
        self.model(Reply("done"))

    def model(self, *replies: Reply) -> None:
        """The model's answers, by the number of answers the conversation holds; the last one repeats."""
        self.script(lambda call: replies[min(call.turn, len(replies) - 1)])

    def model_in_turn(self, *replies: Reply) -> None:
        """The model's answers by the number of the call: for calls that fail and leave no answer."""
        self.script(lambda call: replies[min(len(self.calls), len(replies)) - 1])

    def script(self, script: Script) -> None:
        """What the model does, in full."""
        self._board.scripts[self.run_id] = script

    def text(self, text: str) -> str:
        """An input of this case."""
        return f"{text} [{self.run_id}]"

    def run(self, agent: str, text: str = "go", **options: Any) -> Result:
        """Begin the run and wait until it stops."""
        self.start(agent, text, **options)
        return self.result()

    def start(self, agent: str, text: str = "go", **options: Any) -> None:
        """Begin the run."""
        self.driver.start(self._named(agent), self.text(text), self.run_id, **options)

    def result(self) -> Result:
        """The run when it stops."""
        return self.driver.result(self.run_id)

    def say(self, text: str, turn_id: str | None = None) -> Result:
        """Another turn, worked on until it stops."""
        return self.driver.say(self.run_id, self.text(text), turn_id)

    def approve(self, call_id: str | None = None, **how: str) -> Result:
        """Grant a waiting call and wait until the run stops."""
        self.driver.approve(self.run_id, call_id, **how)
        return self.result()

    def reject(self, call_id: str | None = None, **how: str) -> Result:
        """Deny a waiting call and wait until the run stops."""
        self.driver.reject(self.run_id, call_id, **how)
        return self.result()

    def resume(self) -> Result:
        """Take a failed run up again and wait until it stops."""
        self.driver.resume(self.run_id)
        return self.result()

    def stream(self, agent: str, text: str = "go") -> Iterator[Event]:
        """Begin the run and watch it until it stops."""
        return self.driver.stream(self._named(agent), self.text(text), self.run_id)

    def events(self) -> list[Event]:
        """The log as it is now."""
        return self.driver.events(self.run_id)

    def effects(self, *whats: str) -> list[list[Any]]:
        """What was done for this case outside the runtime, [what, ...] in order; of these kinds only, if any."""
        return [line for line in counted(self.run_id) if not whats or line[0] in whats]

    def key(self, step: int) -> str:
        """The idempotency key of a step."""
        return f"{self.run_id}:{step}"

    def _named(self, agent: str) -> str:
        return agent if self.wire == "openai" else f"{agent}@{self.wire}"


def calls(*wanted: tuple[str, dict[str, Any] | str], text: str = "", **more: Any) -> Reply:
    """A model that asks for these calls."""
    return Reply(text, tool_calls=tuple(wanted), **more)


def contents(result: Result) -> list[str]:
    """What the model was shown of its calls, in call order."""
    return [message["content"] for message in result.messages if message["role"] == "tool"]


def errors(result: Result) -> list[dict[str, Any]]:
    """The failures among them."""
    shown = [json.loads(content) for content in contents(result) if content.startswith("{")]
    return [content["error"] for content in shown if "error" in content]


def shape(result: Result) -> list[tuple[str, int | None]]:
    """A log as (type, step)."""
    return [(event.type, event.step) for event in result.events]


def of(result: Result, event_type: str) -> list[dict[str, Any]]:
    """The payloads of one type of event, in order."""
    return [event.payload for event in result.events if event.type == event_type]
