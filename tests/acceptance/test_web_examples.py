"""The web applications among the examples, as real server processes on a real fleet, by HTTP alone.

The fleet and the servers stay up for the whole file. Between the applications and Redis is a wire that can be cut.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from drangue_worker.testing.provider import ProviderCall, Reply
from tests.acceptance.shell import Running, environment, running
from tests.acceptance.stories.newcomer import FOLDER
from tests.kit.fleet import Fleet, wait_until
from tests.kit.site import Sent, Site, Web, run_of
from tests.kit.tcp import Wire

NAMES = ("fastapi_app", "django_app")
KEEP_ALIVE_S = 0.3
SIGNED_IN = {"X-User": "ann"}
ANSWER = "It is well again."


@dataclass
class Script:
    """A model that can be told to wait, and what it says to each kind of ticket."""

    free: threading.Event = field(default_factory=threading.Event)  # unset while it has to wait

    async def __call__(self, call: ProviderCall) -> Reply:
        await asyncio.to_thread(self.free.wait)
        ticket = call.messages[-1 - 2 * call.turn]["content"]
        if "endless" in ticket:
            return Reply(text="and so on " * 1000, chunk_delay_s=0.5)
        if "mend" in ticket and call.turn < 2:
            return Reply(tool_calls=((("error_rate", "restart")[call.turn], {"service": "checkout"}),))
        return Reply(text=ANSWER)


@pytest.fixture(scope="module")
def script() -> Script:
    return Script()


@pytest.fixture(autouse=True)
def _answering(script: Script) -> Iterator[None]:
    """The model answers, unless a test makes it wait."""
    script.free.set()
    yield
    script.free.set()


@pytest.fixture(scope="module")
def fleet(servers: Any, script: Script, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    agents = ("tests.kit.web_agents",)
    with Fleet(servers.database_url, servers.redis_url, folder, script, agents=agents) as made:
        made.execute("drop table if exists example_tickets")
        made.start("model-1", "tool-1")
        yield made


@pytest.fixture(scope="module")
def redis_by_wire(fleet: Fleet) -> Iterator[tuple[Wire, str]]:
    """A wire between the applications and Redis, and the address at its end."""
    wire, url = Wire.to(fleet.settings.redis_url, 6379)
    with wire:
        yield wire, url


def serve(name: str, fleet: Fleet, redis_url: str, folder: Path, stack: ExitStack) -> tuple[Running, Site]:
    """Start an application as its server is started anywhere, and return it when it answers."""
    env = environment(
        FOLDER,
        DRANGUE_DATABASE_URL=fleet.settings.database_url,
        DRANGUE_REDIS_URL=redis_url,
        KEEP_ALIVE_S=str(KEEP_ALIVE_S),
        PYTHONWARNINGS="error",
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    commands = {
        "fastapi_app": ["-m", "uvicorn", "tests.kit.watched_app:app", "--host", "127.0.0.1", "--port", str(port)],
        "django_app": [str(FOLDER / "django_app.py"), "runserver", "--noreload", f"127.0.0.1:{port}"],
    }
    server = stack.enter_context(running([sys.executable, *commands[name]], env, folder, folder / f"{name}.log"))
    http = stack.enter_context(httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))

    def answers() -> bool:
        assert server.process.poll() is None, server.said()
        try:
            http.headers["X-CSRFToken"] = http.get("/").cookies.get("csrftoken", "")
        except httpx2.TransportError:
            return False
        return True

    wait_until(answers, what=f"{name} answers: {server.said()}")
    return server, Site(http, server.pid)


@pytest.fixture(scope="module")
def sites(
    fleet: Fleet, redis_by_wire: tuple[Wire, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Site]]:
    folder = tmp_path_factory.mktemp("sites")
    with ExitStack() as stack:
        yield {name: serve(name, fleet, redis_by_wire[1], folder, stack)[1] for name in NAMES}


@pytest.fixture(params=NAMES)
def web(request: pytest.FixtureRequest, sites: dict[str, Site]) -> Web:
    return Web(sites[request.param], "data" if request.param == "django_app" else "json")


def logged(sent: list[Sent]) -> list[tuple[str | None, str, int | None]]:
    """The place, the kind and the step of what was sent of the log."""
    return [(one.id, one.event, one.json["step"]) for one in sent if one.event != "model_delta"]


def recorded(fleet: Fleet, path: str, after: int = -1) -> list[tuple[str | None, str, int | None]]:
    """The same of what the log holds."""
    return [(str(event.seq), event.type, event.step) for event in fleet.client.events(run_of(path), after)]


def own_connections(fleet: Fleet) -> int:
    """How many connections to Postgres the applications hold besides drangue's."""
    return int(fleet.execute("select count(*) from pg_stat_activity where application_name = ''")[0][0])


def test_a_ticket_and_its_run_are_there_or_neither_is(web: Web, fleet: Fleet) -> None:
    """The second ticket fails after its run was submitted; a run without a ticket would act for nobody."""
    path = web.ticket("is it well?")
    run = fleet.client.get(run_of(path))
    assert (run.agent, run.labels) == ("oncall", {"author": "ann"})
    before = fleet.execute("select count(*) from runs"), fleet.execute("select count(*) from example_tickets")
    again = web.post("/tickets", text=f"is it well? ({web.takes})")
    assert (again.status_code, again.json()) == (409, {"detail": "you have said so already"})
    assert (fleet.execute("select count(*) from runs"), fleet.execute("select count(*) from example_tickets")) == before
    assert web.watch(path)[-1].event == "run_finished"
    told = web.look(path)
    assert (told["status"], told["answer"], told["waiting"]) == ("completed", ANSWER, [])


def test_a_cut_connection_is_taken_up_without_a_gap_or_a_double(web: Web, fleet: Fleet, script: Script) -> None:
    """A browser comes back with the id of the last event it has seen, wherever it was cut off."""
    script.free.clear()
    path = web.ticket("is it well, at last?")
    with web.site.events(path) as sent:
        first = next(one for one in sent if one.event)
    script.free.set()
    rest = web.watch(path, after=int(first.id or ""))
    assert logged([first, *rest]) == recorded(fleet, path)
    assert {one.id for one in rest if one.event == "model_delta"} == {None}
    assert "".join(one.json["text"] for one in rest if one.event == "model_delta") == ANSWER
    assert not [one for one in (first, *rest) if "Look before you act" in one.data]  # as run_started has it
    for place in range(len(recorded(fleet, path)) - 1):
        assert logged(web.watch(path, after=place)) == recorded(fleet, path, place)
    last = {**SIGNED_IN, "Last-Event-ID": recorded(fleet, path)[-1][0] or ""}
    over = web.site.http.get(f"{path}/events", headers=last)
    assert (over.status_code, over.content) == (204, b"")  # by which a browser knows that it need not come back


def test_an_answer_is_shown_while_it_is_being_written(web: Web, fleet: Fleet) -> None:
    """It would take minutes to its end, so what is shown is shown before; the stream ends when the run is ended."""
    path = web.ticket("tell an endless story")
    with web.site.events(path) as sent:
        pieces = (one for one in sent if one.event == "model_delta")
        started = [next(pieces).json for _ in range(3)]
        assert [piece["index"] for piece in started] == [0, 1, 2]
        assert fleet.client.cancel(run_of(path))
        rest = [one for one in sent if one.event]
    ended = [one.event for one in rest if one.event != "model_delta"]
    assert ended in (["run_cancelled"], ["run_cancelled", "step_stopped"])  # the call may have heard of it by then
    indexes = [one.json["index"] for one in rest if one.event == "model_delta"]
    assert indexes == [*range(3, 3 + len(indexes))]  # a keep-alive in between neither repeats nor skips one


def test_who_approves_is_recorded_and_nobody_counts_twice(web: Web, fleet: Fleet) -> None:
    """By the name of whoever is signed in; the call is made once two of them have seen it as it is."""
    path = web.ticket("mend it")
    before = web.watch(path)
    assert before[-1].event == "approval_requested"
    (asked,) = web.look(path)["waiting"]
    assert (asked["tool"], asked["arguments"], asked["people"]) == ("restart", {"service": "checkout"}, 2)
    seen = {"call_id": asked["call_id"], "arguments_hash": asked["arguments_hash"]}
    approve = f"{path}/approve"
    first = web.post(approve, "ann", **seen, reason="seen it hang")
    assert (first.status_code, first.json()) == (200, {"tool": "restart", "by": "ann", "missing": 1})
    assert web.post(approve, "ann", **seen).status_code == 409
    assert web.post(approve, "bob", **{**seen, "arguments_hash": "another"}).status_code == 409
    assert fleet.effects("restart").count(f"{run_of(path)}:4") == 0
    assert web.post(approve, "bob", **seen).json()["missing"] == 0
    assert web.post(approve, "cid", **seen).status_code == 409
    after = web.watch(path, after=int(before[-1].id or ""))
    assert logged([*before, *after]) == recorded(fleet, path)
    granted = [one.json for one in after if one.event == "approval_granted"]
    assert [(one["by"], one["reason"]) for one in granted] == [("ann", "seen it hang"), ("bob", "")]
    assert fleet.effects("restart").count(f"{run_of(path)}:4") == 1
    assert web.look(path)["status"] == "completed"


def test_bad_input_is_told_from_what_is_not_there(web: Web, fleet: Fleet) -> None:
    """One status for each kind of mistake, and none of them reaches the log."""
    before = fleet.execute("select count(*) from runs")
    for text in ("", "   ", "a\0b", "x" * 2001):
        assert web.post("/tickets", text=text).status_code == 422, repr(text)
    assert web.post("/tickets").status_code == 422
    assert web.post("/tickets", user="", text="who am I?").status_code == 401
    assert fleet.execute("select count(*) from runs") == before
    path = web.ticket("is it well, do you think?")
    web.watch(path)
    for place in ("-2", "x", "1.5", "9" * 30):
        headers = {**SIGNED_IN, "Last-Event-ID": place}
        assert web.site.http.get(f"{path}/events", headers=headers).status_code == 422, place
    seen = {"call_id": "call_1", "arguments_hash": "0"}
    assert web.post(f"{path}/approve", **seen).status_code == 409
    assert web.post(f"{path}/approve", call_id="call_1").status_code == 422
    assert web.post(f"{path}/approve", user="", **seen).status_code == 401
    for page in (path, f"{path}/events", "/tickets/nonesuch"):
        assert web.site.http.get(page).status_code == 401, page
    fleet.execute("delete from runs where run_id = %s", run_of(path))  # as when it is pruned
    for nowhere in ("/tickets/nonesuch", "/tickets/%00", path):
        assert web.site.http.get(nowhere, headers=SIGNED_IN).status_code == 404
        assert web.site.http.get(f"{nowhere}/events", headers=SIGNED_IN).status_code == 404
        assert web.post(f"{nowhere}/approve", **seen).status_code == 404


def test_a_form_of_another_site_is_refused(sites: dict[str, Site]) -> None:
    """Whoever is signed in must not submit or approve by looking at somebody's page."""
    web = Web(sites["django_app"], "data")
    for path in ("/tickets", "/tickets/nonesuch/approve"):
        forged = web.site.http.post(path, data={"text": "pay me"}, headers={"X-User": "ann", "X-CSRFToken": ""})
        assert forged.status_code == 403


def test_a_ticket_is_taken_and_shown_while_redis_is_away(
    web: Web, fleet: Fleet, redis_by_wire: tuple[Wire, str]
) -> None:
    """Redis carries hints and pieces of answers; what is recorded needs neither."""
    wire, _ = redis_by_wire
    wire.refuse()
    try:
        path = web.ticket("mend it, without Redis")
        before = web.watch(path)
        assert before[-1].event == "approval_requested"
        (asked,) = web.look(path)["waiting"]
        seen = {"call_id": asked["call_id"], "arguments_hash": asked["arguments_hash"]}
        assert [web.post(f"{path}/approve", user, **seen).status_code for user in ("ann", "bob")] == [200, 200]
        after = web.watch(path, after=int(before[-1].id or ""))
    finally:
        wire.restore()
    assert "model_delta" not in {one.event for one in (*before, *after)}
    assert logged([*before, *after]) == recorded(fleet, path)


def test_a_reader_that_goes_away_leaves_nothing_behind(web: Web, fleet: Fleet, script: Script) -> None:
    """Else a server that is watched by people who come and go fills up with readers that nobody is."""
    django = web.takes == "data"

    def busy() -> int:
        return web.site.threads if django else len(web.site.http.get("/tasks").json())

    script.free.clear()
    path = web.ticket("is it well, and who asks?")
    with web.site.events(path) as sent:
        next(one for one in sent if one.event)
        comments = (one for one in sent if not one.event)
        assert any("keep-alive" in one.data or "ping" in one.data for one in comments)
    before = own_connections(fleet)
    with ExitStack() as stack:
        readers = [stack.enter_context(web.site.events(path)) for _ in range(4)]
        for sent in readers:
            next(sent)
        watched = busy()
        wait_until(lambda: own_connections(fleet) <= before, what=f"{before} connections while somebody watches")
    wait_until(lambda: busy() <= watched - len(readers), what=f"{watched} become fewer")
    assert web.look(path)["status"] == "running"


def test_a_server_that_is_stopped_does_not_wait_for_its_readers(
    fleet: Fleet, redis_by_wire: tuple[Wire, str], script: Script, tmp_path: Path
) -> None:
    """A deploy must not hang until the last run that somebody watches has ended."""
    with ExitStack() as stack:
        server, site = serve("fastapi_app", fleet, redis_by_wire[1], tmp_path, stack)
        script.free.clear()
        path = Web(site, "json").ticket("is it well, before you go?")
        with site.events(path) as sent:
            next(one for one in sent if one.event)
            server.terminate()
            with pytest.raises(httpx2.RemoteProtocolError):  # cut, so that a browser comes back to the next server
                list(sent)
        assert "Application shutdown complete" in server.said()
        assert "Traceback" not in server.said(), server.said()
