"""Claiming: exclusive leave to perform a step, with all that performing it depends on."""

from __future__ import annotations

from sqlalchemy import Connection, and_, case, exists, or_, select, update

from drangue_client.run import ENDED
from drangue_client.store.reading import events_of, folded, look_at, row_of
from drangue_client.store.tables import events, now, runs, steps
from drangue_client.store.values import LAPSED, Ask, Claimed


def claim_step(c: Connection, ask: Ask, lease_s: float) -> Claimed | None:
    """Claim one step for `lease_s` seconds; None where it is held, not due, or not there for this executor."""
    of_run = exists().where(runs.c.run_id == ask.run_id, runs.c.executor == ask.executor, runs.c.status.not_in(ENDED))
    free = (
        select(steps.c.step)
        .where(
            steps.c.run_id == ask.run_id,
            steps.c.step == ask.step,
            or_(steps.c.claim.is_(None), steps.c.lease_until < now(), steps.c.claim == ask.token),
            steps.c.available_at <= now(),
            of_run,
        )
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    # Asked again after a lost answer: the claim is ours already and must not count twice.
    anew = case((steps.c.claim == ask.token, 0), else_=1)
    ended = or_(steps.c.claim.is_(None), steps.c.claim == ask.token)
    crashed = case((ended, 0), else_=1)
    taken = (
        update(steps)
        .where(steps.c.run_id == ask.run_id, steps.c.step == free)
        .values(
            claim=ask.token,
            worker=ask.worker,
            lease_until=now(lease_s),
            kill_at=case((steps.c.claim == ask.token, steps.c.kill_at), else_=None),
            attempt=steps.c.attempt + anew,
            crashes=steps.c.crashes + crashed,
            category=case((ended, steps.c.category), else_=LAPSED),
            sends=0,
        )
        .returning(*steps.c)
    )
    step = c.execute(taken).mappings().first()
    if step is None:
        return None
    row = row_of(c, ask.run_id)
    since = folded(row)
    whole = step["kind"] != "tool"
    if whole or since < 0:
        log = events_of(c, ask.run_id)
    else:
        decision = and_(events.c.type == "model_decision", events.c.step == row["state"]["decision"])
        log = events_of(c, ask.run_id, since, events.c.step == ask.step, decision)
    look = look_at(row, [event for event in log if event.seq > since])
    decisions = [event for event in log if event.type == "model_decision" and (event.step or 0) < ask.step]
    return Claimed(
        ask=ask,
        kind=step["kind"],
        name=step["name"],
        attempt=step["attempt"],
        failures=step["failures"],
        crashes=step["crashes"],
        lost=step["lost"] + step["crashes"],
        tries=tuple(step["tries"] or ()),
        outcome=step["outcome"],
        category=step["category"],
        look=look,
        facts=tuple(event for event in log if event.step == ask.step),
        decision=decisions[-1] if decisions else None,
        events=tuple(log) if whole else (),
    )
