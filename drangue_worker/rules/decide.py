"""The whole control flow: from a folded run to everything that is due now.

`decide` names what is due from the log alone and knows nothing of what is already under way: opening a step twice is
harmless, so the rules need no memory. The order below is the order of authority: an ended turn does nothing, calls that
may not run are answered before anybody is asked about them, calls come before the next thought, a ceiling only ever
stops a thought.
"""

from __future__ import annotations

from drangue_client.run import Call, Run
from drangue_client.terms import Terms
from drangue_worker.rules.commands import (
    AskApproval,
    CallModel,
    CallTool,
    Command,
    Deny,
    Finish,
    Propose,
    Refuse,
)


def decide(run: Run, now: float) -> tuple[Command, ...]:
    """Everything due in `run` at `now` (epoch seconds of the database's clock); empty when it waits or has ended.

    A run that has not started yields nothing: its first event comes from whoever knows the agent.
    """
    if run.ended or run.terms is None:
        return ()
    if run.unsettled:
        return _answers_without_running(run, run.terms) or _calls(run, run.terms)
    if run.decision and not run.calls:
        return (Finish(run.answer or "", "answered"),)
    if run.turn_model_calls >= run.terms.max_steps:
        return (Finish(f"(stopped: reached max_steps={run.terms.max_steps})", "max_steps"),)
    return (CallModel(run.last_step + 1),)


def _answers_without_running(run: Run, terms: Terms) -> tuple[Command, ...]:
    """Calls whose next fact needs no worker: refusals first, so that nobody is asked about a call that cannot run."""
    refused: list[Command] = []
    asked: list[Command] = []
    for call in run.unsettled:
        mode = terms.mode_for(call.name)
        if call.name not in terms.tools:
            refused.append(Refuse(call.step, call.name, "unknown_tool", f"there is no tool named {call.name!r}"))
        elif call.verdict == "denied":
            refused.append(Deny(call.step, call.name))
        elif mode == "shadow":
            refused.append(Propose(call.step, call.name))
        elif mode == "assisted" and call.verdict == "none":
            asked.append(AskApproval(call.step, call.name))
    return (*refused, *asked)


def _calls(run: Run, terms: Terms) -> tuple[Command, ...]:
    """Calls that may run now: at most a window of them, each irreversible one alone in its turn."""
    return tuple(_call_tool(call, terms) for call in run.free[: terms.window])


def _call_tool(call: Call, terms: Terms) -> CallTool:
    return CallTool(call.step, call.name, terms.tools[call.name].queue)
