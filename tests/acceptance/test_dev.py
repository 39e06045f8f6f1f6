"""`drangue dev` as somebody uses it in a project of their own, in one terminal and from others.

Starting it takes seconds, so one stays up for the whole file and a second one goes through its life once.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from drangue_worker import dev
from drangue_worker.embedded.root import home_of
from tests.acceptance.shell import Console, Done, Running, drangue, environment, running
from tests.kit.fleet import wait_until

AGENTS = '''
from drangue_worker import Agent, tool
from drangue_worker.testing.fake import FakeModel

@tool
def stock(item: str) -> int:
    """How many there are."""
    return 7

clerk = Agent(FakeModel([[("stock", {"item": "tea"})], "seven left"]), [stock], "Sell.")
'''
UP = "Ctrl-C stops it"

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")


@dataclass(frozen=True, slots=True)
class Project:
    """Somebody's folder with agents in it, and terminals there."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return environment(DRANGUE_AGENTS="shop")

    @property
    def console(self) -> Console:
        """Another terminal in the folder."""
        return Console(self.env, self.folder)

    @property
    def announcement(self) -> Path:
        return self.folder / ".drangue" / "stack.json"

    def addresses(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.announcement.read_text())
        return value

    @contextmanager
    def dev(self, name: str) -> Iterator[Running]:
        """`drangue dev` in a terminal of its own, wherever it has got to."""
        with running(drangue("dev"), self.env, self.folder, self.folder / f"{name}.out") as started:
            yield started


@pytest.fixture(scope="module")
def make_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Project]]:
    """Projects in new folders; root's databases, which are kept elsewhere, are removed in the end."""
    made: list[Project] = []

    def make(name: str) -> Project:
        made.append(Project(tmp_path_factory.mktemp(name)))
        (made[-1].folder / "shop.py").write_text(AGENTS)
        return made[-1]

    yield make
    for project in made:
        if os.geteuid() == 0:
            shutil.rmtree(home_of((project.folder / ".drangue").resolve()), ignore_errors=True)


@pytest.fixture(scope="module")
def shop(make_project: Callable[[str], Project]) -> Iterator[tuple[Project, Running]]:
    """A project whose `drangue dev` is up."""
    project = make_project("shop")
    with project.dev("dev") as dev:
        dev.waits_to_say(UP)
        yield project, dev


class TestUp:
    def test_it_says_where_everything_is(self, shop: tuple[Project, Running]) -> None:
        """Whoever wants to look into the database, or at Flower, copies the address from the terminal."""
        project, dev = shop
        said = dict(line.split(maxsplit=1) for line in dev.said().splitlines() if line[:1].isalpha())
        addresses = project.addresses()
        assert (said["Postgres"], said["Redis"]) == (addresses["database_url"], addresses["redis_url"])
        assert (said["workers"], said["agents"]) == ("model-1, tool-1", "shop")
        assert said["Flower"].startswith("http://127.0.0.1:")

    def test_its_addresses_are_its_owners_alone(self, shop: tuple[Project, Running]) -> None:
        """They hold the passwords of both servers."""
        project, dev = shop
        assert stat.S_IMODE(project.announcement.stat().st_mode) == 0o600
        assert project.addresses()["pid"] == dev.pid

    def test_another_terminal_finds_it(self, shop: tuple[Project, Running]) -> None:
        """No variable has to be set anywhere in the project, and the command says which servers it uses."""
        project, _ = shop
        done = project.console("submit", "clerk", "How much tea?", "--run-id", "tea", "--wait", "30")
        assert (done.code, done.out.splitlines()[-1]) == (0, "seven left")
        assert "drangue dev" in done.err
        below = project.folder / "src"
        below.mkdir()
        assert "tea" in Console(project.env, below)("runs").out

    def test_what_another_program_reads_stays_clean(self, shop: tuple[Project, Running]) -> None:
        """The word about the servers must not get into the JSON."""
        project, _ = shop
        assert isinstance(project.console("runs", "--json").json, list)

    def test_a_second_one_in_the_folder_is_refused(self, shop: tuple[Project, Running]) -> None:
        """Two would take each other's database; the line says that one is running."""
        project, dev = shop
        line = project.console("dev").one_line()
        assert "already running" in line
        assert str(dev.pid) in line
        assert project.addresses()["pid"] == dev.pid

    def test_a_second_one_on_other_servers_is_refused_too(self, shop: tuple[Project, Running], addresses: Any) -> None:
        """It would take the announcement away from the one that runs, and other terminals would lose it."""
        project, dev = shop
        env = environment(DRANGUE_DATABASE_URL=addresses.database_url, DRANGUE_REDIS_URL=addresses.redis_url)
        with running(drangue("dev"), env, project.folder, project.folder / "other.out") as other:
            wait_until(lambda: other.process.poll() is not None or UP in other.said(), 30)
            code, said = other.process.poll(), other.said()
        kept = project.announcement.exists() and project.addresses()["pid"] == dev.pid
        if not kept:
            put_back(project, dev)  # for the tests that follow
        assert code == 2, said
        assert "already running" in said
        assert kept


def put_back(project: Project, dev: Running) -> None:
    """The announcement as the running stack had written it."""
    said = dict(line.split(maxsplit=1) for line in dev.said().splitlines() if line[:1].isalpha())
    content = {"database_url": said["Postgres"], "redis_url": said["Redis"], "pid": dev.pid}
    project.announcement.write_text(json.dumps(content))
    project.announcement.chmod(0o600)


@dataclass
class Life:
    """What was seen of one folder's stack from its first start to its last."""

    addresses: dict[str, Any] = field(default_factory=dict)
    seen_by_the_other: list[str] = field(default_factory=list)
    interrupted: int = -1
    left_by_interrupt: dict[int, str] = field(default_factory=dict)
    announced_after_interrupt: bool = True
    asked_after_interrupt: Done | None = None
    found_again: list[tuple[str, str]] = field(default_factory=list)
    left_by_kill: dict[int, str] = field(default_factory=dict)
    asked_after_kill: Done | None = None
    interrupted_early: int = -1
    left_by_early_interrupt: dict[int, str] = field(default_factory=dict)
    said_at_early_interrupt: str = ""
    announced_in_the_end: bool = True


@pytest.fixture(scope="module")
def life(make_project: Callable[[str], Project], shop: tuple[Project, Running]) -> Life:
    """A second folder beside the first: started, used, Ctrl-C; started again, SIGKILL; and Ctrl-C while it starts."""
    project, life = make_project("life"), Life()
    with ExitStack() as stack:
        dev = stack.enter_context(project.dev("first"))
        dev.waits_to_say(UP)
        life.addresses = project.addresses()
        project.console("submit", "clerk", "How much tea?", "--run-id", "kept", "--wait", "30")
        with psycopg.connect(shop[0].addresses()["database_url"]) as connection:
            life.seen_by_the_other = [run_id for (run_id,) in connection.execute("select run_id from runs")]
        life.interrupted = dev.interrupt()
        life.left_by_interrupt = dev.family.left()
        life.announced_after_interrupt = project.announcement.exists()
        life.asked_after_interrupt = project.console("runs")

        dev = stack.enter_context(project.dev("second"))
        dev.waits_to_say(UP)
        life.found_again = [(row["run_id"], row["status"]) for row in project.console("runs", "--json").json]
        dev.kill()
        life.left_by_kill = left_after_a_while(dev)
        life.asked_after_kill = project.console("runs")

        dev = stack.enter_context(project.dev("third"))
        dev.waits_to_say("Redis ")  # the servers are up, the workers are not
        life.interrupted_early = dev.interrupt()
        life.left_by_early_interrupt = left_after_a_while(dev)
        life.said_at_early_interrupt = dev.said()
        life.announced_in_the_end = project.announcement.exists()
    return life


def left_after_a_while(dev: Running) -> dict[int, str]:
    """What still runs of a stack that was not ended in order, when its processes had the time to notice."""
    try:
        wait_until(lambda: not dev.family.left(), 10)
    except AssertionError:
        return dev.family.left()
    return {}


class TestLife:
    def test_two_folders_have_nothing_in_common(self, life: Life, shop: tuple[Project, Running]) -> None:
        """Two checkouts can be worked in at once, and neither sees the other's runs."""
        first, second = shop[0].addresses(), life.addresses
        assert first["database_url"] != second["database_url"]
        assert first["redis_url"] != second["redis_url"]
        assert "kept" not in life.seen_by_the_other

    def test_ctrl_c_stops_all_of_it(self, life: Life) -> None:
        """It is the ordinary end: exit code 0, no process left, and nobody is sent to servers that are gone."""
        assert life.interrupted == 0
        assert life.left_by_interrupt == {}
        assert not life.announced_after_interrupt

    def test_afterwards_a_command_says_how_to_start_it(self, life: Life) -> None:
        """A newcomer who forgot the other terminal must be told of it."""
        assert life.asked_after_interrupt is not None
        assert "drangue dev" in life.asked_after_interrupt.one_line()

    def test_a_second_start_finds_the_data_again(self, life: Life) -> None:
        """Runs live in the database: stopping for the night must not lose one."""
        assert life.found_again == [("kept", "completed")]

    @on_linux
    def test_nothing_outlives_a_killed_one(self, life: Life) -> None:
        """Neither servers nor workers nor Flower; and nobody is sent to them."""
        assert life.left_by_kill == {}
        assert life.asked_after_kill is not None
        assert "drangue dev" in life.asked_after_kill.one_line()

    def test_ctrl_c_while_it_starts_stops_all_of_it_too(self, life: Life) -> None:
        """Whoever notices a mistake does not wait for the start to end."""
        assert life.interrupted_early in (0, 130)
        assert life.left_by_early_interrupt == {}
        assert not life.announced_in_the_end
        assert "Traceback" not in life.said_at_early_interrupt


class TestMistakes:
    def test_agents_that_are_not_there_are_one_line(self, make_project: Callable[[str], Project]) -> None:
        """The line is about DRANGUE_AGENTS, once, and not about the workers that ended because of it."""
        line = make_project("mistake").console("dev", DRANGUE_AGENTS="nowhere.agents").one_line()
        assert "'nowhere.agents'" in line


def test_a_ctrl_c_is_not_lost_where_python_could_raise_nothing(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a signal raises in a `__del__` is printed and gone, and the command would go on starting."""

    class Leaving:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    def migrated(url: str) -> None:
        Leaving()

    monkeypatch.setenv("DRANGUE_DATABASE_URL", database_url)
    monkeypatch.setenv("DRANGUE_REDIS_URL", redis_url)
    monkeypatch.setattr(dev, "migrate", migrated)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit, match="130"):
            dev.run_dev(tmp_path, 1, 1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
