"""OpenAI's Chat Completions, and every endpoint that speaks them, through the real SDK.

The SDK's own retries are off: a retry belongs to the step, where it is counted and seen. The SDK is loaded, and the
client made, at the first call; one client serves an event loop, since its connections belong to the loop.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from drangue_client.errors import AuthError, NoCredentials, PermanentError, RateLimitError, TransientError
from drangue_client.messages import Message, ModelResponse, ToolCall
from drangue_worker.tools.invoke import RAW_ARGUMENTS
from drangue_worker.tools.tool import Tool

if TYPE_CHECKING:
    from openai import AsyncOpenAI

TIMEOUT_S = 120.0
_REASONING_FAMILIES = ("o1", "o3", "o4", "gpt-5")


class OpenAIModel:
    """`OpenAIModel("gpt-4o")`, or any compatible server by its `base_url`.

    Key and URL default to OPENAI_API_KEY and OPENAI_BASE_URL; a server of your own (`base_url`) needs no key.
    `max_tokens` is the output ceiling, `timeout` seconds per call. Further keywords go into every request and win.
    """

    def __init__(
        self,
        model: str,
        *,
        client: AsyncOpenAI | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        max_tokens: int = 4096,
        timeout: float = TIMEOUT_S,
        **kwargs: Any,
    ) -> None:
        if not model:
            raise ValueError("model is empty; name one, such as OpenAIModel('gpt-4o').")
        self.model = model
        self.max_tokens = max_tokens
        self.timeout = timeout
        self._given = client
        self._api_key = api_key
        self._base_url = base_url
        self._kwargs = kwargs
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncOpenAI] = WeakKeyDictionary()

    def check(self) -> None:
        """Raise NoCredentials unless there is a key to call with. Calls nobody."""
        if self._given is None:
            self._key()

    async def generate(
        self, *, system: str, messages: list[Message], tools: Sequence[Tool], idempotency_key: str | None = None
    ) -> ModelResponse:
        """One completion. Raises RateLimitError, TransientError, AuthError or PermanentError in place of the SDK's."""
        import openai

        request = self._request(system, messages, tools, idempotency_key)
        try:
            completion = await self._client().chat.completions.create(**request)
        except openai.RateLimitError as error:
            raise RateLimitError(_about(error), retry_after=_retry_after(error.response.headers)) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise AuthError(_about(error)) from error
        except (openai.APIConnectionError, openai.InternalServerError, openai.ConflictError) as error:
            raise TransientError(_about(error)) from error
        except openai.OpenAIError as error:
            raise PermanentError(_about(error)) from error
        return _response(completion)

    async def aclose(self) -> None:
        """Close the client that was made for the running event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def _request(
        self, system: str, messages: list[Message], tools: Sequence[Tool], idempotency_key: str | None
    ) -> dict[str, Any]:
        reasoning = self.model.lower().startswith(_REASONING_FAMILIES)
        request: dict[str, Any] = {
            "model": self.model,
            "messages": _render(system, messages),
            "max_completion_tokens" if reasoning else "max_tokens": self.max_tokens,
        }
        if tools:
            request["tools"] = [_render_tool(tool) for tool in tools]
        request |= self._kwargs
        if "max_completion_tokens" in request:
            request.pop("max_tokens", None)
        if idempotency_key:
            request["extra_headers"] = {**request.get("extra_headers", {}), "Idempotency-Key": idempotency_key}
        return request

    def _client(self) -> AsyncOpenAI:
        if self._given is not None:
            return self._given
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            from openai import AsyncOpenAI

            self._clients[loop] = AsyncOpenAI(
                api_key=self._key(), base_url=self._base_url, timeout=self.timeout, max_retries=0
            )
        return self._clients[loop]

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
    return str(arguments[RAW_ARGUMENTS]) if set(arguments) == {RAW_ARGUMENTS} else json.dumps(arguments)


def _render_tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _response(completion: Any) -> ModelResponse:
    if not completion.choices:
        raise TransientError("the provider answered without a choice")
    choice = completion.choices[0]
    return ModelResponse(
        text=choice.message.content or "",
        tool_calls=[
            ToolCall(call.id or "", call.function.name, _arguments(call.function.arguments))
            for call in choice.message.tool_calls or []
            if call.type == "function"
        ],
        usage=_usage(completion.usage),
        stop_reason=choice.finish_reason,
    )


def _arguments(text: str | None) -> dict[str, Any]:
    if not text or not text.strip():
        return {}
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return {RAW_ARGUMENTS: text}
    return arguments if isinstance(arguments, dict) else {RAW_ARGUMENTS: text}


def _usage(usage: Any) -> dict[str, int] | None:
    """Counts that never overlap: the provider's prompt tokens include the cached ones."""
    if usage is None:
        return None
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details else 0
    counts = {"input_tokens": usage.prompt_tokens - cached, "output_tokens": usage.completion_tokens}
    if cached:
        counts["cache_read_input_tokens"] = cached
    return counts


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return float(headers.get("retry-after", ""))
    except ValueError:
        return None


def _about(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
