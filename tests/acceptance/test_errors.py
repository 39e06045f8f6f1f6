"""What a person is told who did something wrong: one line that says what it is and what to do, and exit code 2.

The cases are commands that fail by themselves, so they run side by side; the tests only read what came of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from drangue_worker.testing.provider import ProviderCall, Reply
from tests.acceptance.conftest import MakeFleet, new_database
from tests.acceptance.shell import Done, celery_worker, drangue, environment, run
from tests.kit.fleet import Fleet

SECRET = "hunter2-of-the-url"
NO_POSTGRES = f"postgresql://ann:{SECRET}@127.0.0.1:1/drangue"
NO_REDIS = f"redis://:{SECRET}@127.0.0.1:1/0"

MODULES = {
    "without_agents.py": "answer = 42\n",
    "broken_import.py": "import a_module_nobody_has\n",
    "broken_name.py": "from math import a_name_nobody_has\n",
    "broken_value.py": "raise ValueError('the author made a mistake')\n",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A command, what it is told by the environment (`{...}` is filled in), and what its line must say."""

    command: list[str]
    says: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


def agents(place: str) -> dict[str, str]:
    return {"DRANGUE_AGENTS": place}


SUBMIT = drangue("submit", "careful", "hello")
RUNS = drangue("runs")
MODEL = drangue("worker", "model")
CELERY = celery_worker("-Q", "drangue.model")
WRONG_PASSWORD = {"DRANGUE_REDIS_URL": "{redis_wrong}"}
GONE = "127.0.0.1:1"

CASES = {
    # Addresses
    "no Postgres: submit": Case(SUBMIT, ("Postgres", GONE, "refused", "DRANGUE_DATABASE_URL"), {
        "DRANGUE_DATABASE_URL": NO_POSTGRES
    }),
    "no Postgres: worker": Case(MODEL, ("Postgres", GONE, "refused", "DRANGUE_DATABASE_URL"), {
        "DRANGUE_DATABASE_URL": NO_POSTGRES
    }),
    "no Postgres: migrate": Case(drangue("migrate"), ("Postgres", GONE, "refused", "DRANGUE_DATABASE_URL"), {
        "DRANGUE_DATABASE_URL": NO_POSTGRES
    }),
    "wrong Postgres password": Case(RUNS, ("Postgres", "password authentication failed", "DRANGUE_DATABASE_URL"), {
        "DRANGUE_DATABASE_URL": "{postgres_wrong}"
    }),
    "no tables: submit": Case(SUBMIT, ("no drangue tables", "drangue migrate"), {
        "DRANGUE_DATABASE_URL": "{empty_database}"
    }),
    "no tables: worker": Case(MODEL, ("no drangue tables", "drangue migrate"), {
        "DRANGUE_DATABASE_URL": "{empty_database}"
    }),
    "no Redis: worker model": Case(MODEL, ("Redis", GONE, "refused", "DRANGUE_REDIS_URL"), {
        "DRANGUE_REDIS_URL": NO_REDIS
    }),
    "wrong Redis password": Case(MODEL, ("Redis", "password", "DRANGUE_REDIS_URL"), WRONG_PASSWORD),
    "no address at all": Case(RUNS, ("DRANGUE_DATABASE_URL is not set", "drangue dev"), {
        "DRANGUE_DATABASE_URL": "", "DRANGUE_REDIS_URL": ""
    }),
    # Settings
    "malformed seconds": Case(RUNS, ("DRANGUE_LEASE_S", "'soon'"), {"DRANGUE_LEASE_S": "soon"}),
    "malformed Postgres port": Case(RUNS, ("DRANGUE_DATABASE_URL",), {
        "DRANGUE_DATABASE_URL": f"postgresql://ann:{SECRET}@host:fife/name"
    }),
    "malformed Redis port": Case(RUNS, ("DRANGUE_REDIS_URL",), {"DRANGUE_REDIS_URL": f"redis://:{SECRET}@host:six/0"}),
    "malformed Redis number": Case(SUBMIT, ("DRANGUE_REDIS_URL",), {
        "DRANGUE_REDIS_URL": f"redis://:{SECRET}@127.0.0.1:1/first"
    }),
    "unknown name": Case(RUNS, ("DRANGUE_LEASES_S is not a setting", "Did you mean DRANGUE_LEASE_S?"), {
        "DRANGUE_LEASES_S": "15"
    }),
    "contradiction": Case(RUNS, ("DRANGUE_LEASE_S (2)", "DRANGUE_SWEEP_S (1)", "Raise the one"), {
        "DRANGUE_LEASE_S": "2", "DRANGUE_SWEEP_S": "1"
    }),
    "redaction that is not there": Case(MODEL, ("DRANGUE_TRACE_REDACT", "'tests.kit.agents:msak'", "pkg.module"), {
        "DRANGUE_TRACER": "otel", "DRANGUE_TRACE_REDACT": "tests.kit.agents:msak"
    }),
    # Agents and their keys
    "no DRANGUE_AGENTS: model": Case(MODEL, ("DRANGUE_AGENTS is not set", "DRANGUE_AGENTS=shop.agents"), agents("")),
    "missing module": Case(MODEL, ("'shop.agents'", "no module"), agents("shop.agents")),
    "no module named": Case(MODEL, ("DRANGUE_AGENTS", "':clerk'"), agents(":clerk")),
    "module without agents": Case(MODEL, ("'without_agents'", "holds no Agent"), agents("without_agents")),
    "missing attribute": Case(MODEL, ("'tests.kit.agents:clerk'", "'clerk'"), agents("tests.kit.agents:clerk")),
    "no API key": Case(MODEL, ("'scripted' has no API key", "OPENAI_API_KEY", "OPENAI_BASE_URL"), {
        "OPENAI_API_KEY": "", "OPENAI_BASE_URL": ""
    }),
    # Bad input
    "wrong agent": Case(drangue("submit", "carful", "x"), ("'carful'", "careful, editor", "mean 'careful'", "--allow")),
    "unknown run: show": Case(drangue("show", "nowhere"), ("no run 'nowhere'", "drangue runs")),
    "nothing pending": Case(drangue("approve", "ended"), ("'ended' has no pending approval", "drangue approvals")),
    "wrong call": Case(drangue("approve", "waiting", "nope"), ("'nope' of run 'waiting' is not pending", "call_")),
    "bad label": Case([*SUBMIT, "--label", "team"], ("--label", "'team' is not NAME=VALUE")),
    "run id with a space": Case([*SUBMIT, "--run-id", "a run"], ("run_id is 'a run'", "without spaces")),
    "endless wait": Case([*SUBMIT, "--run-id", "endless", "--wait", "nan"], ("--wait",)),
    # Plain Celery
    "celery: malformed": Case(CELERY, ("DRANGUE_LEASE_S", "'soon'"), {"DRANGUE_LEASE_S": "soon"}),
    "celery: malformed URL": Case(CELERY, ("DRANGUE_DATABASE_URL",), {
        "DRANGUE_DATABASE_URL": f"postgresql://ann:{SECRET}@host:fife/name"
    }),
}  # fmt: skip

MISTAKES = {
    "worker: import": (MODEL, "broken_import", "No module named 'a_module_nobody_has'"),
    "worker: value": (MODEL, "broken_value", "the author made a mistake"),
    "celery: import": (CELERY, "broken_import", "No module named 'a_module_nobody_has'"),
    "celery: name": (CELERY, "broken_name", "cannot import name 'a_name_nobody_has'"),
}


CUT_OFF = {
    "cut off: submit": [*SUBMIT, "--run-id", "patient"],
    "cut off: submit --wait": [*SUBMIT, "--wait", "30"],
    "cut off: reject": drangue("reject", "judged", "--reason", "no"),
}


def script(call: ProviderCall) -> Reply:
    if call.turn == 0 and call.last_user() == "wire":
        return Reply("It is due.", tool_calls=(("wire", {"amount": 5}),))
    return Reply("done")


@pytest.fixture(scope="module")
def fleet(make_shared_fleet: MakeFleet) -> Fleet:
    """A worker, the agents that it registered, and runs of theirs that ended or wait for a person."""
    fleet = make_shared_fleet(script)
    fleet.start("model-1")
    fleet.client.submit("careful", "hello", run_id="ended")
    for run_id in ("waiting", "judged"):
        fleet.client.submit("careful", "wire", run_id=run_id)
    fleet.finish(["ended", "waiting", "judged"])
    return fleet


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Done]]]:
    """What came of the cases that this run of the suite asks for."""
    place = tmp_path_factory.mktemp("place")
    for name, source in MODULES.items():
        (place / name).write_text(source)
    postgres, redis = fleet.settings.database_url, fleet.settings.redis_url
    env = environment(place, **fleet.supervisor.env)
    with new_database(postgres) as empty_database, ThreadPoolExecutor(3) as pool:
        values = {
            "empty_database": empty_database,
            "postgres_wrong": postgres.replace(str(urlsplit(postgres).password), SECRET),
            "redis_wrong": redis.replace(str(urlsplit(redis).password), SECRET),
        }

        def start(command: list[str], **changes: str) -> Future[Done]:
            filled = {name: value.format(**values) for name, value in changes.items()}
            return pool.submit(run, command, {**env, **filled}, place, 30.0)

        wanted = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
        started = {name: start(case.command, **case.env) for name, case in CASES.items() if name in wanted}
        for name, (command, module, _) in MISTAKES.items():
            if name in wanted:
                started[name] = start(command, DRANGUE_AGENTS=module)
        for name, command in CUT_OFF.items():
            if name in wanted:
                started[name] = start(command, DRANGUE_REDIS_URL=NO_REDIS)
        yield started


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line(outcomes: dict[str, Future[Done]], name: str, fleet: Fleet) -> None:
    """Which setting, which run, which server; and what to do. No traceback: nothing is wrong with the program."""
    done = outcomes[name].result()
    line = done.one_line()
    assert [part for part in CASES[name].says if part not in line] == [], line
    passwords = [SECRET, *(urlsplit(url).password for url in (fleet.settings.database_url, fleet.settings.redis_url))]
    assert [password for password in passwords if password and password in line] == []


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_agents_module_keeps_its_traceback(outcomes: dict[str, Future[Done]], name: str) -> None:
    """The author of the module needs the line where it happened, not a verdict about DRANGUE_AGENTS."""
    _, module, message = MISTAKES[name]
    done = outcomes[name].result()
    assert done.code != 0
    assert "Traceback" in done.err, done.err
    assert f"{module}.py" in done.err
    assert message in done.err


class TestRedisAway:
    """Redis carries hints. Without it a person can do everything, and is told that it will take a moment."""

    @pytest.mark.parametrize("name", ["cut off: submit"])
    def test_a_submission_is_recorded_and_runs_by_itself(
        self, outcomes: dict[str, Future[Done]], fleet: Fleet, name: str
    ) -> None:
        """Nobody repeats anything when Redis is back: the workers, who reach it, come upon the run."""
        done = outcomes[name].result()
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith("patient  recorded; Redis cannot be reached, so it waits")
        (result,) = fleet.finish(["patient"])
        assert result.output == "done"

    @pytest.mark.parametrize("name", ["cut off: submit --wait"])
    def test_waiting_works_without_the_doorbell(self, outcomes: dict[str, Future[Done]], name: str) -> None:
        """Whoever waits looks by itself."""
        done = outcomes[name].result()
        assert (done.code, done.out.splitlines()[-1]) == (0, "done")

    @pytest.mark.parametrize("name", ["cut off: reject"])
    def test_a_verdict_is_recorded_and_the_run_goes_on(
        self, outcomes: dict[str, Future[Done]], fleet: Fleet, name: str
    ) -> None:
        """A verdict that was given must not be lost because Redis was away at that moment."""
        done = outcomes[name].result()
        assert done.code == 0
        (result,) = fleet.finish(["judged"])
        assert (result.status, result.output) == ("completed", "done")
