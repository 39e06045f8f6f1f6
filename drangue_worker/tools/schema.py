"""From a function's signature to the schema a model is shown and the check its arguments must pass.

Plain types map as a reader would write them by hand; everything else is described by pydantic. The same annotation
both describes and validates, so the model is never promised what the call refuses.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

import typing_extensions
from pydantic import BeforeValidator, TypeAdapter
from pydantic import ValidationError as PydanticError

from drangue_client.errors import ValidationError
from drangue_client.events import normalise

IDEMPOTENCY_KEY = "idempotency_key"
_SCALARS: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_PLAIN: dict[Any, str] = {**_SCALARS, list: "array", dict: "object"}


@dataclass(frozen=True)
class Signature:
    """A tool's parameters: `schema` for the model, `check` for the call."""

    schema: dict[str, Any]
    adapters: Mapping[str, TypeAdapter[Any]]
    required: frozenset[str]
    wants_idempotency_key: bool

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments converted to their annotations (`"5"` to 5, `"low"` to `Level.LOW`).

        Raises ValidationError naming every argument that is missing, unknown or of the wrong kind.
        """
        problems = [f"{name}: unknown argument" for name in arguments if name not in self.adapters]
        problems += [f"{name}: missing required argument" for name in sorted(self.required - set(arguments))]
        values = {}
        for name, adapter in self.adapters.items():
            if name in arguments:
                try:
                    values[name] = adapter.validate_python(arguments[name])
                except PydanticError as error:
                    problems += [_problem(name, detail) for detail in error.errors(include_url=False)]
                except Exception as error:  # a validator of the author's own may raise anything
                    problems.append(f"{name}: {str(error) or type(error).__name__}")
        if problems:
            raise ValidationError("; ".join(problems))
        return values


def signature_of(function: Callable[..., Any], tool: str) -> Signature:
    """Read the parameters of `function`. Raises TypeError, naming tool and parameter, for one it cannot describe."""
    try:
        found = inspect.signature(function).parameters.values()
    except ValueError:  # some that are built in say nothing of theirs
        raise TypeError(f"tool {tool!r}: its parameters are unknown. Wrap it in a function of your own.") from None
    parameters = [
        parameter
        for parameter in found
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in ("self", "cls")
    ]
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise TypeError(f"tool {tool!r}: parameter {parameter.name!r} is positional-only; a model names arguments.")
    try:
        hints = typing.get_type_hints(inspect.unwrap(function_behind(function)), include_extras=True)
    except (NameError, TypeError) as error:
        raise TypeError(
            f"tool {tool!r}: its annotations cannot be read ({error}). Define the types at module level, or pass "
            "concrete ones."
        ) from error
    described = [parameter for parameter in parameters if parameter.name != IDEMPOTENCY_KEY]
    adapters: dict[str, TypeAdapter[Any]] = {}
    properties: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    about = _described_arguments(inspect.getdoc(function_behind(function)) or "")
    for parameter in described:
        annotation = hints.get(parameter.name, str)
        try:
            adapter = adapters[parameter.name] = TypeAdapter(_taking_values(annotation))
            schema = _schema(annotation, shared)
            json.dumps([schema, shared], allow_nan=False)
        except Exception as error:  # pydantic refuses in many ways
            raise TypeError(
                f"tool {tool!r}: parameter {parameter.name!r} is annotated {annotation!r}, which no JSON can stand "
                "for. Annotate it with a type that pydantic can validate."
            ) from error
        schema |= _default(parameter.default, adapter)
        if parameter.name in about:
            schema["description"] = about[parameter.name]
        properties[parameter.name] = schema
    required = [parameter.name for parameter in described if parameter.default is parameter.empty]
    root: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        root["required"] = required
    if shared:
        root["$defs"] = shared
    return Signature(root, adapters, frozenset(required), len(described) < len(parameters))


def function_behind(function: Callable[..., Any]) -> Any:
    """The function that carries the name, the annotations and the docstring of a callable: that of a partial, or the
    `__call__` of an object."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function).__call__


def _default(default: Any, adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """What the schema says of a default: nothing, unless JSON can show it and the call would take it."""
    value = default.value if isinstance(default, Enum) else default
    if not (value is None or isinstance(value, str | int | float | bool)) or value != normalise(value):
        return {}
    try:
        adapter.validate_python(value)
    except Exception:  # a validator of the author's own may raise anything
        return {}
    return {"default": value}


def _taking_values(annotation: Any) -> Any:
    """The annotation with every Literal of Enum members, which are offered by value, taking the values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        members = {item.value: item for item in arguments if isinstance(item, Enum)}
        take = BeforeValidator(lambda value: members.get(value, value) if isinstance(value, Hashable) else value)
        return Annotated[annotation, take] if members else annotation
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_taking_values, arguments))]  # noqa: UP007 - the members are known at run time only
    if origin in (list, tuple, set, frozenset, dict):
        return origin[tuple(map(_taking_values, arguments))]
    return _readable(annotation)


def _readable(annotation: Any) -> Any:
    """A TypedDict as pydantic can read it: before Python 3.12 the standard library's own does not tell it enough."""
    if sys.version_info >= (3, 12) or not typing.is_typeddict(annotation):
        return annotation
    hints = typing.get_type_hints(annotation, include_extras=True)
    fields = {
        name: (Required if name in annotation.__required_keys__ else NotRequired)[_taking_values(hint)]
        for name, hint in hints.items()
    }
    make: Any = typing_extensions.TypedDict  # the fields are known at run time only
    return make(annotation.__name__, fields)


def _schema(annotation: Any, shared: dict[str, Any]) -> dict[str, Any]:
    """The schema of one annotation; definitions it refers to are added to `shared`, which stands at the root."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    plain = next((name for kind, name in _PLAIN.items() if annotation is kind), None)
    if plain:
        return {"type": plain}
    if origin is list and len(arguments) == 1:
        return {"type": "array", "items": _schema(arguments[0], shared)}
    if origin is Literal:
        return {"enum": [item.value if isinstance(item, Enum) else item for item in arguments]}
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return {"enum": [member.value for member in annotation]}
    if origin in (Union, types.UnionType):
        members = [_schema(argument, shared) for argument in arguments]
        if all(set(member) == {"type"} and isinstance(member["type"], str) for member in members):
            names = list(dict.fromkeys(member["type"] for member in members))
            return {"type": names[0] if len(names) == 1 else names}
        return {"anyOf": members}
    schema = TypeAdapter(_readable(annotation)).json_schema()
    for name, definition in schema.pop("$defs", {}).items():
        if shared.setdefault(name, definition) != definition:
            raise TypeError(f"two different types are named {name!r}")
    return schema


def _problem(name: str, detail: Any) -> str:
    place = ".".join(str(part) for part in (name, *detail["loc"]))
    return f"{place}: {detail['msg']}"


_SECTION = re.compile(r"^(args|arguments|parameters):\s*$", re.IGNORECASE)
_OTHER_SECTION = re.compile(r"^(returns|raises|yields|examples?|notes?|attributes):\s*$", re.IGNORECASE)
_ENTRY = re.compile(r"^\s*(\w+)\s*(?:\([^)]*\))?:\s*(.+)$")


def _described_arguments(docstring: str) -> dict[str, str]:
    """What a Google-style Args section says of each argument."""
    about: dict[str, str] = {}
    inside, current = False, None
    for line in docstring.splitlines():
        if _SECTION.match(line.strip()):
            inside, current = True, None
        elif inside and _OTHER_SECTION.match(line.strip()):
            break
        elif inside and not line.strip():
            current = None
        elif inside and (entry := _ENTRY.match(line)):
            current = entry[1]
            about[current] = entry[2].strip()
        elif inside and current:
            about[current] += " " + line.strip()
    return about
