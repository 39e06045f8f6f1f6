"""The verdict: the plan of a soak against what the logs tell and what the world saw. Pure.

What must have happened comes from the plan alone. The log is believed in one thing: a call whose recorded result says
that it failed, or that nobody knows, may have had no effect, because the model was told so. A run that was cancelled
owes only what its log says was done.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from drangue_client.events import Event
from drangue_client.outcomes import failed_as
from drangue_worker.chaos.cancels import Cancel, begun_late, unheeded
from drangue_worker.chaos.gaps import ENDINGS, gaps, strays
from drangue_worker.chaos.plan import IRREVERSIBLE, PlannedCall, PlannedRun
from drangue_worker.chaos.swept import Swept
from drangue_worker.chaos.world import Execution

HELD, BROKEN = 0, 1
UNKNOWN = "unknown_outcome"
# What an irreversible call is recorded as that a stop or a cancel prevented; its tools never raise the like.
NOT_EXECUTED = ("transient", "cancelled")
NOTHING = Swept()
NO_CANCELS: Mapping[str, Cancel] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Ran:
    """What is known of one run at the end. `status` is None where there is no such run, `held` counts the steps of one
    that is over which somebody may still record."""

    run_id: str
    status: str | None
    events: tuple[Event, ...] = ()
    held: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The figures of a soak. Whatever is a tuple lists what must not be there, as sentences; all empty is a pass."""

    submitted: int
    finished: int
    cancelled: int
    failed: Mapping[str, int]  # by the recorded reason
    expected: int  # effects, by the plan of the runs that were submitted
    done: int
    excused: Mapping[str, int]  # expected, not there, and recorded as failed: by category
    unknown: int  # results that told the model so
    corrected: int  # of those, told truly later
    executions: Sequence[int] = field(repr=False)  # of each expected effect that is there
    asks: Sequence[int] = field(repr=False)  # of each model step
    resent: int  # messages that sweeps sent again
    recovered: int  # steps that sweeps had taken up again
    lost: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    unplanned: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()  # irreversible calls done more than once
    untrue: tuple[str, ...] = ()  # results that deny an effect which is there
    unheeded: tuple[str, ...] = ()  # cancels that did not hold
    late: tuple[str, ...] = ()  # effects that began after the cancel of their run
    noise: tuple[str, ...] = ()  # what sweeps sent while nothing was broken
    gaps: tuple[str, ...] = ()

    @property
    def faults(self) -> dict[str, tuple[str, ...]]:
        """What must not be there, by kind; kinds without any are left out."""
        kinds = ("lost", "missing", "doubled", "unplanned", "repeated", "untrue", "unheeded", "late", "noise", "gaps")
        return {kind: getattr(self, kind) for kind in kinds if getattr(self, kind)}

    @property
    def code(self) -> int:
        """The exit code."""
        return BROKEN if self.faults else HELD

    def to_json(self) -> dict[str, Any]:
        """Every figure, with means in place of the lists of counts."""
        told = asdict(self)
        for name in ("executions", "asks"):
            counts = told.pop(name)
            told[f"{name}_per_step"] = {"mean": mean(counts), "max": max(counts, default=0)}
        return told


def judge(
    plans: Iterable[PlannedRun],
    ran: Mapping[str, Ran],
    executions: Sequence[Execution],
    asks: Mapping[str, int],
    mistaken: Sequence[str] = (),
    cancels: Mapping[str, Cancel] = NO_CANCELS,
    late_s: float = math.inf,
    swept: Swept = NOTHING,
    calm: bool = False,
) -> Verdict:
    """Compare the `plans` of every submitted run with what became of them.

    `ran` is by run id, `executions` are the world's rows, `asks` counts model calls by step key, and `mistaken` lists
    model calls that came under a wrong key. A run that is not in `ran` is lost. `cancels` are what was asked for, by
    run id; `late_s` seconds after one nothing of its run may begin. `calm` says that nothing was broken, so nothing was
    to be `swept`.
    """
    plans = tuple(plans)
    runs = [ran.get(plan.run_id, Ran(plan.run_id, None)) for plan in plans]
    calls = {call.key: call for plan in plans for call in plan.calls}
    results = {f"{one.run_id}:{e.step}": str(e.payload["content"]) for one in runs for e in _results(one)}
    counts = Counter(execution.key for execution in executions if _is_planned(execution, calls))
    cut = {one.run_id for one in runs if one.status == "cancelled"}
    expected = [call for call in calls.values() if call.granted and (call.run_id not in cut or _is_done(call, results))]
    absent = [call for call in expected if not counts[call.key]]
    excused = [category for call in absent if (category := failed_as(results.get(call.key, "")))]
    missing = [call for call in absent if not failed_as(results.get(call.key, ""))]
    contents = [str(event.payload["content"]) for one in runs for event in one.events if event.type == "tool_result"]
    return Verdict(
        submitted=len(plans),
        finished=sum(one.status == "completed" for one in runs),
        cancelled=len(cut),
        failed=dict(Counter(_reason(one) for one in runs if one.status == "failed")),
        expected=len(expected),
        done=sum(counts[call.key] > 0 for call in expected),
        excused=dict(Counter(excused)),
        unknown=sum(failed_as(content) == UNKNOWN for content in contents),
        corrected=sum(event.type == "outcome_corrected" for one in runs for event in one.events),
        executions=[counts[call.key] for call in expected if counts[call.key]],
        asks=[asks[d.key] for plan in plans for d in plan.decisions if asks.get(d.key)],
        resent=swept.resent,
        recovered=swept.recovered,
        lost=tuple(sentence for one in runs if (sentence := _loss(one))),
        missing=tuple(f"{call.key}: {call.tool} had no effect" for call in missing),
        doubled=tuple(_doubled(executions)),
        unplanned=tuple(f"{e.key}: {e.tool} was not to be executed" for e in executions if not _is_planned(e, calls)),
        repeated=tuple(_repeated(executions)),
        untrue=tuple(_untrue(calls, counts, results, cut)),
        unheeded=tuple(unheeded({one.run_id: one.status for one in runs}, cancels)),
        late=tuple(begun_late(executions, cancels, late_s)),
        noise=tuple(_noise(swept)) if calm else (),
        gaps=(*mistaken, *(f"{plan.run_id}: {gap}" for plan in plans for gap in _gaps(plan, ran))),
    )


def mean(counts: Sequence[int]) -> float:
    """The mean, to three places; 0 of none."""
    return round(sum(counts) / len(counts), 3) if counts else 0.0


def _is_planned(execution: Execution, calls: Mapping[str, PlannedCall]) -> bool:
    call = calls.get(execution.key)
    return call is not None and call.granted and call.tool == execution.tool


def _is_done(call: PlannedCall, results: Mapping[str, str]) -> bool:
    return results.get(call.key, "").startswith("done: ")


def _results(one: Ran) -> list[Event]:
    """Where a result was corrected, the correction stands for it."""
    return [event for event in one.events if event.type in ("tool_result", "outcome_corrected")]


def _loss(one: Ran) -> str | None:
    if one.status is None:
        return f"{one.run_id} was acknowledged, and there is no such run"
    if one.status not in ("completed", "failed", "cancelled"):
        last = one.events[-1].type if one.events else "nothing"
        return f"{one.run_id} is {one.status}; the last it wrote was {last}"
    if one.held:
        return f"{one.run_id} is {one.status}, and {one.held} of its steps are still open"
    return None


def _reason(one: Ran) -> str:
    end = next((event for event in reversed(one.events) if event.type in ENDINGS), None)
    if end is None:
        return str(one.status)
    return f"{end.payload.get('category', one.status)}: {end.payload.get('error', '')}".rstrip(": ")


def _doubled(executions: Sequence[Execution]) -> list[str]:
    """A service tells repetitions by their key, so one call under two keys is two effects."""
    keys: dict[str, set[str]] = {}
    for one in executions:
        if one.tool not in IRREVERSIBLE:
            keys.setdefault(one.subject, set()).add(one.key)
    return [f"{subject}: done under {len(found)} keys" for subject, found in keys.items() if len(found) > 1]


def _repeated(executions: Sequence[Execution]) -> list[str]:
    counts = Counter(one.subject for one in executions if one.tool in IRREVERSIBLE)
    return [f"{subject}: executed {count} times" for subject, count in counts.items() if count > 1]


def _untrue(
    calls: Mapping[str, PlannedCall], counts: Mapping[str, int], results: Mapping[str, str], cut: Collection[str]
) -> Iterator[str]:
    """Irreversible effects that the log denies, or of which a cancelled run's log tells nothing."""
    for key, call in calls.items():
        if call.tool in IRREVERSIBLE and counts.get(key):
            if failed_as(results.get(key, "")) in NOT_EXECUTED:
                yield f"{key}: recorded as not executed, and it was"
            elif call.run_id in cut and key not in results:
                yield f"{key}: executed, and nothing tells of it"


def _noise(swept: Swept) -> Iterator[str]:
    if swept.resent:
        yield f"{swept.resent} messages were sent again, and none was lost"
    if swept.recovered:
        yield f"{swept.recovered} steps were taken up again, and no worker had died"


def _gaps(plan: PlannedRun, ran: Mapping[str, Ran]) -> list[str]:
    one = ran.get(plan.run_id)
    if one is None:
        return []
    ended = [event for event in one.events if event.type in ENDINGS]
    unsaid = ["the row says completed, the log does not"] if one.status == "completed" and not ended else []
    return [*gaps(one.events), *strays(plan, one.events), *unsaid]
