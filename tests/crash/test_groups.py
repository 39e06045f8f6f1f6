"""A process that is dead is dead with all that it had started: else nothing would be known of its call."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable

from tests.kit.fleet import Fleet, calls_then_answer, wait_until
from tests.kit.starting import AFTER_S

Make = Callable[..., Fleet]


def test_what_a_dead_process_had_started_does_nothing_any_more(make_fleet: Make) -> None:
    """The out-of-memory killer takes the worker's process and not the program it waits for: made anew, done once."""
    fleet = make_fleet(calls_then_answer(("apply", {})), agents=("tests.kit.starting",), lease_s=20.0)
    fleet.start("model-1", "tool-1")
    run_id = fleet.client.submit("starter", "go", allow_unknown=True).run_id
    wait_until(lambda: fleet.effects("apply begun"), 20)
    os.kill(fleet.execute("select process from effects where tool = 'apply begun'")[0][0], signal.SIGKILL)
    killed_at = time.monotonic()
    assert fleet.finish([run_id], 30)[0].status == "completed"
    wait_until(lambda: time.monotonic() > killed_at + AFTER_S + 1, 10)  # until the first would have done it too
    assert fleet.effects("applied") == [f"{run_id}:2"]
    assert fleet.effects("apply begun") == [f"{run_id}:2"] * 2


def test_a_call_that_had_no_effect_has_none_later(make_fleet: Make) -> None:
    """Its process was killed at its timeout, and the log says that it had no effect: the program it left must not."""
    fleet = make_fleet(calls_then_answer(("limited", {})), agents=("tests.kit.starting",), lease_s=20.0)
    fleet.start("model-1", "tool-1")
    run_id = fleet.client.submit("starter", "go", allow_unknown=True).run_id
    (result,) = fleet.finish([run_id], 30)
    told_at = time.monotonic()
    (content,) = [event.payload["content"] for event in result.events if event.type == "tool_result"]
    assert json.loads(content)["error"]["category"] == "timeout"
    wait_until(lambda: time.monotonic() > told_at + AFTER_S + 1, 10)  # until it would have been there
    assert fleet.effects("limited") == []
