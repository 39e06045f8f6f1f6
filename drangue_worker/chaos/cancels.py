"""What is wrong with runs that somebody cancelled. Pure; each finding is a sentence for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from drangue_worker.chaos.world import Execution

LEFT_ALONE = ("completed", "failed", "cancelled")  # what a run may be that a cancel leaves as it is


@dataclass(frozen=True, slots=True)
class Cancel:
    """A cancel that was acknowledged at `at` (epoch seconds), infinite where it never was. `done`: it ended the run."""

    at: float
    done: bool


def unheeded(statuses: Mapping[str, str | None], cancels: Mapping[str, Cancel]) -> Iterator[str]:
    """Runs that are not what their cancel said, or that nobody cancelled."""
    for run_id, status in statuses.items():
        cancel = cancels.get(run_id)
        if cancel is None and status == "cancelled":
            yield f"{run_id} is cancelled, and nobody asked for that"
        elif cancel and cancel.done and status != "cancelled":
            yield f"{run_id} was cancelled, and is {status}"
        elif cancel and cancel.at < float("inf") and status not in LEFT_ALONE:
            yield f"{run_id} was left alone by its cancel as one that had ended, and is {status}"


def begun_late(executions: Sequence[Execution], cancels: Mapping[str, Cancel], late_s: float) -> Iterator[str]:
    """Effects that began later than `late_s` after the cancel of their run was acknowledged."""
    for one in executions:
        cancel = cancels.get(one.key.rpartition(":")[0])
        if cancel and cancel.done and one.at > cancel.at + late_s:
            yield f"{one.key}: {one.tool} began {one.at - cancel.at:.1f} s after its run was cancelled"
