"""The statements of `together`, as Postgres is told them.

Each is a transaction by itself. Runs are locked in the order of their ids, then steps; a claim waits for nobody.
"""

from __future__ import annotations

from drangue_client.events import FORMAT
from drangue_client.run import ENDED, OVER, STATE_VERSION
from drangue_client.store.database import HASTY
from drangue_client.store.values import LAPSED

RUN = """r.run_id, r.agent, r.status, r.executor, r.priority, r.labels, r.input, r.head_seq, r.error,
    extract(epoch from r.created_at)::float8, extract(epoch from r.updated_at)::float8,
    extract(epoch from r.finished_at)::float8, extract(epoch from r.wake_at)::float8, r.overrides,
    extract(epoch from r.deadline_at)::float8, r.unknown, r.state, r.state_seq, r.terms::text,
    extract(epoch from now())::float8"""
RUN_COLUMNS, RUN_FIELDS = 20, 16  # of which the first are a RunRow's

_EVENT = "json_build_array(e.seq, e.type, e.payload, extract(epoch from e.ts)::float8, e.duration_ms, e.step, e.format)"
EVENTS = f"select json_agg({_EVENT} order by e.seq)::text from events e where e.run_id ="
# Text, so that a snapshot of any version can be looked at before it is read.
_KNOWN = f"coalesce((r.state ->> 'v')::int = {STATE_VERSION}, false)"


def tail(kind: str, step: str, after: str) -> str:
    """What a tool step needs lies behind its decision; who thinks needs everything, of which it may hold the
    beginning."""
    return f"""
    case when {kind} = 'tool' and {_KNOWN} then
        ({EVENTS} r.run_id and e.seq >= least((r.state ->> 'decision_seq')::int, r.state_seq + 1)
            and (e.seq > r.state_seq or e.step = {step} or e.seq = (r.state ->> 'decision_seq')::int))
    else
        ({EVENTS} r.run_id and e.seq > {after})
    end"""


CLAIM = f"""
with hasty as materialized ({HASTY}),
asked as (
    select * from unnest(%(runs)s::text[], %(steps)s::int[], %(tokens)s::text[], %(workers)s::text[],
        %(executors)s::text[], %(after)s::int[]) as a(run_id, step, token, worker, executor, after)
),
free as materialized (
    select s.run_id, s.step, a.token, a.worker, a.after
    from hasty, asked a join steps s on s.run_id = a.run_id and s.step = a.step join runs r on r.run_id = a.run_id
    where (s.claim is null or s.lease_until < now() or s.claim = a.token) and s.available_at <= now()
        and r.executor = a.executor and r.status not in {ENDED}
    order by s.run_id, s.step
    for update of s skip locked
),
mine as (
    update steps s set
        claim = f.token,
        worker = f.worker,
        lease_until = now() + make_interval(secs => %(lease_s)s),
        kill_at = case when s.claim = f.token then s.kill_at end,
        attempt = s.attempt + case when s.claim = f.token then 0 else 1 end,
        crashes = s.crashes + case when s.claim is null or s.claim = f.token then 0 else 1 end,
        category = case when s.claim is null or s.claim = f.token then s.category else '{LAPSED}' end,
        sends = 0
    from free f where s.run_id = f.run_id and s.step = f.step
    returning s.*, f.after
)
select {RUN}, m.claim, m.kind, m.name, m.attempt, m.failures, m.crashes, m.lost, m.tries, m.outcome, m.category,
    {tail("m.kind", "m.step", "m.after")}
from mine m join runs r on r.run_id = m.run_id
"""
# A statement sees what was there when it began. Whoever held the step before may have begun an effect since, and before
# the claim was made; after it nobody can.
AGAIN = f"""
select {RUN}, {tail("%(kind)s", "%(step)s", "%(after)s")}
from runs r where r.run_id = %(run)s
"""

HALTED = f"""
select s.claim
from unnest(%(runs)s::text[], %(steps)s::int[], %(tokens)s::text[]) as a(run_id, step, token)
join steps s on s.run_id = a.run_id and s.step = a.step and s.claim = a.token
join runs r on r.run_id = a.run_id
where r.status in {OVER}
"""

LOOK = f"""
select {RUN}, ({EVENTS} r.run_id and e.seq > case when {_KNOWN} then r.state_seq else -1 end)
from runs r where r.run_id = any(%(runs)s::text[])
"""

SUBMIT = f"""
insert into runs as r (run_id, agent, status, executor, priority, labels, input, overrides, head_seq, state_seq,
    wake_at, created_at, updated_at)
select n.run_id, n.agent, 'queued', n.executor, n.priority, n.labels, n.input, n.overrides, -1, -1,
    greatest(n.not_before, now() + make_interval(secs => n.wake_in_s)), now(), now()
from json_to_recordset(%(new)s) as n(run_id text, agent text, executor text, priority int, labels jsonb, input text,
    overrides json, not_before timestamptz, wake_in_s float8)
order by n.run_id
on conflict do nothing
returning {RUN}
"""

# Checks come before writes: of a run whose log has moved on, or of whose claims one is lost, nothing is written. Of
# several runs those that somebody has locked are left out: whoever waited for one would make others wait for all.
_SETTLE = f"""
with waiting as materialized (select set_config('synchronous_commit', 'off', true) where %(hasty)s),
asked as materialized (
    select * from json_to_recordset(%(moves)s) as a(run_id text, head int, new_head int, state json, status text,
        due_at timestamptz, deadline_at timestamptz, unknown int, asked int, terms json, ending text, error text,
        steps int[], tokens text[], facts json, opens json)
),
locked as materialized (
    select r.run_id, r.head_seq, r.priority, coalesce((r.state ->> 'v')::int, 0) > {STATE_VERSION} as newer
    from runs r cross join (select count(*) from waiting) w where r.run_id = any(%(runs)s::text[])
    order by r.run_id for no key update of r{{waiting}}
),
held as materialized (
    select s.run_id, s.step from asked a join locked l on l.run_id = a.run_id and l.head_seq = a.head
    cross join unnest(a.steps, a.tokens) as c(step, token)
    join steps s on s.run_id = a.run_id and s.step = c.step and s.claim = c.token
    order by s.run_id, s.step
    for update of s
),
good as materialized (
    select a.*, l.priority, l.newer from asked a join locked l on l.run_id = a.run_id and l.head_seq = a.head
    where cardinality(a.steps) = (select count(*) from held h where h.run_id = a.run_id)
),
given as (
    delete from steps s using held h, good g where g.run_id = h.run_id and s.run_id = h.run_id and s.step = h.step
),
written as (
    insert into events (run_id, seq, type, step, format, payload, ts, duration_ms, recorded_at)
    select g.run_id, g.head + f.place, f.type, f.step, {FORMAT}, f.payload, coalesce(f.ts, now()), f.duration_ms, now()
    from good g cross join json_to_recordset(g.facts) as f(place int, type text, step int, payload json, ts timestamptz,
        duration_ms float8)
),
opened as (
    insert into steps (run_id, step, kind, name, queue, priority, attempt, failures, crashes, available_at, sent_at,
        sends, on_cancel, claim, worker, lease_until)
    select g.run_id, o.step, o.kind, o.name, o.queue, g.priority, case when o.token is null then 0 else 1 end, 0, 0,
        now(), now(), 0, o.on_cancel, o.token, o.worker, now() + make_interval(secs => o.lease_s)
    from good g cross join json_to_recordset(g.opens) as o(step int, kind text, name text, queue text, on_cancel text,
        token text, worker text, lease_s float8)
    on conflict do nothing
    returning run_id, step, kind, queue, priority, 0 as attempt, sends
),
moved as (
    update runs r set head_seq = g.new_head, status = g.status, wake_at = g.due_at, deadline_at = g.deadline_at,
        unknown = g.unknown, asked = g.asked, updated_at = now(),
        state = case when g.newer then r.state else g.state end,
        state_seq = case when g.newer then r.state_seq else g.new_head end,
        terms = coalesce(g.terms, r.terms),
        finished_at = case g.ending when 'ends' then now() when 'goes on' then null else r.finished_at end,
        error = case g.ending when 'ends' then g.error when 'goes on' then null else r.error end
    from good g where r.run_id = g.run_id
)
select g.run_id, (select json_agg(json_build_array(o.step, o.kind, o.queue, o.priority, o.attempt, o.sends)
    order by o.step) from opened o where o.run_id = g.run_id), extract(epoch from now())::float8,
    extract(epoch from e.ts)::float8, e.type
from good g left join events e on e.run_id = g.run_id and e.seq = g.head
"""
SETTLE, SETTLE_SEVERAL = _SETTLE.replace("{waiting}", ""), _SETTLE.replace("{waiting}", " skip locked")

# What was taken for a conversation that turned out to be another: as if it had only been opened.
UNTAKE = """
update steps set claim = null, worker = null, lease_until = null, attempt = 0
where run_id = %(run)s and claim = any(%(tokens)s::text[])
returning step
"""

ROWS = f"select {RUN} from runs r where r.run_id = any(%(runs)s::text[])"
WHOLE = f"select ({EVENTS} %(run)s)"
