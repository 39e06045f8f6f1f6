"""Anthropic's Messages API through the real SDK.

A thinking block goes back exactly as it came: the provider signs it, and refuses a conversation in which it was
changed. What the API refuses for its form alone, and another provider would have taken, is put right on the way out:
ids of calls, turns without words. There is no idempotency key: the API has none, so a repeated call is paid twice.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from drangue_client import checks
from drangue_client.errors import NoCredentials
from drangue_client.messages import Message, ModelResponse
from drangue_worker.models.anthropic_answer import GrowingMessage, counts_of, response_of
from drangue_worker.models.model import OnDelta
from drangue_worker.models.sdk import (
    MAX_TOKENS,
    TIMEOUT_S,
    Sdk,
    check_client,
    check_options,
    no_answer,
    size_of_options,
)
from drangue_worker.tools.invoke import RAW_ARGUMENTS
from drangue_worker.tools.tool import Tool

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

_BOUNDLESS = {"extra_body", "container", "mcp_servers", "tools"}  # what a call costs is open then
_EPHEMERAL = {"cache_control": {"type": "ephemeral"}}
# Where the SDK finds who is calling, beside a key given here; the last three lead to a profile or a federated identity.
_CREDENTIALS = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_PROFILE",
    "ANTHROPIC_IDENTITY_TOKEN",
    "ANTHROPIC_IDENTITY_TOKEN_FILE",
)


class AnthropicModel:
    """`AnthropicModel("claude-sonnet-5")`.

    Key and URL default to ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL; a server of your own (`base_url`) needs no key.
    A `client` of your own serves every event loop, keeps its settings, its retries too, and is yours to close.
    `max_tokens` is the output ceiling. `cache=True` marks instructions and tools for the provider's prompt cache.
    `timeout` is how many seconds the provider may be silent, before an answer and between two pieces of a streamed one.
    Further keywords (`thinking={"type": "adaptive"}`) go into every request and win.
    """

    def __init__(
        self,
        model: str,
        *,
        client: AsyncAnthropic | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        max_tokens: int = MAX_TOKENS,
        cache: bool = False,
        timeout: float = TIMEOUT_S,
        **kwargs: Any,
    ) -> None:
        example = "AnthropicModel('claude-sonnet-5')"
        check_options(model, example, max_tokens=max_tokens, timeout=timeout, api_key=api_key, base_url=base_url)
        check_client(client, "messages", "AsyncAnthropic()")
        self.model = model
        self.max_tokens = max_tokens
        self.cache = checks.flag("cache", cache)
        self.timeout = timeout
        self._api_key = api_key
        self._base_url = base_url
        self._kwargs = kwargs
        self._sdk = Sdk("anthropic", self._make, given=client, timeout_s=timeout)

    def check(self) -> None:
        """Raise NoCredentials unless there is something to call with. Calls nobody."""
        if self._sdk.given is None:
            self._key()

    async def generate(
        self,
        *,
        system: str,
        messages: list[Message],
        tools: Sequence[Tool],
        idempotency_key: str | None = None,
        on_delta: OnDelta | None = None,
    ) -> ModelResponse:
        """One message; with `on_delta` it is streamed, and its text shown as it comes. `idempotency_key` is not sent.

        Raises RateLimitError, TransientError, AuthError or PermanentError in place of the SDK's.
        """
        await self._sdk.ready()
        request = self._request(system, messages, tools)
        create = self._client().messages.create
        if on_delta is None:
            message = await self._sdk.ask(create(**request))
            content = getattr(message, "content", None)
            if not isinstance(content, list):
                raise no_answer(message, "message of the Messages API")
            return response_of(content, counts_of(message.usage), message.stop_reason)
        growing = GrowingMessage()
        await self._sdk.read(await self._sdk.ask(create(**request, stream=True)), growing.take, on_delta)
        return growing.response()

    @property
    def output_ceiling(self) -> int | None:
        """The most tokens one call can be billed for as output; None where further keywords leave that open."""
        return None if not _BOUNDLESS.isdisjoint(self._kwargs) else int(self._kwargs.get("max_tokens", self.max_tokens))

    @property
    def prompt_overhead(self) -> int:
        """How many bytes the further keywords can add to every prompt."""
        return size_of_options(self._kwargs)

    async def aclose(self) -> None:
        """Close the client that was made for the running event loop."""
        await self._sdk.aclose()

    def _request(self, system: str, messages: list[Message], tools: Sequence[Tool]) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "timeout": self.timeout,
            "messages": _render(messages),
        }
        if system:
            request["system"] = [{"type": "text", "text": system, **_EPHEMERAL}] if self.cache else system
        if tools:
            request["tools"] = [tool.to_schema() for tool in tools]
            if self.cache:
                request["tools"][-1] |= _EPHEMERAL
        return request | self._kwargs

    def _client(self) -> Any:
        return self._sdk.client()

    def _make(self, sdk: Any) -> AsyncAnthropic:
        client: AsyncAnthropic = sdk.AsyncAnthropic(
            api_key=self._key(),
            base_url=self._base_url,
            timeout=self.timeout,
            max_retries=0,
            open_telemetry=False,  # the step has a span; tokens must not be in a trace twice
        )
        return client

    def _key(self) -> str | None:
        """The key to give to the SDK; None where it finds its own way."""
        if self._api_key or any(os.environ.get(name) for name in _CREDENTIALS):
            return self._api_key
        if self._base_url or os.environ.get("ANTHROPIC_BASE_URL"):
            return "none"  # a server of one's own asks for no key, but the SDK does
        raise NoCredentials(
            f"model {self.model!r} has no API key. Set ANTHROPIC_API_KEY, or ANTHROPIC_BASE_URL for a server of your "
            "own."
        )


def _render(messages: list[Message]) -> list[dict[str, Any]]:
    rendered: list[dict[str, Any]] = []
    used: set[str] = set()
    ids: dict[str, str] = {}  # of the latest decision: our id of a call -> the one the provider is shown
    for message in messages:
        match message["role"]:
            case "assistant":
                calls = message.get("tool_calls") or []
                ids = {call["id"]: _wire_id(call["id"], used) for call in calls}
                said = [{"type": "text", "text": message["content"]}] if message["content"].strip() else []
                asked = [
                    {
                        "type": "tool_use",
                        "id": ids[call["id"]],
                        "name": call["name"],
                        "input": _input(call["arguments"]),
                    }
                    for call in calls
                ]
                if said or asked:  # thoughts alone are no turn: the API refuses a message that ends in them
                    content = [*message.get("thinking_blocks", ()), *said, *asked]
                    rendered.append({"role": "assistant", "content": content})
            case "tool":
                call_id = ids.get(message["call_id"], message["call_id"])
                result = {"type": "tool_result", "tool_use_id": call_id, "content": message["content"]}
                if rendered and rendered[-1]["role"] == "user" and isinstance(rendered[-1]["content"], list):
                    rendered[-1]["content"].append(result)
                else:
                    rendered.append({"role": "user", "content": [result]})
            case _:
                # The API refuses a blank text, and a run may well be begun without any.
                rendered.append(
                    {"role": "user", "content": message["content"] if message["content"].strip() else "(empty)"}
                )
    return rendered


def _wire_id(call_id: str, used: set[str]) -> str:
    """An id the API takes: of its letters, and once in a conversation. Another provider's may be neither."""
    legal = re.sub(r"[^a-zA-Z0-9_-]", "_", call_id) or "call"
    candidates = itertools.chain([legal], (f"{legal}_{number}" for number in itertools.count(2)))
    found = next(one for one in candidates if one not in used)
    used.add(found)
    return found


def _input(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the way back. Those that could not be read are wrapped as the provider's guide proposes."""
    raw = set(arguments) == {RAW_ARGUMENTS}
    return {"INVALID_JSON": str(arguments[RAW_ARGUMENTS])} if raw else dict(arguments)
