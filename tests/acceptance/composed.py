"""docker-compose.yml with processes in place of containers: its commands, its environment, the suite's Postgres.

Everything in the file is used as it stands; replaced are only addresses, ports and the places of files that an image
has elsewhere. Redis is the file's own, with its users; Postgres is a database of its own on the suite's server.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
import yaml

from drangue_client import Client, Settings
from drangue_worker.embedded.programs import find_postgres, find_redis
from drangue_worker.testing.provider import Provider
from tests.acceptance.conftest import new_database
from tests.acceptance.shell import Console, Done, Running, environment, run, running
from tests.kit.agents import EFFECTS
from tests.kit.fleet import ROOT, Script, wait_until

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PORTS = ("6379", "9464", "5555")
ROLES = ("drangue_owner", "drangue_worker", "drangue_app", "drangue_operator", "drangue_reader")
AGENTS = "tests.kit.agents,tests.acceptance.agents"
VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::([?-])([^}]*))?\})")


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """A value as compose reads it: `${NAME}`, `${NAME:-default}`, `${NAME:?message}` and `$$`."""

    def value(found: re.Match[str]) -> str:
        dollar, name, how, rest = found.groups()
        if dollar:
            return "$"
        assert variables.get(name) or how == "-", f"{name}: {rest}"
        return variables.get(name) or rest

    return VARIABLE.sub(value, text)


def read_env(path: Path) -> dict[str, str]:
    """The variables of a `.env` file."""
    lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)


def make_env(path: Path, **filled_in: str) -> None:
    """Make a `.env` file as the documents say: `ops/make-env`, then what its lines ask for is filled in."""
    subprocess.run([str(ROOT / "ops" / "make-env"), str(path)], capture_output=True, check=True)
    text = path.read_text()
    for name, value in filled_in.items():
        assert f"\n{name}=" in text, f"ops/make-env has no line for {name}"
        text = re.sub(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
    path.write_text(text)


def made_variables() -> dict[str, str]:
    """What a `.env` file holds that nobody has filled in yet."""
    with tempfile.TemporaryDirectory() as folder:
        make_env(Path(folder, ".env"))
        return read_env(Path(folder, ".env"))


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Site:
    """A deployment: `variables` is what `.env` holds, `ports` are this machine's for those of the file, `extra` is
    environment that every service gets besides."""

    folder: Path
    admin_url: str
    provider: Provider
    variables: dict[str, str]
    extra: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in PORTS})

    def here(self, text: str) -> str:
        """A value of the file, with what a container has for itself replaced by what is here."""
        postgres = urlsplit(self.admin_url)
        for old, new in {
            "/tmp/": f"{self.folder}/",  # before anything is put in that may lie in there itself
            "@postgres:5432/drangue": f"@{postgres.hostname}:{postgres.port}{postgres.path}",
            "@redis:6379": f"@127.0.0.1:{self.ports['6379']}",
            "/app/ops/": f"{ROOT}/ops/",
            "=/ops/": f"={ROOT}/ops/",
            "0.0.0.0": "127.0.0.1",
        }.items():
            text = text.replace(old, new)
        text = re.sub(r"(^| )/ops/", rf"\1{ROOT}/ops/", text)
        return re.sub(rf"\b({'|'.join(PORTS)})\b", lambda found: str(self.ports[found[0]]), text)

    def env(self, service: str) -> dict[str, str]:
        """The environment of a service, and this machine's paths to the programs that images bring along."""
        said = SERVICES[service].get("environment", {})
        told = {
            name: self.here(interpolated(str(value), self.variables))
            for name, value in said.items()
            if value is not None
        }
        told |= {name: self.variables[name] for name, value in said.items() if value is None and name in self.variables}
        if "PGHOST" in told:
            admin = urlsplit(self.admin_url)
            told |= {"PGHOST": admin.hostname or "", "PGPORT": str(admin.port), "PGUSER": admin.username or ""}
            told |= {"PGPASSWORD": admin.password or "", "PGDATABASE": admin.path.strip("/")}
        if service == "flower":
            told |= {"FLOWER_ADDRESS": "127.0.0.1", "FLOWER_PORT": str(self.ports["5555"])}
        places = [Path(sys.executable).parent, find_redis().parent, find_postgres()[0]]
        path = os.pathsep.join([*map(str, places), os.environ["PATH"]])
        return environment(**{**told, "PATH": path, **self.extra})

    def command(self, service: str) -> list[str]:
        """The command of a service, as its container would be started with."""
        words = [*SERVICES[service].get("entrypoint", []), *SERVICES[service]["command"]]
        return [self.here(interpolated(word, self.variables)).replace("alive", f"{service}.alive") for word in words]

    def read_variables(self) -> None:
        """Take the variables from `.env`, as every command of compose does."""
        self.variables = read_env(self.folder / ".env")

    def once(self, service: str) -> Done:
        """Run a service that ends, to its end."""
        return run(self.command(service), self.env(service), self.folder)

    def healthy(self, service: str) -> bool:
        """What the health check of a service says right now."""
        kind, *words = SERVICES[service]["healthcheck"]["test"]
        words = [self.here(interpolated(word, self.variables)).replace("alive", f"{service}.alive") for word in words]
        command = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        return run(command, self.env(service), self.folder).code == 0

    @contextmanager
    def up(self, *services: str) -> Iterator[list[Running]]:
        """Services that run as long as the block; they are healthy when it begins."""
        with ExitStack() as stack:
            started = [
                stack.enter_context(
                    running(self.command(name), self.env(name), self.folder, self.folder / f"{name}.log")
                )
                for name in services
            ]
            for name, one in zip(services, started, strict=True):

                def healthy(name: str = name, one: Running = one) -> bool:
                    assert one.process.poll() is None, f"{name} ended: {one.said()}"
                    return self.healthy(name)

                wait_until(healthy, what=f"{name} is healthy")
            yield started

    def redis_url(self, user: str) -> str:
        """Redis as one of its users: worker, app, operator, metrics, flower."""
        password = self.variables[f"REDIS_{user.upper()}_PASSWORD"]
        return f"redis://drangue_{user}:{password}@127.0.0.1:{self.ports['6379']}/0"

    def database_url(self, role: str) -> str:
        """Postgres under one of the roles: owner, worker, app, operator, reader."""
        admin = urlsplit(self.admin_url)
        password = self.variables[f"POSTGRES_{role.upper()}_PASSWORD"]
        return f"postgresql://drangue_{role}:{password}@{admin.hostname}:{admin.port}{admin.path}"

    @contextmanager
    def client(self, who: str = "app") -> Iterator[Client]:
        """An application, or an operator, under the role and as the user that are theirs."""
        client = Client(Settings(database_url=self.database_url(who), redis_url=self.redis_url(who)))
        try:
            yield client
        finally:
            client.close()

    def denied(self) -> list[str]:
        """What Redis has refused to its users, each kind once: "drangue_app: command flushall"."""
        with redis.Redis.from_url(self.redis_url("admin"), decode_responses=True) as admin:
            log: list[dict[str, Any]] = admin.acl_log(count=200)
        return sorted({f"{entry['username']}: {entry['reason']} {entry['object']}" for entry in log})

    @property
    def console(self) -> Console:
        """`docker compose run console`."""
        return Console(self.env("console"), self.folder)

    def execute(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the database as its superuser."""
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            cursor = connection.execute(query)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []


@contextmanager
def deployed(admin_url: str, folder: Path, script: Script) -> Iterator[Site]:
    """A deployment with Redis and tables and without a worker. Its roles and its database end with the block.

    Skips the test on a server of somebody's own, whose roles of these names may be in use.
    """
    if admin_url == os.environ.get("DRANGUE_DATABASE_URL"):
        pytest.skip("roles belong to a whole server, and DRANGUE_DATABASE_URL names one of yours: they would be reset")
    with new_database(admin_url) as url, Provider(script) as provider:
        make_env(folder / ".env", AGENTS=AGENTS, OPENAI_API_KEY="x")
        with (folder / ".env").open("a") as env:
            env.write(f"OPENAI_BASE_URL={provider.base_url}\n")  # as for any server of one's own
        site = Site(folder, url, provider, read_env(folder / ".env"))
        try:
            with site.up("redis"):
                for service in ("roles", "migrate", "grants"):
                    done = site.once(service)
                    assert done.code == 0, (service, done)
                site.execute(EFFECTS)
                site.execute("grant select, insert on effects to drangue_worker")
                site.execute("grant usage on sequence effects_id_seq to drangue_worker")
                yield site
        finally:
            for role in ROLES:  # one by one: Postgres 18 stumbles over its own default privileges otherwise
                site.execute(f"drop owned by {role}")
                site.execute(f"drop role {role}")


def fetched(url: str, user: str = "", password: str = "", method: str = "GET") -> tuple[int, str]:
    """What a page answers: its status and its text."""
    manager = urllib.request.HTTPPasswordMgrWithPriorAuth()
    if user:
        manager.add_password(None, url, user, password, is_authenticated=True)
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(manager))
    try:
        request = urllib.request.Request(url, method=method, data=b"" if method == "POST" else None)
        with opener.open(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
