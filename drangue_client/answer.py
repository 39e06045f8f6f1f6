"""Structured answers: the schema an answer must match, the pseudo-tool a model delivers it by, and the judgement.

Pure. `jsonschema` judges; it is loaded when the first schema is seen, since most programs that import this have none.
A schema refers to nothing outside itself: judging an answer must never reach for the network.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from drangue_client import checks
from drangue_client.events import normalise

FINAL_ANSWER = "final_answer"
DESCRIPTION = "Deliver the final answer. Call it once, when the work is done; nothing happens after it."
MAX_CORRECTIONS = 2  # answers of one turn that are sent back before the next one is taken as it is
_SHARED = ("$defs", "definitions")  # what references in a schema usually lead to; it stays at the root
_NAMED = (*_SHARED, "properties", "patternProperties", "dependentSchemas")  # schemas by names of the author's
_DATA = ("const", "default", "enum", "examples")  # no schemas, whatever they look like
_SHOWN_ERRORS = 5
_SHOWN_CHARS = 300


def schema_of(value: Any) -> dict[str, Any] | None:
    """The JSON schema that `output_schema` stands for: a schema as a dict, or a pydantic model; None for none.

    Raises TypeError or ValueError, naming `output_schema`, for what is no schema.
    """
    if value is None or value == {}:
        return None
    if callable(getattr(value, "model_json_schema", None)):
        value = value.model_json_schema()
    checks.kind("output_schema", value, Mapping, "a JSON schema as a dict, or a pydantic model")
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        schema: dict[str, Any] = normalise(value)
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"output_schema is no JSON schema: at {error.json_path}, {error.message[:200]}.") from None
    except RecursionError:
        raise ValueError("output_schema is nested too deeply to be judged by; give a flatter one.") from None
    for reference in _references(schema):
        if not _leads_somewhere(reference, schema):
            raise ValueError(f"output_schema refers to {reference!r}; put what it means into the schema itself.")
    return schema


def parameters(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What `final_answer` takes: the schema itself, or one `value` of it, since arguments are always an object."""
    if _takes_object(schema):
        return dict(schema)
    shared = {key: value for key, value in schema.items() if key in _SHARED}
    inner = _moved({key: value for key, value in schema.items() if key not in (*_SHARED, "$id")})  # it is nobody's root
    properties = {"type": "object", "properties": {"value": inner}, "required": ["value"]}
    return {**properties, "additionalProperties": False, **_moved(shared)}


def delivered(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """The answer that a call of `final_answer` delivers."""
    wrapped = not _takes_object(schema) and set(arguments) == {"value"}
    return arguments["value"] if wrapped else dict(arguments)


def mistakes(schema: Mapping[str, Any], answer: Any) -> list[str]:
    """Why an answer does not match, each as `path: what is wrong`; none where it does."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    judge = Draft202012Validator(schema, registry=Registry())
    try:
        found = sorted(judge.iter_errors(answer), key=lambda error: [(isinstance(p, str), p) for p in error.path])
        told = dict.fromkeys(_told(best_match([error]) or error) for error in found)  # `required` comes once per name
        return list(told)[:_SHOWN_ERRORS]
    except Unresolvable as error:
        return [f"$: the schema refers to {error.ref!r}, which it does not hold"]
    except re.error as error:
        return [f"$: the schema holds a pattern that is no regular expression ({error})"]
    except RecursionError:
        return ["$: nested too deeply to be judged"]
    except (ArithmeticError, TypeError, ValueError) as error:  # numbers beyond all floats, for one
        return [f"$: cannot be judged ({error})"[:_SHOWN_CHARS]]


def read(text: str) -> tuple[Any, str | None]:
    """A text answer as JSON, and why it could not be read (None where it could)."""
    try:
        return json.loads(text, parse_constant=_no_json, parse_float=_finite), None
    except (ValueError, RecursionError) as error:
        return None, f"$: expected JSON ({error})"


def _no_json(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    return float(number) if math.isfinite(float(number)) else _no_json(number)


def feedback(errors: list[str]) -> str:
    """What the model is told about an answer that missed."""
    listed = "\n".join(f"- {error}" for error in errors)
    return f"The answer did not match the required schema:\n{listed}\nCall {FINAL_ANSWER} with a corrected answer."


def written(answer: Any) -> str:
    """An accepted answer as the run's output."""
    return json.dumps(answer, ensure_ascii=False)


def _takes_object(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "object"


def _told(error: Any) -> str:
    value = error.validator_value
    match error.validator:
        case "required":
            missing = [name for name in value if name not in error.instance]
            what = f"missing required {', '.join(missing)}"
        case "type":
            kinds = value if isinstance(value, list) else [value]
            what = f"expected {' or '.join(map(str, kinds))}, got {json.dumps(error.instance)}"
        case "enum" | "const":
            what = f"expected {json.dumps(value)}, got {json.dumps(error.instance)}"
        case _:
            what = str(error.message)
    return f"{error.json_path}: {what}"[:_SHOWN_CHARS]


def _moved(value: Any) -> Any:
    """A part of a schema, with the references to its root leading to where the root has gone."""
    if isinstance(value, list):
        return [_moved(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    moved: dict[str, Any] = {}
    for key, item in value.items():
        if key in _NAMED and isinstance(item, Mapping):
            moved[key] = {name: _moved(schema) for name, schema in item.items()}
        elif key == "$ref" and isinstance(item, str):
            moved[key] = _moved_reference(item)
        else:
            moved[key] = item if key in _DATA else _moved(item)
    return moved


def _moved_reference(reference: str) -> str:
    at_the_root = any(reference.startswith(f"#/{name}/") for name in _SHARED)
    return reference if at_the_root or reference[:2] not in ("#", "#/") else f"#/properties/value{reference[1:]}"


def _leads_somewhere(reference: str, schema: Mapping[str, Any]) -> bool:
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver().lookup(reference)
    except Unresolvable:
        return False
    return reference.startswith("#")


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in _NAMED and isinstance(item, Mapping):
                yield from _references(list(item.values()))
            elif key in ("$ref", "$dynamicRef") and isinstance(item, str):
                yield item
            elif key not in _DATA:
                yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)
