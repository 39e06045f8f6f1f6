"""`drangue approvals --watch`, at a terminal and with another program typing, while real workers move the runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drangue_worker.testing.provider import ProviderCall, Reply
from tests.acceptance.shell import PATIENCE_S, Done, drangue, environment, running
from tests.acceptance.terminal import KEYS, NOTHING, PUT_OFF, WATCH, Desk, Person
from tests.kit.fleet import Fleet, wait_until

REASON = "The invoice \x1b[2J is due."


def script(call: ProviderCall) -> Reply:
    """One transfer of five, with a reason, and then the answer; or one that nobody hears of again."""
    if call.turn == 0 and call.last_user() == "lose":
        return Reply(tool_calls=(("lose", {"amount": 5}),))
    if call.turn == 0:
        return Reply(REASON, tool_calls=(("wire", {"amount": 5}),))
    return Reply(f"told: {', '.join(call.results())}")


@pytest.fixture(scope="module")
def fleet(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    agents = ("tests.kit.approving", "tests.kit.guarded", "tests.acceptance.agents")
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(servers.database_url, servers.redis_url, folder, script, agents=agents) as made:
        made.start("model-1", "tool-1")
        yield made


@pytest.fixture(scope="module")
def desk(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    made = Desk(fleet, tmp_path_factory.mktemp("desk"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def open_inbox(desk: Desk) -> list[Person]:
    return [desk.opens()]


@pytest.fixture
def ann(desk: Desk, fleet: Fleet, open_inbox: list[Person]) -> Iterator[Person]:
    """Her inbox with nothing in it. It stays open from test to test, as starting one takes a second."""
    if not open_inbox[-1].is_done():
        open_inbox.append(desk.opens())
        open_inbox[-1].sees(NOTHING)
    yield open_inbox[-1]
    clear(fleet)


def clear(fleet: Fleet) -> None:
    """What a test leaves waiting is of no concern to the next one."""
    for request in fleet.client.pending_approvals():
        fleet.client.cancel(request["run_id"])


@pytest.fixture
def alone(fleet: Fleet) -> Iterator[None]:
    yield
    clear(fleet)


def paused(fleet: Fleet, agent: str, run_id: str) -> None:
    fleet.client.submit(agent, "pay", run_id=run_id)
    wait_until(lambda: fleet.client.get(run_id).status == "paused", PATIENCE_S)


def wired(fleet: Fleet, run_id: str) -> list[str]:
    """What was wired for a run, once it has ended."""
    fleet.finish([run_id])
    return [tool for key, tool in fleet.execute("select key, tool from effects") if key.startswith(f"{run_id}:")]


def verdicts(fleet: Fleet, run_id: str) -> list[tuple[str, str, str]]:
    """Who said what, and why."""
    found = [event for event in fleet.client.events(run_id) if event.type in ("approval_granted", "approval_denied")]
    return [(event.type, event.payload["by"], event.payload["reason"]) for event in found]


def test_a_case_comes_by_itself_with_all_there_is_to_know_and_one_key_approves_it(ann: Person, fleet: Fleet) -> None:
    """The whole way: nothing, a case, a decision, nothing again."""
    paused(fleet, "escalating", "comes")
    request = fleet.client.pending_approvals("comes")[0]
    shown = ann.answers("a")
    for part in ("1 of 1", "wire", "comes", request["call_id"], "amount = 5", "agent escalating at 2", "for ops"):
        assert part in shown
    assert "because: The invoice \\x1b[2J is due." in shown
    assert "\x1b[2J" not in shown
    ann.sees(f"approved wire(amount=5) ({request['call_id']}) of run comes")
    ann.sees(NOTHING)
    assert wired(fleet, "comes") == ["wire 5"]
    assert verdicts(fleet, "comes") == [("approval_granted", "ann", "")]


def test_a_rejection_asks_for_its_reason(ann: Person, fleet: Fleet) -> None:
    """The model is told why; who has pressed the key by mistake gives none and is asked again."""
    paused(fleet, "plain", "rejected")
    ann.answers("r")
    ann.sees("reason")
    ann.types("\n")
    ann.answers("r")
    ann.sees("reason")
    ann.types("not this month\n")
    ann.sees("rejected wire(amount=5)")
    assert wired(fleet, "rejected") == []
    assert verdicts(fleet, "rejected") == [("approval_denied", "ann", "not this month")]


def test_what_is_put_off_comes_back_when_somebody_asks_for_it(ann: Person, fleet: Fleet) -> None:
    """Skipped is not lost, and the others are not held up by it."""
    paused(fleet, "plain", "first")
    assert "first" in ann.answers("x")
    ann.sees("'x' is none of a, e, r, s and q")
    ann.answers("s")
    ann.sees(f"1 {PUT_OFF}")
    paused(fleet, "plain", "second")
    assert "second" in ann.answers("s")
    ann.sees(f"2 {PUT_OFF}")
    ann.types(" ")
    shown = ann.answers("s")
    assert "1 of 2" in shown
    assert "first" in shown
    assert len(fleet.client.pending_approvals()) == 2


def test_arguments_are_changed_in_an_editor_and_what_breaks_the_schema_is_refused(
    ann: Person, desk: Desk, fleet: Fleet
) -> None:
    """The run still waits, and what was typed is not lost: the editor opens with it again."""
    desk.edits("""sed -i 's/5/"three"/' "$1" """)
    paused(fleet, "plain", "edited")
    ann.answers("e")
    ann.sees("not done: arguments do not fit wire: ")
    assert (fleet.client.get("edited").status, verdicts(fleet, "edited")) == ("paused", [])
    desk.edits("""sed -i 's/"three"/3/' "$1" """)
    ann.answers("e")
    ann.sees("approved wire(amount=3)")
    assert wired(fleet, "edited") == ["wire 3"]


def test_what_is_no_json_is_refused_and_what_is_unchanged_decides_nothing(
    ann: Person, desk: Desk, fleet: Fleet
) -> None:
    """Closing an editor is no approval."""
    paused(fleet, "plain", "odd")
    for does, said in (
        ("s/5/5,,/", "is no JSON"),
        ("s/5,,/5/", "nothing was changed"),
        ("s/{/[{/; s/}/}]/", "is no object of arguments by their names"),
    ):
        desk.edits(f"sed -i '{does}' \"$1\"")
        ann.answers("e")
        ann.sees(said)
    desk.edits("exit 0")
    ann.answers("e")
    ann.sees("nothing was changed")
    ann.sees(KEYS)
    assert verdicts(fleet, "odd") == []


def test_without_an_editor_a_line_of_json_will_do(ann: Person, desk: Desk, fleet: Fleet) -> None:
    """A container has none, and the transfer is still too big."""
    paused(fleet, "plain", "by-line")
    (desk.folder / "editor").unlink(missing_ok=True)
    ann.answers("e")
    ann.sees("the arguments as one line of JSON")
    ann.types('{"amount": 2}\n')
    ann.sees("approved wire(amount=2)")
    assert wired(fleet, "by-line") == ["wire 2"]


def test_a_guard_that_refuses_changed_arguments_is_heard(ann: Person, desk: Desk, fleet: Fleet) -> None:
    """Who has approved fifty must not believe that fifty were sent."""
    paused(fleet, "guarded", "too-much")
    desk.edits('sed -i s/5/50/ "$1"')
    ann.answers("e")
    ann.sees("approved wire(amount=50)")
    ann.sees("not done: the run goes on without it: more than ten")
    ann.sees(NOTHING)
    assert wired(fleet, "too-much") == []


def test_a_second_approval_by_the_same_person_is_refused(ann: Person, fleet: Fleet) -> None:
    """Two people means two; the inbox goes on, and the case waits for somebody else."""
    paused(fleet, "double", "both")
    assert "needs 2 people; granted by nobody yet" in ann.answers("a")
    ann.sees("of run both; it needs 1 more")
    ann.sees(f"1 {PUT_OFF}")
    ann.types(" ")
    assert "needs 2 people; granted by ann" in ann.answers("a")
    ann.sees("not done: ann has granted call")
    ann.sees(f"1 {PUT_OFF}")
    assert fleet.client.get("both").status == "paused"
    fleet.client.approve("both", by="bob")
    assert wired(fleet, "both") == ["wire 5"]


def test_what_somebody_else_changed_meanwhile_is_not_approved_unseen(ann: Person, fleet: Fleet) -> None:
    """On Ann's screen are five; Bob has made them four, and she is shown that first."""
    paused(fleet, "double", "changed")
    ann.sees(KEYS)
    fleet.client.approve("changed", arguments={"amount": 4}, by="bob")
    ann.types("a")
    ann.sees("not done: the arguments of call")
    shown = ann.answers("a")
    assert "amount = 4" in shown
    assert "amount was 5 in the model's call" in shown
    ann.sees("approved wire(amount=4)")
    assert wired(fleet, "changed") == ["wire 4"]


def test_what_somebody_else_decided_meanwhile_is_said(ann: Person, fleet: Fleet) -> None:
    """Two people on call look at the same case; one line, and on to the next."""
    paused(fleet, "plain", "taken")
    ann.sees(KEYS)
    fleet.client.reject("taken", by="b\x1bob")
    ann.types("a")
    ann.sees("not done: it was rejected by b\\x1bob at 2")
    ann.sees(NOTHING)
    assert wired(fleet, "taken") == []


def test_what_has_expired_meanwhile_is_said(ann: Person, fleet: Fleet) -> None:
    """It took its declared outcome without anyone touching it."""
    fleet.client.submit("brief", "pay", run_id="late")
    assert "expires at 2" in ann.sees(KEYS)
    wait_until(lambda: fleet.client.get("late").status == "completed", PATIENCE_S)
    ann.types("a")
    ann.sees("not done: it expired at 2")
    ann.sees(NOTHING)
    assert (wired(fleet, "late"), verdicts(fleet, "late")) == ([], [])


def test_a_key_that_was_pressed_before_a_case_was_shown_does_not_decide_it(
    ann: Person, desk: Desk, fleet: Fleet
) -> None:
    """A finger that is too quick must not approve what nobody has read."""
    paused(fleet, "plain", "unread")
    desk.edits("touch open", "while [ ! -e go ]; do sleep 0.01; done")
    ann.answers("e")
    wait_until((desk.folder / "open").exists, PATIENCE_S)
    ann.types("aaa")
    (desk.folder / "go").touch()
    ann.answers("s")
    ann.sees(f"1 {PUT_OFF}")
    assert verdicts(fleet, "unread") == []


@pytest.mark.usefixtures("alone")
def test_ctrl_c_ends_it_and_leaves_the_terminal_as_it_was(desk: Desk, fleet: Fleet) -> None:
    """At a question and between two; somebody's shell goes on at that terminal."""
    idle, asked = desk.opens(), desk.opens()
    modes = idle.modes()
    for person in (idle, asked):
        person.sees(NOTHING)
        wait_until(lambda person=person: person.modes() != modes, PATIENCE_S)  # type: ignore[misc]
    idle.types("\x03")
    paused(fleet, "plain", "interrupted")
    asked.sees(KEYS)
    asked.types("\x03")
    for person in (idle, asked):
        assert person.process.wait(PATIENCE_S) == 130
        assert "Traceback" not in person.said
        assert person.modes() == modes


@pytest.mark.usefixtures("alone")
def test_q_ends_it_at_a_question_and_between_two(desk: Desk, fleet: Fleet) -> None:
    """It says so on the screen."""
    idle, asked = desk.opens(), desk.opens()
    for person in (idle, asked):
        person.sees(NOTHING)
    assert idle.leaves() == 0
    paused(fleet, "plain", "not-decided")
    asked.sees(KEYS)
    assert asked.leaves() == 0
    assert len(fleet.client.pending_approvals()) == 1


@pytest.mark.usefixtures("alone")
class TestLines:
    """Another program at the keyboard."""

    @pytest.fixture
    def typed(self, fleet: Fleet, tmp_path: Path) -> Callable[..., Done]:
        def run(lines: str, *options: str) -> Done:
            env = environment(**fleet.supervisor.env, EDITOR="/nonexistent/editor")
            done = subprocess.run(
                [*WATCH, *options],
                env=env,
                cwd=tmp_path,
                input=lines,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
            return Done(done.returncode, done.stdout, done.stderr)

        return run

    def test_lines_answer_case_after_case_and_their_end_is_the_end(
        self, typed: Callable[..., Done], fleet: Fleet
    ) -> None:
        """A script can do what a person can."""
        for run_id in ("granted", "denied", "altered", "left"):
            paused(fleet, "plain", run_id)
        done = typed('a\nr\nno money\ne\n{"amount": "much"}\ns\ne\n{"amount": 3}\n')
        assert (done.code, done.err) == (0, "")
        said = [line for line in done.out.splitlines() if line.startswith(("approved", "rejected", "not done"))]
        assert [line.partition(" (call")[0] for line in said] == [
            "approved wire(amount=5)",
            "rejected wire(amount=5)",
            'not done: arguments do not fit wire: $.amount: expected integer, got "much". Correct them.',
            "approved wire(amount=3)",
        ], done.out
        assert [wired(fleet, run_id) for run_id in ("granted", "denied", "altered")] == [["wire 5"], [], ["wire 3"]]
        assert verdicts(fleet, "denied") == [("approval_denied", "ann", "no money")]
        assert [request["run_id"] for request in fleet.client.pending_approvals()] == ["left"]

    def test_a_second_approval_in_the_same_name_is_refused(self, typed: Callable[..., Done], fleet: Fleet) -> None:
        """A loop in a script is still one person."""
        paused(fleet, "double", "looped")
        done = typed("a\na\nq\n")
        assert "not done: ann has granted call" in done.out
        assert (done.code, fleet.client.get("looped").status) == (0, "paused")

    @pytest.mark.parametrize("lines", ["", "q\n"])
    def test_where_nothing_waits_it_ends_with_what_is_typed(self, typed: Callable[..., Done], lines: str) -> None:
        """A job without anybody at the keyboard must not wait for ever."""
        assert typed(lines) == Done(0, f"{NOTHING}\n", "")

    def test_what_waits_for_another_word_than_leave_is_not_kept_quiet(
        self, typed: Callable[..., Done], fleet: Fleet
    ) -> None:
        """Whoever has the inbox open all day would never look at the list."""
        fleet.client.submit("lossy", "lose", run_id="lost")
        wait_until(lambda: fleet.client.get("lost").status == "paused", PATIENCE_S)
        said, nothing = typed("").out.splitlines()
        assert (said.partition(",")[0], nothing) == ("1 calls wait for word of what became of them", NOTHING)
        fleet.client.cancel("lost")

    @pytest.mark.parametrize(
        ("options", "named"), [(["--by", " "], "by is ' '"), (["--json"], "--by goes with --watch")]
    )
    def test_what_cannot_be_meant_is_refused_in_one_line(
        self, typed: Callable[..., Done], options: list[str], named: str
    ) -> None:
        """Before anything is shown."""
        assert named in typed("", *options).one_line()

    def test_another_program_is_told_a_line_each(self, fleet: Fleet, tmp_path: Path) -> None:
        """For a bot in whatever language."""
        paused(fleet, "plain", "told-1")
        command = drangue("approvals", "--watch", "--json")
        with running(command, environment(**fleet.supervisor.env), tmp_path, tmp_path / "told") as bot:
            bot.waits_to_say("told-1")
            paused(fleet, "plain", "told-2")
            bot.waits_to_say("told-2")
            assert bot.interrupt() == 130
        lines = [json.loads(line) for line in bot.said().splitlines() if line.startswith("{")]
        assert [line["run_id"] for line in lines] == ["told-1", "told-2"]
