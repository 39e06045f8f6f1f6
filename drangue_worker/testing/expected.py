"""How a conformance check says what it expected and what it found, with or without `python -O`."""

from __future__ import annotations

from collections.abc import Callable

SHOWN = 500  # characters of a value


def that(holds: bool, what: str) -> None:
    """Fail unless it holds."""
    if not holds:
        raise AssertionError(f"expected {what}")


def equal(wanted: object, found: object, what: str) -> None:
    """Fail unless both are equal; `what` names what was looked at."""
    if wanted != found:
        raise AssertionError(f"{what}: expected {_cut(wanted)}; found {_cut(found)}")


def of_kind(value: object, kind: type, what: str) -> None:
    """Fail for a value of another kind."""
    that(isinstance(value, kind), f"{what} to be a {kind.__name__}; it is {_cut(value)}")


def raises(error: type[Exception], work: Callable[[], object], what: str) -> None:
    """Fail unless the work raises this error; `what` names the work."""
    try:
        found = work()
    except error:
        return
    raise AssertionError(f"{what}: expected {error.__name__}; it gave {_cut(found)}")


def _cut(value: object) -> str:
    written = repr(value)
    return written if len(written) <= SHOWN else f"{written[:SHOWN]}..."
