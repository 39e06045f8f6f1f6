"""What a provider's failure becomes: whatever the wire, an error that says whether to try again, and when."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from drangue_client.errors import AuthError, PermanentError, RateLimitError, TransientError
from drangue_worker.testing.provider import Provider, Reply
from tests.kit.ways import WAYS, Way, every_stream, every_way

PATIENCE_S = 20.0  # for a state that normally comes within milliseconds


@every_way
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, PermanentError),
        (401, AuthError),
        (402, PermanentError),
        (403, AuthError),
        (404, PermanentError),
        (408, TransientError),
        (413, PermanentError),
        (429, RateLimitError),
        (500, TransientError),
        (503, TransientError),
        (529, TransientError),
    ],
)
def test_a_refusal_is_raised_once_as_one_of_our_errors(way: Way, status: int, error: type[Exception]) -> None:
    """The engine tries again by type; a try of the SDK's own would be seen and counted by nobody."""
    with Provider([Reply(status=status, error="no luck")]) as provider:
        with pytest.raises(error, match="no luck") as caught:
            way.ask(provider)
        assert (provider.received, type(caught.value)) == (1, error)


@every_way
def test_a_rate_limit_says_how_long_in_seconds(way: Way) -> None:
    """The header may hold a number or a date; an overloaded server that names a time is waited for alike."""
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    for status in (429, 503):
        waits = []
        for headers in ({"Retry-After": "7"}, {"Retry-After": in_a_minute}, {"Retry-After-Ms": "1500"}):
            refusal = Reply(status=status, error="slow down", headers=headers)
            with Provider([refusal]) as provider, pytest.raises(RateLimitError) as caught:
                way.ask(provider)
            waits.append(caught.value.retry_after or 0.0)
        assert (waits[0], waits[2]) == (7.0, 1.5)
        assert 50.0 < waits[1] <= 60.0


@pytest.mark.parametrize("way", WAYS[:2], ids=str)
def test_a_spent_account_is_no_rate_limit(way: Way) -> None:
    """It comes as one, but waiting does not help, and the next model should be asked at once."""
    refusal = Reply(status=429, error="check your plan", error_code="insufficient_quota")
    with Provider([refusal]) as provider, pytest.raises(PermanentError, match="check your plan"):
        way.ask(provider)


@every_stream
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (None, TransientError),
        ("api_error", TransientError),
        ("rate_limit_error", RateLimitError),
        ("invalid_request_error", PermanentError),
        ("authentication_error", AuthError),
    ],
)
def test_an_error_in_the_middle_of_a_stream_is_no_answer(way: Way, code: str | None, error: type[Exception]) -> None:
    """Its status was 200 long before; what was shown must not be taken for the whole."""
    with Provider([Reply("one two", error="no luck", error_code=code)]) as provider:
        with pytest.raises(error, match="no luck") as caught:
            way.ask(provider)
        assert type(caught.value) is error


@every_way
def test_a_line_that_breaks_is_worth_another_attempt(way: Way) -> None:
    """Before the answer, or after its first words."""
    for after in (0, 4):
        with Provider([Reply("one two three", hang_up=True, hang_up_after=after if way.streamed else 0)]) as provider:
            with pytest.raises(TransientError) as caught:
                way.ask(provider)
            assert type(caught.value) is TransientError


@every_way
def test_nobody_at_the_address_is_worth_another_attempt(way: Way) -> None:
    """Deployments come back."""
    with Provider([Reply("never")]) as provider:
        provider.stop()
        with pytest.raises(TransientError):
            way.ask(provider)


@every_way
def test_a_provider_that_says_nothing_is_given_up(way: Way) -> None:
    """Its connection stays open for ever; a run must not."""
    with Provider([Reply("too late", delay_s=600)]) as provider:
        with pytest.raises(TransientError, match=r"silent for 0\.2 s"):
            way.ask(provider, options={"timeout": 0.2})
        provider.wait_for(lambda p: p.aborted == 1, PATIENCE_S)


@every_stream
def test_a_stream_that_falls_silent_is_given_up_and_a_slow_one_is_not(way: Way) -> None:
    """A long answer is no hung one: the limit is to silence, not to the whole."""
    with Provider([Reply("one two three", chunk_delay_s=600)]) as provider:
        with pytest.raises(TransientError, match=r"silent for 0\.2 s"):
            way.ask(provider, options={"timeout": 0.2})
        provider.wait_for(lambda p: p.aborted == 1, PATIENCE_S)
    with Provider([Reply(" ".join("abcdefghij"), chunk_delay_s=0.12)]) as provider:
        assert way.ask(provider, options={"timeout": 1.0}).text == "a b c d e f g h i j"


@every_way
def test_being_cancelled_hangs_up(way: Way) -> None:
    """A cancelled run must not leave its model call running, and is no failure of the provider's."""

    async def give_up(provider: Provider) -> None:
        async with way.model(provider) as model:
            asked = asyncio.create_task(way.generate(model))
            await asyncio.to_thread(provider.wait_for, lambda p: p.in_flight == 1, PATIENCE_S)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await asyncio.to_thread(provider.wait_for, lambda p: p.aborted == 1, PATIENCE_S)

    with Provider([Reply("too late", delay_s=600)]) as provider:
        asyncio.run(give_up(provider))


@every_stream
def test_a_listener_that_fails_is_not_taken_for_the_provider(way: Way) -> None:
    """Its TimeoutError is of another making; tried again, the answer would be paid twice."""

    async def fail(text: str) -> None:
        raise TimeoutError("redis")

    with Provider([Reply("one two three")]) as provider, pytest.raises(TimeoutError, match="redis"):
        way.ask(provider, on_delta=fail)
