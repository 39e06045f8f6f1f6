"""A person ends a run: nothing new begins, what is under way stops, and what cannot be undone is told truly."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from drangue_client.errors import InFlightError
from drangue_worker.testing.provider import ProviderCall, Reply
from tests.acceptance.shell import Console, environment
from tests.kit.fleet import Fleet, wait_until

Make = Callable[..., Fleet]


def conversing(*calls: tuple[str, dict[str, Any]]) -> Callable[[ProviderCall], Reply]:
    """A model that asks for these calls in the first turn, and in the second says what came of them."""

    def script(call: ProviderCall) -> Reply:
        return Reply(" | ".join(call.results()) or "nothing") if call.last_user() == "well?" else Reply("", calls)

    return script


def category(fleet: Fleet, run_id: str, step: int) -> str:
    """How a call failed, once it has a result."""
    results = [event for event in fleet.client.events(run_id) if event.type == "tool_result" and event.step == step]
    return json.loads(results[0].payload["content"])["error"]["category"] if results else ""


def open_steps(fleet: Fleet) -> int:
    return int(fleet.execute("select count(*) from steps")[0][0])


def test_a_model_call_under_way_is_aborted(make_fleet: Make) -> None:
    """The provider sees its client go, the run reads cancelled at once, and the worker is free again."""
    fleet = make_fleet(lambda call: Reply("too late", delay_s=60) if call.last_user() == "input 0" else Reply("hello"))
    fleet.start("model-1")
    (run_id,) = fleet.submit()
    fleet.provider.wait_for(lambda p: p.in_flight == 1, 20)
    assert fleet.client.cancel(run_id, by="ann", reason="not needed")
    assert fleet.client.get(run_id).status == "cancelled"
    fleet.provider.wait_for(lambda p: p.aborted == 1, 10)
    wait_until(lambda: open_steps(fleet) == 0, 10)
    assert not fleet.client.cancel(run_id)
    types = [event.type for event in fleet.client.events(run_id)]
    assert types == ["run_started", "run_cancelled", "step_stopped"]
    result = fleet.client.result(run_id, timeout=5)
    assert (result.status, result.reason, result.output) == ("cancelled", "cancelled", "")
    fleet.client.say(run_id, "still there?")
    (answered,) = fleet.finish([run_id])
    assert answered.output == "hello"
    assert [call.idempotency_key for call in fleet.provider.calls] == [f"{run_id}:1", f"{run_id}:2"]


def test_a_queued_step_never_starts(make_fleet: Make) -> None:
    """Cancelled before anybody had taken it: the message that still waits finds nothing."""
    fleet = make_fleet(conversing(("note", {"text": "tea"})))
    fleet.start("model-1")
    (run_id,) = fleet.submit()
    wait_until(lambda: fleet.execute("select 1 from steps where kind = 'tool'"))
    assert fleet.client.cancel(run_id)
    fleet.start("tool-1")
    later = fleet.client.submit("tester", "well?").run_id
    fleet.finish([later])
    assert (fleet.effects(), open_steps(fleet)) == ([], 0)
    fleet.client.say(run_id, "well?")
    told = json.loads(fleet.finish([run_id])[0].output)
    assert told["error"]["category"] == "cancelled"


@pytest.mark.parametrize("tool", ["ping", "note"])
def test_a_reversible_tool_is_stopped(make_fleet: Make, tool: str) -> None:
    """Async code is cancelled; sync code ends with its process, and the pool is as large as before."""
    fleet = make_fleet(conversing((tool, {"seconds": 60.0} | ({"text": "tea"} if tool == "note" else {}))))
    fleet.start("model-1")
    (worker,) = fleet.start("tool-1")
    size = len(wait_until(lambda: fleet.children_of(worker)))
    (run_id,) = fleet.submit()
    wait_until(lambda: fleet.effects(tool))
    process = fleet.execute("select process from effects")[0][0]
    assert fleet.client.cancel(run_id)
    wait_until(lambda: category(fleet, run_id, 2) == "cancelled", 15)
    if tool == "note":
        wait_until(lambda: process not in fleet.children_of(worker), 15)
    wait_until(lambda: len(fleet.children_of(worker)) == size, 15)
    fleet.client.say(run_id, "well?")
    assert "cancelled" in fleet.finish([run_id])[0].output
    assert len(fleet.effects(tool)) == 1


def test_an_irreversible_tool_that_has_begun_is_let_finish(make_fleet: Make) -> None:
    """Its outcome is worth more than the second that stopping it would win; nothing comes after it."""
    fleet = make_fleet(conversing(("wire", {"amount": 5, "seconds": 3.0}), ("wire", {"amount": 6})))
    fleet.start("model-1", "tool-1")
    (run_id,) = fleet.submit()
    wait_until(lambda: fleet.effects("wire"))
    assert fleet.client.cancel(run_id)
    with pytest.raises(InFlightError):
        fleet.client.say(run_id, "well?")
    wait_until(lambda: open_steps(fleet) == 0, 15)
    fleet.client.say(run_id, "well?")
    first, second = fleet.finish([run_id])[0].output.split(" | ")
    assert first == "wired 5"
    assert json.loads(second)["error"]["category"] == "cancelled"
    assert len(fleet.effects("wire")) == 1


def test_what_a_dead_worker_had_begun_is_told_as_unknown(make_fleet: Make) -> None:
    """Nobody else may claim a step of a run that is over, so a sweep of any worker closes it."""
    fleet = make_fleet(conversing(("wire", {"amount": 5, "seconds": 60.0})))
    fleet.start("model-1")
    (victim,) = fleet.start("tool-1")
    (run_id,) = fleet.submit()
    wait_until(lambda: fleet.effects("wire"))
    fleet.client.cancel(run_id)
    for process in (*fleet.children_of(victim), victim.process.pid):
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: category(fleet, run_id, 2) == "unknown_outcome", fleet.settings.lease_s + 10)
    assert open_steps(fleet) == 0


def test_the_command_cancels_and_takes_up_again(make_fleet: Make, tmp_path: Any) -> None:
    """Both say what they did, and may be given twice."""
    broken = True

    def script(call: ProviderCall) -> Reply:
        return Reply(status=400, error="no such thing") if broken else Reply("mended")

    fleet = make_fleet(script)
    fleet.start("model-1")
    addresses = {name: value for name, value in fleet.settings.to_env().items() if name.endswith("_URL")}
    console = Console(environment(**addresses), tmp_path)
    failed = fleet.submit(3, labels={"team": "a"}) + fleet.submit(1, labels={"team": "b"})
    fleet.finish(failed)
    refused = console("cancel", failed[0])
    assert (refused.code, refused.out) == (1, f"run {failed[0]} is failed; it was left as it is\n")
    broken = False
    done = console("retry", "--all", "--label", "team=a", "--by", "ann", "--reason", "mended")
    assert (done.code, sorted(done.out.splitlines())) == (0, sorted(f"retrying run {one}" for one in failed[:3]))
    assert [result.output for result in fleet.finish(failed[:3])] == ["mended"] * 3
    assert fleet.client.get(failed[3]).status == "failed"
    assert console("retry", failed[0]).out == f"run {failed[0]} is completed; it was left as it is\n"
    waiting = fleet.client.submit("nobody", "wait", allow_unknown=True).run_id
    once, again = (console("cancel", waiting, "--by", "ann") for _ in range(2))
    assert (once.code, once.out) == (0, f"cancelled run {waiting}\n")
    assert (again.code, again.out) == (0, f"run {waiting} is cancelled; it was left as it is\n")
    assert console("show", waiting).code == 0
    assert "--all" in console("retry").one_line()
    assert time.time() - fleet.client.get(waiting).created_at < 60
