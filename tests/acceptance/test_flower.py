"""Flower from the shipped configuration, as docker-compose.yml starts it, in front of a fleet that works.

What its pages hold is looked at as a browser gets it: the lists, which its scripts ask for, as JSON.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from drangue_worker.testing.provider import ProviderCall, Reply
from tests.acceptance.agents import SECRET
from tests.acceptance.composed import Site, deployed, fetched
from tests.acceptance.shell import run
from tests.kit.fleet import ROOT, wait_until

# The query with which the page asks for its list.
LIST = "/tasks/datatable?draw=1&start=0&length=100&order[0][column]=0&order[0][dir]=asc&columns[0][data]=name"
PAGES = (
    "/",
    "/workers",
    "/tasks",
    "/broker",
    "/api/workers",
    "/api/tasks",
    "/api/task/types",
    "/api/queues/length",
    LIST,
)


def script(call: ProviderCall) -> Reply:
    """A model that tells a secret to a tool of each kind, to one that raises it too, and answers with it."""
    if call.turn == 0:
        return Reply(tool_calls=tuple((name, {"text": SECRET}) for name in ("tell", "tell_async", "fail")))
    return Reply(text=f"it is {SECRET}")


class Flower:
    """A running Flower, asked by whoever knows its password."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.url = f"http://127.0.0.1:{site.ports['5555']}"

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        told = self.site.variables
        return fetched(f"{self.url}{path}", told["FLOWER_USER"], told["FLOWER_PASSWORD"], method)

    def tasks(self) -> list[dict[str, Any]]:
        """The task list."""
        tasks: list[dict[str, Any]] = json.loads(self.get(LIST)[1])["data"]
        return tasks

    def worker(self, pool: str) -> str:
        """The full name of a pool's worker."""
        return next(name for name in json.loads(self.get("/api/workers")[1]) if name.startswith(pool))


@pytest.fixture(scope="module")
def flower(addresses: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """A Flower that has seen a run full of secrets from its beginning to its end."""
    with (
        deployed(addresses.database_url, tmp_path_factory.mktemp("flower"), script) as site,
        site.up("model", "tool", "flower"),
        site.client() as app,
    ):
        flower = Flower(site)
        wait_until(lambda: len(json.loads(flower.get("/api/workers?refresh=1")[1])) == 2, what="both workers are seen")
        app.submit("keeper", f"Keep {SECRET}.", run_id="secretive", tokens=True)
        assert app.result("secretive", timeout=60).status == "completed"
        wait_until(lambda: [task["state"] for task in flower.tasks()].count("SUCCESS") >= 6, what="tasks are seen")
        yield flower


def test_tasks_are_listed_by_name_and_run(flower: Flower) -> None:
    """Whoever looks for a run that hangs searches for its id; the name says what it is at."""
    tasks = flower.tasks()
    assert {task["name"] for task in tasks} == {"drangue.coordinate", "drangue.call_model", "drangue.call_tool"}
    assert {task["uuid"].split(":")[0] for task in tasks} == {"secretive"}


def test_a_worker_page_shows_its_pool_and_its_queues(flower: Flower) -> None:
    """The page that says why a queue is not served."""
    status, page = flower.get(f"/worker/{flower.worker('tool')}")
    assert status == 200
    assert "drangue.tool" in page
    assert "drangue.call_tool" in page


def test_prometheus_is_told_of_tasks_by_name(flower: Flower) -> None:
    """It may ask without the password, so there must be nothing but names and numbers."""
    status, told = fetched(f"{flower.url}/metrics")
    assert status == 200
    assert re.search(r'flower_events_total\{task="drangue.call_model",type="task-succeeded",worker="model', told)
    assert 'le="600.0"' in told


def test_nothing_of_what_was_said_is_anywhere(flower: Flower) -> None:
    """Prompts, arguments, results and errors are in Postgres alone; and no page tells a password."""
    pages = [*PAGES, *(f"/worker/{flower.worker(pool)}" for pool in ("model", "tool")), "/metrics", "/healthcheck"]
    pages += [f"/{kind}/{task['uuid']}" for task in flower.tasks() for kind in ("task", "api/task/info")]
    texts = [flower.get(page) for page in pages]
    assert [page for page, (status, _) in zip(pages, texts, strict=True) if status != 200] == []
    secrets = [value for name, value in flower.site.variables.items() if name.endswith("_PASSWORD")]
    for word in (SECRET, *secrets, flower.site.provider.base_url):
        assert [page for page, (_, text) in zip(pages, texts, strict=True) if word in text] == []


@pytest.mark.parametrize(
    "path",
    [
        "/api/worker/shutdown/{worker}",
        "/api/worker/pool/restart/{worker}",
        "/api/worker/pool/grow/{worker}?n=1",
        "/api/worker/queue/cancel-consumer/{worker}?queue=drangue.tool",
        "/api/task/revoke/{task}?terminate=true",
        "/api/task/apply/drangue.coordinate",
        "/api/task/async-apply/drangue.coordinate",
        "/api/task/send-task/drangue.coordinate",
        "/api/task/timeout/drangue.coordinate?hard=1&workername={worker}",
        "/api/task/rate-limit/drangue.coordinate?ratelimit=1&workername={worker}",
    ],
)
def test_it_changes_nothing(flower: Flower, path: str) -> None:
    """Who ends a run does so with `drangue cancel`, under a name that is recorded."""
    worker, task = flower.worker("tool"), flower.tasks()[0]["uuid"]
    assert flower.get(path.format(worker=worker, task=task), "POST")[0] == 403


@pytest.mark.parametrize("path", [*PAGES, "/task/x", "/worker/x", "/api/task/info/x", "/api/worker/shutdown/x"])
def test_without_the_password_there_is_nothing(flower: Flower, path: str) -> None:
    """A wrong one opens as little as none."""
    method = "POST" if "shutdown" in path else "GET"
    assert fetched(f"{flower.url}{path}", method=method)[0] == 401
    assert fetched(f"{flower.url}{path}", "ops", "guessed", method)[0] == 401


@pytest.mark.parametrize("name", ["FLOWER_USER", "FLOWER_PASSWORD"])
def test_it_does_not_start_without_a_password(flower: Flower, name: str) -> None:
    """Open to everyone is not a default that somebody should find out about later."""
    env = flower.site.env("flower")
    done = run(flower.site.command("flower"), {**env, name: ""}, flower.site.folder)
    assert done.code != 0
    assert name in done.err


def test_it_may_do_only_what_it_does(flower: Flower) -> None:
    """Redis refused nothing to it, so its pages lack nothing."""
    assert [line for line in flower.site.denied() if "flower" in line and not line.endswith(": command client")] == []


def test_every_option_is_one_of_flowers() -> None:
    """A name that Flower does not know is passed over in silence: `readonly = True` would protect nothing."""
    from flower.options import options

    told = ast.parse((ROOT / "ops" / "flower" / "flowerconfig.py").read_text()).body
    names = {target.id for node in told if isinstance(node, ast.Assign) for target in node.targets}
    names |= {node.name for node in told if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}
    assert names >= {"basic_auth", "read_only", "format_task"}
    assert [name for name in names if name not in options] == []
