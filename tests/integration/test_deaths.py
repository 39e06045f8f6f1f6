"""A process dies at any point of a run, really; another one goes on and repeats nothing but the step that was cut."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from drangue_worker import Agent, Guardrails, ModelResponse, PostgresStore, SQLiteStore, tool
from tests.contract.log_scenes import elapse
from tests.kit.inline import RUN, calls, contents

ROOT = Path(__file__).resolve().parents[2]

# Where the author's code is called in a run of one call, in order; each row is one step.
STEPS = (
    ("input_guard",),
    ("recall",),
    ("model",),
    ("output_guard", "approver", "tool", "validate"),
    ("result_guard",),  # of the same call; but the call is over by then, and only this is repeated
    ("model",),
)
ORDER = [point for step in STEPS for point in step]


def mortal(folder: Path, store: Any, reversible: bool, dies_at: str) -> Agent:
    """The agent that both processes have. It notes each point in a file, and at one of them ends its process."""

    def visit(point: str) -> None:
        with (folder / "visited").open("a") as file:
            file.write(f"{point}\n")
        if point == dies_at:
            os._exit(9)

    def guard(point: str, verdict: Any = None) -> Any:
        def ask(*about: Any) -> Any:
            visit(point)
            return verdict

        return ask

    @tool(reversible=reversible, requires_approval=True, validate=guard("validate"))
    def act() -> str:
        """Has an effect."""
        visit("tool")
        return "acted"

    class Model:
        async def generate(self, *, messages: Sequence[Any], **asked: Any) -> ModelResponse:
            visit("model")
            return calls(("act", {})) if len(messages) == 1 else ModelResponse("done")

    class Memory:
        def recall(self, query: str, *, limit: int = 5) -> list[Any]:
            visit("recall")
            return []

        def remember(self, item: Any) -> None:
            raise AssertionError("nothing is remembered by itself")

    guards = Guardrails(
        approver=guard("approver", verdict=True),
        **{point: guard(point) for point in ("input_guard", "output_guard", "result_guard")},
    )
    return Agent(Model(), [act], store=store, memory=Memory(), guardrails=guards)


def open_store(where: str) -> Any:
    return PostgresStore(where) if where.startswith("postgres") else SQLiteStore(where)


def live(where: str, folder: str, reversible: str, dies_at: str) -> None:
    """What the process does that dies."""
    mortal(Path(folder), open_store(where), reversible == "reversible", dies_at).run_sync("go", run_id=RUN)


def died_and_resumed(where: str, folder: Path, reversible: str, dies_at: str) -> tuple[list[str], list[str]]:
    """A run whose process dies at a point, gone on with in this one: what was visited, and what the calls came to."""
    body = f"from {__name__} import live; import sys; live(*sys.argv[1:])"
    child = [sys.executable, "-c", body, where, str(folder), reversible, dies_at]
    died = subprocess.run(child, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert died.returncode == 9, died.stderr
    with closing(open_store(where)) as store:
        elapse(store, 60)  # nobody waits for the dead one's lease
        result = mortal(folder, store, reversible == "reversible", dies_at="").run_sync(run_id=RUN)
        assert (result.status, result.output) == ("completed", "done")
        return (folder / "visited").read_text().split(), contents(store)


def cut_at(point: str) -> list[str]:
    """Everything up to a point, and again from the beginning of its step."""
    end = ORDER.index(point) + 1
    begin = next(sum(map(len, STEPS[:n])) for n, step in enumerate(STEPS) if point in step)
    return [*ORDER[:end], *ORDER[begin:]]


@pytest.mark.parametrize("point", [point for step in STEPS[:-1] for point in step])
def test_only_the_step_that_was_cut_is_repeated(tmp_path: Path, point: str) -> None:
    """Whatever was recorded stays done; what was under way begins again, and nothing else does."""
    visited, came_to = died_and_resumed(str(tmp_path / "runs.db"), tmp_path, "reversible", point)
    assert visited == cut_at(point)
    assert came_to == ["acted"]


@pytest.mark.parametrize("point", ["output_guard", "approver", "result_guard"])
def test_an_irreversible_call_is_made_once_around_its_guards(tmp_path: Path, point: str) -> None:
    """Before it began it may begin; after it ended its result is there to be judged. Nothing is unknown here."""
    visited, came_to = died_and_resumed(str(tmp_path / "runs.db"), tmp_path, "irreversible", point)
    assert visited == cut_at(point)
    assert came_to == ["acted"]


@pytest.mark.parametrize("point", ["tool", "validate"])
def test_an_irreversible_call_that_was_cut_is_not_made_again(tmp_path: Path, point: str) -> None:
    """It may have had its effect: the model is told that nobody knows."""
    visited, came_to = died_and_resumed(str(tmp_path / "runs.db"), tmp_path, "irreversible", point)
    assert visited == [*ORDER[: ORDER.index(point) + 1], "model"]
    assert '"unknown_outcome"' in came_to[0]


@pytest.mark.parametrize(
    ("reversible", "point", "times"),
    [("reversible", "tool", 2), ("reversible", "result_guard", 1), ("irreversible", "validate", 1)],
)
def test_on_postgres_a_dead_process_leaves_the_same(
    database_url: str, tmp_path: Path, reversible: str, point: str, times: int
) -> None:
    """What is recorded before a death is on the server's disk, the beginning of an irreversible call above all."""
    visited, _ = died_and_resumed(database_url, tmp_path, reversible, point)
    assert visited.count("tool") == times
