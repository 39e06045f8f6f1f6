"""What an application may submit, and which call a verdict means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from drangue_client.errors import NotPendingError, RunExistsError
from drangue_client.folding import fold
from drangue_client.store import InMemoryStore
from drangue_client.store.values import Move, NewRun, RunRow
from drangue_client.submission import check_input, check_run_id, check_same
from drangue_client.verdicts import record_verdict
from tests.unit.made_logs import asked, decided, started

ROW = RunRow("r1", "oncall", "running", "celery", 5, {}, "a\\u0000b", 0, None, 0.0, 0.0, None)


@pytest.mark.parametrize("run_id", ["r1", "order-17:refund", "größe", "x" * 200])
def test_an_id_of_one_s_own_is_taken_as_it_is(run_id: str) -> None:
    """It is how an application finds its run again."""
    assert check_run_id(run_id) == run_id


@pytest.mark.parametrize("run_id", ["", "x" * 201, "a b", "a\tb", "a\n", "a\u00a0b", "a\x00", "\ud800", "\u200b"])
def test_an_id_that_no_row_or_key_could_hold_is_refused(run_id: str) -> None:
    """It becomes part of keys, channels and commands that people type."""
    with pytest.raises(ValueError, match=r"^run_id is .*1 to 200 printable characters"):
        check_run_id(run_id)


def test_a_refused_id_is_not_shown_whole() -> None:
    """Somebody passed the whole document."""
    with pytest.raises(ValueError, match="run_id") as caught:
        check_run_id("x" * 100_000)
    assert len(str(caught.value)) < 400


def test_without_an_id_each_run_gets_a_fresh_one() -> None:
    """32 hex digits, never the same."""
    ids = {check_run_id(None) for _ in range(50)}
    assert len(ids) == 50
    assert {(len(one), one.strip("0123456789abcdef")) for one in ids} == {(32, "")}


def test_an_input_is_kept_as_the_log_holds_it() -> None:
    """Compared with what was stored, and shown to the model as it was stored."""
    assert check_input("a\x00b\ud800") == "a\\u0000b\\ud800"


@pytest.mark.parametrize("input", [None, {"question": "hello"}, b"hello", 5])
def test_what_is_no_text_is_refused(input: Any) -> None:
    """Turned into text in silence, a model would read somebody's repr."""
    with pytest.raises(TypeError, match=rf"input is {type(input).__name__}; it must be text"):
        check_input(input)


def test_the_same_agent_and_input_are_the_same_run() -> None:
    """Submitting twice is safe, also where the stored input was made strict."""
    check_same(ROW, NewRun("r1", "oncall", "a\x00b"))


@pytest.mark.parametrize(
    ("agent", "input", "named"), [("shop", "a\x00b", "another agent"), ("oncall", "else", "another input")]
)
def test_another_agent_or_input_is_not_the_same_run(agent: str, input: str, named: str) -> None:
    """Silently answered with the old run, the new question would never be asked."""
    with pytest.raises(RunExistsError, match=named) as caught:
        check_same(ROW, NewRun("r1", agent, input))
    assert caught.value.run_id == "r1"


@pytest.fixture
def store() -> Iterator[InMemoryStore]:
    """A run that waits for two verdicts; its provider numbers calls the other way round than our steps."""
    with_ids = decided(1, "pay", "pay")
    for call, own in zip(with_ids.payload["tool_calls"], ("3", "2"), strict=True):
        call["id"] = own
    facts = (started(), with_ids, asked(2), asked(3))
    for fact, own in zip(facts[2:], ("3", "2"), strict=True):
        fact.payload.update(call_id=own, arguments_hash="0")
    store = InMemoryStore()
    store.submit([NewRun("r1", "oncall", "hello", executor="inline")])
    store.settle([Move("r1", -1, fold(fact.at(seq) for seq, fact in enumerate(facts)), facts=facts)])
    yield store
    store.close()


def test_a_call_is_meant_by_its_id_before_its_step(store: InMemoryStore) -> None:
    """Some providers number their calls; taken for a step, the number would release another payment."""
    assert record_verdict(store, "r1", "2", "approval_granted", "ann", "")[0]["call_id"] == "2"


def test_a_verdict_sets_the_run_going_for_everyone_who_looks(store: InMemoryStore) -> None:
    """A granted call can move, so the run no longer waits for people alone."""
    assert store.look("r1").row.status == "paused"
    record_verdict(store, "r1", None, "approval_granted", "ann", "")
    assert store.look("r1").row.status == "running"


def test_without_a_name_the_oldest_waiting_call_is_meant(store: InMemoryStore) -> None:
    """`drangue approve RUN` is enough where one call waits."""
    chosen = [record_verdict(store, "r1", None, "approval_granted", "ann", "")[0]["step"] for _ in range(2)]
    assert chosen == [2, 3]


def test_a_verdict_on_nothing_is_refused_with_what_waits(store: InMemoryStore) -> None:
    """A second yes must not count for the next call."""
    with pytest.raises(NotPendingError) as caught:
        record_verdict(store, "r1", "call_9", "approval_granted", "ann", "")
    assert caught.value.pending == ("3", "2")
