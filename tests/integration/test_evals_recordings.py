"""Which recorded runs a replay reads: as many as were asked for, however many others lie between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from drangue_client.store.values import NewRun
from drangue_worker import Agent, AgentRegistry, InMemoryStore
from drangue_worker.evals import loading
from drangue_worker.evals.loading import recordings_in
from drangue_worker.testing import FakeModel

CLERK = Agent(FakeModel(["Hello."] * 9), name="clerk")
FILTERS = {"labels": {}, "status": "completed", "agent": None, "since": None, "until": None}


@pytest.fixture
def store() -> Iterator[InMemoryStore]:
    made = InMemoryStore()
    yield made
    made.close()


def record(store: InMemoryStore, run_id: str) -> None:
    Agent(FakeModel(["Hello."]), name="clerk", store=store).run_sync("hi", run_id=run_id)


def evaluated(store: InMemoryStore, *run_ids: str, agent: str = "clerk", **labels: str) -> None:
    store.submit([NewRun(run_id, agent, "hi", executor="inline", labels=labels) for run_id in run_ids])


def date(store: InMemoryStore, **moments: float) -> None:
    """Say when runs were submitted, and that they are completed."""
    change = text("update runs set created_at = :at, status = 'completed' where run_id like :run_id || '%'")
    for run_id, at in moments.items():
        store.db.run(lambda c, at=at, run_id=run_id: c.execute(change, {"at": at, "run_id": run_id}))


def read(store: InMemoryStore, limit: int, **filters: Any) -> tuple[list[str], int]:
    """The ids of what would be replayed, and how many runs are left out."""
    found, left_out = recordings_in(store, AgentRegistry([CLERK]), limit=limit, **{**FILTERS, **filters})
    assert len(left_out) == len(set(left_out))
    return [one.run_id for one in found], len(left_out)


@pytest.mark.parametrize("page", [2, 3, 200])
def test_runs_that_cannot_be_replayed_do_not_use_up_the_limit(
    store: InMemoryStore, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """A fleet that is evaluated every night would have nothing left to replay in the morning."""
    monkeypatch.setattr(loading, "PAGE", page)
    for run_id in ("a", "b", "c"):
        record(store, run_id)
    evaluated(store, *(f"e{n}" for n in range(7)), eval="pr-12")
    evaluated(store, *(f"x{n}" for n in range(4)), agent="gone")
    date(store, a=100.0, b=200.0, e=300.0, c=400.0, x=500.0)
    assert read(store, 1) == (["c"], 4)
    assert read(store, 2) == (["c", "b"], 11)
    assert read(store, 9) == (["c", "b", "a"], 11)
    assert read(store, 9, until=200.0) == (["a"], 0)
    assert read(store, 9, since=150.0, until=450.0) == (["c", "b"], 7)


@pytest.mark.parametrize("page", [1, 2, 3, 4, 5, 6])
def test_runs_of_one_moment_are_each_read_once(
    store: InMemoryStore, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """A list that is submitted at once has one time, and a page may end in the middle of it."""
    monkeypatch.setattr(loading, "PAGE", page)
    for run_id in ("a1", "a2", "b1", "b2", "b3", "c1"):
        record(store, run_id)
    date(store, a=100.0, b=200.0, c=300.0)
    assert read(store, 9) == (["c1", "b3", "b2", "b1", "a2", "a1"], 0)
    assert read(store, 3) == (["c1", "b3", "b2"], 0)
