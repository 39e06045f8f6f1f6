"""FastAPI: a ticket and its run are one commit, the run is shown live, and a person who is signed in approves.

The application knows the name of an agent, and nothing else of it; the agent is that of `fleet.py`.

Nothing must run first: the command starts Postgres, Redis and two workers, serves the application on a free port, uses
it over HTTP and ends; with `--serve` it goes on serving. Without an API key a scripted model answers. It needs the
extra `examples`: `pip install -e ".[examples]"`. On a stack of yours it is `uvicorn fastapi_app:app`.

    python scripts/examples/fastapi_app.py
"""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, StringConstraints
from sqlalchemy import UniqueConstraint, make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sse_starlette import EventSourceResponse, ServerSentEvent

from drangue_client import AsyncClient, Event, Result
from drangue_client.errors import ChangedArgumentsError, NotPendingError, SamePersonError, UnknownRunError

KEEP_ALIVE_S = float(os.environ.get("KEEP_ALIVE_S", "15"))  # less than any proxy on the way waits for a byte
MOVING = ("queued", "running")
SHOWN = ("text", "index", "attempt", "tool", "call_id", "by", "reason", "output", "error")
REFUSED = {
    NotPendingError: "this call does not wait for anybody; look at the ticket again",
    SamePersonError: "you have agreed already; somebody else must agree too",
    ChangedArgumentsError: "the call has been changed since you saw it; look at the ticket again",
}


class Base(DeclarativeBase):
    pass


class Ticket(Base):
    """What somebody wants done. Its id is its run's, too."""

    __tablename__ = "example_tickets"
    __table_args__ = (UniqueConstraint("author", "text"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    author: Mapped[str]
    text: Mapped[str]


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000, pattern="^[^\0]*$")]


class NewTicket(BaseModel):
    text: Text


class Seen(BaseModel):
    """The request that a person has seen, and agrees to. What anybody changed meanwhile is not agreed to."""

    call_id: Text
    arguments_hash: Text
    reason: str = ""


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """One client and one engine for each process, open as long as it serves."""
    async with AsyncClient() as client:
        url = make_url(client.settings.database_url).set(drivername="postgresql+psycopg")
        engine = create_async_engine(url)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)  # yours comes with a migration
            yield {"client": client, "sessions": async_sessionmaker(engine, expire_on_commit=False)}
        finally:
            await engine.dispose()


app = FastAPI(title="Tickets", lifespan=lifespan)


def client_of(request: Request) -> AsyncClient:
    return request.state.client


def user_of(x_user: Annotated[str, Header()] = "") -> str:
    """Who asks. The header stands for your login, be it a session, a token, or a proxy that checks one."""
    if not x_user:
        raise HTTPException(401, "sign in first: X-User says who you are")
    return x_user


User = Annotated[str, Depends(user_of)]


async def ticket_of(ticket_id: str, _: User, request: Request) -> Ticket:
    """The ticket, for whoever is signed in; who may see which is for your application to say, here.

    Read in a session of its own: a stream must not hold a connection while somebody watches.
    """
    async with request.state.sessions() as session:
        ticket = await session.get(Ticket, ticket_id) if "\0" not in ticket_id else None
    if ticket is None:
        raise HTTPException(404, "there is no such ticket")
    await request.state.client.get(ticket.id)  # UnknownRunError where its run is kept no more
    return ticket


Drangue = Annotated[AsyncClient, Depends(client_of)]
Known = Annotated[Ticket, Depends(ticket_of)]


@app.get("/")
async def about() -> dict[str, Any]:
    return {"POST /tickets": {"text": "..."}, "GET": ["/tickets/ID", "/tickets/ID/events"], "more": "/docs"}


@app.post("/tickets", status_code=201)
async def create(new: NewTicket, user: User, client: Drangue, request: Request, to: Response) -> Any:
    """The ticket and its run are both there or neither is; the workers find the run about a second after the commit."""
    ticket = Ticket(id=uuid4().hex, author=user, text=new.text)
    session: AsyncSession
    try:
        async with request.state.sessions.begin() as session:
            labels = {"author": user}
            await client.submit("oncall", new.text, run_id=ticket.id, labels=labels, tokens=True, connection=session)
            session.add(ticket)
    except IntegrityError:  # and the run that was submitted is none
        raise HTTPException(409, "you have said so already") from None
    to.headers["Location"] = f"/tickets/{ticket.id}"
    return {"id": ticket.id, "status": "queued"}


@app.get("/tickets/{ticket_id}")
async def show(ticket: Known, client: Drangue) -> Any:
    """How it stands, without waiting for anything."""
    run = Result.from_events(ticket.id, await client.events(ticket.id))
    told = {"id": ticket.id, "author": ticket.author, "text": ticket.text, "status": run.status, "answer": run.output}
    return {**told, "waiting": run.pending_approvals}


@app.get("/tickets/{ticket_id}/events")
async def events(ticket: Known, client: Drangue, last_event_id: Annotated[int, Header(ge=-1, lt=2**31)] = -1) -> Any:
    """The run as it goes, until it ends or waits for a person. 204 tells a browser to stop asking for more."""
    stopped = (await client.get(ticket.id)).status not in MOVING
    if stopped and not await client.events(ticket.id, after=last_event_id):
        return Response(status_code=204)
    return EventSourceResponse(sent(client, ticket.id, last_event_id), ping=KEEP_ALIVE_S)


async def sent(client: AsyncClient, run_id: str, after: int) -> AsyncIterator[ServerSentEvent]:
    """A reader that goes away cancels this, wherever it waits.

    Only what is in the log has an id to resume from: pieces of an answer come again from the first one of their step.
    """
    async for event in client.stream(run_id, after=after):
        place = str(event.seq) if event.seq >= 0 else None
        yield ServerSentEvent(json.dumps(shown(event)), event=event.type, id=place)


def shown(event: Event) -> dict[str, Any]:
    """What leaves the house. The log holds more: instructions, schemas, what tools answered."""
    return {"step": event.step} | {name: event.payload[name] for name in SHOWN if name in event.payload}


@app.post("/tickets/{ticket_id}/approve")
async def approve(seen: Seen, ticket: Known, user: User, client: Drangue) -> Any:
    """Who may approve what is for your application to say, here; drangue records the name and counts heads."""
    request = await client.approve(
        ticket.id, seen.call_id, arguments_hash=seen.arguments_hash, by=user, reason=seen.reason
    )
    return {"tool": request["tool"], "by": user, "missing": request["missing"]}


@app.exception_handler(NotPendingError)
@app.exception_handler(SamePersonError)
@app.exception_handler(ChangedArgumentsError)
async def refused(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": REFUSED[type(error)]}, 409)


@app.exception_handler(UnknownRunError)
async def gone(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "the run of this ticket is kept no more"}, 404)


if __name__ == "__main__":
    from _web import HERE, run

    run(
        "fastapi_app",
        "json",
        lambda port: [
            *(sys.executable, "-m", "uvicorn", "fastapi_app:app", "--app-dir", str(HERE)),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
    )
