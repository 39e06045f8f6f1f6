"""`Client`: what an application does with runs. It records in Postgres first and then sends a hint through Redis.

Nothing here needs Redis to be right: a run, a verdict or a question recorded while Redis is away is picked up when it
is back. No model SDK and no worker code is imported, directly or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, get_args

from drangue_client import checks
from drangue_client.answer import schema_of
from drangue_client.errors import QueueUnavailable, UnknownAgentError, UnknownRunError
from drangue_client.events import Event, normalise
from drangue_client.limits import Limits
from drangue_client.result import Result
from drangue_client.run import Status
from drangue_client.settings import Settings
from drangue_client.stackfile import find_settings
from drangue_client.steering import Steering
from drangue_client.store.log import SqlLog
from drangue_client.store.port import Log
from drangue_client.store.values import DEFAULT_PRIORITY, AgentRow, NewRun, RunRow
from drangue_client.submission import Submission, check_input, check_labels, check_run_id, check_same
from drangue_client.turns import check_turn_id, say
from drangue_client.waiting import follow, until_stopped
from drangue_client.wire.queue import HANDOFF_S, QUEUES, Sender
from drangue_client.wire.signals import Doorbell
from drangue_client.wire.tokens import TokenStream
from drangue_client.wire.tracing import current_traceparent

MOST_ROWS = 100_000


class Client(Steering):
    """Runs, seen from an application. One per process is enough; every method may be called from any thread.

    Without `settings` the environment's are used, or those of the stack that runs in this folder. Raises SettingsError
    where neither names the servers, DatabaseUnavailable where Postgres is needed and away.
    """

    def __init__(self, settings: Settings | None = None, *, log: Log | None = None) -> None:
        checks.kind("settings", settings, Settings, "a Settings", "Read them: Settings.from_env().", optional=True)
        checks.has("log", log, "settle", "a store, such as PostgresStore(url)", optional=True)
        self.settings = settings or find_settings()
        self.log: Log = log or SqlLog(self.settings.require_database())
        self.settings.require_redis()
        self._sender = Sender(self.settings)
        self._doorbell = Doorbell(self.settings.redis_url)
        self._tokens = TokenStream(self.settings.redis_url)
        self._served: frozenset[str] = frozenset()  # agents that some worker has said to serve: none is ever taken back

    def submit(
        self,
        agent: str,
        input: str,
        *,
        run_id: str | None = None,
        priority: int = DEFAULT_PRIORITY,
        labels: Mapping[str, str] | None = None,
        output_schema: Any = None,
        turn_id: str | None = None,
        tokens: bool = False,
        deadline: float | None = None,
        not_before: float | None = None,
        limits: Limits | None = None,
        allow_unknown: bool = False,
        connection: Any = None,
    ) -> Submission:
        """Record a run of the agent registered as `agent`, and tell the workers.

        The same `run_id` with the same agent and input is the same run, so repeating is safe; with others it is a
        RunExistsError. `priority` is 0 (first) to 9. `output_schema` (a JSON schema or a pydantic model) is what every
        answer must match, in place of the agent's own. `turn_id` names the first turn, as in `say`. With `tokens` the
        workers show answers to `stream` while they are written. `deadline` is how many seconds each turn may take,
        counted from when it is asked for; the agent's own holds where that is shorter. It begins at once, or at
        `not_before` (epoch seconds). `limits` hold for this run beside the agent's own terms, the stricter of each.
        Raises UnknownAgentError for a name that no worker has registered, unless `allow_unknown`, or no worker has
        registered anything yet.

        With `connection` (a SQLAlchemy Connection or Session, a psycopg connection, Django's `connection`) the run is a
        part of the caller's transaction in the same database: it is there if and only if the caller commits, and begins
        within about a second after that. `sent` is False then.
        """
        checks.count("priority", priority, most=9)
        run_id, input, turn_id = check_run_id(run_id), check_input(input), check_turn_id(turn_id)
        checks.name("agent", agent, "the name of an agent")
        checks.flag("tokens", tokens)
        checks.seconds("deadline", deadline, optional=True)
        checks.moment("not_before", not_before, optional=True)
        limits = None if checks.kind("limits", limits, Limits, "a Limits", optional=True) == Limits() else limits
        log = self._log(connection)
        if limits is not None or agent not in self._served:
            self._served |= _check_agent(log, run_id, agent, limits, checks.flag("allow_unknown", allow_unknown))
        asked = {
            "output_schema": schema_of(output_schema),
            "turn_id": turn_id,
            "tokens": tokens or None,
            "deadline_s": deadline,
            "not_before": not_before,
            "limits": normalise(limits.to_json()) if limits else None,
            "traceparent": current_traceparent(),
        }
        new = NewRun(
            run_id,
            agent,
            input,
            priority=priority,
            labels=check_labels(labels),
            overrides={name: value for name, value in asked.items() if value is not None},
            wake_in_s=HANDOFF_S,
            not_before=not_before,
        )
        row, created = log.submit([new])[0]
        check_same(row, agent, input, new.overrides.get("output_schema"), new.overrides.get("limits"))
        later = not_before is not None and not_before > row.created_at  # nobody is to be told yet
        return Submission(run_id, created, self._tell(row, connection) if created and not later else True)

    def get(self, run_id: str) -> RunRow:
        """The run's row: status, agent, input, labels, times. UnknownRunError if there is none."""
        return self.log.look(checks.text("run_id", run_id)).row

    def result(self, run_id: str, timeout: float | None = None) -> Result:
        """Wait until the run has stopped, by ending or by waiting for a person, and read it.

        `timeout` is in seconds, None waits without end, 0 looks once; WaitTimeout when it is over, and the run goes on.
        A failed run is returned, not raised.
        """
        return Result.from_events(run_id, until_stopped(self.log, self._doorbell, run_id, timeout))

    def say(self, run_id: str, text: str, *, turn_id: str | None = None, connection: Any = None) -> Submission:
        """Begin another turn of a run that has ended its latest one, and tell the workers.

        The same `turn_id` twice is one turn, so repeating is safe with one; `created` says whether it is new. Raises
        InFlightError while a turn goes on or has failed, TurnExistsError for a turn id with another text,
        UnknownRunError. `connection` as in `submit`.
        """
        text = check_input(text)
        turn_id = check_turn_id(turn_id)
        row, created = say(self._log(connection), run_id, text, turn_id)
        return Submission(run_id, created, self._tell(row, connection) if created else True)

    def stream(self, run_id: str, *, after: int = -1, timeout: float | None = None) -> Iterator[Event]:
        """The run's events behind the place `after`, as they are written, until the run has stopped.

        Of a run submitted with `tokens`, also its answers while they are written: `model_delta` events (seq -1), each
        {"text", "step", "attempt", "index"} and `"retry": True` on the first of another attempt, which voids the
        earlier ones of its step. They come before the decision they belong to. Any number of processes may stream a
        run, from any place; `timeout` is in seconds, WaitTimeout when it is over. UnknownRunError comes with the first
        item: call `get` before you answer with a stream.
        """
        yield from follow(self.log, self._tokens, run_id, checks.place("after", after), timeout)

    def events(self, run_id: str, after: int = -1) -> list[Event]:
        """The run's log after a place, oldest first."""
        return self.log.events(checks.text("run_id", run_id), checks.place("after", after))

    def runs(
        self,
        *,
        status: str | None = None,
        agent: str | None = None,
        since: float | None = None,
        until: float | None = None,
        labels: Mapping[str, str] | None = None,
        unknown: bool = False,
        after: str | None = None,
        limit: int = 50,
    ) -> list[RunRow]:
        """Runs, newest first: those submitted from `since` on and before `until` (epoch seconds), with all `labels`;
        with `unknown` only those that have an outcome which nobody knows. The next page begins behind the last run of
        this one, whose id is given as `after`; UnknownRunError where that is gone."""
        checks.one_of("status", status, get_args(Status), optional=True)
        checks.text("agent", agent, "the name of an agent", optional=True)
        checks.moment("since", since, optional=True)
        checks.moment("until", until, optional=True)
        check_labels(labels)
        checks.flag("unknown", unknown)
        checks.text("after", after, "the id of a run", blank=False, optional=True)
        checks.count("limit", limit, most=MOST_ROWS)
        return self.log.runs(
            status=status,
            agent=agent,
            since=since,
            until=until,
            labels=labels,
            unknown=unknown,
            after=after,
            limit=limit,
        )

    def agents(self) -> list[AgentRow]:
        """The agents that workers have registered."""
        return self.log.agents()

    def queues(self) -> list[dict[str, Any]]:
        """What there is to do, by queue: {queue, due, held, later, oldest_s, messages}.

        Steps that are due, held by a worker, and waiting for their backoff; for how many seconds the oldest has been
        due; the messages that wait in Redis (None where it is away).
        """
        found = {row.queue: asdict(row) for row in self.log.backlog()}
        names = sorted({*QUEUES, *found})
        try:
            waiting: dict[str, int | None] = {**self._sender.waiting(names)}
        except QueueUnavailable:
            waiting = dict.fromkeys(names)
        nothing = {"due": 0, "held": 0, "later": 0, "oldest_s": 0.0}
        return [{"queue": name, **found.get(name, nothing), "messages": waiting[name]} for name in names]

    def workers(self, timeout: float = 1.0) -> list[dict[str, Any]]:
        """The worker processes that answer within `timeout` seconds: {name, pool, concurrency, queues, tasks}.

        Raises QueueUnavailable where Redis is away.
        """
        checks.seconds("timeout", timeout)
        return self._sender.workers(timeout)

    def close(self) -> None:
        """Close the connections to Postgres and Redis."""
        self.log.close()
        self._doorbell.close()
        self._tokens.close()
        self._sender.close()


def _check_agent(log: Log, run_id: str, agent: str, limits: Limits | None, allow_unknown: bool) -> frozenset[str]:
    """The agents that some worker has said to serve. Raises for one that is not among them, where there are any, and
    for limits that it cannot have. Asked through the log that the run is written to: on an event loop any other
    question would block it."""
    if allow_unknown and limits is None:
        return frozenset()
    known = {row.name: row for row in log.agents()}
    if known and agent not in known and not allow_unknown:
        raise UnknownAgentError(agent, list(known))
    if limits is None or agent not in known:
        return frozenset(known)
    try:
        limits.check(known[agent].summary["tools"])
    except ValueError as error:
        try:
            log.look(run_id)  # repeating a submission is safe, whatever has been deployed since
        except UnknownRunError:
            raise error from None
    return frozenset(known)
