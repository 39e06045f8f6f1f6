"""The pytest plugin: fixtures for tests of agents, and no request to a real model from any test.

pytest finds it by itself wherever drangue is installed (`-p no:drangue` turns it off). Until a test asks for a fixture
it does one thing: a call that one of drangue's model adapters would make to a host other than loopback raises
ModelRequestForbidden. What a fixture needs is imported when the fixture is asked for.

    drangue_fake_model             makes FakeModels that are strict: unused responses fail the test at its end
    drangue_provider               starts scripted Providers, to which OpenAIModel and AnthropicModel then talk
    drangue_store                  an empty store; parametrise it indirectly with "memory", "file" or a Postgres URL
    drangue_recording_tracer       a RecordingTracer
    drangue_crash_everywhere       the function of that name
    drangue_check                  the checks of what you plug in: .store, .model, .router, .memory and .tracer
    drangue_allow_model_requests   lets one test ask real models
    drangue_forbid_model_requests  keeps one test from it where drangue_model_requests is "allow"

Options, in pytest's configuration or on the command line, which goes first:

    drangue_model_requests = loopback | allow    --drangue-model-requests=...
    drangue_model_hosts = ollama                 further hosts that may be asked, separated by blanks
    drangue_store = memory | file | URL          --drangue-store=...  what drangue_store is unless parametrised
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest

from drangue_worker import asking

if TYPE_CHECKING:
    from drangue_client.store import Store
    from drangue_worker.testing import FakeModel, Provider, RecordingTracer
    from drangue_worker.testing.conformance import Checks

_REQUESTS = ("loopback", "allow")
_FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say which options there are."""
    group = parser.getgroup("drangue", "tests of durable agents")
    group.addoption(
        "--drangue-model-requests",
        choices=_REQUESTS,
        help="whom drangue's model adapters may ask in tests: this machine, or anybody (default: loopback)",
    )
    group.addoption("--drangue-store", help="what drangue_store is: memory (default), file, or a Postgres URL")
    parser.addini("drangue_model_requests", "as --drangue-model-requests", default="loopback")
    parser.addini("drangue_model_hosts", "hosts that may be asked besides loopback", type="args", default=[])
    parser.addini("drangue_store", "as --drangue-store", default="memory")


def pytest_configure(config: pytest.Config) -> None:
    """Forbid real model requests until pytest ends."""
    allowed = _option(config, "drangue_model_requests")
    if allowed not in _REQUESTS:
        raise pytest.UsageError(f"drangue_model_requests is {allowed!r}; it must be one of {', '.join(_REQUESTS)}.")
    if allowed == "allow":
        return
    hosts, before = config.getini("drangue_model_hosts"), asking.rule

    def loopback_only(client: Any) -> None:
        from drangue_worker.testing.requests import refuse_real

        refuse_real(client, hosts)

    def put_back() -> None:
        asking.rule = before

    asking.rule = loopback_only
    config.add_cleanup(put_back)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Note that a test has failed: what it did not come to is no second failure."""
    if call.when == "call" and call.excinfo is not None:
        item.stash[_FAILED] = True


@pytest.fixture
def drangue_fake_model(request: pytest.FixtureRequest) -> Iterator[Callable[..., FakeModel]]:
    """`drangue_fake_model([...])` is a FakeModel, strict unless told otherwise: a test that passed with responses left
    over, or with calls that found none, fails at its end."""
    from drangue_worker.testing import FakeModel

    made: list[FakeModel] = []

    def make(responses: Any = None, *, strict: bool = True, **options: Any) -> FakeModel:
        made.append(FakeModel(responses, strict=strict, **options))
        return made[-1]

    yield make
    if not request.node.stash.get(_FAILED, False):
        for model in made:
            if model.strict:
                model.verify()


@pytest.fixture
def drangue_provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Provider]]:
    """`drangue_provider([Reply("hello")])` starts a Provider, stopped after the test, which fails if its script raised.

    OPENAI_BASE_URL and ANTHROPIC_BASE_URL lead to the latest one while the test lasts, and the API keys are no real
    ones: agents need no change. A model that was given a `base_url` or a `client` is not led there.
    """
    from drangue_worker.testing import Provider

    with ExitStack() as started:

        def start(script: Any, **options: Any) -> Provider:
            provider = started.enter_context(Provider(script, **options))
            for name, url in (("OPENAI", provider.base_url), ("ANTHROPIC", provider.anthropic_base_url)):
                monkeypatch.setenv(f"{name}_BASE_URL", url)
                monkeypatch.setenv(f"{name}_API_KEY", "scripted")
            return provider

        yield start


@pytest.fixture
def drangue_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store, closed after the test; on Postgres, which must be migrated, it holds what was there before.

    `@pytest.mark.parametrize("drangue_store", ["memory", "file", POSTGRES_URL], indirect=True)`.
    """
    from drangue_client.store import InMemoryStore, PostgresStore, SQLiteStore

    where = getattr(request, "param", None) or _option(request.config, "drangue_store")
    if where == "memory":
        made: Any = InMemoryStore()
    elif where == "file":
        made = SQLiteStore(request.getfixturevalue("tmp_path") / "runs.db")
    elif "://" in where:
        made = PostgresStore(where)
    else:
        raise pytest.UsageError(f"drangue_store is {where!r}; it must be memory, file or a Postgres URL.")
    with closing(made):
        yield made


@pytest.fixture
def drangue_recording_tracer() -> RecordingTracer:
    """A tracer that keeps every span."""
    from drangue_worker.testing import RecordingTracer

    return RecordingTracer()


@pytest.fixture
def drangue_crash_everywhere() -> Callable[..., Any]:
    """`crash_everywhere`, for a test that is no coroutine."""
    from drangue_worker.testing import crash_everywhere

    return crash_everywhere


@pytest.fixture
def drangue_check() -> Checks:
    """The conformance checks, for a test that is no coroutine: `drangue_check.store(MyStore)`, `.router(MyRouter)`,
    `.memory(MyMemory)`, `.tracer(MyTracer)`, which are given factories, and `.model(my_model)`, which closes it."""
    from drangue_worker.testing.conformance import Checks

    return Checks()


@pytest.fixture
def drangue_allow_model_requests() -> Iterator[None]:
    """Real models may be asked while the test lasts."""
    from drangue_worker.testing import allow_model_requests

    with allow_model_requests():
        yield


@pytest.fixture
def drangue_forbid_model_requests(request: pytest.FixtureRequest) -> Iterator[None]:
    """No model may be asked while the test lasts, but on loopback and `drangue_model_hosts`, whatever is configured."""
    from drangue_worker.testing import forbid_model_requests

    with forbid_model_requests(hosts=request.config.getini("drangue_model_hosts")):
        yield


def _option(config: pytest.Config, name: str) -> Any:
    return config.getoption(name) or config.getini(name)
