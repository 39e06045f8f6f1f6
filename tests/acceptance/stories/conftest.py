"""The examples, started together: most take a moment, and one waits for a dead process's claim.

In OpenAI's format each is a process of its own, started by the command in its docstring; in Anthropic's they share one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.acceptance.shell import Done
from tests.acceptance.stories.newcomer import FILES, FOLDER, Newcomer, Shown, commands_of

STACKED = ("fleet", "fastapi_app", "django_app")  # which need servers and workers
ALONE = [name for name in FILES if name not in STACKED]
TOGETHER = [name for name in ALONE if name not in ("own_model", "durable")]  # no provider; processes of its own

ONE_AFTER_THE_OTHER = """
import contextlib, io, json, runpy, sys, traceback
printed = {}
for path in sys.argv[1:]:
    sys.argv = [path, "--provider", "anthropic"]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            runpy.run_path(path, run_name="__main__")
        except BaseException:
            traceback.print_exc(file=output)
    printed[path] = output.getvalue()
print(json.dumps(printed))
"""


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Done]]]:
    """The examples by name, and as `anthropic` all that let one choose."""
    newcomer = Newcomer.at(tmp_path_factory.mktemp("checkout"))
    together = [sys.executable, "-c", ONE_AFTER_THE_OTHER, *(str(FILES[name]) for name in TOGETHER)]
    with ThreadPoolExecutor(4) as pool:
        jobs = {"anthropic": pool.submit(newcomer.types, together, FOLDER)}
        for name in sorted(ALONE, key=lambda name: name != "durable"):  # the slowest first
            jobs[name] = pool.submit(newcomer.types, commands_of(name)[0])
        yield jobs
        pool.shutdown(cancel_futures=True)
    assert [path.name for path in newcomer.folder.iterdir()] == ["scripts"], "an example leaves something behind"


Show = Callable[[str], Shown]


@pytest.fixture(params=["openai", "anthropic"])
def show(request: pytest.FixtureRequest, started: dict[str, Future[Done]]) -> Show:
    """What an example shows, in each wire format."""
    wire = request.param

    def of(name: str) -> Shown:
        done = started[name if wire == "openai" else "anthropic"].result()
        assert done.code == 0, done.err
        return Shown.read(done.out if wire == "openai" else json.loads(done.out)[str(FILES[name])], wire)

    return of
