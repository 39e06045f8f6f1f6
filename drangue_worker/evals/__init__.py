"""Evals: what an agent shall do, as scenarios; how well it does it, as rates; whether that is good enough to deploy.

    report = await evaluate(agent, [Scenario("refund", "Refund order 7", [output_contains("refunded")], runs=20)])
    decision = Gate().evaluate(baseline=kept_profile, candidate=report.profile())

Runs are real runs of the agent, recorded in its store; the model answers anew in each. `replay` does recorded runs
again, with their tools answered from the record. Only these two and `Judge` do anything, the rest are values and
arithmetic. `drangue eval` is all of it as a command.
"""

from drangue_worker.evals.checks import (
    forbids_tool,
    judged,
    output_contains,
    output_satisfies,
    within_steps,
    within_tokens,
)
from drangue_worker.evals.gate import Gate, GateDecision
from drangue_worker.evals.judge import Judge
from drangue_worker.evals.places import OnFleet
from drangue_worker.evals.recording import Difference, Recording
from drangue_worker.evals.replays import Account, Replay, ReplayReport, replay, same_calls
from drangue_worker.evals.run import evaluate
from drangue_worker.evals.scenario import Check, Scenario, scenario_from_result, tools_called
from drangue_worker.evals.score import EvalReport, ScenarioResult

__all__ = [
    "Account",
    "Check",
    "Difference",
    "EvalReport",
    "Gate",
    "GateDecision",
    "Judge",
    "OnFleet",
    "Recording",
    "Replay",
    "ReplayReport",
    "Scenario",
    "ScenarioResult",
    "evaluate",
    "forbids_tool",
    "judged",
    "output_contains",
    "output_satisfies",
    "replay",
    "same_calls",
    "scenario_from_result",
    "tools_called",
    "within_steps",
    "within_tokens",
]
