"""`Client`: what an application does with runs. It records in Postgres first and then sends a hint through Redis.

Nothing here needs Redis to be right: a run, a verdict or a question recorded while Redis is away is picked up when it
is back. No model SDK and no worker code is imported, directly or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, get_args

from drangue_client import checks
from drangue_client.errors import QueueUnavailable
from drangue_client.events import Event
from drangue_client.limits import Limits
from drangue_client.result import Result
from drangue_client.run import Status
from drangue_client.settings import Settings
from drangue_client.stackfile import find_settings
from drangue_client.steering import Steering
from drangue_client.store.log import SqlLog
from drangue_client.store.port import Log
from drangue_client.store.values import DEFAULT_PRIORITY, AgentRow, NewRun, RunRow
from drangue_client.submission import (
    Submission,
    check_agent,
    check_input,
    check_inputs,
    check_labels,
    check_run_id,
    check_same,
    to_submit,
)
from drangue_client.turns import check_turn_id, say
from drangue_client.waiting import follow, until_stopped
from drangue_client.wire.queue import QUEUES, Sender
from drangue_client.wire.signals import Doorbell
from drangue_client.wire.tokens import TokenStream

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
        new = to_submit(
            agent,
            priority=priority,
            labels=labels,
            output_schema=output_schema,
            turn_id=turn_id,
            tokens=tokens,
            deadline=deadline,
            not_before=not_before,
            limits=limits,
        )
        new = replace(new, run_id=check_run_id(run_id), input=check_input(input))
        log = self._log(connection)
        self._check_agent(log, [new], limits, allow_unknown)
        return self._submit(log, [new], connection)[0]

    def submit_many(
        self,
        agent: str,
        inputs: Mapping[str, str] | Iterable[str],
        *,
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
    ) -> list[Submission]:
        """Record a run for each input, in one transaction and with one command to Redis, and say what became of each,
        in their order. A thousand cost what some dozen calls of `submit` do; with `connection` a statement each.

        `inputs` are texts, or {run_id: text}: with ids repeating is safe, as in `submit`, whose other arguments hold
        for every run. Where an id is taken by another agent or input it is a RunExistsError, and nothing is recorded;
        if somebody took it in the same moment, the others are. At most 10,000, ValueError for more.
        """
        new = to_submit(
            agent,
            priority=priority,
            labels=labels,
            output_schema=output_schema,
            turn_id=turn_id,
            tokens=tokens,
            deadline=deadline,
            not_before=not_before,
            limits=limits,
        )
        all_new = [replace(new, run_id=run_id, input=text) for run_id, text in check_inputs(inputs).items()]
        if not all_new:
            return []
        log = self._log(connection)
        self._check_agent(log, all_new, limits, allow_unknown)
        if isinstance(inputs, Mapping):
            there = log.rows([one.run_id for one in all_new])
            for one in all_new:
                if one.run_id in there:
                    check_same(there[one.run_id], one)
        return self._submit(log, all_new, connection)

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
        return Submission(run_id, created, self._tell([row], connection) if created else True)

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

    def _check_agent(self, log: Log, new: Sequence[NewRun], limits: Limits | None, allow_unknown: bool) -> None:
        checks.flag("allow_unknown", allow_unknown)
        if "limits" in new[0].overrides or new[0].agent not in self._served:
            self._served |= check_agent(log, new, limits, allow_unknown)

    def _submit(self, log: Log, new: Sequence[NewRun], connection: Any) -> list[Submission]:
        """Record runs, and tell the workers of those that may begin."""
        answers = log.submit(new)
        # One whose time is still to come is not to be told of yet.
        due = [row for row, created in answers if created and not _is_later(row)]
        sent = self._tell(due, connection)
        for (row, _), one in zip(answers, new, strict=True):
            check_same(row, one)
        return [
            Submission(row.run_id, created, sent if created and not _is_later(row) else True)
            for row, created in answers
        ]


def _is_later(row: RunRow) -> bool:
    return bool(row.overrides.get("not_before", 0.0) > row.created_at)
