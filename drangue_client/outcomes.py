"""What a call came to where it did not come to a result of its own: the contents that a model is shown in its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from drangue_client.events import normalise


def failure(tool: str, category: str, message: str, **more: str) -> str:
    """The content of a failed call: {"ok": false, "tool", "error": {"category", "message", ...}} as JSON text."""
    content = {"ok": False, "tool": tool, "error": {"category": category, "message": message or category, **more}}
    return json.dumps(normalise(content))


def shadow(tool: str, arguments: Mapping[str, Any]) -> str:
    """The content of a call that a shadow tool only proposes."""
    note = "recorded as a proposal; nothing was executed"
    return json.dumps({"shadow": True, "proposed": {"tool": tool, "arguments": dict(arguments)}, "note": note})


def unknown_outcome(tool: str, **more: str) -> str:
    """The content of an irreversible call that was interrupted."""
    return failure(
        tool,
        "unknown_outcome",
        f"{tool} was interrupted after it had begun: it is unknown whether its effect took place. It was not repeated "
        "and will not be. Check by other means before doing anything that depends on it.",
        **more,
    )


def cancelled(tool: str) -> str:
    """The content of a call that nobody waits for any more: its turn was ended before the call had a result."""
    return failure(tool, "cancelled", "the turn was ended before this call had a result; a repeated call would be anew")


def approved_as(arguments: Mapping[str, Any], content: str) -> str:
    """The content of a call that a person let run with other arguments than the model gave."""
    return f"(a person approved this call with other arguments: {json.dumps(normalise(dict(arguments)))})\n{content}"


def failed_as(content: str) -> str | None:
    """The category that a failed call's content tells; None for any other content. A tool may write the like itself."""
    try:
        told = json.loads(content)
        return str(told["error"]["category"]) if told["ok"] is False else None
    except (ValueError, TypeError, LookupError, RecursionError):
        return None


def is_unknown(result: Mapping[str, Any]) -> bool:
    """Whether a result, as the log holds it, says that nobody knows what became of its call."""
    # Before format 3 the content alone told it, which a tool may write itself.
    return bool(result.get("unknown")) or failed_as(result["content"]) == "unknown_outcome"


def found_out(tool: str, happened: bool, note: str) -> str:
    """The content of a call whose outcome was unknown until a person looked: `note` is what they found."""
    if happened:
        return note or json.dumps({"ok": True, "tool": tool, "note": "a person has checked: it took effect"})
    message = f"a person has checked: {tool} took no effect, and it was not repeated. Call it again if it is still due."
    return failure(tool, "not_done", message, **({"note": note} if note else {}))
