"""What the two web examples share: the stack they run on, and a person who uses them over HTTP."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import httpx2
from _model import scripted
from fleet import SCRIPT

from drangue_client import Client, Settings
from drangue_worker.dev import start_servers, start_workers, wait_for_workers
from drangue_worker.supervisor import Supervisor, following

HERE = Path(__file__).parent
START_S = 60.0
TRY = {
    "json": """curl -H X-User:me --json '{{"text": "Checkout is slow. Mend it."}}' {url}/tickets""",
    "data": """curl -c cookies {url}
token=$(awk '/csrftoken/ {{print $7}}' cookies)
curl -b cookies -H X-User:me -H X-CSRFToken:$token -d text='Checkout is slow. Mend it.' {url}/tickets""",
}


def run(name: str, takes: str, command: Callable[[int], Sequence[str]]) -> None:
    """Serve what `command` starts on a port, on a stack of its own; tell its story, or with `--serve` go on serving.

    The stack is Postgres and Redis, unless the environment names them, and two workers that serve the agent of `fleet`.
    It takes what is posted as "json", or as "data" of a form.
    """
    folder = Path.cwd() / ".drangue" / name
    with ExitStack() as stack:
        stack.enter_context(scripted(SCRIPT))
        settings = replace(start_servers(Settings.from_env(), folder, stack), agents=("fleet",))
        places = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]  # where workers find `fleet`
        env = {**settings.to_env(), "PYTHONPATH": os.pathsep.join(places)}
        workers = Supervisor(env, log_folder=folder / "logs", grace_s=2.0)
        stack.callback(workers.stop)
        names = start_workers(workers, 1, 1)
        port = _free_port()
        web = Supervisor(env, log_folder=None if "--serve" in sys.argv else folder / "logs", grace_s=2.0)
        stack.callback(web.stop)
        server = web.start("web", following(command(port)))  # loads its libraries while the workers load theirs
        wait_for_workers(settings, names, workers)
        url = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=url, headers={"X-User": "ann"}, timeout=60) as http:
            _wait_for(http, lambda: server.process.poll() is None)
            if "--serve" in sys.argv:
                print(f"{url} is served until Ctrl-C; the workers' logs are in {folder}/logs. From another terminal:")
                print(TRY[takes].format(url=url))
                print(f"curl -N -H X-User:me {url}/tickets/ID/events\n", flush=True)
                web.run()
                return
            with closing(Client(settings)) as client:
                _story(http, client, takes)


def _story(http: httpx2.Client, client: Client, takes: str) -> None:
    http.headers["X-CSRFToken"] = http.get("/").cookies.get("csrftoken", "")  # Django asks for it, FastAPI does not
    text = f"Checkout is slow. Mend it. (alarm {secrets.token_hex(4)})"
    created = http.post("/tickets", **{takes: {"text": text}})
    path = created.headers["location"]
    print(f"POST /tickets         {created.status_code} {created.json()['status']}")
    place = _follow(http, path, -1)
    (asked,) = http.get(path).json()["waiting"]
    print(f"GET  /tickets/ID      paused: {asked['tool']}({asked['arguments']}) waits for a person")
    seen = {"call_id": asked["call_id"], "arguments_hash": asked["arguments_hash"], "reason": "seen it hang"}
    approved = http.post(f"{path}/approve", **{takes: seen})
    print(f"POST .../approve      {approved.status_code} by {approved.json()['by']}")
    _follow(http, path, place)
    print(f"POST .../approve      {http.post(f'{path}/approve', **{takes: seen}).status_code} once more")
    ticket = http.get(path).json()
    print(f"GET  /tickets/ID      {ticket['status']}: {ticket['answer']}")
    again = http.post("/tickets", **{takes: {"text": text}})
    runs = [run.run_id for run in client.runs() if run.input == text]
    print(f"POST /tickets         {again.status_code} for the same once more; runs of it: {len(runs)}")


def _follow(http: httpx2.Client, path: str, place: int) -> int:
    """Print a live run from behind a place of its log, as an EventSource in a browser would read it; where it ends."""
    print(f"GET  .../events       after {place}: ", end="")
    with http.stream("GET", f"{path}/events", headers={"Last-Event-ID": str(place)}) as answer:
        kind = ""
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                place = int(value)
            elif name == "event":
                kind = value
            elif name == "data":
                text = json.loads(value)["text"] if kind == "model_delta" else f"[{kind}] "
                print(text, end="", flush=True)
    print()
    return place


def _wait_for(http: httpx2.Client, lives: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            http.get("/")
        except httpx2.TransportError:
            if not lives() or time.monotonic() > deadline:
                raise SystemExit("the server did not start; its output, or logs/web.log, says why") from None
            time.sleep(0.05)
        else:
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
