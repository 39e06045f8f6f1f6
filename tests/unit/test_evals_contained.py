"""What checks and runs may raise without ending an evaluation, and what it is then taken for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from drangue_client.errors import TransientError
from drangue_client.result import Result
from drangue_worker.evals import Check, Scenario, evaluate, output_contains
from tests.unit.test_evals_run import Scripted, run


def test_what_a_check_denied_is_measured_whatever_others_raise() -> None:
    """An assertion is a no as well; a judge that is away cannot make either undecided."""

    def asserts(result: Result) -> bool:
        assert "please" in result.output
        return True

    def raises(result: Result) -> bool:
        raise TransientError("busy")

    for denies in (asserts, lambda result: False):
        checks = [Check("correctness", "judge", raises), Check("correctness", "polite", denies)]
        report = run(Scripted(), Scenario("a", "x", checks))
        assert (report.runs[0].dimensions, report.unmeasured) == ({"correctness": False}, {})


def cancels(result: Any) -> bool:
    raise asyncio.CancelledError


async def cancels_later(result: Any) -> bool:
    await asyncio.sleep(0)
    raise asyncio.CancelledError


def fails_a_test(result: Any) -> bool:
    pytest.fail("not polite")


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (cancels, "CancelledItself: it cancelled itself"),
        (cancels_later, "CancelledItself: it cancelled itself"),
        (lambda result: cancels_later(result), "CancelledItself: it cancelled itself"),
        (fails_a_test, "ToolError: it raised Failed: not polite"),
    ],
)
def test_a_check_that_would_end_more_than_itself_ends_nothing(fn: Callable[[Any], object], said: str) -> None:
    """Some clients cancel whoever asks when a connection is lost; hours of other runs must not be lost with it."""
    report = run(Scripted(), Scenario("a", "x", [Check("tone", "odd", fn), output_contains("x")], runs=2))
    assert report.results[0].dimensions == {"tone": (0, 2), "correctness": (2, 2)}
    assert set(report.errors.values()) == {(f"check 'odd': {said}",)}
    assert report.unmeasured == {"tone": 2}


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (asyncio.CancelledError(), "CancelledItself: it cancelled itself"),
        (SystemExit(3), "ToolError: it raised SystemExit: 3"),
    ],
)
def test_a_run_that_would_end_more_than_itself_is_a_failed_run(raised: BaseException, said: str) -> None:
    """The other runs are made."""

    class Leaving(Scripted):
        async def work(self, run_id: str) -> None:
            await asyncio.sleep(0)
            if run_id == "eval-a-0":
                raise raised

    report = run(Leaving(), Scenario("a", "x", [output_contains("x")], runs=3))
    assert report.results[0].dimensions == {"correctness": (2, 3)}
    assert report.errors == {"eval-a-0": (said,)}


def test_cancelling_an_evaluation_ends_it_in_the_middle_of_a_check() -> None:
    """What contains a check's own cancellation must not swallow somebody else's."""

    async def start_and_leave() -> None:
        asked = asyncio.Event()

        async def ponders(result: Any) -> bool:
            asked.set()
            return await asyncio.Event().wait()

        work = asyncio.create_task(evaluate(Scripted(), [Scenario("a", "x", [Check("tone", "slow", ponders)])]))
        await asked.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(start_and_leave())
