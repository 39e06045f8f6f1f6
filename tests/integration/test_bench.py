"""`scripts/bench` as one types it, on few runs: what it prints for programs, what it refuses, and what it counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from drangue_client.errors import DrangueError
from drangue_worker.bench.counting import Counted, counting, log_of
from drangue_worker.bench.profiling import group_of
from drangue_worker.bench.sql_log import read_sessions

ROOT = Path(__file__).resolve().parents[2]
BENCH = [sys.executable, str(ROOT / "scripts" / "bench")]
NUMBER = (int, float)
SENT = ("LPUSH", "PUBLISH drangue")  # a pop is done again by time


def run_bench(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DRANGUE_", "BENCH_"))}
    return subprocess.run(
        [*BENCH, *options], env=kept | {"TMPDIR": str(folder)}, capture_output=True, text=True, timeout=200
    )


def test_two_workloads_are_measured_beside_the_bare_chain(tmp_path: Path) -> None:
    """A table nobody can read by program is compared by eye, and so not at all."""
    done = run_bench(tmp_path, "--only", "w3-seq,w50", "--repeat", "1", "--scale", "0.1", "--no-fsyncs", "--json")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert list(told["workloads"]) == ["w3-seq", "w50"]
    for one in told["workloads"].values():
        assert one["ratio"] == pytest.approx(one["ours"]["figure"] / one["raw"]["figure"])
        assert one["met"] is (one["ratio"] <= one["target"])
        check_side(one["ours"])
        check_side(one["raw"])
        # The chain is what it claims to be: one row, one durable commit per step, and nothing else.
        assert [one["raw"]["per_step"][name] for name in ("sql", "commits", "durable_commits")] == [1, 1, 1]
        assert one["ours"]["counted"]["steps"] == one["runs"] * one["steps_per_run"]
        assert one["ours"]["counted"]["client"]["durable"] == one["runs"]  # the submissions
    assert told["alone"]["w3-seq_durable"]["figure"] == 1  # by workers; a submission is its caller's
    assert told["alone"]["w3-seq_sql"]["figure"] == 2  # one a step, two for the first tick and one for the submission
    for one in told["workloads"].values():
        counted = one["ours"]["counted"]
        sent = [sum(counted[side]["redis"].get(name, 0) for side in ("client", "others")) for name in SENT]
        assert sent == [one["runs"], one["runs"]]  # to the first tick, and a ring
    assert done.returncode == (0 if all(one["met"] for one in told["workloads"].values()) else 1)
    assert not list(tmp_path.glob("drangue-bench-*")), "its servers' folder is still there"


def check_side(side: dict[str, Any]) -> None:
    assert len(side["figures"]) == 1
    assert side["figure"] > 0
    assert side["peak_bytes"] > 1_000_000
    assert set(side["cpu_per_1000_runs"]) == {"workers", "client", "postgres", "redis"}
    assert side["cpu_per_1000_runs"]["workers"] > 0
    assert side["per_step"]["fsyncs"] is None
    assert all(isinstance(side["per_step"][name], NUMBER) for name in ("sql", "redis", "wal_bytes"))
    assert side["per_step"]["wal_bytes"] > 0
    assert side["per_step"]["redis"] > 0


def test_an_unknown_workload_is_named_before_anything_is_started(tmp_path: Path) -> None:
    """A typo must not cost the minutes that the others take."""
    done = run_bench(tmp_path, "--only", "w3,w4")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "'w4' is no workload; they are w3, w3-each, w3-events" in done.stderr
    assert "starting" not in done.stderr


@pytest.mark.skipif("DRANGUE_DATABASE_URL" in os.environ, reason="the log of a server elsewhere cannot be read")
def test_a_block_is_counted_to_the_statement(database_url: str, redis_url: str) -> None:
    """Counts are asserted by tests of the hot path: one that is off by one would hide a regression or invent one."""
    import redis

    insert = "insert into agents (name, fingerprint, summary, seen_at) values (%s, '', '{}', now())"
    with (
        psycopg.connect(database_url, autocommit=True) as connection,
        psycopg.connect(database_url, autocommit=True, application_name="looks") as onlooker,
        redis.Redis.from_url(redis_url) as client,
    ):
        client.ping()
        with counting(database_url, redis_url, without=["looks"]) as counted:
            connection.execute(insert, ["one"])
            with connection.transaction():
                connection.execute(insert, ["two"])
                connection.execute(insert, ["three"])
            connection.execute("select 1")
            connection.execute("set synchronous_commit = off")
            connection.execute(insert, ["four"])
            onlooker.execute("select count(*) from agents")
            client.lpush("list", "a", "b")
            client.publish("drangue:run:r", "x")
            client.ping()
            with pytest.raises(RuntimeError, match="after the block"):
                _ = counted.counts
        row = connection.execute("select count(*) from pg_namespace where nspname = 'counting'").fetchone()
    mine = counted.counts.client
    assert mine.statements == 6
    assert mine.words == 2
    assert mine.commits == 5
    assert mine.durable == 2
    assert counted.counts.written >= 3
    assert mine.redis == {"LPUSH": 1, "PUBLISH drangue": 1}
    assert counted.counts.wal_bytes > 0
    assert counted.counts.fsyncs is None
    assert row == (0,), "what notes commits is still there"
    assert counted.counts.per(2)["sql"] == 3


def test_statements_of_another_database_are_nobodys_business() -> None:
    """Tests share a server: one must not be charged for what another does."""
    log = "\n".join(
        [
            "counting|7|ours|a|LOG:  statement: BEGIN",
            "counting|7|ours|a|LOG:  execute _pg3_0: select *",
            "\tfrom runs",
            "counting|8|theirs|a|LOG:  statement: select 2",
            "counting|7|ours|a|LOG:  statement: ROLLBACK",
            "counting|7|ours|a|LOG:  execute <unnamed>: select 3",
            "counting|7|ours|a|ERROR:  no",
            "another program's line",
        ]
    )
    sessions = read_sessions(log, "ours")
    assert list(sessions) == [7]
    assert dict(sessions[7].texts) == {"select * from runs": 1, "select 3": 1}
    assert (sessions[7].words, sessions[7].commits) == (2, 1)


def test_a_sample_is_put_down_to_what_it_was_for() -> None:
    """kombu is under everything that touches Redis; a profile by innermost frame would blame it for all of that."""
    hub = "loop (/x/kombu/asynchronous/hub.py)"
    client = "execute_command (/x/redis/client.py)"
    assert group_of(["main (/x/celery/bin/worker.py)", hub, client]) == "hub and BRPOP"
    assert group_of([hub, "ack (/x/kombu/transport/redis.py)", client]) == "unacked copy"
    assert group_of([hub, "_send (/x/drangue_client/wire/queue.py)", "_put (/x/kombu/transport/redis.py)"]) == "publish"
    assert (
        group_of(["f (/x/drangue_worker/engine/plan.py)", "g (/x/drangue_client/store/log.py)", "h (/x/y.py)"]) == "SQL"
    )
    assert group_of(["h (/x/y.py)"]) == "other"


def test_counts_are_not_given_before_the_block_has_ended() -> None:
    """A zero read too early would pass every ceiling."""
    with pytest.raises(RuntimeError, match="after the block that counts has ended"):
        _ = Counted().counts


def test_a_server_whose_log_is_no_file_is_refused() -> None:
    """Zero statements, counted in a log that nobody can read, would pass every ceiling too."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        with pytest.raises(DrangueError, match="its log is not a file"):
            log_of(process.pid)
        process.communicate(b"\n")
    with pytest.raises(DrangueError, match="it is not on this machine"):
        log_of(process.pid)
