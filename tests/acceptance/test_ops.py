"""The roles and the Redis users that ship: what they must not be able to do, tried by them themselves.

That they can do all that a fleet needs is for `test_compose`, whose fleet runs under them.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from tests.acceptance.composed import Site, deployed, made_variables
from tests.acceptance.shell import run
from tests.kit.fleet import ROOT, calls_then_answer

OPS = ROOT / "ops"
NEW_STEP = (
    "insert into steps values ('r', 1, 'tool', null, null, 5, 0, 0, 0, null, null, null, null, null, now(), now(), 0)"
)
DDL = ("drop table runs", "truncate events", "alter table events add column x int", "create table x (x int)")
PASSWORDS = [f"POSTGRES_{role}_PASSWORD" for role in ("OWNER", "WORKER", "APP", "OPERATOR", "READER")]
POWER = (
    "create role x superuser",
    "alter role drangue_worker superuser",
    "set role drangue_owner",
    "create database x",
)


@pytest.fixture(scope="module")
def site(addresses: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The shipped roles on a migrated database and the shipped users in a Redis; no worker."""
    with deployed(addresses.database_url, tmp_path_factory.mktemp("ops"), calls_then_answer()) as site:
        yield site


def rights(site: Site) -> list[tuple[Any, ...]]:
    """All that anybody may do with a table."""
    query = (
        "select relname, relowner::regrole, relacl from pg_class where relnamespace = 'public'::regnamespace order by 1"
    )
    return site.execute(query)


class TestRoles:
    @pytest.mark.parametrize(
        ("role", "statement"),
        [
            *(
                (role, statement)
                for role in ("worker", "app", "operator", "reader")
                for statement in (*DDL, *POWER, "update events set payload = '{}'", "select * from pg_authid")
            ),
            *((role, "delete from events") for role in ("worker", "app", "reader")),
            *((role, "delete from runs") for role in ("worker", "app", "reader")),
            *((role, NEW_STEP) for role in ("app", "operator", "reader")),
            *((role, "insert into agents values ('x', '', '{}', now())") for role in ("app", "operator", "reader")),
            *(
                (role, "update drangue_version set version_num = '0'")
                for role in ("worker", "app", "operator", "reader")
            ),
            ("worker", "insert into runs (run_id) values ('x')"),
            ("reader", "insert into events (run_id) values ('x')"),
            ("reader", "update steps set claim = null"),
        ],
    )
    def test_what_a_role_does_not_need_is_refused(self, site: Site, role: str, statement: str) -> None:
        """Whoever takes over a worker can add to the log, and can neither change nor remove what it says."""
        with psycopg.connect(site.database_url(role), autocommit=True) as connection:
            connection.execute(
                "set default_transaction_read_only = off"
            )  # a reader's default is a courtesy, and no lock
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)  # type: ignore[call-overload]

    @pytest.mark.parametrize("statement", POWER[:2] + POWER[3:])
    def test_the_owner_owns_the_tables_and_nothing_else(self, site: Site, statement: str) -> None:
        """The migration's password stands in a deployment; it must not be the server's."""
        owner = psycopg.connect(site.database_url("owner"), autocommit=True)
        with owner as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)  # type: ignore[call-overload]

    def test_tables_of_later_migrations_can_be_used(self, site: Site) -> None:
        """An upgrade whose worker may not touch its new table would stop every run."""
        with psycopg.connect(site.database_url("owner"), autocommit=True) as owner:
            owner.execute("create table later (id bigserial primary key, what text)")
            try:
                for role in ("worker", "operator"):
                    with psycopg.connect(site.database_url(role), autocommit=True) as connection:
                        connection.execute("insert into later (what) values ('x')")
                        connection.execute("update later set what = 'y'")
                        connection.execute("delete from later")
                with psycopg.connect(site.database_url("reader"), autocommit=True) as reader:
                    assert reader.execute("select count(*) from later").fetchone() == (0,)
                with psycopg.connect(site.database_url("app"), autocommit=True) as app:
                    app.execute("insert into later (what) values ('x')")
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        app.execute("delete from later")
            finally:
                owner.execute("drop table later")

    def test_repeating_it_mends_and_changes_nothing_else(self, site: Site) -> None:
        """It is run with every deploy; and what somebody granted in haste is gone afterwards."""
        before = rights(site)
        site.execute("grant delete on events to drangue_worker")
        assert rights(site) != before
        assert site.once("grants").code == 0
        assert rights(site) == before

    def test_a_role_of_ours_that_may_do_everything_is_told_of(self, site: Site) -> None:
        """Somebody made it by hand long ago; grants on its tables would then say nothing."""
        site.execute("alter role drangue_reader createrole")
        try:
            done = site.once("grants")
        finally:
            site.execute("alter role drangue_reader nocreaterole")
        assert done.code != 0
        assert "may create roles" in done.err

    def test_the_server_does_not_log_the_passwords(self, site: Site) -> None:
        """It gets them in clear; many a server logs whatever changes a role. The grants are logged as ever."""
        loud = "-c client_min_messages=log -c log_statement=all -c log_min_duration_statement=0"  # the log, sent to us
        done = run(site.command("grants"), {**site.env("grants"), "PGOPTIONS": loud}, site.folder)
        assert done.code == 0, done
        assert "statement: grant select, insert on events to drangue_worker" in done.err
        assert [name for name in PASSWORDS if site.variables[name] in done.err + done.out] == []
        assert "may log the passwords" not in done.err

    def test_whoever_cannot_keep_them_out_of_the_log_is_told(self, site: Site) -> None:
        """Hosted servers give nobody a superuser; then the log has to be guarded, or the passwords set elsewhere."""
        owner = {"PGUSER": "drangue_owner", "PGPASSWORD": site.variables["POSTGRES_OWNER_PASSWORD"]}
        done = run(site.command("grants"), site.env("grants") | owner, site.folder)
        assert "may log the passwords" in done.err, done
        assert done.code != 0  # it may not change the others' passwords either

    def test_a_server_of_your_own_is_left_alone(self, addresses: Any, monkeypatch: Any, tmp_path: Path) -> None:
        """These tests reset and drop roles of fixed names, which a real deployment on the server would be using."""
        monkeypatch.setenv("DRANGUE_DATABASE_URL", addresses.database_url)
        with (
            pytest.raises(pytest.skip.Exception, match="names one of yours"),
            deployed(addresses.database_url, tmp_path, calls_then_answer()),
        ):
            raise AssertionError("it was deployed")

    def test_no_password_stands_in_the_file(self) -> None:
        """It lies in a repository."""
        text = (OPS / "postgres" / "roles.sql").read_text()
        assert set(re.findall(r"password (?!:'password')\S*'", text)) == set()
        assert len(re.findall(r"\\getenv password POSTGRES_\w+_PASSWORD", text)) == 5


EVERYBODY = ("worker", "app", "operator", "metrics", "flower")
DANGEROUS = (
    "flushall", "flushdb", "keys *", "scan 0", "config get *", "config set maxmemory 1", "shutdown", "debug sleep 0",
    "monitor", "acl list", "client kill type normal", "eval return(1) 0", "script flush", "replicaof no one", "save",
    "get secret", "set secret x", "lpush secret x", "hset secret a b", "publish secret x", "subscribe secret",
    "psubscribe *",
)  # fmt: skip
READING = ("brpop drangue.model 0.01", "rpop drangue.model", "lrange drangue.model 0 -1", "del drangue.model")


class TestUsers:
    @pytest.mark.parametrize(
        ("user", "command"),
        [
            *((user, command) for user in EVERYBODY for command in DANGEROUS),
            *((user, command) for user in ("app", "metrics") for command in READING),
            *(("metrics", command) for command in ("lpush drangue.model x", "xread streams drangue:tokens:r 0")),
            *((user, "publish /0.celery.pidbox x") for user in ("app", "metrics")),
            *((user, "xadd drangue:tokens:r * a b") for user in ("app", "operator", "metrics", "flower")),
            *((user, "info") for user in ("worker", "app", "metrics", "flower")),
            *((user, "hgetall unacked") for user in EVERYBODY),
            ("flower", "lpush drangue.model x"),
            ("flower", "xread streams drangue:tokens:r 0"),
        ],
    )
    def test_what_a_user_does_not_need_is_refused(self, site: Site, user: str, command: str) -> None:
        """Whoever takes over one part of the fleet gets at Redis no further than that part."""
        taken_over = redis.Redis.from_url(site.redis_url(user))
        with taken_over as client, pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command.split())

    @pytest.mark.parametrize("user", EVERYBODY)
    def test_it_is_let_in_and_may_do_something(self, site: Site, user: str) -> None:
        """Else what is refused above would be refused for another reason."""
        with redis.Redis.from_url(site.redis_url(user)) as client:
            assert client.llen("drangue.model") == 0

    @pytest.mark.parametrize("url", ["redis://127.0.0.1:{}/0", "redis://drangue_worker:guessed@127.0.0.1:{}/0"])
    def test_nobody_gets_in_without_a_password(self, site: Site, url: str) -> None:
        """Redis lets everybody do everything unless it is told not to."""
        stranger = redis.Redis.from_url(url.format(site.ports["6379"]))
        with stranger as client, pytest.raises(redis.exceptions.AuthenticationError):
            client.llen("drangue.model")

    def test_redis_is_given_no_password(self, site: Site) -> None:
        """The file lies in a container's folder for everybody there to read."""
        rendered = (site.folder / "users.acl").read_text()
        assert len(re.findall(r" #[0-9a-f]{64} ", rendered)) == len(EVERYBODY) + 1
        assert [name for name, value in site.variables.items() if name.endswith("PASSWORD") and value in rendered] == []

    @pytest.mark.parametrize("user", [*EVERYBODY, "admin"])
    def test_a_user_without_a_password_is_an_error(self, user: str) -> None:
        """An empty one would be a password that everybody knows."""
        missing = f"REDIS_{user.upper()}_PASSWORD"
        env = {**os.environ, **made_variables(), missing: ""}
        command = [str(OPS / "redis" / "render-acl"), str(OPS / "redis" / "users.acl")]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert (done.returncode != 0, done.stdout) == (True, "")
        assert missing in done.stderr


class TestMakeEnv:
    def make(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ops/make-env`, typed by somebody whose umask hides nothing."""
        command = [str(OPS / "make-env"), *arguments]
        return subprocess.run(command, cwd=folder, umask=0, capture_output=True, text=True)

    @pytest.mark.parametrize("arguments", [(), ("production.env",)])
    def test_only_its_owner_may_read_it(self, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        """A shell's redirection would make it readable by everybody."""
        done = self.make(tmp_path, *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        (made,) = tmp_path.iterdir()
        assert (made.name, made.stat().st_mode & 0o777) == (arguments[0] if arguments else ".env", 0o600)
        passwords = re.findall(r"^\w+_PASSWORD=([0-9a-f]{48})$", made.read_text(), re.MULTILINE)
        assert len(set(passwords)) == len(passwords) == made.read_text().count("_PASSWORD=") == 13

    def test_one_that_is_there_is_left_alone(self, tmp_path: Path) -> None:
        """Its passwords are those of the database; new ones would lock everybody out."""
        assert self.make(tmp_path).returncode == 0
        before = (tmp_path / ".env").read_text()
        done = self.make(tmp_path)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
        assert ".env is there already" in done.stderr
        assert (tmp_path / ".env").read_text() == before


DOCKERFILE = (OPS / "Dockerfile").read_text()
INSTRUCTIONS = [line for line in re.sub(r"\\\n", " ", DOCKERFILE).splitlines() if line and line[0] not in "# "]


class TestImage:
    def last(self, name: str) -> str:
        """The last instruction of this name, which is the one that counts."""
        return [line for line in INSTRUCTIONS if line.startswith(f"{name} ")][-1].removeprefix(f"{name} ")

    def test_what_it_copies_exists_and_is_let_through(self) -> None:
        """A name that was moved is found out about on the day somebody builds."""
        through = {line[1:] for line in (OPS / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
        copied = [line.split()[1:-1] for line in INSTRUCTIONS if line.startswith("COPY") and "--from" not in line]
        sources = {source for sources in copied for source in sources}
        assert sources == through
        assert [source for source in sources if not (ROOT / source).exists()] == []

    def test_it_runs_as_nobody_in_particular(self) -> None:
        """Kubernetes' runAsNonRoot can judge a number alone."""
        assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", self.last("USER"))

    def test_its_command_hears_signals(self) -> None:
        """Behind a shell SIGTERM would end the shell, and a worker would be killed in the middle of its work."""
        assert self.last("CMD") == '["drangue", "worker"]'

    def test_it_brings_what_the_compose_file_starts(self) -> None:
        """Flower and the exporter are extras."""
        extras = re.search(r"'\.\[([\w,]+)\]'", DOCKERFILE)
        assert extras
        project = (ROOT / "pyproject.toml").read_text()
        assert set(extras[1].split(",")) >= {"flower", "metrics", "otel"}
        assert [name for name in extras[1].split(",") if f"\n{name} = [" not in project] == []
