"""What the adapters share in using an SDK: a client per event loop, a limit to silence, failures in our words.

The invariant: a provider's failure comes out as one of our errors, chosen by whether another attempt could mend it.
The SDK is loaded at the first call and its own retries are off: a retry belongs to the step, where it is counted and
seen. Nothing here knows what is sent or how an answer reads.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from drangue_client import checks
from drangue_client.errors import AuthError, NotSentError, PermanentError, RateLimitError, ToolError, TransientError
from drangue_client.events import normalise
from drangue_worker import asking
from drangue_worker.models.model import OnDelta
from drangue_worker.tools.invoke import RAW_ARGUMENTS

MAX_TOKENS = 4096
TIMEOUT_S = 300.0  # a full answer of MAX_TOKENS takes a slow model under two minutes

T = TypeVar("T")

# Refusals that look like a rate limit and are none: nothing but money ends them.
_SPENT = {"insufficient_quota", "enforced_spend_limit_reached", "contract_spend_limit_reached"}
# What an error in the middle of a stream stands for; any other one is the provider's own trouble.
_STATUS_OF = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
}


class Sdk:
    """One adapter's SDK: `package` is loaded when it is first needed, `make(package)` makes a client of it.

    A `given` client serves every event loop; otherwise each loop gets its own, since connections belong to a loop.
    `timeout_s` is how long the provider may be silent: before an answer, and between two pieces of a streamed one.
    """

    def __init__(self, package: str, make: Callable[[Any], Any], *, given: Any, timeout_s: float) -> None:
        self.given = given
        self._package = package
        self._make = make
        self._timeout_s = timeout_s
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()

    def client(self) -> Any:
        """The client for the running event loop. ImportError, with what to install, where the SDK is missing."""
        if self.given is not None:
            # Its settings are its owner's; but a retry belongs to the step, where it is counted and seen.
            return self.given.with_options(max_retries=0) if hasattr(self.given, "with_options") else self.given
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = self._make(self._load())
        return self._clients[loop]

    async def ready(self) -> None:
        """Load the SDK, in a thread: it takes a second or so, and other calls are in flight on this loop.

        Before every call. Raises what the rule of `asking` raises.
        """
        if self._package not in sys.modules:
            await asyncio.to_thread(self._load)
        if asking.rule is not None:
            asking.rule(self.client())

    async def aclose(self) -> None:
        """Close the client that was made for the running event loop. A given one stays its owner's."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    async def ask(self, answer: Awaitable[T]) -> T:
        """Await a provider. Raises RateLimitError, TransientError, AuthError or PermanentError in place of the SDK's.

        Being cancelled ends the call; what is no failure of the provider's (a wrong keyword) is raised as it is.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer
        except Exception as error:
            ours = failure_of(error, self._load(), self._timeout_s)
            if ours is None:
                raise
            raise ours from error

    async def read(self, stream: Any, take: Callable[[Any], str], on_delta: OnDelta) -> None:
        """Feed every piece of a stream to `take`, and the text it finds in it to `on_delta`. Raises like `ask`."""
        async with stream:
            while (piece := await self.ask(anext(stream, None))) is not None:
                if text := take(piece):
                    await on_delta(text)

    def _load(self) -> ModuleType:
        try:
            return importlib.import_module(self._package)
        except ImportError as error:
            raise ImportError(
                f"the {self._package} SDK is not installed. Run `pip install {self._package}`.", name=self._package
            ) from error


def failure_of(error: Exception, sdk: Any, timeout_s: float) -> ToolError | None:
    """Our error for a provider's failure; None for what is none."""
    import httpx2  # both SDKs stand on it, and not all of its errors are wrapped while a stream is read

    about = f"{type(error).__name__}: {error}"
    if isinstance(error, TimeoutError):
        return TransientError(f"the provider was silent for {timeout_s:g} s")
    if isinstance(error, httpx2.ConnectError) or isinstance(
        error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout
    ):
        return NotSentError(about)
    if isinstance(error, sdk.APIConnectionError | httpx2.HTTPError | json.JSONDecodeError):
        return TransientError(about)
    if isinstance(error, sdk.APIError):
        return _refusal(error, about)
    root: type[Exception] = sdk.APIError.__base__
    return PermanentError(about) if isinstance(error, root) else None


def _refusal(error: Any, about: str) -> ToolError:
    kind, code = str(getattr(error, "type", "")), str(getattr(error, "code", None) or getattr(error, "error_code", ""))
    status = getattr(error, "status_code", 0)
    if status < 400:  # the stream had begun well
        status = _STATUS_OF.get(kind) or _STATUS_OF.get(code) or (int(code) if code.isdecimal() else 500)
    if status in (401, 403):
        return AuthError(about)
    if (status not in (408, 409, 429) and status < 500) or {kind, code} & _SPENT:
        return PermanentError(about)
    limited = RateLimitError(about, retry_after=_wait(error))
    return limited if status == 429 or limited.retry_after is not None else TransientError(about)


def _wait(error: Any) -> float | str | None:
    headers: Mapping[str, str] = error.response.headers if hasattr(error, "response") else {}
    try:
        return float(headers["retry-after-ms"]) / 1000  # finer, where there is one
    except (KeyError, ValueError):
        return headers.get("retry-after")


def no_answer(received: Any, api: str) -> ToolError:
    """The error for a body that came with status 200 and holds no answer of that API."""
    if isinstance(received, str):
        shown = received[:80].strip()
        return PermanentError(f"the answer is no {api} but {shown!r}. Check base_url.")
    return TransientError(f"the provider answered without the content of {api}")  # gateways tell their troubles so


def arguments_of(written: object) -> dict[str, Any]:
    """A call's arguments: what the model wrote if that is a JSON object, else that text under RAW_ARGUMENTS."""
    if isinstance(written, dict):
        return written
    if not isinstance(written, str):
        return {} if written is None else {RAW_ARGUMENTS: json.dumps(written)}
    if not written.strip():
        return {}
    try:
        arguments = json.loads(written)
    except (ValueError, RecursionError):
        return {RAW_ARGUMENTS: written}
    return arguments if isinstance(arguments, dict) else {RAW_ARGUMENTS: written}


def size_of_options(options: Mapping[str, Any]) -> int:
    """How many bytes the options of a request have as JSON, at most."""
    return len(json.dumps(normalise(dict(options)), ensure_ascii=False).encode()) if options else 0


def check_options(
    model: str, example: str, *, max_tokens: int, timeout: float, api_key: str | None, base_url: str | None
) -> None:
    """Raise ValueError or TypeError, naming the argument, for what no adapter can use."""
    if not checks.text("model", model, f"a name, such as {example}"):
        raise ValueError(f"model is empty; name one, such as {example}.")
    checks.count("max_tokens", max_tokens, least=1)
    checks.seconds("timeout", timeout)
    checks.text("api_key", api_key, hidden=True, optional=True)
    address = checks.text("base_url", base_url, "a URL", optional=True)
    if address and not address.lower().startswith(("http://", "https://")):
        raise ValueError(checks.refusal("base_url", base_url, "a URL that begins with http:// or https://, or None"))


def check_client(client: object, part: str, example: str) -> None:
    """Raise TypeError for what cannot be a provider's `client`: it has no `part`, or is a class of them."""
    if client is not None and (isinstance(client, type) or not hasattr(client, part)):
        raise TypeError(checks.refusal("client", client, f"a client of the SDK, such as {example}, or None"))
