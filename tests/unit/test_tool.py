"""`Tool` and `@tool`: a function with what the runtime must know to call it safely."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from drangue_client.errors import RateLimitError, TransientError
from drangue_client.terms import ToolTerms
from drangue_worker.tools.tool import DEFAULT_RETRY_ON, Tool, ToolPolicy, as_tool, tool


def weather(city: str) -> str:
    """The weather.

    Of one city.
    """
    return f"cold in {city}"


async def fetch(url: str) -> str:
    return url


class Counter:
    """Counts."""

    step: int = 1

    def __call__(self, number: int) -> int:
        return number + self.step


class Fetcher:
    async def __call__(self, url: str) -> str:
        return url


def test_a_bare_decorator_takes_everything_from_the_function() -> None:
    """The common case needs no options."""
    made = tool(weather)
    assert (made.name, made.description) == ("weather", "The weather.\n\nOf one city.")
    assert made.to_schema() == {
        "name": "weather",
        "description": "The weather.\n\nOf one city.",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "additionalProperties": False,
            "required": ["city"],
        },
    }


def test_a_tool_is_by_default_reversible_ungated_and_tried_once() -> None:
    """Nothing is retried or held back that nobody asked for."""
    made = tool(weather)
    assert (made.reversible, made.requires_approval, made.queue, made.wants_idempotency_key) == (
        True,
        False,
        None,
        False,
    )
    assert made.policy == ToolPolicy(None, 0, 0.5, 30.0, (TransientError, RateLimitError))


def test_options_say_the_rest() -> None:
    """Each lands where the runtime looks for it."""
    made = tool(
        name="sky",
        description="Look up.",
        timeout=5.0,
        retries=3,
        backoff=1.5,
        max_backoff=9.0,
        retry_on=(TimeoutError,),
        reversible=False,
        requires_approval=True,
        queue="browser",
    )(weather)
    assert (made.name, made.description) == ("sky", "Look up.")
    assert made.policy == ToolPolicy(5.0, 3, 1.5, 9.0, (TimeoutError,))
    assert (made.reversible, made.requires_approval, made.queue) == (False, True, "browser")


def test_what_to_retry_on_replaces_the_default_set() -> None:
    """A tool that must not be repeated on a rate limit says so by naming something else."""
    assert tool(retry_on=())(weather).policy.retry_on == ()
    assert tool(retry_on=(*DEFAULT_RETRY_ON, TimeoutError))(weather).policy.retry_on[-1] is TimeoutError


def test_a_description_may_be_emptied() -> None:
    """An empty text is an answer, not a missing one."""
    assert tool(description="")(weather).description == ""


def test_a_function_without_a_docstring_has_no_description() -> None:
    """`None` is no text a provider takes."""
    assert tool(fetch).description == ""


def test_calling_a_tool_calls_its_function() -> None:
    """People test their tools, and call one from another."""
    assert tool(weather)(city="Oslo") == "cold in Oslo"


def test_the_key_is_wanted_where_the_function_declares_it() -> None:
    """It is injected at run time and hidden from the model."""

    def pay(sum: int, idempotency_key: str) -> None: ...

    made = tool(pay)
    assert made.wants_idempotency_key
    assert "idempotency_key" not in made.parameters["properties"]


@pytest.mark.parametrize(
    ("function", "is_async"),
    [
        (weather, False),
        (fetch, True),
        (Counter(), False),
        (Fetcher(), True),
        (Fetcher().__call__, True),
        (functools.partial(weather, city="Oslo"), False),
        (functools.partial(fetch, url="x"), True),
        (len, False),
    ],
    ids=["function", "coroutine", "object", "async object", "async method", "partial", "async partial", "builtin"],
)
def test_what_must_be_awaited_is_known_however_it_is_wrapped(function: Any, is_async: bool) -> None:
    """Run as if it were sync, its result would be the text of a coroutine object."""
    assert Tool("t", "", {}, function).is_async is is_async


@pytest.mark.parametrize(
    ("function", "name", "parameters"),
    [
        (Counter(), "Counter", ["number"]),
        (Fetcher(), "Fetcher", ["url"]),
        (functools.partial(weather), "weather", ["city"]),
        (functools.partial(fetch, url="x"), "fetch", ["url"]),
        (lambda n=1: n, "<lambda>", ["n"]),
    ],
    ids=["object", "async object", "partial", "async partial", "lambda"],
)
def test_any_callable_can_be_a_tool(function: Any, name: str, parameters: list[str]) -> None:
    """Objects with state are often what a tool is; `tools=[Counter()]` must not fail for want of annotations."""
    made = as_tool(function)
    assert (made.name, list(made.parameters["properties"])) == (name, parameters)


def test_an_object_s_own_annotations_are_not_its_parameters() -> None:
    """The types of `__call__` count, not those of the class around it."""
    assert tool(Counter()).parameters["properties"] == {"number": {"type": "integer"}}


def test_a_name_of_one_s_own_wins_for_objects_too() -> None:
    """Two of one class are two tools."""
    assert tool(name="count")(Counter()).name == "count"


@pytest.mark.parametrize(
    ("function", "queue", "served_from"),
    [(weather, None, "drangue.tool"), (fetch, None, "drangue.async_tool"), (fetch, "browser", "browser")],
)
def test_calls_go_to_the_queue_of_their_kind_or_to_their_own(
    function: Any, queue: str | None, served_from: str
) -> None:
    """A blocking tool on the loop's pool would stop a hundred model calls."""
    assert tool(queue=queue)(function).served_from == served_from


def test_a_run_records_what_its_rules_need_of_a_tool() -> None:
    """A worker of another version then decides alike."""
    made = tool(timeout=5, reversible=False, requires_approval=True)(weather)
    assert made.terms() == ToolTerms("drangue.tool", False, True, 5, made.parameters, made.description)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"retries": 1.5}, "retries"),
        ({"backoff": -0.1}, "^backoff"),
        ({"max_backoff": -1}, "max_backoff"),
    ],
)
def test_an_option_that_cannot_work_is_refused(options: dict[str, Any], named: str) -> None:
    """At import, not in the middle of the first night."""
    with pytest.raises((TypeError, ValueError), match=rf"{named} is .*must be"):
        tool(**options)


def test_no_waiting_at_all_can_be_asked_for() -> None:
    """Zero is a wait."""
    assert tool(backoff=0, max_backoff=0)(weather).policy == ToolPolicy(backoff=0, max_backoff=0)


@pytest.mark.parametrize("retry_on", [[TimeoutError], ("TimeoutError",), (TimeoutError, None)], ids=str)
def test_retrying_on_what_is_no_exception_is_refused(retry_on: Any) -> None:
    """Found out only when the tool fails, it would turn a failed call into a failed step."""
    with pytest.raises((TypeError, ValueError), match="retry_on"):
        tool(retry_on=retry_on)


@pytest.mark.parametrize("item", [5, "weather", None])
def test_what_cannot_be_called_is_no_tool(item: Any) -> None:
    """The message shows the item, since the list may be long."""
    with pytest.raises(TypeError, match=repr(item)):
        as_tool(item)


def test_only_what_can_be_called_can_be_decorated() -> None:
    """`@tool("name")` is the usual slip."""
    with pytest.raises(TypeError, match=r"'name'.*Decorate a function"):
        tool("name")  # type: ignore[call-overload]


def test_a_tool_stays_as_it_is() -> None:
    """Its options would be lost by making it again."""
    made = tool(timeout=5)(weather)
    assert as_tool(made) is made


def test_a_plain_function_becomes_a_tool_with_default_options() -> None:
    """`tools=[weather]` is enough."""
    made, decorated = as_tool(weather), tool(weather)
    assert (made.func, made.policy, made.to_schema()) == (weather, decorated.policy, decorated.to_schema())
