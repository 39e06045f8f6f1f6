"""200,000 steps through the log: what every step writes to stays as small as what is open in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from drangue_client.store.log import SqlLog
from tests.contract.log_scenes import LEASE_S, claim_all, fan_out
from tests.kit.fleet import wait_until
from tests.long.churning import churn

EARLY, LATE = 40_000, 200_000  # steps after which it is looked at
NAP_S = 5  # as ops/runbook.md says: the default, a minute, is as long as a fleet needs for 100,000 steps
MB = 1 << 20


@pytest.fixture
def server(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        if connection.execute("show is_superuser").fetchone() != ("on",):
            pytest.skip("how often the server looks for what to vacuum is for a superuser to say")
        if connection.info.server_version < 160000:
            pytest.skip("PostgreSQL counts updates that found no room since version 16")
        connection.execute(f"alter system set autovacuum_naptime = {NAP_S}")
        connection.execute("select pg_reload_conf()")
        yield connection
        connection.execute("alter system reset autovacuum_naptime")
        connection.execute("select pg_reload_conf()")
        connection.execute("truncate runs, events, steps, agents")


def size(server: psycopg.Connection[Any], function: str, table: str) -> int:
    row = server.execute(f"select {function}(%s::regclass)", [table]).fetchone()
    assert row is not None
    return int(row[0])


def updates(server: psycopg.Connection[Any], table: str) -> tuple[int, int, int]:
    """How many there were, how many that touched no index, and how many that found no room beside the old row."""
    names = "n_tup_upd, n_tup_hot_upd, n_tup_newpage_upd"
    row = server.execute(f"select {names} from pg_stat_user_tables where relname = %s", [table]).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def gone(server: psycopg.Connection[Any]) -> bool:
    """Whether every connection of the log has ended: it adds what it did to the server's counts then."""
    return not server.execute("select 1 from pg_stat_activity where application_name = 'drangue'").fetchall()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_tables_that_every_step_writes_to_stay_flat(server: psycopg.Connection[Any], database_url: str) -> None:
    """A work list that grows with what was done, not with what is to do, slows a fleet down until somebody wakes up."""
    wait_until(lambda: gone(server))
    before = {table: updates(server, table) for table in ("runs", "steps")}
    with closing(SqlLog(database_url)) as log:
        done = churn(log, EARLY)
        early = {table: size(server, "pg_relation_size", table) for table in ("runs", "steps")}
        runs = done // 10
        done += churn(log, LATE - EARLY)
    wait_until(lambda: gone(server))
    late = {table: size(server, "pg_relation_size", table) for table in ("runs", "steps")}
    indexes = size(server, "pg_indexes_size", "steps")
    after = {table: updates(server, table) for table in ("runs", "steps")}
    made, hot, moved = (now - then for now, then in zip(after["runs"], before["runs"], strict=True))
    claims, _, elsewhere = (now - then for now, then in zip(after["steps"], before["steps"], strict=True))
    print(
        f"after {done} steps: steps {late['steps'] / MB:.1f} MB (early {early['steps'] / MB:.1f}), its indexes "
        f"{indexes / MB:.1f} MB; runs {late['runs'] / (done // 10):.0f} bytes each (early {early['runs'] / runs:.0f}); "
        f"of {made} updates of runs {hot / made:.0%} HOT, {moved / made:.0%} elsewhere; of {claims} claims "
        f"{elsewhere / claims:.1%} elsewhere"
    )
    assert late["steps"] <= 2 * early["steps"] + 4 * MB, "the work list grows with what was done"
    assert indexes <= early["steps"] + 8 * MB, "the work list's indexes grow with what was done"
    assert late["runs"] / (done // 10) <= 1.2 * early["runs"] / runs, "a run takes ever more room"
    assert hot / made >= 0.55, "two of a run's twelve updates change its status, the others nothing that is indexed"
    assert elsewhere / claims <= 0.05, "there is room for a claimed step beside the one that was open"


@pytest.mark.long
def test_renewing_a_lease_touches_no_index(server: psycopg.Connection[Any], database_url: str) -> None:
    """Each step under way is renewed every few seconds, for as long as its model takes."""
    wait_until(lambda: gone(server))
    with closing(SqlLog(database_url)) as log:
        fan_out(log, tools=20)
        asks = [claimed.ask for claimed in claim_all(log, *range(2, 22))]
        log.close()
        wait_until(lambda: gone(server))
        before = updates(server, "steps")
        log.renew(asks, LEASE_S)
    wait_until(lambda: gone(server))
    after = updates(server, "steps")
    assert (after[0] - before[0], after[1] - before[1]) == (20, 20)
