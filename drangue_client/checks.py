"""What may be given to a constructor, a decorator or a method: one function per kind of argument.

Each gives the value back as it came, or raises TypeError for another kind of thing and ValueError for a value that
cannot be used. The invariant: a refusal reads "<argument> is <value>; it must be <what>." and can be written whatever
the value is. Pure: nothing is converted, and nothing here knows what an argument is for.

With `optional`, None passes too. `what` says what an argument must be, `then` in a sentence more what to do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")

SHOWN = 100  # characters of a value in a message
LONGEST_NAME = 200  # characters, as the columns of runs, agents and queues have it
_OF_A_NAME = f"1 to {LONGEST_NAME} characters, not blank, without NUL or lone surrogates"


def shown(value: object) -> str:
    """A value as a message shows it: its repr, cut after 100 characters, or its type where there is none to be had."""
    try:
        written = repr(value)
    except Exception:  # anybody's code; and Python's own gives up on huge numbers and deep nesting
        return f"<{type(value).__name__} without a repr>"
    return written if len(written) <= SHOWN else f"{written[: SHOWN - 3]}..."


def refusal(argument: str, value: object, what: str, then: str = "", *, hidden: bool = False) -> str:
    """The message of a refusal. Of a `hidden` value only the type is told: it is somebody's content."""
    told = type(value).__name__ if hidden else shown(value)
    return f"{argument} is {told}; it must be {what}.{then and f' {then}'}"


def text(
    argument: str,
    value: T,
    what: str = "text",
    then: str = "",
    *,
    most: int | None = None,
    blank: bool = True,
    hidden: bool = False,
    optional: bool = False,
) -> T:
    """Text of any length, or of 1 to `most` characters; unless `blank`, text that says something."""
    if value is None and optional:
        return value
    what = _either(f"{what}{'' if most is None else f' of 1 to {most} characters'}", optional)
    if not isinstance(value, str):
        raise TypeError(refusal(argument, value, what, then, hidden=hidden))
    if most is not None and not 0 < len(value) <= most:
        raise ValueError(refusal(argument, value, what, then))
    if not blank and not value.strip():
        raise ValueError(refusal(argument, value, f"{what} that is not blank", then))
    return value


def name(argument: str, value: T, what: str = "a name", *, empty: bool = False, optional: bool = False) -> T:
    """A name that a column, a key and a message can hold. `empty` lets "" pass, where it stands for none."""
    if value is None and optional:
        return value
    what = _either(f"{what} ({_OF_A_NAME})", optional)
    if not isinstance(value, str):
        raise TypeError(refusal(argument, value, what))
    if empty and not value:
        return value
    if not 0 < len(value) <= LONGEST_NAME or not value.strip() or "\x00" in value or not _is_unicode(value):
        raise ValueError(refusal(argument, value, what))
    return value


def printable(argument: str, value: T, then: str = "") -> T:
    """An id of 1 to 200 characters that stands in keys, in channels and in commands that people type."""
    what = f"1 to {LONGEST_NAME} printable characters without spaces"
    if not isinstance(value, str):
        raise TypeError(refusal(argument, value, what, then))
    if not 0 < len(value) <= LONGEST_NAME or not value.isprintable() or any(c.isspace() for c in value):
        raise ValueError(refusal(argument, value, what, then))
    return value


def flag(argument: str, value: T) -> T:
    """True or False, and nothing that merely counts as one of them."""
    if not isinstance(value, bool):
        raise TypeError(refusal(argument, value, "True or False"))
    return value


def count(argument: str, value: T, *, least: int = 0, most: int | None = None, optional: bool = False) -> T:
    """A whole number from `least` to `most`; True is none."""
    if value is None and optional:
        return value
    bounds = f"at least {least}" if most is None else f"from {least} to {most}"
    if not isinstance(value, int) or isinstance(value, bool):
        joined = f"a whole number {bounds}" if most is not None else f"a whole number of {bounds}"
        raise TypeError(refusal(argument, value, _either(joined, optional)))
    if value < least or (most is not None and value > most):
        raise ValueError(refusal(argument, value, _either(bounds, optional)))
    return value


def number(
    argument: str,
    value: T,
    what: str = "a number",
    then: str = "",
    *,
    least: float = -sys.float_info.max,
    most: float = sys.float_info.max,
    optional: bool = False,
) -> T:
    """A number from `least` to `most`, which `what` names too; never one that a float cannot hold."""
    if value is None and optional:
        return value
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(refusal(argument, value, _either(what, optional), then))
    if not least <= value <= most:  # as NaN fails every comparison, it fails this one
        raise ValueError(refusal(argument, value, _either(what, optional), then))
    return value


def seconds(argument: str, value: T, *, zero: bool = False, optional: bool = False) -> T:
    """A length of time that ends, and not so late that no database could hold when."""
    least = 0.0 if zero else _SHORTEST
    what = f"{'a number of seconds, at least 0' if zero else 'a positive number of seconds'} and at most 100 years"
    return number(argument, value, what, least=least, most=_LONGEST_S, optional=optional)


def place(argument: str, value: T, *, optional: bool = False) -> T:
    """A place in a log: -1 is before the first event."""
    return count(argument, value, least=-1, most=2**31 - 1, optional=optional)


def moment(argument: str, value: T, *, optional: bool = False) -> T:
    """A moment of the years 1 to 9999, which is what a database can hold."""
    what = "epoch seconds, of the years 1 to 9999"
    return number(argument, value, what, least=_YEAR_1, most=_YEAR_9999, optional=optional)


def kind(
    argument: str, value: T, kinds: type | tuple[type, ...], what: str, then: str = "", *, optional: bool = False
) -> T:
    """An instance of one of `kinds`."""
    if not isinstance(value, kinds) and not (value is None and optional):
        raise TypeError(refusal(argument, value, _either(what, optional), then or _made(value, kinds)))
    return value


def has(argument: str, value: T, method: str, what: str, then: str = "", *, optional: bool = False) -> T:
    """An object with a method of this name, whatever its class. A class has it too, and is refused."""
    if (isinstance(value, type) or not callable(getattr(value, method, None))) and not (value is None and optional):
        raise TypeError(refusal(argument, value, _either(what, optional), then or _made(value, object)))
    return value


def function(argument: str, value: T, what: str = "a function", then: str = "", *, optional: bool = False) -> T:
    """Whatever can be called."""
    if not callable(value) and not (value is None and optional):
        raise TypeError(refusal(argument, value, _either(what, optional), then))
    return value


def one_of(argument: str, value: T, words: Iterable[str], *, optional: bool = False) -> T:
    """One of a few words."""
    if value is None and optional:
        return value
    known = tuple(words)
    what = _either(f"one of {', '.join(known)}", optional)
    if not isinstance(value, str):
        raise TypeError(refusal(argument, value, what))
    if value not in known:
        raise ValueError(refusal(argument, value, what))
    return value


def many(argument: str, value: Iterable[T], what: str, then: str = "") -> list[T]:
    """The items of a list, or of whatever else has some. A text is refused: it would be taken for its letters."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(refusal(argument, value, what, then))
    return list(value)


def tool_names(argument: str, value: Iterable[str], then: str = "") -> frozenset[str]:
    """The names in a set or a list."""
    found = many(argument, value, "a set of tool names", then)
    for one in found:
        if not isinstance(one, str):
            raise TypeError(f"{argument} holds {shown(one)}; it must hold names of tools.")
    return frozenset(found)


def is_number(value: object) -> bool:
    """Whether a float can hold it: neither NaN nor an infinity, nor an int beyond all floats."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_count(value: object) -> bool:
    """Whether it is a whole number; True is none."""
    return isinstance(value, int) and not isinstance(value, bool)


_YEAR_1, _YEAR_9999 = -62_135_500_000.0, 253_402_200_000.0  # a day inside, for any time zone
_SHORTEST = sys.float_info.min
_LONGEST_S = 100 * 366 * 86_400.0


def _either(what: str, optional: bool) -> str:
    return f"{what}, or None" if optional else what


def _made(value: object, kinds: type | tuple[type, ...]) -> str:
    """What to say to a class that was given in place of an instance of it."""
    return f"Make one: {value.__name__}(...)." if isinstance(value, type) and issubclass(value, kinds) else ""


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
