"""One run, done by processes that never met, is one trace in a collector."""

from __future__ import annotations

import re
from typing import Any

import pytest

from drangue_worker.supervisor import Child
from drangue_worker.testing.provider import ProviderCall, Reply
from tests.kit.fleet import ROOT, wait_until
from tests.kit.otlp import Receiver

SHOWN = next(re.finditer(r"^```text\n(run .*?)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL))[1]


def script(call: ProviderCall) -> Reply:
    if call.turn == 0:
        return Reply(tool_calls=(("note", {"text": "tea"}), ("wire", {"amount": 5})), input_tokens=10, output_tokens=5)
    return Reply("done", input_tokens=20, output_tokens=5)


def stop(workers: list[Child]) -> None:
    """Have workers end in order, all at the same time."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.wait(20)


def test_a_run_of_four_processes_with_a_pause_is_one_tree(make_fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers are gone by the time it is approved; others go on, and the trace is the same."""
    with Receiver() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        fleet = make_fleet(script, tracer="otel")
        first = fleet.start("model-1", "tool-1")
        fleet.client.submit("careful", "go", run_id="paid")
        assert fleet.finish(["paid"])[0].status == "paused"
        stop(first)  # what they did is sent when they stop
        second = fleet.start("model-2", "tool-2")
        fleet.client.approve("paid", by="ann", reason="owed")
        assert fleet.finish(["paid"])[0].output == "done"
        stop(second)
        wait_until(lambda: len(collector.spans) >= 5, 20, collector.tree())

    assert collector.tree() == SHOWN
    by_step = {span.attributes.get("drangue.step"): span for span in collector.spans}
    root = by_step.pop(None)
    assert (root.name, root.parent, root.failed) == ("run", "", False)
    assert {span.trace for span in collector.spans} == {root.trace}
    assert {step: span.parent == root.id for step, span in by_step.items()} == dict.fromkeys(range(1, 5), True)
    assert {span.attributes["gen_ai.conversation.id"] for span in collector.spans} == {"paid"}
    assert root.start <= min(span.start for span in by_step.values())
    assert root.end >= max(span.end for span in by_step.values())
    processes = [by_step[step].process for step in range(1, 5)]
    assert len(set(processes)) == 4, processes
    for step, sent in ((1, 10), (4, 20)):
        told = by_step[step].attributes
        assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (sent, 5)
        assert told["gen_ai.operation.name"] == "chat"
    assert "tea" not in str([span.attributes for span in collector.spans])
