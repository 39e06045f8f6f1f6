"""The next model when one fails for good."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from drangue_client.errors import AuthError, NoCredentials, PermanentError, RateLimitError, TransientError
from drangue_client.messages import ModelResponse
from drangue_worker.models.model import takes_deltas
from drangue_worker.models.routing import FallbackModel, FallbackRouter, RuleRouter, SingleModel
from drangue_worker.testing.fake import FakeModel


class Named:
    """A model that answers with its name, or fails; it remembers the keys it was given."""

    def __init__(self, name: str | None, error: BaseException | None = None) -> None:
        self.model = name
        self.error = error
        self.keys: list[str | None] = []
        self.closed = False

    async def generate(self, *, idempotency_key: str | None = None, **given: Any) -> ModelResponse:
        self.keys.append(idempotency_key)
        if self.error:
            raise self.error
        return ModelResponse(f"I am {self.model}")

    async def aclose(self) -> None:
        self.closed = True


class Streaming(Named):
    """One that says a word before anything else."""

    async def generate(self, *, on_delta: Any = None, **given: Any) -> ModelResponse:
        if on_delta:
            await on_delta(f"{self.model} ")
        return await super().generate(**given)


def ask(model: FallbackModel, **given: Any) -> ModelResponse:
    return asyncio.run(model.generate(system="", messages=[], tools=[], **given))


def test_the_first_model_answers_as_long_as_it_can() -> None:
    """Under its own name, by which the step is priced."""
    first, second = Named("a"), Named("b")
    response = ask(FallbackModel(first, second), idempotency_key="r1:3")
    assert (response.text, response.model) == ("I am a", "a")
    assert (first.keys, second.keys) == (["r1:3"], [])


@pytest.mark.parametrize(
    "error", [AuthError("x"), PermanentError("x"), NoCredentials("x"), KeyError("x"), TimeoutError("x")]
)
def test_what_no_attempt_can_mend_leads_to_the_next_model(error: Exception) -> None:
    """It has a key of its own: to a gateway that remembers, the first one stands for another request."""
    second = Named("b")
    response = ask(FallbackModel(Named("a", error), second), idempotency_key="r1:3")
    assert (response.model, second.keys) == ("b", ["r1:3+1"])
    assert ask(FallbackModel(Named("a", error), second)).model == "b"
    assert second.keys[-1] is None


@pytest.mark.parametrize("error", [TransientError("busy"), RateLimitError("slow down", retry_after=3)])
def test_what_another_attempt_may_mend_goes_to_the_engine(error: Exception) -> None:
    """It waits, counts and comes back under the same key."""
    second = Named("b")
    with pytest.raises(type(error)) as caught:
        ask(FallbackModel(Named("a", error), second))
    assert (caught.value, second.keys) == (error, [])


def test_an_outage_leads_to_the_next_model_where_that_is_wished() -> None:
    """Attempts within two seconds do not outlast an hour; and when all are out, the engine may try again."""
    busy, refused = TransientError("busy"), AuthError("refused")
    assert ask(FallbackModel(Named("a", busy), Named("b"), on_transient=True)).model == "b"
    with pytest.raises(TransientError, match="busy"):
        ask(FallbackModel(Named("a", busy), Named("b", refused), on_transient=True))


def test_when_every_model_failed_all_their_reasons_are_told() -> None:
    """The last one alone would hide why it was asked at all."""
    models = Named("a", AuthError("no key")), Named(None, KeyError("b")), Named("c", PermanentError("too long"))
    with pytest.raises(PermanentError, match=r"a: no key; None: 'b'; c: too long"):
        ask(FallbackModel(*models))
    with pytest.raises(AuthError, match=r"^no key$"):
        ask(FallbackModel(models[0]))


def test_being_cancelled_is_no_failure_of_a_model() -> None:
    """The run is over; nobody else is asked."""
    second = Named("b")
    with pytest.raises(asyncio.CancelledError):
        ask(FallbackModel(Named("a", asyncio.CancelledError()), second))
    assert second.keys == []


def test_deltas_are_given_to_the_models_that_take_them() -> None:
    """A model that names no `on_delta` would fail for it. What a failed one showed stays shown."""
    shown: list[str] = []

    async def show(text: str) -> None:
        shown.append(text)

    models = Streaming("a", AuthError("x")), FakeModel(final=""), Streaming("c")
    assert ask(FallbackModel(*models), on_delta=show).model == "fake"
    assert ask(FallbackModel(models[0], models[2]), on_delta=show).text == "I am c"
    assert shown == ["a ", "a ", "c "]


def test_a_model_says_by_its_signature_whether_it_streams() -> None:
    """A `**kwargs` is no promise."""
    assert [takes_deltas(one) for one in (Streaming("a"), Named("a"), Named("b"), FallbackModel(Named("a")))] == [
        *(True, False, False, True)
    ]


def test_a_response_that_names_its_model_keeps_the_name() -> None:
    """A fallback within a fallback has said already who answered."""
    inner = FallbackModel(Named("a", AuthError("x")), Named("b"))
    assert ask(FallbackModel(inner, Named("c"))).model == "b"


def test_routers_list_the_models_of_a_fallback() -> None:
    """All are recorded, priced and checked for a key; a fallback itself has no name."""
    a, b, c = Named("a"), Named("b"), Named("c")
    fallback = FallbackModel(a, FallbackModel(b))
    assert fallback.models == SingleModel(fallback).models == FallbackRouter(a, b).models == (a, b)
    assert RuleRouter(c, [(lambda m, i: True, fallback)]).models == (c, a, b)
    chosen = FallbackRouter(a, b, on_transient=True).choose(messages=[], step_index=0)
    assert (type(chosen), chosen.models, chosen.on_transient) == (FallbackModel, (a, b), True)


def test_every_model_is_checked_and_closed() -> None:
    """A fallback without a key is none."""

    class Keyless(Named):
        def check(self) -> None:
            raise NoCredentials("no key")

    a, b = Named("a"), Keyless("b")
    asyncio.run(FallbackModel(a, FakeModel(), b).aclose())
    assert (a.closed, b.closed) == (True, True)
    with pytest.raises(NoCredentials):
        FallbackModel(a, FakeModel(), b).check()


def test_what_is_no_model_is_refused() -> None:
    """Known when the agent is made, not when the first model fails."""
    with pytest.raises(ValueError, match="models is empty"):
        FallbackModel()
    with pytest.raises(TypeError, match=r"models\[1\] is 5.*generate"):
        FallbackModel(FakeModel(), 5)
