"""`decide`: what a run needs next. The whole control flow of the runtime is on this page.

It names everything that is due, from the log alone and knows nothing of what is already under way: opening a step twice
is harmless, so the rules need no memory. The order below is the order of authority: an ended turn does nothing, one
whose time is over ends, an input is judged before anything is done with it, calls that may not run are answered before
anybody is asked about them, calls come before the next thought, a ceiling only ever stops a thought.
"""

from __future__ import annotations

from drangue_client import answer
from drangue_client.run import DEADLINE, Call, Request, Run
from drangue_client.terms import Terms
from drangue_worker.rules import budget
from drangue_worker.rules.commands import (
    AskApproval,
    CallModel,
    CallTool,
    Command,
    Correct,
    Deliver,
    Deny,
    Escalate,
    Expire,
    Finish,
    Judge,
    Propose,
    Recall,
    Refuse,
    Screen,
)


def decide(run: Run, now: float) -> tuple[Command, ...]:
    """Everything due in `run` at `now` (epoch seconds of the database's clock); empty when it waits or has ended.

    A run that has not started yields nothing: its first event comes from whoever knows the agent.
    """
    if run.ended or run.terms is None:
        return ()
    terms = run.terms
    if run.deadline_at is not None and now >= run.deadline_at:
        return (Finish("(stopped: its time was over)", DEADLINE),)
    if terms.guards and terms.guards.input and not run.screened:
        return (Screen(-run.turn),)
    if run.blocked is not None:
        return (Finish(f"(blocked: {run.blocked})", "blocked"),)
    if terms.memory and not run.recalled:
        return (Recall(),)
    tools = tuple(call for call in run.unsettled if not run.delivers(call))
    if tools:
        return _answers_without_running(tools, terms, now) or _calls(run, terms)
    if run.unsettled:
        return _judgement(run)
    ending = _ending(run, terms)
    if ending:
        return (ending,)
    if run.turn_model_calls >= terms.max_steps:
        return (Finish(f"(stopped: reached max_steps={terms.max_steps})", "max_steps"),)
    stopped = budget.stop(run)
    return (Finish(stopped, "budget"),) if stopped else (CallModel(run.last_step + 1),)


def _answers_without_running(calls: tuple[Call, ...], terms: Terms, now: float) -> tuple[Command, ...]:
    """Calls whose next fact needs no worker: refusals first, so that nobody is asked about a call that cannot run."""
    refused: list[Command] = []
    asked: list[Command] = []
    guard_first = terms.guards is not None and terms.guards.output  # its step asks, once the guard has let it pass
    for call in calls:
        mode = terms.mode_for(call.name)
        forbidden = terms.refusal(call.name)
        if call.name not in terms.tools:
            refused.append(Refuse(call.step, call.name, "unknown_tool", f"there is no tool named {call.name!r}"))
        elif forbidden:
            refused.append(Refuse(call.step, call.name, "blocked", forbidden))
        elif call.verdict == "denied":
            refused.append(Deny(call.step, call.name))
        elif call.verdict == "asked" and call.request is not None:
            asked += _overdue(call, call.request, now)
        elif mode == "shadow":
            refused.append(Propose(call.step, call.name))
        elif mode == "assisted" and call.verdict == "none" and not guard_first:
            asked.append(AskApproval(call.step, call.name))
    return (*refused, *asked)


def _overdue(call: Call, request: Request, now: float) -> list[Command]:
    """What is to be recorded of a request that nobody has decided in time."""
    if request.expires_at is not None and now >= request.expires_at:
        return [Expire(call.step, call.name)]
    if request.escalates_at is not None and now >= request.escalates_at:
        return [Escalate(call.step, call.name)]
    return []


def _calls(run: Run, terms: Terms) -> tuple[Command, ...]:
    """Calls that may run now: at most a window of them, each irreversible one alone in its turn."""
    # A call that was granted is free later than those beside it, which have taken their places in the window by then.
    due = sorted(run.free, key=lambda call: call.verdict == "granted")[: terms.window]
    tools = terms.tools
    return tuple(CallTool(one.step, one.name, tools[one.name].queue, tools[one.name].on_cancel) for one in due)


def _judgement(run: Run) -> tuple[Command, ...]:
    """Structured answers are judged when every other call has its result: the first one that matches is the answer."""
    first, *others = run.unsettled
    if run.accepted is not None:
        refusal = "an answer was accepted already"
        return tuple(Refuse(call.step, call.name, "skipped", refusal) for call in (first, *others))
    return (Judge(first.step),)


def _ending(run: Run, terms: Terms) -> Command | None:
    """What ends the turn, or sends the answer back, now that no call is open; None where the model goes on."""
    corrected_enough = run.corrections >= answer.MAX_CORRECTIONS
    if run.accepted is not None:
        return Deliver(run.accepted, matches=True)
    answers = [call for call in run.calls if run.delivers(call)]
    if answers and run.corrections > answer.MAX_CORRECTIONS:
        return Deliver(answers[-1].step, matches=False)
    if run.answer is None:
        return None
    if terms.output_schema is None:
        return Finish(run.answer, "answered")
    value, unreadable = answer.read(run.answer)
    mistakes = [unreadable] if unreadable else answer.mistakes(terms.output_schema, value)
    if not mistakes:
        return Finish(answer.written(value), "answered", structured=True)
    return Finish(run.answer, "schema") if corrected_enough else Correct(answer.feedback(mistakes))
