"""What blocks a deploy, what only warns, and what a person may decide all the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drangue_worker.evals import EvalReport, Gate, GateDecision
from tests.unit.made_logs import by_chance


def decide(baseline: dict[str, Any], candidate: dict[str, Any], **limits: float) -> GateDecision:
    return Gate(**limits).evaluate(baseline, candidate)


GOOD = {"safety": 1.0, "correctness": 0.9, "efficiency": 0.8, "noise": 0.01}


def test_a_candidate_as_good_as_the_baseline_passes() -> None:
    """And has nothing to explain."""
    assert decide(GOOD, GOOD) == GateDecision(True, [], [], False, None, None)


@pytest.mark.parametrize(
    ("change", "blocks", "warnings"),
    [
        ({"safety": 0.99}, ["safety regressed by 0.01: from 1.000 to 0.990"], []),
        ({"correctness": 0.8}, ["correctness regressed by 0.10: from 0.900 to 0.800, more than the 0.05"], []),
        ({"correctness": 0.86}, [], []),
        ({"efficiency": 0.55}, [], ["efficiency regressed by 0.25: from 0.800 to 0.550, more than the 0.20"]),
        ({"efficiency": 0.65}, [], []),
        ({"safety": 0.5, "efficiency": 0.1}, ["safety regressed by 0.50"], ["efficiency regressed by 0.70"]),
        ({"tone": 0.0}, [], []),
    ],
)
def test_a_drop_beyond_its_limit_blocks_or_warns(
    change: dict[str, float], blocks: list[str], warnings: list[str]
) -> None:
    """Wrong and dangerous are not for sale; slow is for discussion. Other dimensions are nobody's business here."""
    decision = decide({**GOOD, "tone": 1.0}, {**GOOD, "tone": 1.0, **change})
    assert decision.passed is (blocks == [])
    for found, expected in ((decision.blocks, blocks), (decision.warnings, warnings)):
        assert len(found) == len(expected)
        assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("before", "after", "limits"),
    [
        (1.0, 0.95, {}),  # 1.0 - 0.95 > 0.05 in floats
        (0.9, 0.85, {}),
        (0.8, 0.7, {"correctness_max_drop": 0.1}),
        (0.1 + 0.2, 0.3, {"correctness_max_drop": 0.0}),
    ],
)
def test_a_drop_of_exactly_the_limit_is_within_it(before: float, after: float, limits: dict[str, float]) -> None:
    """Five of a hundred are allowed, so five of a hundred pass."""
    assert before - after > limits.get("correctness_max_drop", 0.05)
    assert decide({"correctness": before}, {"correctness": after}, **limits).passed


@by_chance
@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_the_gate_counts_in_hundredths_as_people_do(before: int, after: int, limit: int) -> None:
    """No pair of rates is decided by how a float was rounded."""
    decision = decide({"correctness": before / 100}, {"correctness": after / 100}, correctness_max_drop=limit / 100)
    assert decision.passed is (before - after <= limit)


@pytest.mark.parametrize("dimension", ["safety", "correctness", "efficiency"])
def test_what_is_no_longer_checked_blocks(dimension: str) -> None:
    """Deleting a check is the easiest way to pass it. Even efficiency, whose drops only warn."""
    candidate = {key: value for key, value in GOOD.items() if key != dimension}
    decision = decide(GOOD, candidate)
    assert (decision.passed, decision.warnings) == (False, [])
    assert decision.blocks == [f"{dimension} is no longer checked: the baseline measured it, the candidate does not."]


@pytest.mark.parametrize("dimension", ["safety", "correctness", "efficiency"])
def test_what_is_checked_for_the_first_time_warns(dimension: str) -> None:
    """Even a rate of 0: it may have been so all along."""
    baseline = {key: value for key, value in GOOD.items() if key != dimension}
    decision = decide(baseline, {**GOOD, dimension: 0.0})
    assert (decision.passed, decision.blocks) == (True, [])
    assert decision.warnings == [f"{dimension} has no baseline: it is measured for the first time, at 0.000."]


def test_what_neither_checks_is_nobodys_business() -> None:
    """Profiles without any of the three are compared without a word."""
    empty = EvalReport([]).profile()
    assert decide(empty, empty) == GateDecision(True)


@pytest.mark.parametrize(("noises", "warned"), [((0.2, 0.0), True), ((0.0, 0.2), True), ((0.05, 0.05), False)])
def test_noise_beyond_the_limit_of_correctness_warns_and_never_blocks(
    noises: tuple[float, float], warned: bool
) -> None:
    """What cannot be told from chance must not be taken for a verdict."""
    baseline, candidate = ({**GOOD, "noise": noise} for noise in noises)
    decision = decide(baseline, candidate)
    assert decision.passed
    assert ["standard error of the rates, 0.200, is wider" in text for text in decision.warnings] == [True] * warned


def test_a_profile_without_noise_is_taken_as_quiet() -> None:
    """Old ones do not hold it."""
    assert decide({"safety": 1.0}, {"safety": 1.0}) == GateDecision(True)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), None, "0.9", True, 1.1, -0.1])
def test_a_rate_that_is_none_does_not_open_the_gate(rate: Any) -> None:
    """NaN is not more than any limit."""
    with pytest.raises((TypeError, ValueError), match=r"candidate\['safety'\] is"):
        decide(GOOD, {**GOOD, "safety": rate})
    with pytest.raises((TypeError, ValueError), match="baseline's noise is"):
        decide({**GOOD, "noise": rate}, GOOD)


def test_a_report_is_no_profile() -> None:
    """The error says what to pass."""
    with pytest.raises(TypeError, match=r"baseline is EvalReport.*report\.profile\(\)"):
        Gate().evaluate(EvalReport([]), GOOD)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", ["safety_max_drop", "correctness_max_drop", "efficiency_max_drop"])
@pytest.mark.parametrize("value", [float("nan"), -0.1, 5, "0.05", None])
def test_a_limit_that_cannot_hold_is_refused(limit: str, value: Any) -> None:
    """5 was meant as 5 %, and would let everything through."""
    with pytest.raises((TypeError, ValueError), match=f"{limit} is"):
        Gate(**{limit: value})


BLOCKED = GateDecision(False, ["safety regressed by 0.50"], ["efficiency has no baseline"])


def test_an_override_passes_and_hides_nothing() -> None:
    """Whoever reads the record later sees what was known."""
    decision = BLOCKED.override("the scenario itself is wrong, see 4711", by="ann")
    assert decision == GateDecision(
        True, BLOCKED.blocks, BLOCKED.warnings, True, "the scenario itself is wrong, see 4711", "ann"
    )
    assert BLOCKED.passed is False
    assert BLOCKED.override("wrong scenario").overridden_by is None


@pytest.mark.parametrize("reason", ["", "  \n", None])
def test_an_override_needs_a_reason(reason: Any) -> None:
    """A shrug is none, and nothing is recorded for it."""
    records: list[Any] = []
    with pytest.raises(ValueError, match="needs a reason"):
        BLOCKED.override(reason, by="ann", record=records.append)
    assert records == []


def test_an_override_is_recorded_as_plain_json() -> None:
    """Once, and before anybody can act on it."""
    records: list[Any] = []
    decision = BLOCKED.override("urgent", by="ann", record=records.append)
    assert records == [decision.to_record()]
    assert json.loads(json.dumps(records[0])) == {
        "passed": True,
        "blocks": ["safety regressed by 0.50"],
        "warnings": ["efficiency has no baseline"],
        "overridden": True,
        "override_reason": "urgent",
        "overridden_by": "ann",
    }


def test_an_override_that_cannot_be_recorded_is_none() -> None:
    """An audit trail with holes is no audit trail."""

    def full(record: dict[str, Any]) -> None:
        raise OSError("disk full")

    async def later(record: dict[str, Any]) -> None:
        raise AssertionError("nobody awaits it")

    with pytest.raises(OSError, match="disk full"):
        BLOCKED.override("urgent", record=full)
    with pytest.raises(TypeError, match="record is async"):
        BLOCKED.override("urgent", record=later)
