"""docker-compose.yml as it stands, without its containers: what it says, and a fleet started from it that works.

Its workers, its console and its exporter run under the roles and as the Redis users that it gives them, so whatever
they need and may not do is found here.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis

from drangue_client.settings import PREFIX, Settings
from drangue_worker.testing.provider import ProviderCall, Reply
from tests.acceptance.composed import COMPOSE, SERVICES, Site, deployed, fetched, interpolated, made_variables
from tests.acceptance.shell import run
from tests.kit.fleet import ROOT, wait_until

ONCE = {"roles", "migrate", "grants", "console"}
WORKERS = {"coordinator", "model", "tool"}
FILLED_IN = {"AGENTS": "shop.agents", "AGENTS_FOLDER": "./agents"}  # what compose cannot do without
LEFT = "left-by-a-worker-that-died"


def script(call: ProviderCall) -> Reply:
    """A model that notes something and wires money, or takes its time over notes, and then answers."""
    if call.turn == 0 and "slowly" in call.last_user():
        return Reply(tool_calls=(("note", {"text": "a", "seconds": 1.5}), ("note", {"text": "b"})))
    if call.turn == 0:
        calls: tuple[tuple[str, dict[str, Any]], ...] = (("note", {"text": "a"}), ("wire", {"amount": 1}))
        return Reply(tool_calls=calls)
    return Reply(text="all of it done")


@pytest.fixture(scope="module")
def site(addresses: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The deployment with a model and a tool worker, and in its Redis a message that a dead worker had fetched."""
    with deployed(addresses.database_url, tmp_path_factory.mktemp("site"), script) as site:
        with redis.Redis.from_url(site.redis_url("admin")) as admin:
            place = {"delivery_tag": LEFT, "delivery_info": {"exchange": "", "routing_key": "drangue.coordinate"}}
            kind = {"content-type": "application/json", "content-encoding": "utf-8", "headers": {}}
            message = {"body": "e30=", **kind, "properties": {**place, "body_encoding": "base64"}}
            admin.hset("unacked", LEFT, json.dumps([message, "", "drangue.coordinate"]))
            admin.zadd("unacked_index", {LEFT: time.time() - 10_000})
        quick = {"DRANGUE_DRAIN_GRACE_S": "2", "DRANGUE_PATIENCE_S": "0.5", "DRANGUE_SWEEP_S": "0.3"}
        site.extra |= {**quick, "DRANGUE_TOOL_CONCURRENCY": "1"}
        with site.up("model", "tool"):
            yield site


def seconds(text: str) -> float:
    """A duration as compose writes it."""
    found = re.fullmatch(r"(\d+)s", text)
    assert found, text
    return float(found[1])


class TestFile:
    def test_it_has_the_parts_of_a_fleet(self) -> None:
        """Whoever copies it must not find a part missing."""
        wanted = {"postgres", "redis", "flower", "metrics", "prometheus", *WORKERS, *ONCE}
        assert set(SERVICES) == wanted
        for pool in WORKERS:
            assert SERVICES[pool]["command"][:3] == ["drangue", "worker", pool]

    @pytest.mark.parametrize("name", sorted(set(SERVICES) - ONCE))
    def test_what_runs_for_long_is_looked_after(self, name: str) -> None:
        """A part that hangs is seen by its health check, and one that ends is started again."""
        service = SERVICES[name]
        check = service["healthcheck"]
        assert check["test"][0] in ("CMD", "CMD-SHELL")
        assert seconds(check["timeout"]) <= seconds(check["interval"])
        assert check["retries"] >= 1
        assert service["restart"] == "unless-stopped"

    @pytest.mark.parametrize("name", sorted(WORKERS))
    def test_a_worker_has_more_time_to_stop_than_it_takes(self, name: str) -> None:
        """A worker that is killed while it gives back its steps makes others wait for its leases."""
        grace = float(SERVICES[name]["environment"]["DRANGUE_DRAIN_GRACE_S"])
        assert seconds(SERVICES[name]["stop_grace_period"]) >= grace + 15

    @pytest.mark.parametrize("name", sorted(SERVICES))
    def test_it_waits_for_what_it_needs(self, name: str) -> None:
        """A worker that comes before its tables, or its rights to them, ends with an error."""
        for other, how in SERVICES[name].get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert how == {"condition": wanted}
        order = {"roles": "postgres", "migrate": "roles", "grants": "migrate", "prometheus": "metrics"}
        if name in {*WORKERS, "flower"}:
            assert set(SERVICES[name]["depends_on"]) == {"grants", "redis"}
        elif name == "metrics":  # which tells that Redis is away
            assert set(SERVICES[name]["depends_on"]) == {"grants"}
        elif name == "console":  # which looks and mends while things are away, and must not start jobs
            assert SERVICES[name]["depends_on"] == {}
        elif name in order:
            assert set(SERVICES[name]["depends_on"]) == {order[name]}

    def test_nothing_listens_beyond_this_machine(self) -> None:
        """Docker opens published ports past a host's firewall."""
        ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
        assert len(ports) == 4
        assert [port for port in ports if not port.startswith("127.0.0.1:")] == []

    def test_no_secret_stands_in_it(self) -> None:
        """It lies in a repository; and a password that was forgotten must stop the start, not be empty."""
        text = (ROOT / "docker-compose.yml").read_text()
        names = set(re.findall(r"\$\{(\w*PASSWORD)", text))
        assert names == {name for name in made_variables() if name.endswith("_PASSWORD")}
        assert re.findall(r"\$\{\w*PASSWORD(?!:\?)", text) == []
        for value in re.findall(r"(?:PASSWORD|AUTH|KEY): +(\S+)", text):
            assert value.startswith(("${", '"${', "&", "*")), value
        assert re.findall(r"://[^@\s$]*:[^@\s$]+@", text) == []

    def test_a_password_that_is_missing_stops_the_start(self) -> None:
        """This is about the reading of the file that the tests do; compose does the same by `:?`."""
        with pytest.raises(AssertionError, match="make-env"):
            interpolated("${POSTGRES_PASSWORD:?run ops/make-env}", {})

    @pytest.mark.parametrize("name", sorted(SERVICES))
    def test_every_setting_exists(self, name: str) -> None:
        """A misspelt one ends the worker with an error; here it is seen before anybody deploys it."""
        told = {key: str(value) for key, value in SERVICES[name].get("environment", {}).items()}
        variables = made_variables() | FILLED_IN
        ours = {key: interpolated(value, variables) for key, value in told.items() if key.startswith(PREFIX)}
        assert Settings.from_env(ours).to_env().keys() <= ours.keys()

    @pytest.mark.parametrize(
        ("name", "role", "user"),
        [
            *((pool, "worker", "worker") for pool in sorted(WORKERS)),
            ("migrate", "owner", None),
            ("metrics", "reader", "metrics"),
            ("flower", "reader", "flower"),
            ("console", "operator", "operator"),
        ],
    )
    def test_each_part_has_the_rights_of_its_kind(self, name: str, role: str, user: str | None) -> None:
        """Least privilege is only there where it is used."""
        told = SERVICES[name]["environment"]
        assert told["DRANGUE_DATABASE_URL"].startswith(f"postgresql://drangue_{role}")
        assert (user is None) == ("DRANGUE_REDIS_URL" not in told)
        assert user is None or told["DRANGUE_REDIS_URL"].startswith(f"redis://drangue_{user}:")

    def test_volumes_are_declared_or_exist(self) -> None:
        """A name that is declared nowhere, or a folder that is not there, is an error, or an empty folder of root's."""
        for name, service in SERVICES.items():
            for volume in service.get("volumes", ()):
                if name not in WORKERS:  # whose folder is yours
                    source = volume.split(":")[0]
                    assert source in COMPOSE["volumes"] or (ROOT / source).exists()

    @pytest.mark.parametrize("name", sorted(SERVICES))
    def test_nobody_is_given_the_folder_of_the_passwords(self, name: str) -> None:
        """A tool that reads files would read every password of the deployment."""
        for volume in SERVICES[name].get("volumes", ()):
            source = interpolated(volume, made_variables()).split(":")[0]
            assert source in COMPOSE["volumes"] or not (ROOT / ".env").is_relative_to((ROOT / source).resolve())
        if name in WORKERS:  # and no default is taken for granted
            with pytest.raises(AssertionError, match=r"not that of \.env"):
                interpolated(SERVICES[name]["volumes"][0], {})

    def test_what_the_documents_say_to_set_is_enough(self) -> None:
        """Compose reads the whole file for every command: a variable that is missing stops all of them, at night."""
        text = (ROOT / "docker-compose.yml").read_text()
        body = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        interpolated(body, made_variables() | FILLED_IN)
        for name in FILLED_IN:
            with pytest.raises(AssertionError, match=rf"set {name} in \.env"):
                interpolated(body, made_variables() | FILLED_IN | {name: ""})
        assert FILLED_IN.keys() <= made_variables().keys()

    @pytest.mark.parametrize("name", sorted(WORKERS))
    def test_how_many_workers_there_are_outlives_a_command(self, name: str) -> None:
        """What `--scale` said is forgotten by the next `up`, which would leave one of them to do it all."""
        variable = f"{name.upper()}_SCALE"
        assert interpolated(str(SERVICES[name]["scale"]), {variable: "4"}) == "4"
        assert interpolated(str(SERVICES[name]["scale"]), made_variables()) == made_variables()[variable] == "1"

    def test_a_key_that_is_not_set_is_not_empty(self) -> None:
        """An empty OPENAI_BASE_URL is an address to OpenAI's SDK, and every model call would fail."""
        for name in WORKERS:
            passed_on = {key for key, value in SERVICES[name]["environment"].items() if value is None}
            assert passed_on == {"OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY"}
        assert "OPENAI_BASE_URL" not in made_variables()


class TestFleet:
    def test_a_run_is_done_and_seen_while_it_is_done(self, site: Site) -> None:
        """Model and tool worker, token stream and doorbell: everything an ordinary run touches."""
        with site.client() as app:
            app.submit("tester", "go", run_id="plain", tokens=True)
            seen = [event.type for event in app.stream("plain", timeout=60)]
            result = app.result("plain", timeout=60)
        assert (result.status, result.output) == ("completed", "all of it done")
        assert {"run_started", "tool_result", "step_started", "model_delta", "run_finished"} <= set(seen)

    def test_an_application_gives_leave_and_goes_on(self, site: Site) -> None:
        """A verdict is an event under the run's lock; a second turn begins another one."""
        with site.client() as app:
            app.submit("careful", "go", run_id="asked")
            assert app.result("asked", timeout=60).status == "paused"
            (request,) = [one for one in app.pending_approvals() if one["run_id"] == "asked"]
            app.approve("asked", request["call_id"], by="ann", reason="seen it")
            assert app.result("asked", timeout=60).status == "completed"
            app.say("asked", "And now?", turn_id="2")
            result = app.result("asked", timeout=60)
        assert [event.type for event in result.events].count("run_finished") == 2

    def test_an_application_cancels(self, site: Site) -> None:
        """A cancel takes back steps that nobody has begun, so it deletes from the work list."""
        with site.client() as app:
            app.submit("careful", "go", run_id="stopped")
            assert app.result("stopped", timeout=60).status == "paused"
            app.cancel("stopped", by="ann")
            assert app.result("stopped", timeout=60).status == "cancelled"

    def test_a_run_without_a_message_is_swept_up(self, site: Site) -> None:
        """The sweep reads queues and writes to the work list; a run submitted in a transaction depends on it."""
        with site.client() as app, psycopg.connect(site.database_url("app")) as connection:
            app.submit("tester", "go", run_id="ridden", connection=connection)
            connection.commit()
            assert app.result("ridden", timeout=60).status == "completed"

    def test_the_sweep_looks_into_a_queue_that_is_behind(self, site: Site) -> None:
        """Before it sends a step again it reads what comes next; refused, it would double messages or give up."""
        with site.client() as app, redis.Redis.from_url(site.redis_url("admin")) as admin:
            app.submit("tester", "slowly", run_id="slow")
            assert app.result("slow", timeout=60).status == "completed"
            assert admin.info("commandstats")["cmdstat_lrange"]["calls"] > 0

    def test_a_message_that_a_dead_worker_had_is_given_back(self, site: Site) -> None:
        """With copies in Redis kombu does it, at the start of whoever comes first; refused, it would stop it."""
        with redis.Redis.from_url(site.redis_url("admin")) as admin:
            assert admin.hexists("unacked", LEFT)  # by the others, which keep none
            site.extra["DRANGUE_BROKER_ACKS"] = "true"
            try:
                with site.up("coordinator"):
                    wait_until(lambda: not admin.hexists("unacked", LEFT), what="the message is back in its queue")
            finally:
                del site.extra["DRANGUE_BROKER_ACKS"]

    def test_a_person_finds_everything_in_order(self, site: Site) -> None:
        """The console is what the one on call has."""

        def all_answer() -> bool:  # on a slow machine not within any given time
            doctor = site.console("doctor", "--rebuild", "--timeout", "2")
            if not re.search(r"2 answer: model\S+, tool\S+", doctor.out):
                return False
            assert doctor.code == 0, doctor
            assert "bad" not in doctor.out.split()
            return True

        wait_until(all_answer, what="both workers answer")
        assert {row["queue"] for row in site.console("queues", "--json").json} >= {"drangue.model", "drangue.tool"}

    def test_a_person_submits_approves_and_prunes(self, site: Site) -> None:
        """Forgetting runs is the one thing that only an operator may do."""
        submitted = site.console("submit", "careful", "go", "--run-id", "typed", "--wait", "60")
        assert "awaiting approval" in submitted.out
        assert site.console("approve", "typed", "--reason", "seen it").code == 0
        with site.client("operator") as client:
            assert client.result("typed", timeout=60).status == "completed"
        done = site.console("prune", "--older-than", "0s", "--archive", "old.jsonl")
        assert done.code == 0, done
        archived = [json.loads(line) for line in (site.folder / "old.jsonl").read_text().splitlines()]
        assert "typed" in json.dumps(archived)
        assert site.execute("select count(*) from runs where run_id = 'typed'") == [(0,)]

    def test_a_coordinator_stops_when_it_is_told_to(self, site: Site) -> None:
        """SIGTERM is what a container gets; a health check that stayed green afterwards would say nothing."""
        with site.up("coordinator") as (worker,):
            worker.waits_to_say("ready")
            assert worker.terminate() == 0, worker.said()
        assert not site.healthy("coordinator")

    def test_the_exporter_tells_of_the_fleet(self, site: Site) -> None:
        """It reads under a role that can write nothing."""
        with site.up("metrics") as (exporter,):
            told = fetched(f"http://127.0.0.1:{site.ports['9464']}/metrics")[1]
            assert exporter.terminate() == 0
        assert "drangue_up 1.0" in told
        assert "drangue_redis_up 1.0" in told
        assert 'drangue_queue_messages{queue="drangue.tool"}' in told
        assert not site.healthy("metrics")

    def test_the_exporter_and_the_console_start_without_redis(self, site: Site) -> None:
        """Both are there to tell what is away; neither may wait for it."""
        away = {"DRANGUE_REDIS_URL": "redis://127.0.0.1:1/0"}
        done = run(["drangue", "metrics", "--once"], {**site.env("metrics"), **away}, site.folder)
        assert ("drangue_up 1.0" in done.out, "drangue_redis_up 0.0" in done.out) == (True, True), done
        assert site.console("runs", **away).code == 0

    def test_nobody_was_refused_what_they_need(self, site: Site) -> None:
        """A right that is missing may be missed only now and then; Redis keeps a list of what it refused."""
        with site.client() as app:
            assert app.submit("tester", "go", run_id="last").run_id == "last"
            assert app.result("last", timeout=60).status == "completed"
        # What redis-py asks of every server and does without; newer ones do not note it.
        needed = [line for line in site.denied() if not line.endswith(": command client")]
        assert needed == []
