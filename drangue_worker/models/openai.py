"""OpenAI's Chat Completions, and every endpoint that speaks them, through the real SDK.

Compatible servers leave out much of what the SDK's types promise, so nothing is taken for granted but the one choice
that an answer needs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from drangue_client.errors import NoCredentials, TransientError
from drangue_client.messages import Message, ModelResponse, ToolCall
from drangue_worker.models.model import OnDelta
from drangue_worker.models.sdk import (
    MAX_TOKENS,
    TIMEOUT_S,
    Sdk,
    arguments_of,
    check_client,
    check_options,
    no_answer,
    size_of_options,
)
from drangue_worker.tools.invoke import RAW_ARGUMENTS
from drangue_worker.tools.tool import Tool

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_BOUNDLESS = {"extra_body", "functions", "prediction", "tools", "web_search_options"}  # what a call costs is open then
_REASONING_FAMILIES = ("o1", "o3", "o4", "gpt-5")


class OpenAIModel:
    """`OpenAIModel("gpt-4o")`, or any compatible server by its `base_url`.

    Key and URL default to OPENAI_API_KEY and OPENAI_BASE_URL; a server of your own (`base_url`) needs no key.
    A `client` of your own serves every event loop, keeps its settings, its retries too, and is yours to close.
    `max_tokens` is the output ceiling. `timeout` is how many seconds the provider may be silent, before an answer and
    between two pieces of a streamed one. Further keywords go into every request and win.
    """

    def __init__(
        self,
        model: str,
        *,
        client: AsyncOpenAI | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        max_tokens: int = MAX_TOKENS,
        timeout: float = TIMEOUT_S,
        **kwargs: Any,
    ) -> None:
        example = "OpenAIModel('gpt-4o')"
        check_options(model, example, max_tokens=max_tokens, timeout=timeout, api_key=api_key, base_url=base_url)
        check_client(client, "chat", "AsyncOpenAI()")
        self.model = model
        self.max_tokens = max_tokens
        self.timeout = timeout
        self._api_key = api_key
        self._base_url = base_url
        self._kwargs = kwargs
        self._sdk = Sdk("openai", self._make, given=client, timeout_s=timeout)

    def check(self) -> None:
        """Raise NoCredentials unless there is a key to call with. Calls nobody."""
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
        """One completion; with `on_delta` it is streamed, and its text shown as it comes.

        Raises RateLimitError, TransientError, AuthError or PermanentError in place of the SDK's.
        """
        await self._sdk.ready()
        request = self._request(system, messages, tools, idempotency_key)
        create = self._client().chat.completions.create
        if on_delta is None:
            request.pop("stream_options", None)  # of use to streams only, and refused elsewhere
            return _response(await self._sdk.ask(create(**request)))
        request = {"stream_options": {"include_usage": True}} | request | {"stream": True}
        growing = _Growing()
        await self._sdk.read(await self._sdk.ask(create(**request)), growing.take, on_delta)
        return growing.response()

    @property
    def output_ceiling(self) -> int | None:
        """The most tokens one call can be billed for as output; None where further keywords leave that open."""
        request = self._request("", [], (), None)
        if not _BOUNDLESS.isdisjoint(request):
            return None
        ceiling = request.get("max_completion_tokens") or request.get("max_tokens") or self.max_tokens
        return int(ceiling) * int(request.get("n") or 1)

    @property
    def prompt_overhead(self) -> int:
        """How many bytes the further keywords can add to every prompt."""
        return size_of_options(self._kwargs)

    async def aclose(self) -> None:
        """Close the client that was made for the running event loop."""
        await self._sdk.aclose()

    def _request(
        self, system: str, messages: list[Message], tools: Sequence[Tool], idempotency_key: str | None
    ) -> dict[str, Any]:
        reasoning = self.model.lower().startswith(_REASONING_FAMILIES)
        request: dict[str, Any] = {
            "model": self.model,
            "messages": _render(system, messages),
            "max_completion_tokens" if reasoning else "max_tokens": self.max_tokens,
            "timeout": self.timeout,
        }
        if tools:
            request["tools"] = [_render_tool(tool) for tool in tools]
        request |= self._kwargs
        if "max_completion_tokens" in request:
            request.pop("max_tokens", None)
        if idempotency_key:
            header = idempotency_key if idempotency_key.isascii() else quote(idempotency_key, safe=":")
            request["extra_headers"] = {**request.get("extra_headers", {}), "Idempotency-Key": header}
        return request

    def _client(self) -> Any:
        return self._sdk.client()

    def _make(self, sdk: Any) -> AsyncOpenAI:
        client: AsyncOpenAI = sdk.AsyncOpenAI(
            api_key=self._key(), base_url=self._base_url, timeout=self.timeout, max_retries=0
        )
        return client

    def _key(self) -> str:
        key = self._api_key or os.environ.get("OPENAI_API_KEY")
        if key:
            return key
        if self._base_url or os.environ.get("OPENAI_BASE_URL"):
            return "none"  # a server of one's own asks for no key, but the SDK does
        raise NoCredentials(
            f"model {self.model!r} has no API key. Set OPENAI_API_KEY, or OPENAI_BASE_URL for a server of your own."
        )


def _render(system: str, messages: list[Message]) -> list[dict[str, Any]]:
    rendered: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for message in messages:
        match message["role"]:
            case "assistant":
                one: dict[str, Any] = {"role": "assistant", "content": message["content"] or None}
                if message.get("tool_calls"):
                    one["tool_calls"] = [
                        {
                            "id": call["id"],
                            "type": "function",
                            "function": {"name": call["name"], "arguments": _arguments_text(call["arguments"])},
                        }
                        for call in message["tool_calls"]
                    ]
                rendered.append(one)
            case "tool":
                rendered.append({"role": "tool", "tool_call_id": message["call_id"], "content": message["content"]})
            case _:
                rendered.append({"role": "user", "content": message["content"]})
    return rendered


def _arguments_text(arguments: Mapping[str, Any]) -> str:
    return (
        str(arguments[RAW_ARGUMENTS])
        if set(arguments) == {RAW_ARGUMENTS}
        else json.dumps(arguments, ensure_ascii=False)
    )


def _render_tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


@dataclass(slots=True)
class _Call:
    """A tool call whose pieces are still coming."""

    id: str = ""
    name: str = ""
    arguments: str = ""


class _Growing:
    """A completion put together from the chunks of its stream."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._calls: dict[int, _Call] = {}
        self._usage: Any = None
        self._stop_reason: str | None = None

    def take(self, chunk: Any) -> str:
        """Note one chunk; returns the text it adds."""
        self._usage = chunk.usage or self._usage
        choice = next((one for one in chunk.choices or () if not one.index), None)
        if choice is None:
            return ""
        self._stop_reason = choice.finish_reason or self._stop_reason
        for fragment in getattr(choice.delta, "tool_calls", None) or ():
            self._add(fragment)
        text: str = getattr(choice.delta, "content", None) or ""
        self._texts.append(text)
        return text

    def _add(self, fragment: Any) -> None:
        index = fragment.index
        if index is None:  # some servers leave it out: an id then begins the next call
            index = max(self._calls, default=-1) + bool(fragment.id or not self._calls)
        call = self._calls.setdefault(index, _Call())
        call.id = fragment.id or call.id
        if fragment.function is not None:
            call.name = fragment.function.name or call.name
            call.arguments += fragment.function.arguments or ""

    def response(self) -> ModelResponse:
        """The whole completion. TransientError if its end never came."""
        if self._stop_reason is None:
            raise TransientError("the stream ended before the completion did")
        calls = [ToolCall(call.id, call.name, arguments_of(call.arguments)) for _, call in sorted(self._calls.items())]
        return ModelResponse("".join(self._texts), calls, _usage(self._usage), stop_reason=self._stop_reason)


def _response(completion: Any) -> ModelResponse:
    choices: Any = getattr(completion, "choices", None)
    message = getattr(choices[0], "message", None) if choices else None
    if message is None:
        raise no_answer(completion, "chat completion")
    calls = [
        ToolCall(call.id or "", call.function.name, arguments_of(call.function.arguments))
        for call in message.tool_calls or []
        if getattr(call, "function", None) is not None  # some servers leave out its type, which would say so
    ]
    return ModelResponse(message.content or "", calls, _usage(completion.usage), stop_reason=choices[0].finish_reason)


def _usage(usage: Any) -> dict[str, int] | None:
    """Counts that never overlap: the provider's prompt tokens include the cached ones."""
    if usage is None:
        return None
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details else 0
    counts = {
        "input_tokens": max(0, (usage.prompt_tokens or 0) - cached),
        "output_tokens": usage.completion_tokens or 0,
    }
    if cached:
        counts["cache_read_input_tokens"] = cached
    return counts
