"""Django: a ticket and its run are one commit, the run is shown live, and a person who is signed in approves.

Sync views under WSGI, as most of Django is served. Whoever watches a run holds a thread of the server as long as the
run goes on: give it as many as you have readers (`gunicorn --worker-class gthread --threads 50`), or let an application
like `fastapi_app.py` serve the streams, where a reader costs a task. A reader that has gone is noticed when something
is sent to it, so its thread is free two keep-alives later at the latest.

Nothing must run first: the command starts Postgres, Redis and two workers, serves the application on a free port, uses
it over HTTP and ends; with `--serve` it goes on serving. Without an API key a scripted model answers. It needs the
extra `examples`: `pip install -e ".[examples]"`. On a stack of yours it is `python django_app.py runserver`.

    python scripts/examples/django_app.py
"""

import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from functools import cache, wraps
from uuid import uuid4

import django
from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.db import IntegrityError, connection, models, transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.middleware.csrf import get_token
from django.shortcuts import get_object_or_404
from django.urls import path
from django.utils.html import format_html
from django.views.decorators.http import require_GET, require_POST
from sqlalchemy import make_url

from drangue_client import Client, Event, Result
from drangue_client.errors import (
    ChangedArgumentsError,
    NotPendingError,
    SamePersonError,
    UnknownRunError,
    WaitTimeout,
)

KEEP_ALIVE_S = float(os.environ.get("KEEP_ALIVE_S", "15"))  # less than any proxy on the way waits for a byte
MOVING = ("queued", "running")
SHOWN = ("text", "index", "attempt", "tool", "call_id", "by", "reason", "output", "error")
REFUSED = {
    NotPendingError: "this call does not wait for anybody; look at the ticket again",
    SamePersonError: "you have agreed already; somebody else must agree too",
    ChangedArgumentsError: "the call has been changed since you saw it; look at the ticket again",
}
PLACE = make_url(os.environ.get("DRANGUE_DATABASE_URL", "postgresql:///"))  # the same as the runs': one transaction

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": PLACE.database or "",
            "USER": PLACE.username or "",
            "PASSWORD": PLACE.password or "",
            "HOST": PLACE.host or PLACE.query.get("host", ""),
            "PORT": PLACE.port or "",
        }
    },
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["console"], "level": "WARNING"},
    },
    MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=secrets.token_hex(),
    USE_TZ=True,
)
django.setup()


class Ticket(models.Model):
    """What somebody wants done. Its id is its run's, too."""

    id = models.CharField(primary_key=True)
    author = models.CharField()
    text = models.CharField()

    class Meta:
        app_label = "tickets"
        db_table = "example_tickets"
        constraints = [models.UniqueConstraint(fields=["author", "text"], name="example_tickets_once")]  # noqa: RUF012


class NewTicket(forms.Form):
    text = forms.CharField(max_length=2000)


class Seen(forms.Form):
    """The request that a person has seen, and agrees to. What anybody changed meanwhile is not agreed to."""

    call_id = forms.CharField()
    arguments_hash = forms.CharField()
    reason = forms.CharField(required=False)


@cache
def client() -> Client:
    """One for each process, made when it is first needed: after a server has forked its workers."""
    return Client()


def signed_in(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Asks who it is; who may see which ticket is for your application to say.

    The header stands for your login, be it a session, a token, or a proxy that checks one.
    """

    @wraps(view)
    def asked(request: HttpRequest, **given: str) -> HttpResponseBase:
        user = request.headers.get("X-User", "")
        return view(request, user, **given) if user else said(401, "sign in first: X-User says who you are")

    return asked


def said(status: int, detail: object) -> JsonResponse:
    return JsonResponse({"detail": detail}, status=status)


def found(ticket_id: str) -> tuple[Ticket, str]:
    """A ticket and how its run stands. 404 also for one whose run is kept no more."""
    ticket = get_object_or_404(Ticket, id=ticket_id)
    try:
        return ticket, client().get(ticket.id).status
    except UnknownRunError as error:
        raise Http404(str(error)) from None


PAGE = """<!doctype html><title>Tickets</title><form action="/tickets" method="post">
<input type="hidden" name="csrfmiddlewaretoken" value="{}"><input name="text"><button>Send</button></form>"""


@require_GET
def page(request: HttpRequest) -> HttpResponse:
    """The form, with the token by which Django knows that a post comes from here."""
    return HttpResponse(format_html(PAGE, get_token(request)))


@require_POST
@signed_in
def create(request: HttpRequest, user: str) -> HttpResponse:
    """The ticket and its run are both there or neither is; the workers find the run about a second after the commit."""
    form = NewTicket(request.POST)
    if not form.is_valid():
        return said(422, form.errors)
    text, ticket_id = form.cleaned_data["text"], uuid4().hex
    try:
        with transaction.atomic():
            labels = {"author": user}
            client().submit("oncall", text, run_id=ticket_id, labels=labels, tokens=True, connection=connection)
            Ticket.objects.create(id=ticket_id, author=user, text=text)
    except IntegrityError:  # and the run that was submitted is none
        return said(409, "you have said so already")
    told = {"id": ticket_id, "status": "queued"}
    return JsonResponse(told, status=201, headers={"Location": f"/tickets/{ticket_id}"})


@require_GET
@signed_in
def show(request: HttpRequest, user: str, ticket_id: str) -> HttpResponse:
    """How it stands, without waiting for anything."""
    ticket, _ = found(ticket_id)
    run = Result.from_events(ticket.id, client().events(ticket.id))
    told = {"id": ticket.id, "author": ticket.author, "text": ticket.text, "status": run.status, "answer": run.output}
    return JsonResponse({**told, "waiting": run.pending_approvals})


@require_GET
@signed_in
def events(request: HttpRequest, user: str, ticket_id: str) -> HttpResponseBase:
    """The run as it goes, until it ends or waits for a person. 204 tells a browser to stop asking for more."""
    ticket, status = found(ticket_id)
    try:
        after = forms.IntegerField(min_value=-1, max_value=2**31).clean(request.headers.get("Last-Event-ID", "-1"))
    except ValidationError as error:
        return said(422, {"Last-Event-ID": error.messages})
    if status not in MOVING and not client().events(ticket.id, after=after):
        return HttpResponse(status=204)
    connection.close()  # else this thread holds one, unused, as long as somebody watches
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingHttpResponse(sent(ticket.id, after), content_type="text/event-stream", headers=headers)


def sent(run_id: str, after: int) -> Iterator[str]:
    """Only what is in the log has an id to resume from: pieces of an answer come again from the first one of their
    step."""
    piece = shown = (0, 0, -1)
    yield ":\n\n"  # the headers go with the first bytes
    while True:
        try:
            for event in client().stream(run_id, after=after, timeout=KEEP_ALIVE_S):
                if event.seq >= 0:
                    after = event.seq
                    yield written(event)
                    continue
                piece = (event.payload["step"], event.payload["attempt"], event.payload["index"])
                if piece > shown:  # a stream that is taken up again shows an answer from its beginning
                    shown = piece
                    yield written(event)
        except WaitTimeout:
            yield ": keep-alive\n\n"
        else:
            return


def written(event: Event) -> str:
    """What leaves the house. The log holds more: instructions, schemas, what tools answered."""
    shown = {"step": event.step} | {name: event.payload[name] for name in SHOWN if name in event.payload}
    place = f"id: {event.seq}\n" if event.seq >= 0 else ""
    return f"{place}event: {event.type}\ndata: {json.dumps(shown)}\n\n"


@require_POST
@signed_in
def approve(request: HttpRequest, user: str, ticket_id: str) -> HttpResponse:
    """Who may approve what is for your application to say, here; drangue records the name and counts heads."""
    (ticket, _), seen = found(ticket_id), Seen(request.POST)
    if not seen.is_valid():
        return said(422, seen.errors)
    try:
        call = client().approve(ticket.id, by=user, **seen.cleaned_data)
    except (NotPendingError, SamePersonError, ChangedArgumentsError) as error:
        return said(409, REFUSED[type(error)])
    return JsonResponse({"tool": call["tool"], "by": user, "missing": call["missing"]})


urlpatterns = [
    path("", page),
    path("tickets", create),
    path("tickets/<slug:ticket_id>", show),
    path("tickets/<slug:ticket_id>/events", events),
    path("tickets/<slug:ticket_id>/approve", approve),
]
application = get_wsgi_application()  # for gunicorn and its kind


def make_table() -> None:
    """Yours comes with a migration."""
    if Ticket._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(Ticket)


if __name__ == "__main__":
    if "runserver" in sys.argv:
        make_table()
        execute_from_command_line(sys.argv)
    else:
        from _web import run

        run(
            "django_app",
            "data",
            lambda port: [sys.executable, __file__, "runserver", "--noreload", f"127.0.0.1:{port}"],
        )
