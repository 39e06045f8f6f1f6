"""A tool that hangs costs its time and its process, and no more: `timeout` is a hard limit on the tool pool."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from drangue_worker.testing.provider import ProviderCall, Reply
from tests.kit.fleet import Fleet, wait_until
from tests.kit.hanging import TIMEOUT_S

Make = Callable[..., Fleet]


def script(call: ProviderCall) -> Reply:
    """A model that calls the tool it is asked for, and says what came of it."""
    return Reply(tool_calls=((call.last_user(), {}),)) if call.turn == 0 else Reply(" | ".join(call.results()))


def hang(make_fleet: Make, tool: str, **settings: Any) -> tuple[Fleet, str, Any]:
    """A run whose tool hangs: the fleet, the run, and its tool worker."""
    fleet = make_fleet(script, agents=("tests.kit.hanging",), lease_s=10.0, **settings)
    fleet.start("model-1")
    (worker,) = fleet.start("tool-1")
    run_id = fleet.client.submit("stuck", tool, allow_unknown=True).run_id
    wait_until(lambda: fleet.effects(tool))
    return fleet, run_id, worker


@pytest.mark.parametrize("tool", ["spin", "wait", "freeze"])
def test_a_hanging_tool_has_timed_out_and_its_process_is_replaced(make_fleet: Make, tool: str) -> None:
    """The outcome is there before any lease has lapsed, the tool has run once, and the pool is as large as before."""
    fleet, run_id, worker = hang(make_fleet, tool)
    began = time.monotonic()
    process = fleet.execute("select process from effects")[0][0]
    (result,) = fleet.finish([run_id])
    assert time.monotonic() - began < TIMEOUT_S + 6
    told = json.loads(result.output)
    assert (told["tool"], told["error"]["category"]) == (tool, "timeout")
    assert len(fleet.effects(tool)) == 1
    wait_until(lambda: process not in fleet.children_of(worker), 15)
    wait_until(lambda: len(fleet.children_of(worker)) == fleet.settings.tool_concurrency, 15)


def test_an_irreversible_one_is_unknown_and_never_repeated(make_fleet: Make) -> None:
    """Its effect may have taken place before it was killed."""
    fleet, run_id, _ = hang(make_fleet, "wire")
    (result,) = fleet.finish([run_id])
    assert json.loads(result.output)["error"]["category"] == "unknown_outcome"
    assert len(fleet.effects("wire")) == 1


def test_whoever_can_tell_is_asked_what_became_of_it(make_fleet: Make) -> None:
    """`reconcile` settles a call whose process was killed."""
    fleet, run_id, _ = hang(make_fleet, "traced_wire")
    (result,) = fleet.finish([run_id])
    assert result.output == f"wired under {run_id}:2"
    assert len(fleet.effects("traced_wire")) == 1


def test_a_cancelled_run_does_not_wait_for_a_tool_that_hears_nothing(make_fleet: Make) -> None:
    """It has no timeout and lets nobody else run; its process is killed all the same."""
    fleet, run_id, worker = hang(make_fleet, "endless")
    process = fleet.execute("select process from effects")[0][0]
    fleet.client.cancel(run_id)
    wait_until(lambda: process not in fleet.children_of(worker), 20)
    wait_until(lambda: not fleet.execute("select 1 from steps"), 10)
    results = [event.payload for event in fleet.client.events(run_id) if event.type == "tool_result"]
    assert [json.loads(result["content"])["error"]["category"] for result in results] == ["cancelled"]
    assert len(fleet.effects("endless")) == 1
