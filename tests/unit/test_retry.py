"""How long to wait before another attempt."""

from __future__ import annotations

import pytest

from drangue_client.errors import RateLimitError, TransientError
from drangue_worker.rules.retry import delay_s

BUSY = TransientError("busy")


@pytest.mark.parametrize(("failures", "expected"), [(0, 1.0), (1, 2.0), (2, 4.0), (3, 8.0), (4, 10.0), (5_000, 10.0)])
def test_the_wait_doubles_up_to_its_cap(failures: int, expected: float) -> None:
    """A provider in trouble is asked less and less often, but never given up by arithmetic."""
    assert delay_s(BUSY, failures, base_s=2.0, cap_s=20.0, chance=0.0) == expected


@pytest.mark.parametrize(("chance", "expected"), [(0.0, 4.0), (0.5, 6.0), (0.75, 7.0)])
def test_half_of_the_wait_is_spread_by_chance(chance: float, expected: float) -> None:
    """Callers that failed together must not return together, nor return at once."""
    assert delay_s(BUSY, 2, base_s=2.0, cap_s=30.0, chance=chance) == expected


def test_the_cap_holds_for_the_first_wait_too() -> None:
    """A base above the cap is a way to say: always the cap."""
    assert delay_s(BUSY, 0, base_s=50.0, cap_s=10.0, chance=0.0) == 5.0


@pytest.mark.parametrize("base_s", [0, 0.0, -1.0])
def test_without_a_base_there_is_no_wait(base_s: float) -> None:
    """`backoff=0` means at once, whatever the dice say."""
    assert delay_s(BUSY, 5, base_s=base_s, cap_s=30.0, chance=0.9) == 0.0


def test_a_base_below_a_second_is_a_wait_too() -> None:
    """Half a second is the default."""
    assert delay_s(BUSY, 0, base_s=0.5, cap_s=30.0, chance=0.0) == 0.25


@pytest.mark.parametrize(("retry_after", "expected"), [(0.0, 0.0), (7.5, 7.5), (600.0, 600.0), (-3.0, 0.0)])
def test_what_the_other_side_asks_for_is_taken_as_it_is(retry_after: float, expected: float) -> None:
    """It knows when it will answer; coming back sooner only counts against us."""
    error = RateLimitError("slow down", retry_after=retry_after)
    assert delay_s(error, 3, base_s=2.0, cap_s=30.0, chance=0.5) == expected


def test_a_rate_limit_without_a_wish_waits_like_any_other_failure() -> None:
    """Most servers send none."""
    assert delay_s(RateLimitError(), 1, base_s=2.0, cap_s=30.0, chance=0.0) == 2.0


def test_a_retry_after_header_may_be_passed_straight_in() -> None:
    """Tools write `retry_after=response.headers["Retry-After"]`, which is text; it must not break the retry itself."""
    error = RateLimitError("slow down", retry_after="7")  # type: ignore[arg-type]
    assert delay_s(error, 0, base_s=2.0, cap_s=30.0, chance=0.0) == 7.0


@pytest.mark.parametrize("header", ["Wed, 21 Oct 2015 07:28:00 GMT", "soon", ""])
def test_a_retry_after_header_that_is_no_number_breaks_nothing(header: str) -> None:
    """A date is a legal value; raised from inside the handler of a failure, an error here would fail the whole run."""
    error = RateLimitError("slow down", retry_after=header)  # type: ignore[arg-type]
    assert 0.0 <= delay_s(error, 0, base_s=2.0, cap_s=30.0, chance=0.0) <= 2.0


@pytest.mark.parametrize("retry_after", [float("inf"), float("nan")])
def test_a_wish_that_is_no_time_is_not_obeyed(retry_after: float) -> None:
    """A step put back until infinity never runs again, and no database can hold the date."""
    error = RateLimitError("slow down", retry_after=retry_after)
    assert 0.0 <= delay_s(error, 0, base_s=2.0, cap_s=30.0, chance=0.0) <= 30.0
