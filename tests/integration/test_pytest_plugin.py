"""The pytest plugin, in test runs of its own: as somebody finds it who installs drangue and runs pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

Run = Callable[..., "Outcome"]


class Outcome:
    """What came of a test run: `of` says of each test how it went, in all its phases."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.text = done.stdout + done.stderr
        self.of: dict[str, list[str]] = {}
        for word, name in re.findall(r"^(PASSED|FAILED|ERROR) \S+?::(\S+)", done.stdout, re.MULTILINE):
            self.of.setdefault(name, []).append(word)


@pytest.fixture
def run_tests(tmp_path: Path) -> Run:
    """Run a file of tests with pytest, in a process that finds the plugin by the entry point of pyproject.toml."""
    installed = tmp_path / "installed" / "drangue_under_test-1.0.dist-info"
    installed.mkdir(parents=True)
    plugins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: drangue-under-test\nVersion: 1.0\n")
    entries = "\n".join(f"{name} = {module}" for name, module in plugins.items())
    (installed / "entry_points.txt").write_text(f"[pytest11]\n{entries}\n")
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "OPENAI", "ANTHROPIC"))
    }
    keys = {"OPENAI_API_KEY": "of a person", "ANTHROPIC_API_KEY": "of a person"}
    path = os.pathsep.join([str(installed.parent), str(ROOT)])

    def run(source: str, *options: str, ini: str = "") -> Outcome:
        (tmp_path / "test_it.py").write_text(source)
        (tmp_path / "pytest.ini").write_text(f"[pytest]\nfilterwarnings = error\n{ini}\n")
        command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "test_it.py", *options]
        environment = {**clean, **keys, "PYTHONPATH": path}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return Outcome(done)

    return run


# A client of a provider elsewhere, which would not get as far as sending.
ELSEWHERE = """
class Elsewhere:
    def __init__(self, host="models.invalid"):
        self.base_url = f"http://{host}/v1"
        self.chat = self.completions = self

    async def create(self, **request):
        raise LookupError("sent")
"""

FIXTURES = """
import asyncio
import os

import pytest
from drangue_worker import Agent, AnthropicModel, InMemoryStore, NullMemory, NullTracer, OpenAIModel
from drangue_worker import SingleModel, SQLiteStore, tool
from drangue_worker.testing import FakeModel, ModelRequestForbidden, Reply

seen = []
by_name = Agent("gpt-4o", name="made before any test")

@pytest.fixture
def store():
    return "the author's own"

@pytest.fixture
def provider(store):
    return store

@tool(reversible=False)
def pay(idempotency_key: str) -> str:
    "Pays."
    seen.append(idempotency_key)
    return "paid"

def test_own_fixtures(store, provider):
    assert provider == "the author's own"

def test_script_used_up(drangue_fake_model):
    assert Agent(drangue_fake_model(["fine"])).run_sync("go").output == "fine"

def test_script_left_over(drangue_fake_model):
    assert Agent(drangue_fake_model(["fine", "never"])).run_sync("go").output == "fine"

def test_script_left_over_by_a_failure(drangue_fake_model):
    drangue_fake_model(["never"])
    assert False

@pytest.mark.xfail(strict=True)
def test_script_left_over_by_an_expected_failure(drangue_fake_model):
    drangue_fake_model(["never"])
    assert False

def test_swallowed_surprise(drangue_fake_model):
    agent = Agent(drangue_fake_model([[("pay", {})]]), [pay])
    with pytest.raises(AssertionError):
        agent.run_sync("go")

def test_lenient(drangue_fake_model):
    assert Agent(drangue_fake_model(["fine", "never"], strict=False)).run_sync("go").output == "fine"

def test_provider(drangue_provider):
    server = drangue_provider([Reply("hello")])
    outputs = [agent.run_sync("go").output for agent in (by_name, Agent(AnthropicModel("claude-x")))]
    assert outputs == ["hello", "hello"]
    assert "of a person" not in str([call.headers for call in server.calls])

def test_latest_provider(drangue_provider):
    drangue_provider([Reply("one")])
    drangue_provider([Reply("two")], keep_calls=1)
    assert by_name.run_sync("go").output == "two"

def test_environment_is_put_back():
    assert (os.environ["OPENAI_API_KEY"], "OPENAI_BASE_URL" in os.environ) == ("of a person", False)

def test_broken_script(drangue_provider):
    drangue_provider(lambda call: 1 / 0)
    with pytest.raises(Exception):
        Agent("gpt-4o", model_retries=0).run_sync("go")

def test_store(drangue_store):
    assert type(drangue_store) is InMemoryStore
    assert Agent(FakeModel(), store=drangue_store).run_sync("go", run_id="r").output == "done"

@pytest.mark.parametrize("drangue_store", ["memory", "file"], indirect=True)
def test_stores(drangue_store):
    assert Agent(FakeModel(), store=drangue_store).run_sync("go", run_id="r").output == "done"
    assert isinstance(drangue_store, (InMemoryStore, SQLiteStore))

def test_tracer(drangue_recording_tracer):
    Agent(FakeModel(), tracer=drangue_recording_tracer).run_sync("go")
    assert [name for name, attrs in drangue_recording_tracer.spans] == ["model", "run"]

def test_crash(drangue_crash_everywhere, drangue_fake_model, drangue_store):
    model = drangue_fake_model([[("pay", {})], "done"], by_turn=True)
    report = drangue_crash_everywhere(
        lambda store: Agent(model, [pay], store=store), "go", effects=lambda: seen, store=drangue_store
    )
    report.assert_clean()
    assert len(report.windows) == 18

def test_real_model():
    with pytest.raises(ModelRequestForbidden, match="would go to models.invalid"):
        Agent(OpenAIModel("gpt-4o", client=Elsewhere())).run_sync("go")

def test_real_model_by_leave(drangue_allow_model_requests):
    with pytest.raises(LookupError, match="sent"):
        Agent(OpenAIModel("gpt-4o", client=Elsewhere())).run_sync("go")

def test_checks(drangue_check, drangue_provider):
    server = drangue_provider([Reply(text="hello")])
    drangue_check.store(InMemoryStore)
    drangue_check.model(OpenAIModel("gpt-4o"))
    drangue_check.router(lambda: SingleModel(FakeModel()))
    drangue_check.memory(NullMemory)
    drangue_check.tracer(NullTracer)
    assert [call.stream for call in server.calls] == [False, True]

def test_checks_in_a_coroutine(drangue_check):
    async def test():
        drangue_check.memory(NullMemory)

    with pytest.raises(RuntimeError, match="await check_memory"):
        asyncio.run(test())
"""

ALLOWED = """
import pytest
from drangue_worker import Agent, OpenAIModel
from drangue_worker.testing import ModelRequestForbidden

def ask(host="models.invalid"):
    Agent(OpenAIModel("gpt-4o", client=Elsewhere(host))).run_sync("go")

def test_allowed():
    with pytest.raises(LookupError, match="sent"):
        ask()

def test_forbidden_here(drangue_forbid_model_requests):
    with pytest.raises(ModelRequestForbidden, match="would go to models.invalid"):
        ask()
    with pytest.raises(LookupError, match="sent"):
        ask("ollama.invalid")

def test_allowed_again():
    test_allowed()
"""


def test_a_project_that_allows_requests_forbids_them_in_a_test(run_tests: Run) -> None:
    """Its tests of real models are many, and one of them must ask none."""
    ini = "drangue_model_requests = allow\ndrangue_model_hosts = ollama.invalid"
    outcome = run_tests(ELSEWHERE + ALLOWED, ini=ini)
    assert set(map(tuple, outcome.of.values())) == {("PASSED",)}, outcome.text
    assert len(outcome.of) == 3


def test_every_fixture_does_what_it_says(run_tests: Run) -> None:
    """And leaves fixtures of the author's own, whose names are nobody's business, alone."""
    outcome = run_tests(ELSEWHERE + FIXTURES)
    failing = {name: words for name, words in outcome.of.items() if words != ["PASSED"]}
    assert failing == {
        "test_script_left_over": ["PASSED", "ERROR"],
        "test_script_left_over_by_a_failure": ["FAILED"],
        "test_swallowed_surprise": ["PASSED", "ERROR"],
        "test_broken_script": ["PASSED", "ERROR"],
    }, outcome.text
    assert len(outcome.of) == 19
    assert "1 xfailed" in outcome.text
    assert "AssertionError: response 2 was never asked for: 'never'" in outcome.text


OPTIONS = """
import pytest
from drangue_worker import Agent, OpenAIModel

def test_store(drangue_store):
    assert type(drangue_store).__name__ == "SQLiteStore"

@pytest.mark.parametrize("host", ["models.invalid", "ollama.invalid"])
def test_host(host):
    with pytest.raises(Exception) as caught:
        Agent(OpenAIModel("gpt-4o", client=Elsewhere(host))).run_sync("go")
    print("asked", host, "->", type(caught.value).__name__)
"""


@pytest.mark.parametrize(
    ("options", "ini", "forbidden"),
    [
        ([], "drangue_store = file\ndrangue_model_hosts = ollama.invalid other.invalid", {"models.invalid"}),
        (["--drangue-store=file", "--drangue-model-requests=allow"], "drangue_model_requests = loopback", set()),
        (
            ["--drangue-store=file", "--drangue-model-requests=loopback"],
            "drangue_model_requests = allow",
            {"models.invalid", "ollama.invalid"},
        ),
    ],
)
def test_options_come_from_the_configuration_and_the_command_line(
    run_tests: Run, options: list[str], ini: str, forbidden: set[str]
) -> None:
    """The command line goes first, as it does for pytest's own."""
    outcome = run_tests(ELSEWHERE + OPTIONS, *options, "-s", ini=ini)
    assert outcome.code == 0, outcome.text
    told = dict(re.findall(r"asked (\S+) -> (\S+)", outcome.text))
    hosts = {"models.invalid", "ollama.invalid"}
    assert told == {host: "ModelRequestForbidden" if host in forbidden else "LookupError" for host in hosts}


@pytest.mark.parametrize(
    ("ini", "message"),
    [
        ("drangue_model_requests = never", "drangue_model_requests is 'never'; it must be one of loopback, allow."),
        ("drangue_store = redis", "drangue_store is 'redis'; it must be memory, file or a Postgres URL."),
    ],
)
def test_an_option_that_means_nothing_is_refused(run_tests: Run, ini: str, message: str) -> None:
    """A typo must not let a test ask a paid model."""
    outcome = run_tests(ELSEWHERE + OPTIONS, ini=ini)
    assert outcome.code != 0
    assert message in outcome.text


BYSTANDER = """
import sys

def test_nothing(request):
    print("fixtures", sorted(request.fixturenames))
    print("loaded", sorted({"openai", "anthropic", "httpx2", "celery"} & set(sys.modules)))
    print("heavy", sorted({"drangue_client", "drangue_worker.public", "sqlalchemy", "redis"} & set(sys.modules)))
"""


def test_a_run_that_does_not_use_it_loads_no_sdk(run_tests: Run) -> None:
    """pytest loads every plugin of an environment, whatever is tested there."""
    outcome = run_tests(BYSTANDER, "-s", "--strict-markers", "--strict-config")
    assert outcome.code == 0, outcome.text
    assert "fixtures ['request']" in outcome.text
    assert "loaded []" in outcome.text


def test_a_run_that_does_not_use_it_loads_nothing_but_the_plugin(run_tests: Run) -> None:
    """Else half a second would be added to every test run of whoever has drangue installed."""
    assert "heavy []" in run_tests(BYSTANDER, "-s").text


def test_it_can_be_turned_off(run_tests: Run) -> None:
    """As any plugin, by its name."""
    outcome = run_tests("def test_it(drangue_store): ...", "-p", "no:drangue")
    assert outcome.of == {"test_it": ["ERROR"]}
    assert "fixture 'drangue_store' not found" in outcome.text
