"""Work survives the process that does it. Real workers are killed; effects are counted in a table of the tests' own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
import redis

from drangue_worker.testing.provider import Reply
from tests.kit.fleet import Fleet, calls_then_answer, wait_until

Make = Callable[..., Fleet]


def test_a_killed_model_worker_loses_no_step(make_fleet: Make) -> None:
    """SIGKILL in the middle of a model call: another worker repeats it under the same key, within lease + 3 s."""
    fleet = make_fleet(calls_then_answer(("ping", {}), delay_s=1.0))
    victim, _ = fleet.start("model-1", "model-2")
    os.kill(fleet.supervisor.children["model-2"].process.pid, signal.SIGSTOP)  # so that the victim takes the step
    run_id = fleet.submit()[0]
    fleet.provider.wait_for(lambda p: p.received == 1, 20)
    os.kill(fleet.supervisor.children["model-2"].process.pid, signal.SIGCONT)
    victim.process.kill()
    killed_at = time.monotonic()
    fleet.provider.wait_for(lambda p: p.received == 2, 20)
    assert time.monotonic() - killed_at < fleet.settings.lease_s + 3
    (result,) = fleet.finish([run_id])
    assert result.status == "completed"
    first, second = fleet.provider.calls[:2]
    assert (first.idempotency_key, second.idempotency_key) == (f"{run_id}:1", f"{run_id}:1")
    assert [(event.type, event.step) for event in result.events] == [
        ("run_started", None),
        ("model_decision", 1),
        ("tool_result", 2),
        ("model_decision", 3),
        ("run_finished", 3),
    ]


@pytest.mark.parametrize("whom", ["a child of the pool", "the worker's main process"])
def test_a_killed_tool_process_loses_no_step(make_fleet: Make, whom: str) -> None:
    """A reversible tool that was interrupted runs again under the same key; its result is recorded once."""
    fleet = make_fleet(calls_then_answer(("note", {"text": "a", "seconds": 1.0})))
    fleet.start("model-1")
    (victim,) = fleet.start("tool-1")
    run_id = fleet.submit()[0]
    wait_until(lambda: fleet.effects("note"))
    process = fleet.execute("select process from effects")[0][0]
    os.kill(process if whom == "a child of the pool" else victim.process.pid, signal.SIGKILL)
    if whom != "a child of the pool":
        fleet.start("tool-2")
    (result,) = fleet.finish([run_id])
    assert result.status == "completed"
    assert fleet.effects("note") == [f"{run_id}:2"] * 2
    assert [event.step for event in result.events if event.type == "tool_result"] == [2]


def test_an_interrupted_irreversible_tool_is_never_run_again(make_fleet: Make) -> None:
    """Money that may have moved must not move twice: the model is told that the outcome is unknown."""
    fleet = make_fleet(calls_then_answer(("wire", {"amount": 5, "seconds": 30})))
    fleet.start("model-1", "tool-1")
    run_id = fleet.submit()[0]
    wait_until(lambda: fleet.effects("wire"))
    os.kill(fleet.execute("select process from effects")[0][0], signal.SIGKILL)
    (result,) = fleet.finish([run_id])
    assert result.status == "completed"
    assert fleet.effects("wire") == [f"{run_id}:2"]
    (content,) = [event.payload["content"] for event in result.events if event.type == "tool_result"]
    assert "unknown_outcome" in content


def test_a_step_that_kills_every_worker_fails_its_run(make_fleet: Make) -> None:
    """A poison step must not take the fleet down for ever, and no lease be waited for: its processes live so shortly
    that only their claims tell of them."""
    fleet = make_fleet(calls_then_answer(("suicide", {})), max_crashes=4, lease_s=60.0, tool_concurrency=1)
    fleet.start("model-1", "tool-1")
    (result,) = fleet.finish(fleet.submit(), 30)
    assert (result.status, result.reason) == ("failed", "crashed")
    assert len(fleet.effects("suicide")) == 4


def test_a_stopping_worker_gives_back_what_it_cannot_finish(make_fleet: Make) -> None:
    """SIGTERM with 100 model calls in flight: out within grace + 2 s, nothing lost, nothing done twice."""
    fleet = make_fleet(lambda call: Reply("done", delay_s=30.0 if call.number <= 100 else 0.0))
    (victim,) = fleet.start("model-1")
    ids = fleet.submit(100)
    fleet.provider.wait_for(lambda p: p.in_flight == 100, 30)
    victim.process.terminate()
    stopped_at = time.monotonic()
    victim.process.wait(30)
    assert time.monotonic() - stopped_at < fleet.settings.drain_grace_s + 2
    assert victim.process.returncode == 0
    assert fleet.provider.aborted == 100
    assert fleet.execute("select count(*) from steps where claim is not null") == [(0,)]
    fleet.start("model-2")
    results = fleet.finish(ids)
    assert {result.status for result in results} == {"completed"}
    assert all(len(result.events) == 3 for result in results)
    assert fleet.provider.received == 200  # each once before and once after: the drain doubled nothing


@pytest.mark.parametrize("eager", [True, False])
def test_a_worker_that_is_told_to_end_at_once_gives_back_what_it_is_at(make_fleet: Make, eager: bool) -> None:
    """SIGQUIT cancels what is under way, whether Celery has been told of it or not; no lease is waited for."""
    fleet = make_fleet(
        lambda call: Reply("done", delay_s=60.0 if call.number <= 5 else 0.0), lease_s=90.0, eager_dispatch=eager
    )
    (victim,) = fleet.start("model-1")
    ids = fleet.submit(5)
    fleet.provider.wait_for(lambda p: p.in_flight == 5, 30)
    victim.process.send_signal(signal.SIGQUIT)
    victim.process.wait(15)
    fleet.start("model-2")
    assert {result.status for result in fleet.finish(ids, 30)} == {"completed"}
    assert fleet.provider.received == 10


def test_a_stopping_worker_finishes_what_it_can(make_fleet: Make) -> None:
    """A deploy must not repeat calls that were nearly done."""
    fleet = make_fleet(calls_then_answer(delay_s=1.0), drain_grace_s=10.0)
    (victim,) = fleet.start("model-1")
    ids = fleet.submit(20)
    fleet.provider.wait_for(lambda p: p.in_flight == 20, 30)
    victim.process.terminate()
    results = fleet.finish(ids)
    assert {result.status for result in results} == {"completed"}
    assert (fleet.provider.received, fleet.provider.aborted) == (20, 0)


def test_a_stopping_tool_worker_gives_its_steps_back(make_fleet: Make) -> None:
    """Sync code cannot be asked to stop: its process is ended and its step is free at once, not after its lease."""
    fleet = make_fleet(calls_then_answer(("note", {"text": "a", "seconds": 6.0})), lease_s=60.0, drain_grace_s=1.0)
    fleet.start("model-1")
    (victim,) = fleet.start("tool-1")
    run_id = fleet.submit()[0]
    wait_until(lambda: fleet.effects("note"))
    victim.process.terminate()
    victim.process.wait(fleet.settings.drain_grace_s + 5)
    fleet.start("tool-2")
    wait_until(lambda: len(fleet.effects("note")) == 2, 20, "the step is taken over although its lease is long")
    (result,) = fleet.finish([run_id])
    assert result.status == "completed"


def test_a_flushed_redis_loses_no_run(make_fleet: Make, redis_url: str) -> None:
    """FLUSHALL with 50 runs in flight: every message is gone and every run finishes."""
    fleet = make_fleet(calls_then_answer(("note", {"text": "a", "seconds": 0.05}), ("ping", {"seconds": 0.2})))
    fleet.start("model-1", "tool-1")
    ids = fleet.submit(50)
    wait_until(lambda: len(fleet.effects()) > 10)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    results = fleet.finish(ids)
    assert {result.status for result in results} == {"completed"}
    assert sorted(set(fleet.effects())) == sorted(fleet.effects())


def test_runs_whose_messages_were_lost_before_anyone_read_them_still_run(make_fleet: Make, redis_url: str) -> None:
    """Submitted, recorded, and Redis emptied before the first worker came: nobody has to submit again."""
    fleet = make_fleet(calls_then_answer(("note", {"text": "a"})))
    ids = fleet.submit(5)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    fleet.start("model-1", "tool-1")
    results = fleet.finish(ids)
    assert {result.status for result in results} == {"completed"}
    assert sorted(fleet.effects()) == sorted(f"{run_id}:2" for run_id in ids)


def test_every_message_delivered_twice_does_nothing_twice(make_fleet: Make) -> None:
    """A message is a hint: the second finds nothing to claim."""
    fleet = make_fleet(calls_then_answer(("note", {"text": "a"}), ("ping", {}), ("wire", {"amount": 1})))
    ids = fleet.submit(10)
    rows = [fleet.client.get(run_id) for run_id in ids]
    fleet.sender.coordinate(rows)
    fleet.start("model-1", "tool-1")
    stop = time.monotonic() + 60
    while any(fleet.client.get(run_id).status != "completed" for run_id in ids):
        assert time.monotonic() < stop
        refs = [ref for run_id in ids for ref, _, _ in fleet.client.log.open_steps(run_id)]
        fleet.sender.steps(refs)
    results = [fleet.client.result(run_id, timeout=1) for run_id in ids]
    assert all(len(result.events) == 8 for result in results)  # five facts of two turns, two more results, one intent
    assert len(fleet.effects()) == len(set(fleet.effects())) == 30
    assert fleet.provider.received == 20


def test_a_stalled_worker_cannot_write_when_it_wakes(make_fleet: Make) -> None:
    """SIGSTOP past the lease, then SIGCONT: the late result is refused, the log keeps the one that replaced it."""
    fleet = make_fleet(lambda call: calls_then_answer(answer=f"answer {call.number}", delay_s=1.0)(call))
    (stalled,) = fleet.start("model-1")
    run_id = fleet.submit()[0]
    fleet.provider.wait_for(lambda p: p.received == 1, 20)
    os.kill(stalled.process.pid, signal.SIGSTOP)
    fleet.start("model-2")
    (result,) = fleet.finish([run_id])
    assert result.output == "answer 2"
    os.kill(stalled.process.pid, signal.SIGCONT)
    wait_until(lambda: "claim_lost" in fleet.log_of("model-1") or "result_late" in fleet.log_of("model-1"), 20)
    assert fleet.client.result(run_id).output == "answer 2"
    assert len(fleet.client.events(run_id)) == 3
