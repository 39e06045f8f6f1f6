"""Which model the examples talk to: yours where the environment names one, else a scripted one on loopback.

Either way the provider's real SDK makes the calls. `--provider openai` and `--provider anthropic` choose between the
two wire formats; without it the keys in the environment do, and OpenAI's is the default. OPENAI_MODEL and
ANTHROPIC_MODEL name another model than the examples do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from drangue_worker.models import Model, model_named
from drangue_worker.testing import Provider, ProviderCall, Reply

NAMES = {"openai": ("gpt-4o-mini", "gpt-4o"), "anthropic": ("claude-haiku-5-5", "claude-sonnet-5-5")}


def _provider() -> str:
    asked = sys.argv[sys.argv.index("--provider") + 1 :][:1] if "--provider" in sys.argv else []
    if "--provider" in sys.argv and not (asked and asked[0] in NAMES):
        raise SystemExit(f"--provider takes one of: {', '.join(NAMES)}")
    found = "anthropic" if _configured("anthropic") and not _configured("openai") else "openai"
    return asked[0] if asked else os.environ.get("EXAMPLES_PROVIDER", found)


def _configured(provider: str) -> bool:
    return any(os.environ.get(f"{provider.upper()}_{name}") for name in ("API_KEY", "BASE_URL"))


PROVIDER = _provider()
SMALL, LARGE = [os.environ.get(f"{PROVIDER.upper()}_MODEL", name) for name in NAMES[PROVIDER]]
MODEL = f"{PROVIDER}:{SMALL}"  # what `Agent` takes

# What a scripted model says at each of its turns: a text, calls as [(tool, arguments), ...], a Reply with all that can
# be told, or a function of the call that gives one of these. The last line repeats.
Line = str | list[tuple[str, dict[str, Any]]] | Reply | Callable[[ProviderCall], Any]
Script = Sequence[Line] | Mapping[str, Sequence[Line]]  # or such lines by words of the first thing the user says


def model(name: str) -> Model:
    """The provider's model of this name, as an object."""
    return model_named(f"{PROVIDER}:{name}")


@contextmanager
def scripted(script: Script) -> Iterator[None]:
    """Let a script answer inside the block, unless the environment names a real model. Says which, in one line."""
    name = PROVIDER.upper()
    os.environ["EXAMPLES_PROVIDER"] = PROVIDER  # for processes that the example starts
    if _configured(PROVIDER):
        print(f"({SMALL} answers, at {os.environ.get(f'{name}_BASE_URL') or PROVIDER})\n", flush=True)
        yield
        return
    print(f"(no {name}_API_KEY: a scripted model on loopback answers, through the real SDK)\n", flush=True)
    with Provider(replying(script)) as provider:
        base_url = provider.base_url if PROVIDER == "openai" else provider.anthropic_base_url
        os.environ |= {f"{name}_API_KEY": "scripted", f"{name}_BASE_URL": base_url}
        try:
            yield
        finally:
            del os.environ[f"{name}_API_KEY"], os.environ[f"{name}_BASE_URL"]
            print(f"\n(the scripted model was asked {provider.received} times)", flush=True)


def replying(script: Script) -> Callable[[ProviderCall], Reply]:
    """A provider's script from an example's."""

    def reply(call: ProviderCall) -> Reply:
        lines = script
        if isinstance(lines, Mapping):
            lines = next(lines[words] for words in lines if words in call.messages[0]["content"])
        line: Any = lines[min(call.turn, len(lines) - 1)]
        while callable(line):
            line = line(call)
        if isinstance(line, Reply):
            return line
        return Reply(text=line) if isinstance(line, str) else Reply(tool_calls=tuple(line))

    return reply
