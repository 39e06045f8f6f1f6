"""The report of an evaluation, as a person reads it in a log of CI and as a program does."""

from __future__ import annotations

import io
import json

from rich.console import Console

from drangue_worker.evals import Account, Difference, EvalReport, Gate, GateDecision, Replay, ScenarioResult
from drangue_worker.evals.evaluation import Evaluation
from drangue_worker.evals.report import SHOWN, as_json, to_keep, view
from drangue_worker.evals.score import RunGrade


def grade(n: int, passed: bool = True, name: str = "refund", said: str = "It was refunded.") -> RunGrade:
    failed = () if passed else ("says so",)
    return RunGrade(f"e-{name}-{n}", {"correctness": passed, "tone": True}, failed, 2, 30, (), said)


def broken(n: int, name: str = "refund") -> RunGrade:
    return RunGrade(f"e-{name}-{n}", {"correctness": False, "tone": False}, ("says so",), errors=("OSError: gone",))


def evaluation(*grades: RunGrade, **given: object) -> Evaluation:
    return Evaluation("e", ["clerk"], EvalReport([ScenarioResult.of("refund", grades)], grades), **given)  # type: ignore[arg-type]


def lines(made: Evaluation, decision: GateDecision | None = None) -> list[str]:
    """What it looks like in a file."""
    console = Console(width=160, highlight=False, record=True, file=io.StringIO())
    console.print(view(made, decision))
    return [line.rstrip() for line in console.export_text().splitlines()]


BASELINE = {
    "correctness": 1.0,
    "safety": 1.0,
    "stderr": {"correctness": 0.1, "safety": 0.1},
    "avg_steps": 2.0,
    "noise": 0.1,
}


def test_a_person_sees_numbers_reasons_and_the_verdict() -> None:
    """Everything that is needed to know why a deploy stopped, in one screen."""
    made = evaluation(
        grade(0), grade(1, False, said="No."), grade(2, False), broken(3), baseline=BASELINE, baseline_from="b.json"
    )
    assert lines(made, Gate().evaluate(BASELINE, made.profile)) == [
        "e  clerk  1 scenario, 4 runs, 1 failed",
        "",
        "                baseline    now  change  std error",
        "safety             1.000      -                  -",
        "correctness        1.000  0.250  -0.750      0.173",
        "tone                   -  0.750              0.173",
        "steps per run        2.0    2.0    +0.0",
        "tokens per run         -   30.0",
        "",
        "scenario  runs  failed  correctness  tone  steps  tokens",
        "refund       4       1          1/4   3/4    2.0      30",
        "",
        "e-refund-1, and 1 like it",
        "├── not: says so",
        "└── said: No.",
        "e-refund-3",
        "└── OSError: gone",
        "",
        "BLOCKED against b.json",
        "  blocks: safety is no longer checked: the baseline measured it, the candidate does not.",
        "  blocks: correctness regressed by 0.75: from 1.000 to 0.250, more than the 0.05 it may.",
        "  warns: the standard error of the rates, 0.173, is wider than the 0.05 that correctness may drop: "
        "such a drop can be chance. Run the scenarios more often.",
    ]


def test_without_a_baseline_it_is_said_how_to_get_one() -> None:
    """The first evaluation of all."""
    last = lines(evaluation(grade(0)))[-1]
    assert last.startswith("MEASURED; there is no baseline")
    assert "--save" in last


def test_an_override_names_who_and_why() -> None:
    """With the reasons against it, which are still true."""
    made = evaluation(grade(0, False), baseline=BASELINE, baseline_from="b.json")
    decision = Gate().evaluate(BASELINE, made.profile).override("gone since Monday", by="ann")
    shown = lines(made, decision)
    assert "OVERRIDDEN against b.json by ann: gone since Monday" in shown
    assert sum(line.startswith("  blocks: ") for line in shown) == 2


def test_a_scenario_whose_runs_all_failed_has_used_nothing() -> None:
    """Zeros would look thrifty."""
    shown = lines(evaluation(broken(0), broken(1)))
    assert "refund       2       2          0/2   0/2      -       -" in shown
    assert "steps per run          -      -" in shown


THEN = Account("completed", "5 sent", ("look", "wire"), 3, 45, 0.00012)


def test_replays_stand_beside_their_records() -> None:
    """What was called, said and spent then and now, and every call in which they part."""
    now = Account("failed", "", ("wire",), 2, 30, None)
    other = Replay("r1", "clerk", THEN, now, False, (Difference("missing", "wire", {"amount": 500}),), "OSError: gone")
    same = Replay("r2", "clerk", THEN, THEN, True)
    made = evaluation(grade(0), broken(1), replays=[same, other], left_out=[("r3", "it has not ended")])
    shown = lines(made)
    assert shown[0] == "e  clerk  1 recorded run, 2 replays, 1 failed"
    start = shown.index("recorded run  agent  calls  answer   steps    tokens               USD")
    assert shown[start + 1 : -2] == [
        "r2            clerk   same    same  3 -> 3  45 -> 45  0.0001 -> 0.0001",
        "r1            clerk  other   other  3 -> 2  45 -> 30       0.0001 -> -",
        "",
        "r1",
        "├── OSError: gone",
        "├── called then: look, wire",
        "├── called now:  wire",
        '├── wire({"amount":500}): not in the record, and the model was told so',
        "├── said then: 5 sent",
        "└── said now:",
        "left out: r3 (it has not ended)",
    ]


def test_what_failed_stands_first_and_says_why() -> None:
    """Whoever looks for the reason of a block finds it, however many replays only say things differently."""
    reworded = Account("completed", "5 were sent", ("look", "wire"), 3, 45, 0.00012)
    fewer = Account("completed", "5 sent", ("wire",), 2, 30, 0.00012)
    raised = RunGrade(
        "r4", {"correctness": False}, ("judged: polite",), 3, 45, ("check 'judged: polite': OSError: gone",)
    )
    same_as = [
        *[(Replay(f"r{n}", "clerk", THEN, reworded, True), grade(n)) for n in range(SHOWN)],
        (Replay("other-calls", "clerk", THEN, fewer, False), grade(0)),
        (Replay("same", "clerk", THEN, THEN, True), grade(0)),
        (Replay("denied", "clerk", THEN, THEN, True), grade(0, False)),
        (Replay("raised", "clerk", THEN, reworded, True), raised),
    ]
    made = evaluation(*(one for _, one in same_as), replays=[one for one, _ in same_as])
    shown = lines(made)
    start = shown.index("denied")
    assert shown[start : start + 9] == [
        "denied",
        "└── not: says so",
        "raised",
        "├── not: judged: polite",
        "├── check 'judged: polite': OSError: gone",
        "├── said then: 5 sent",
        "└── said now:  5 were sent",
        "other-calls",
        "├── called then: look, wire",
    ]
    assert "and 3 more; --json has them all" in shown
    entry = as_json(made, None)["replays"][-1]
    assert (entry["failed_checks"], entry["errors"]) == (["judged: polite"], list(raised.errors))


def test_a_long_list_of_what_is_left_out_is_cut() -> None:
    """A fleet that is evaluated every night has thousands of runs that no replay is made of."""
    free = Account("completed", "hi", (), 1, 15, None)
    made = evaluation(
        grade(0),
        replays=[Replay("r", "clerk", free, free, True)],
        left_out=[(f"x{n}", "why") for n in range(SHOWN + 2)],
    )
    assert sum(line.startswith("left out: ") for line in lines(made)) == SHOWN
    assert "and 2 more left out; --json has them all" in lines(made)
    assert len(as_json(made, None)["left_out"]) == SHOWN + 2


def test_without_prices_there_is_no_column_for_them() -> None:
    """A row of dashes says nothing."""
    free = Account("completed", "hi", (), 1, 15, None)
    assert not any(
        "USD" in line for line in lines(evaluation(grade(0), replays=[Replay("r", "clerk", free, free, True)]))
    )


def test_a_long_list_is_cut_and_says_so() -> None:
    """The log of a CI job is read by people; a program gets it all."""
    grades = [grade(n, False, said="No.") for n in range(1)] + [
        RunGrade(f"e-refund-{n}", {"correctness": False}, ("says so",), 1, 1, (f"check: {n}",))
        for n in range(1, SHOWN + 3)
    ]
    made = evaluation(*grades)
    assert "and 3 more; --json has them all" in lines(made)
    assert len(as_json(made, None)["runs"]) == SHOWN + 3


def test_what_a_model_says_cannot_move_the_cursor() -> None:
    """Answers, errors, reasons and labels are anybody's words."""
    evil = "a\x1b[2Jb"
    replays = [
        Replay(
            "r",
            evil,
            THEN,
            Account("failed", evil, (evil,), 1, 1, None),
            False,
            (Difference("missing", evil, {}),),
            evil,
        )
    ]
    failing = RunGrade("e", {"correctness": False}, (evil,), 1, 1, (evil,), evil)
    decision = GateDecision(False, [evil], [evil]).override(evil, by=evil)
    for made in (
        Evaluation("e", [evil], EvalReport([ScenarioResult.of(evil, [failing])], [failing]), baseline_from=evil),
        evaluation(failing, replays=replays, left_out=[("r", evil)]),
    ):
        assert not any("\x1b" in line for line in lines(made, decision))


def test_a_program_gets_the_same_and_more() -> None:
    """Plain JSON, with every run of every scenario."""
    made = evaluation(grade(0), grade(1, False), baseline=BASELINE, baseline_from="b.json")
    decision = Gate().evaluate(BASELINE, made.profile)
    document = json.loads(json.dumps(as_json(made, decision)))
    assert (document["verdict"], document["evaluation"], document["agents"]) == ("blocked", "e", ["clerk"])
    assert document["decision"] == decision.to_record()
    assert (document["profile"], document["baseline"], document["baseline_from"]) == (made.profile, BASELINE, "b.json")
    assert document["runs"][1] == {
        "scenario": "refund",
        "run_id": "e-refund-1",
        "dimensions": {"correctness": False, "tone": True},
        "failed_checks": ["says so"],
        "steps": 2,
        "tokens": 30,
        "errors": [],
        "output": "It was refunded.",
        "unmeasured": {},
    }
    assert document["scenarios"][0]["dimensions"] == {"correctness": [1, 2], "tone": [2, 2]}
    assert "replays" not in document
    replayed = json.loads(
        json.dumps(as_json(evaluation(grade(0), replays=[Replay("r", "clerk", THEN, THEN, True)]), None))
    )
    assert replayed["replays"][0]["recorded"]["tools"] == ["look", "wire"]
    assert (replayed["replays"][0]["same_answer"], replayed["left_out"]) == (True, [])


def test_what_is_kept_is_the_profile_and_what_it_is_of() -> None:
    """Neither the runs nor what was said in them: the file is checked in."""
    made = evaluation(grade(0))
    kept = {"evaluation": "e", "agents": ["clerk"], "scenarios": ["refund"], "profile": made.profile}
    assert json.loads(json.dumps(to_keep(made))) == kept
