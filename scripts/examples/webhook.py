"""Approvals in a chat: a bot posts what waits to a webhook, with signed links; who opens one decides on its page.

A link is for one person, one call and the arguments that were shown, and for fifteen minutes. Opening it decides
nothing, as programs open links too: only the form on its page does. The page asks who is signed in, by a header that
the proxy before it sets, so that a link which is passed on is worth nothing to anybody else.

Nothing must run first. Without an API key a scripted model answers. It needs the extra `examples`.

    python scripts/examples/webhook.py
"""

import asyncio
import html
import json
import secrets
import tempfile
import threading
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import httpx2
from _model import MODEL, scripted
from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer

from drangue_client.errors import ChangedArgumentsError, NotPendingError, SamePersonError
from drangue_worker import Agent, Client, Settings, SQLiteStore, tool

WHO = "X-Forwarded-User"  # your proxy must set it, and must drop what a browser sends by that name
BOUND = ("run_id", "step", "arguments_hash")  # what a link is for; a step of a run is one call
CHAT = []  # what was posted, in the story below
SAFE = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the address of the page is the link
}


class Refused(Exception):
    """Why a link does not count, as a status and a sentence."""


class Desk:
    """Makes links, and serves the pages behind them. The secret must outlive restarts, or sent links are void."""

    def __init__(self, client, secret, link_s=900):
        self.client, self.link_s = client, link_s
        self.links = URLSafeTimedSerializer(secret, salt="approvals")

    def link(self, request, person, verdict):
        return self.links.dumps([{name: request[name] for name in BOUND}, person, verdict])

    def opened(self, link, person):
        """What a link is about, as it waits now, and the verdict it is for."""
        try:
            bound, owner, verdict = self.links.loads(link, max_age=self.link_s)
        except SignatureExpired:
            raise Refused(410, "This link has expired. Look at what waits with: drangue approvals") from None
        except BadSignature:
            raise Refused(403, "This link is none of ours, or somebody has changed it.") from None
        if person != owner:
            raise Refused(403, f"This link is for {owner}, and you are signed in as {person or 'nobody'}.")
        request = {one["step"]: one for one in self.client.pending_approvals(bound["run_id"])}.get(bound["step"])
        if request is None:
            raise Refused(410, "Nothing waits here any more: it was decided, or its time was over.")
        if request["arguments_hash"] != bound["arguments_hash"]:
            raise Refused(409, "Somebody has changed the arguments since. You get a new message with them.")
        return request, verdict

    def decided(self, link, person, reason):
        """Record the verdict; a sentence about it."""
        request, verdict = self.opened(link, person)
        seen = {"arguments_hash": request["arguments_hash"]} if verdict == "approve" else {}
        decide = getattr(self.client, verdict)
        try:
            done = decide(request["run_id"], request["call_id"], by=person, reason=reason, **seen)
        except (NotPendingError, ChangedArgumentsError, SamePersonError) as error:  # between the look and the word
            raise Refused(409, str(error)) from None
        return f"Recorded: {verdict}." + (f" It needs {done['missing']} more." if done["missing"] else "")

    def serving(self):
        """The pages, on a free port of this machine, for as long as the block; gives their address."""
        desk = self

        class Pages(BaseHTTPRequestHandler):
            def do_GET(self):  # must change nothing
                self.answer(lambda link, person: form(*desk.opened(link, person)))

            def do_POST(self):
                length = min(int(self.headers.get("Content-Length") or 0), 10_000)
                reason = parse_qs(self.rfile.read(length).decode(errors="replace")).get("reason", [""])[0]
                self.answer(lambda link, person: page(desk.decided(link, person, reason)))

            def answer(self, work):
                try:
                    status, body = 200, work(self.path.strip("/"), self.headers.get(WHO, ""))
                except Refused as refusal:
                    status, body = refusal.args[0], page(refusal.args[1])
                self.send_response(status)
                for name, value in {**SAFE, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_): ...  # a link does not belong into a log

        return serving(Pages)


def page(title, body=""):
    return f"<!doctype html><title>{html.escape(title)}</title><h1>{html.escape(title)}</h1>{body}".encode()


def form(request, verdict):
    """The page of a case. What models say is text, and no HTML."""
    told = html.escape(json.dumps(request, indent=2, ensure_ascii=False))
    button = f'reason: <input name="reason"> <button>{verdict}</button>'
    return page(f"{verdict}?", f'<pre>{told}</pre><form method="post">{button}</form>')


@contextmanager
def serving(handler):
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def bot(desk, address, webhook, people, timeout=None):
    """Post each request that waits to everybody, once, and again when it has changed. Yours has no timeout."""
    for request in desk.client.watch_approvals(timeout=timeout):
        for person in people:
            links = {one: f"{address}/{desk.link(request, person, one)}" for one in ("approve", "reject")}
            message = {"to": person, "text": f"{request['tool']}({request['arguments']})", **links}
            httpx2.post(webhook, json=message).raise_for_status()


@tool(reversible=False, requires_approval=True)
def pay(to: str, amount_usd: int, idempotency_key: str) -> str:
    """Pay somebody."""
    return f"paid {amount_usd} USD to {to}"


class Chat(BaseHTTPRequestHandler):
    def do_POST(self):
        CHAT.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_): ...


def visit(link, person, sent=None):
    """What a browser shows: the status and the title of a page, or of what its form sends."""
    answer = httpx2.request("GET" if sent is None else "POST", link, data=sent, headers={WHO: person})
    return f"{answer.status_code} {html.unescape(answer.text.partition('<title>')[2].partition('</title>')[0])}"


async def work(store):
    async with Agent(MODEL, [pay], "You pay what is due.", store=store) as agent:
        for run_id, wish in {"rent": "Pay the rent.", "lamp": "Pay for the lamp."}.items():
            result = await agent.run(wish, run_id=run_id)
            print(f"{run_id}  {result.status}{result.output and ': ' + result.output}")


def main(store):
    asyncio.run(work(store()))
    client = Client(Settings(redis_url="redis://127.0.0.1:1"), log=store())  # of no fleet; of yours it is Client()
    desk = Desk(client, secrets.token_bytes())
    with closing(client), serving(Chat) as webhook, desk.serving() as address:
        bot(desk, address, webhook, ["ann"], timeout=0)
        rent, lamp = CHAT
        print(f"\nthe chat tells {rent['to']}: {rent['text']}")
        print(f"  ann opens the link    {visit(rent['approve'], 'ann')}")
        print(f"  bob sends its form    {visit(rent['approve'], 'bob', {})}")
        print(f"  with another end      {visit(rent['approve'] + 'x', 'ann', {})}")
        print(f"  so there wait         {[one['run_id'] for one in client.pending_approvals()]}")
        print(f"  ann sends its form    {visit(rent['approve'], 'ann', {'reason': 'it is due'})}")
        print(f"  and once more         {visit(rent['approve'], 'ann', {})}")
        print(f"the chat tells {lamp['to']}: {lamp['text']}")
        print(f"  ann sends its form    {visit(lamp['reject'], 'ann', {'reason': 'it never came'})}\n")
    asyncio.run(work(store()))


SCRIPT = {
    "rent": [[("pay", {"to": "the landlord", "amount_usd": 900})], lambda call: f"Done: {call.results()[0]}."],
    "lamp": [[("pay", {"to": "the shop", "amount_usd": 80})], "The lamp never came, so it is not paid."],
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, scripted(SCRIPT):
        main(lambda: SQLiteStore(Path(folder) / "runs.db"))
