"""Names for the rows of parametrised tests."""

from __future__ import annotations

from typing import Any


def shown(value: Any) -> str:
    """A value in the name of a test: short, and the same in every process, as it must be where several run a suite."""
    if isinstance(value, int) and abs(value) > 10**9:
        return "huge"
    if value is None or isinstance(value, str | bytes | int | float):
        return ascii(value)[:30]
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, dict):
        return f"{{{', '.join(f'{shown(key)}: {shown(item)}' for key, item in value.items())}}}"[:40]
    if isinstance(value, set):
        return f"{{{', '.join(sorted(map(shown, value)))}}}"[:40]
    if isinstance(value, list | tuple) and not (value and isinstance(value[0], list) and value[0]):
        return f"[{', '.join(map(shown, value))}]"[:40]
    return type(value).__name__
