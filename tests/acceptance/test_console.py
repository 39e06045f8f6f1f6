"""The operator's commands, typed one after the other while real workers move the runs.

A command costs half a second of processor time, so what is not the subject of a test is done through the client.
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from drangue_worker import Agent, PostgresStore
from drangue_worker.testing import FakeModel
from drangue_worker.testing.provider import ProviderCall, Reply
from tests.acceptance.agents import lose
from tests.acceptance.conftest import MakeFleet
from tests.acceptance.shell import Console, Done, drangue, environment, messages_in, run
from tests.kit.fleet import Fleet

COMMANDS = (
    "submit",
    "runs",
    "show",
    "approvals",
    "approve",
    "reject",
    "outcome",
    "cancel",
    "retry",
    "say",
    "tail",
    "agents",
    "queues",
    "workers",
    "doctor",
    "prune",
    "migrate",
    "worker",
    "metrics",
    "dev",
    "demo",
    "eval",
)
ARTICLE = " ".join(f"word{number}" for number in range(60))  # longer than any line
TABLES = "select tablename from pg_tables where schemaname = 'public'"
REASON = "The invoice is due."


def script(call: ProviderCall) -> Reply:
    """What the model does is what the input says."""
    wish = call.last_user()
    if wish == "break":
        return Reply(status=400, error="no such thing")
    if wish == "slow":
        return Reply("too late", delay_s=30.0)
    if call.turn == 0 and wish == "lose":
        return Reply(tool_calls=(("lose", {"amount": 5, "note": "\x1b[2J"}),))
    if call.turn == 0 and wish == "lose two":
        return Reply(tool_calls=(("lose_quietly", {"amount": 5}), ("lose_quietly", {"amount": 7})))
    if wish == "long":
        return Reply(ARTICLE)
    if call.turn == 0 and wish == "wire":
        return Reply(REASON, tool_calls=(("wire", {"amount": 5}),))
    if call.turn == 0 and wish == "wire twice":
        return Reply(tool_calls=(("wire", {"amount": 5}), ("wire", {"amount": 7})))
    if call.turn == 0 and wish == "publish":
        return Reply("Now \x1b[2Jread this.", tool_calls=(("publish", {"text": ARTICLE}),))
    if call.turn == 0 and wish == "note":
        return Reply(tool_calls=(("note", {"text": "tea"}),))
    return Reply(f"told: {', '.join(call.results()) or 'nothing'}")


@pytest.fixture(scope="module")
def fleet(make_shared_fleet: MakeFleet) -> Fleet:
    fleet = make_shared_fleet(script)
    fleet.start("model-1", "tool-1")
    return fleet


@pytest.fixture
def console(fleet: Fleet, make_console: Callable[[Fleet], Console]) -> Console:
    return make_console(fleet)


def moved(fleet: Fleet, run_id: str, agent: str = "tester", wish: str = "hello") -> Any:
    """A run, submitted and brought to where it stops; its result."""
    fleet.client.submit(agent, wish, run_id=run_id)
    (result,) = fleet.finish([run_id])
    return result


def paused(fleet: Fleet, run_id: str, agent: str = "careful", wish: str = "wire") -> list[str]:
    """A run that waits for a person; the ids of the calls that wait."""
    result = moved(fleet, run_id, agent, wish)
    assert result.status == "paused"
    return [request["call_id"] for request in result.pending_approvals]


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Done]]]:
    """The help of every command, asked for without a server, an address or a key."""
    place = tmp_path_factory.mktemp("help")
    with ThreadPoolExecutor(3) as pool:
        yield {name: pool.submit(run, drangue(name, "--help"), environment(), place) for name in COMMANDS}


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, helps: dict[str, Future[Done]], command: str) -> None:
        """Help must not need anything that the person who asks for it has not set up yet."""
        done = helps[command].result()
        assert (done.code, done.err) == (0, "")
        assert f" {command} " in done.out.splitlines()[0]

    def test_the_program_lists_its_commands_in_whole_sentences(self, tmp_path: Path) -> None:
        """A summary that breaks off in the middle tells nobody what the command is for."""
        lines = run(drangue("--help"), environment(), tmp_path).out.partition("Commands:")[2].splitlines()
        listed = dict(line.split(maxsplit=1) for line in lines if line.strip())
        assert sorted(listed) == sorted(COMMANDS)
        assert [summary for summary in listed.values() if summary.endswith("...")] == []


class TestSubmit:
    def test_the_same_run_id_is_the_same_run(self, console: Console, fleet: Fleet) -> None:
        """A caller that got no answer must be able to repeat itself."""
        first = console("submit", "tester", "hello", "--run-id", "twice")
        again = console("submit", "tester", "hello", "--run-id", "twice")
        assert first == Done(0, "twice  submitted\n", "")
        assert (again.code, again.err) == (0, "")
        assert "twice  was submitted before" in again.out
        assert fleet.execute("select count(*) from runs where run_id = 'twice'") == [(1,)]

    def test_a_run_id_that_is_taken_is_refused(self, console: Console, fleet: Fleet) -> None:
        """Whoever reuses an id by mistake must not be given another run's answer."""
        fleet.client.submit("tester", "hello", run_id="taken")
        line = console("submit", "tester", "another", "--run-id", "taken").one_line()
        assert "'taken' exists with another input" in line
        assert "Take a new run_id" in line

    def test_json_gives_the_id_to_go_on_with(self, console: Console, fleet: Fleet) -> None:
        """A script that let drangue choose the id needs it for everything that follows."""
        done = console("submit", "tester", "hello", "--json")
        assert (done.json["created"], done.json["sent"]) == (True, True)
        assert fleet.client.get(done.json["run_id"]).agent == "tester"

    def test_wait_prints_the_answer(self, console: Console) -> None:
        """The shortest way from a question to its answer."""
        done = console("submit", "tester", "note", "--run-id", "waited", "--wait", "30")
        assert (done.code, done.err) == (0, "")
        assert done.out.splitlines()[0].split() == ["waited", "tester", "completed", "answered"]
        assert done.out.splitlines()[-1] == "told: noted tea"

    def test_a_long_answer_comes_out_as_it_went_in(self, console: Console) -> None:
        """What goes into a file or a pipe must not be broken into lines of the console's own."""
        done = console("submit", "tester", "long", "--wait", "30")
        assert ARTICLE in done.out

    def test_wait_with_json_gives_the_whole_run(self, console: Console) -> None:
        """Another program needs the answer, the cost and the log, not a picture."""
        done = console("submit", "tester", "note", "--run-id", "waited-json", "--wait", "30", "--json")
        value = done.json
        assert (done.code, value["status"], value["output"]) == (0, "completed", "told: noted tea")
        assert value["usage"] == {"input_tokens": 20, "output_tokens": 10}
        expected = ["run_started", "model_decision", "tool_result", "model_decision", "run_finished"]
        assert [event["type"] for event in value["events"]] == expected

    def test_wait_that_is_over_says_that_the_run_goes_on(self, console: Console, fleet: Fleet) -> None:
        """A timeout is the caller's; the run is not harmed by it."""
        done = console("submit", "nobody-yet", "hello", "--allow-unknown", "--run-id", "late", "--wait", "0.2")
        assert (done.code, done.out) == (4, "")
        assert len(done.err.splitlines()) == 1
        assert "'late' is still queued after 0.2 s and goes on" in done.err
        assert fleet.client.get("late").status == "queued"

    def test_wait_for_a_run_that_fails_says_why_and_exits_with_1(self, console: Console) -> None:
        """A script must see the difference between an answer and none."""
        done = console("submit", "tester", "break", "--wait", "30")
        assert (done.code, done.err) == (1, "")
        assert "failed: BadRequestError" in done.out

    def test_a_deadline_ends_the_run(self, console: Console) -> None:
        """Whoever waits has an answer in time, be it that there is none, and a script can tell."""
        done = console("submit", "tester", "slow", "--deadline", "1.5", "--wait", "30")
        assert (done.code, done.err) == (1, "")
        assert done.out.splitlines()[0].split()[1:] == ["tester", "completed", "deadline"]
        assert done.out.splitlines()[-1] == "(stopped: its time was over)"

    def test_a_deadline_that_is_kept_shows_in_the_run_alone(self, console: Console, fleet: Fleet) -> None:
        """It is counted from the submission, and the answer is the answer."""
        done = console("submit", "tester", "hello", "--deadline", "60", "--run-id", "limited", "--wait", "30", "--json")
        assert (done.code, done.json["reason"], done.json["unknown_outcomes"]) == (0, "answered", [])
        row = fleet.client.get("limited")
        assert row.deadline_at == pytest.approx(row.created_at + 60, abs=1e-3)

    @pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan", "inf", "1e400"])
    def test_a_deadline_that_is_none_is_refused(self, console: Console, fleet: Fleet, seconds: str) -> None:
        """One line, and no run that would end before it began, or never begin."""
        line = console("submit", "tester", "hello", "--run-id", f"no-{seconds}", "--deadline", seconds).one_line()
        assert "deadline" in line
        assert fleet.execute("select 1 from runs where run_id like 'no-%%'") == []

    def test_labels_are_recorded(self, console: Console, fleet: Fleet) -> None:
        """A value may hold anything, further equals signs too, or nothing."""
        labels = ("--label", "team=sre", "--label", "query=a=b", "--label", "empty=")
        assert console("submit", "tester", "hello", "--run-id", "labelled", *labels).code == 0
        assert fleet.client.get("labelled").labels == {"team": "sre", "query": "a=b", "empty": ""}


class TestReading:
    def test_runs_shows_what_there_is(self, console: Console, fleet: Fleet) -> None:
        """The newest run comes first, with its agent, its state and its input."""
        for name in ("older", "newer"):
            moved(fleet, name, wish=f"say {name}")
        head, *lines = console("runs", "--limit", "2").out.splitlines()
        assert head.split() == ["run", "agent", "status", "submitted", "(UTC)", "took", "input"]
        assert [line.split()[:3] for line in lines] == [[name, "tester", "completed"] for name in ("newer", "older")]
        assert lines[0].rstrip().endswith("say newer")

    def test_runs_can_be_asked_for_by_status_and_agent(self, console: Console, fleet: Fleet) -> None:
        """With thousands of runs, the list is only of use filtered."""
        paused(fleet, "filtered-1")
        moved(fleet, "filtered-2", "careful", "break")
        both = console("runs", "--agent", "careful", "--status", "paused", "--json", "--limit", "1000").json
        assert {(row["agent"], row["status"]) for row in both} == {("careful", "paused")}
        assert "filtered-1" in {row["run_id"] for row in both}

    def test_no_runs_is_an_answer_too(self, console: Console) -> None:
        """An empty list is a sentence for a person."""
        assert console("runs", "--agent", "nobody") == Done(0, "no runs\n", "")

    def test_any_run_id_can_be_listed(self, console: Console, fleet: Fleet) -> None:
        """An id is the caller's own words: neither markup nor an emoji's name, and no list breaks because of it."""
        ids = ["order:key:7", "batch[bold]8", "batch[/bold]9"]
        for run_id in ids:
            fleet.client.submit("nobody-yet", "hello", run_id=run_id, allow_unknown=True)
        try:
            done = console("runs", "--agent", "nobody-yet")
            assert (done.code, done.err) == (0, "")
            assert set(ids) <= {line.split()[0] for line in done.out.splitlines()}
        finally:
            fleet.execute("delete from runs where run_id = any(%s)", ids)

    def test_show_draws_the_steps_as_a_tree(self, console: Console, fleet: Fleet) -> None:
        """Each model call with the calls that it asked for below it, and each call with its result."""
        moved(fleet, "drawn", wish="note")
        done = console("show", "drawn")
        assert (done.code, done.err) == (0, "")
        order = ["drawn", "20 + 10 tokens", "1 model", "2 tool note(text='tea')", "-> noted tea", "3 model"]
        places = [done.out.find(part) for part in order]
        assert -1 not in places, done.out
        assert places == sorted(places)

    def test_show_gives_another_program_the_whole_log(self, console: Console, fleet: Fleet) -> None:
        """Nothing that the picture shows, or leaves out, may be missing from the JSON."""
        moved(fleet, "exported", wish="note")
        value = console("show", "exported", "--json").json
        assert value["events"] == [event.to_json() for event in fleet.client.events("exported")]
        assert (value["run_id"], value["status"], value["output"]) == ("exported", "completed", "told: noted tea")

    def test_a_reader_that_has_enough_is_no_error(self, console: Console) -> None:
        """`drangue runs | head -1` must end quietly, in a script that looks at every exit code too."""
        pipeline = f"{' '.join(drangue('runs', '--json'))} | true; exit ${{PIPESTATUS[0]}}"
        assert run(["bash", "-c", pipeline], console.env, console.cwd) == Done(0, "", "")


class TestApprovals:
    def test_a_paused_run_holds_nothing(self, console: Console, fleet: Fleet) -> None:
        """It may wait for days: no step, claim, timer or message may be kept for it, and nothing has happened."""
        done = console("submit", "careful", "wire", "--run-id", "held", "--wait", "30", "--json")
        assert (done.code, done.json["status"]) == (3, "paused")
        assert fleet.execute("select step from steps where run_id = 'held'") == []
        assert fleet.execute("select 1 from runs where run_id = 'held' and wake_at is not null") == []
        assert "held" not in messages_in(fleet.settings.redis_url)
        assert [key for key in fleet.effects() if key.startswith("held:")] == []

    def test_what_waits_is_shown_with_its_reason_and_what_to_type(self, console: Console, fleet: Fleet) -> None:
        """Whoever decides needs to know what would be done, and why the model wants it."""
        (call_id,) = paused(fleet, "asked")
        shown = console("approvals").out
        for part in ("wire  asked", call_id, "amount = 5", f"because: {REASON}", "drangue approve asked"):
            assert part in shown
        (listed,) = [one for one in console("approvals", "--json").json if one["run_id"] == "asked"]
        assert (listed["tool"], listed["arguments"], listed["text"]) == ("wire", {"amount": 5}, REASON)

    def test_what_is_to_be_approved_is_shown_whole(self, console: Console, fleet: Fleet) -> None:
        """Nobody can take responsibility for arguments of which they have read the beginning."""
        paused(fleet, "whole", "editor", "publish")
        try:
            shown = console("approvals").out
            assert [word for word in shown.replace('"', " ").split() if word.startswith("word")] == ARTICLE.split()
        finally:
            fleet.client.reject("whole")

    def test_a_model_cannot_draw_on_the_terminal(self, console: Console, fleet: Fleet) -> None:
        """What a model says is shown to the person who judges it, and must not be able to clear what stands there."""
        paused(fleet, "drawing", "editor", "publish")
        try:
            assert "\x1b" not in console("approvals").out
            assert "\x1b" not in console("show", "drawing").out
        finally:
            fleet.client.reject("drawing")

    def test_what_to_type_decides_about_the_call_it_stands_below(self, console: Console, fleet: Fleet) -> None:
        """Where two calls of a run wait, the command below the second must not decide about the first."""
        calls = paused(fleet, "two", wish="wire twice")
        assert len(calls) == 2
        shown = console("approvals").out
        assert [call for call in calls if f"drangue approve two {call}" not in shown] == []

    def test_approving_lets_the_run_go_on_by_itself(self, console: Console, fleet: Fleet) -> None:
        """The verdict is recorded with who gave it and why, and nothing else has to be done."""
        (call_id,) = paused(fleet, "granted")
        done = console("approve", "granted", "--by", "ann", "--reason", "invoice checked")
        assert done == Done(0, f"approved wire(amount=5) ({call_id}) of run granted\n", "")
        (result,) = fleet.finish(["granted"])
        assert result.output == "told: wired 5"
        (verdict,) = [event for event in result.events if event.type == "approval_granted"]
        assert (verdict.payload["by"], verdict.payload["reason"]) == ("ann", "invoice checked")
        assert [key for key in fleet.effects("wire") if key.startswith("granted:")] == ["granted:2"]
        assert "granted by ann" in console("show", "granted").out

    def test_approving_twice_says_so(self, console: Console, fleet: Fleet) -> None:
        """Two people on call may both press the button; the money moves once."""
        (call_id,) = paused(fleet, "pressed")
        fleet.client.approve("pressed", by="ann")
        again = console("approve", "pressed", call_id, "--by", "ben")
        fleet.finish(["pressed"])
        much_later = console("approve", "pressed")
        for done in (again, much_later):
            assert (done.code, done.err) == (0, "")
            assert f"{call_id} of run pressed was approved by ann at " in done.out
        assert [key for key in fleet.effects("wire") if key.startswith("pressed:")] == ["pressed:2"]

    def test_rejecting_too_late_says_what_holds(self, console: Console, fleet: Fleet) -> None:
        """A rejection that comes after the approval did not stop anything, and a script has to see that."""
        paused(fleet, "too-late")
        fleet.client.approve("too-late", by="ann")
        late = console("reject", "too-late", "--by", "ben")
        assert "was approved by ann" in late.out + late.err
        assert late.code == 1

    def test_rejecting_tells_the_model_why(self, console: Console, fleet: Fleet) -> None:
        """The model goes on without the call, knowing the reason; the tool has not run."""
        (call_id,) = paused(fleet, "denied")
        done = console("reject", "denied", "--reason", "over the limit")
        assert done == Done(0, f"rejected wire(amount=5) ({call_id}) of run denied\n", "")
        (result,) = fleet.finish(["denied"])
        assert result.status == "completed"
        assert "over the limit" in result.output  # the script answers with what the model was told
        assert [key for key in fleet.effects() if key.startswith("denied:")] == []
        (verdict,) = [event for event in result.events if event.type == "approval_denied"]
        assert verdict.payload["by"] == getpass.getuser()


class TestOutcomes:
    def test_what_nobody_knows_is_shown_wherever_an_operator_looks(self, console: Console, fleet: Fleet) -> None:
        """Among what waits for a person, among the runs, and in the run: what was to be done, and what to type."""
        result = moved(fleet, "lost-1", "lossy", "lose")
        (item,) = result.unknown_outcomes
        call_id = item["call_id"]
        try:
            for shown in (console("approvals"), console("runs", "--unknown"), console("show", "lost-1")):
                assert (shown.code, shown.err) == (0, "")
                for part in ("lose", "lost-1", call_id, "amount = 5", f"drangue outcome lost-1 {call_id} --happened"):
                    assert part in shown.out
                assert "waits for your word" in " ".join(shown.out.split())
                assert "\x1b" not in shown.out
            assert "no calls" not in console("approvals").out
            listed = [one for one in console("approvals", "--json").json if one["run_id"] == "lost-1"]
            assert [(one["call_id"], one["tool"], one["asked"]) for one in listed] == [(call_id, "lose", True)]
            rows = console("runs", "--unknown", "--json").json
            assert [(row["run_id"], row["status"], row["unknown"]) for row in rows] == [("lost-1", "paused", 1)]
            assert console("show", "lost-1", "--json").json["unknown_outcomes"] == [item]
        finally:
            fleet.client.give_outcome("lost-1", happened=True)
        assert console("runs", "--unknown") == Done(0, "no runs\n", "")

    def test_saying_what_became_of_it_lets_the_run_go_on(self, console: Console, fleet: Fleet) -> None:
        """The note is the call's result, and who looked stands in the log."""
        (item,) = moved(fleet, "lost-2", "lossy", "lose").unknown_outcomes
        said = ("outcome", "lost-2", "--happened", "--note", "entry 4711", "--by", "ann", "--reason", "asked the bank")
        done = console(*said)
        assert done == Done(0, f"lose ({item['call_id']}) of run lost-2 is recorded to have taken effect\n", "")
        (result,) = fleet.finish(["lost-2"])
        assert (result.status, result.output) == ("completed", "told: entry 4711")
        (given,) = [event.payload for event in result.events if event.type == "outcome_given"]
        assert given == {"call_id": item["call_id"], "happened": True, "by": "ann", "reason": "asked the bank"}
        again = console("outcome", "lost-2", "--happened", "--by", "ben")
        assert (again.code, again.err) == (0, "")
        assert "was said to have taken effect by ann at " in again.out
        other = console("outcome", "lost-2", item["call_id"], "--did-not-happen", "--by", "ben")
        assert (other.code, "that holds" in other.out) == (1, True)

    def test_a_run_that_went_on_without_is_told_later(self, console: Console, fleet: Fleet) -> None:
        """Where several are unknown each is named: to settle the wrong one would be to lose money twice."""
        result = moved(fleet, "lost-3", "lossy", "lose two")
        first, second = (item["call_id"] for item in result.unknown_outcomes)
        assert result.status == "completed"
        line = console("outcome", "lost-3", "--did-not-happen").one_line()
        assert first in line
        assert second in line
        assert console("outcome", "lost-3", second, "--did-not-happen").code == 0
        assert [item["call_id"] for item in fleet.client.unknown_outcomes("lost-3")] == [first]
        done = console("outcome", "lost-3", "--did-not-happen")
        assert done == Done(0, f"lose_quietly ({first}) of run lost-3 is recorded to have had no effect\n", "")
        assert fleet.client.get("lost-3").status == "completed"

    def test_a_mistake_is_one_line(self, console: Console, fleet: Fleet) -> None:
        """And changes nothing: whoever forgets to say which must not have said either."""
        moved(fleet, "known", wish="hello")
        (item,) = moved(fleet, "lost-4", "lossy", "lose").unknown_outcomes
        assert "--did-not-happen" in console("outcome", "lost-4").one_line()
        assert "no run 'nowhere'" in console("outcome", "nowhere", "--happened").one_line()
        assert "has no unknown outcome" in console("outcome", "known", "--happened").one_line()
        assert item["call_id"] in console("outcome", "lost-4", "call_of_nobody", "--happened").one_line()
        assert fleet.client.unknown_outcomes("lost-4") == [item | {"run_id": "lost-4"}]
        fleet.client.cancel("lost-4")
        fleet.client.give_outcome("lost-4", happened=False)

    def test_a_run_of_one_process_waits_for_that_process(self, console: Console, fleet: Fleet) -> None:
        """No worker goes on with it: whoever settles it is told so, as with an approval."""
        store = PostgresStore(fleet.settings.database_url)
        try:
            agent = Agent(FakeModel([[("lose", {"amount": 1})], "done"]), [lose], store=store, name="alone")
            assert agent.run_sync("go", run_id="alone").status == "paused"
            done = console("outcome", "alone", "--happened")
            assert (done.code, "resume" in done.out) == (0, True)
            assert asyncio.run(agent.resume("alone")).output == "done"
        finally:
            store.close()


class TestMigrate:
    def test_migrating_twice_changes_nothing_the_second_time(self, console: Console, empty_database: str) -> None:
        """Every deploy runs it, before anything else is there: it needs no Redis."""
        first = console("migrate", DRANGUE_DATABASE_URL=empty_database, DRANGUE_REDIS_URL="")
        again = console("migrate", DRANGUE_DATABASE_URL=empty_database)
        assert (first.code, first.err) == (again.code, again.err) == (0, "")
        assert "(before: none)" in first.out
        assert again.out == f"{first.out.partition(' (')[0]}\n"

    def test_a_database_with_tables_of_these_names_is_left_alone(self, console: Console, empty_database: str) -> None:
        """An application has its own `events`: that is one line, and nothing of it is touched."""
        with psycopg.connect(empty_database, autocommit=True) as connection:
            connection.execute("create table events (theirs text)")
            assert "events" in console("migrate", DRANGUE_DATABASE_URL=empty_database).one_line()
            assert [name for (name,) in connection.execute(TABLES)] == ["events"]
