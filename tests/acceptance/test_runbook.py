"""ops/runbook.md and ops/prometheus: commands are typed, alerts and sections belong together, metrics exist.

What begins with `docker compose run` or `exec` is run without its container, on a deployment whose workers have
stopped, so that it may be restored. What only docker can do (ps, logs, build, up, stop) is held against the services.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from drangue_worker.testing.provider import ProviderCall, Reply
from tests.acceptance.composed import SERVICES, Site, deployed
from tests.acceptance.shell import Done, run
from tests.kit.fleet import ROOT, wait_until

PROMETHEUS = ROOT / "ops" / "prometheus"
RUNBOOK = (ROOT / "ops" / "runbook.md").read_text()
COMMANDS = [
    line.strip().removeprefix("$ ")
    for block in re.findall(r"^ *```console\n(.*?)^ *```$", RUNBOOK, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
BY_DOCKER = re.compile(r"docker compose (ps|logs|build|up|stop)\b")
WITHOUT_WORKERS = ("console doctor --rebuild", "console workers")  # which then say so, by their exit code


def script(call: ProviderCall) -> Reply:
    """A model for each state that a run of the runbook is in."""
    if "fail" in call.last_user():
        return Reply(status=400, error="a request that the provider refuses")
    if "lose" in call.last_user() and call.turn == 0:
        return Reply(tool_calls=(("lose", {"amount": 1}),))
    if "wire" in call.last_user() and call.turn == 0:
        return Reply(tool_calls=(("wire", {"amount": 1}),))
    return Reply(text="done")


@pytest.fixture(scope="module")
def site(addresses: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A deployment with the runs of which the runbook speaks, and no worker any more."""
    runs = {
        "ticket-4710": ("tester", "answer", "completed"),
        "ticket-4711": ("careful", "wire", "paused"),
        "ticket-4712": ("lossy", "lose", "paused"),
        "ticket-4713": ("tester", "fail", "failed"),
        "ticket-4714": ("careful", "wire", "paused"),
        "ticket-4715": ("careful", "wire", "paused"),
        "ticket-4716": ("tester", "fail", "failed"),
    }
    with deployed(addresses.database_url, tmp_path_factory.mktemp("runbook"), script) as site:
        (site.folder / "ops").symlink_to(ROOT / "ops")
        with site.up("model"), site.client() as app:
            for run_id, (agent, text, _) in runs.items():
                app.submit(agent, text, run_id=run_id, labels={"ticket": run_id}, allow_unknown=True)
            for run_id, (_, _, status) in runs.items():
                wait_until(lambda run_id=run_id, status=status: app.get(run_id).status == status, what=run_id)
        yield site


def typed(site: Site, command: str) -> Done:
    """Run a command of the runbook without its container."""
    started = re.match(r"docker compose run --rm (?:--no-deps )?(\w+) ?", command)
    if started and started[1] == "console":
        return site.console(*shlex.split(command[started.end() :]))
    if started:
        return site.once(started[1])
    words, env = command, site.env("roles")
    executed = re.match(r"docker compose exec (?:-T )?(\w+) ", command)
    if executed:
        database = urlsplit(site.admin_url).path.strip("/")
        words = command[executed.end() :].replace("--username=postgres", "")
        words = re.sub(r"(custom |--dbname=)drangue", rf"\1{database}", words)
        words = words.replace("redis-cli", f"redis-cli -p {site.ports['6379']}")
        env = site.env("roles" if executed[1] == "postgres" else executed[1])
    return run(["bash", "-c", words], env, site.folder)


def test_a_list_that_was_cut_says_so(site: Site) -> None:
    """Whoever restores ends the runs that are listed; one that is not on the list would do its work a second time."""
    done = site.console("runs", "--limit", "2", "--json")
    assert (done.code, len(done.json), done.err) == (0, 2, "2 shown; there may be more: --limit\n")
    assert site.console("runs", "--limit", "2").err == done.err
    assert site.console("runs", "--limit", "50").err == ""
    only = ("--label", "ticket=ticket-4716", "--by", "ann")
    assert site.console("retry", "--all", "--limit", "1", *only) == Done(
        0, "retrying run ticket-4716\n", "1 taken up; there may be more: --limit\n"
    )
    assert site.console("retry", "--all", "--limit", "1", *only) == Done(0, "no failed run matches\n", "")


def test_every_command_works_in_order(site: Site) -> None:
    """Whoever is woken up copies them; each has to do what is said of it, the restore too."""
    commands = list(dict.fromkeys(command for command in COMMANDS if not BY_DOCKER.match(command)))
    commands.remove("docker compose run --rm console doctor")  # with more to do it is among them, too
    assert len(commands) > 25
    for command in commands:
        done = typed(site, command)
        if not any(part in command for part in WITHOUT_WORKERS):
            assert done.code == 0, (command, done)
        assert "Traceback" not in done.err, (command, done)
        site.read_variables()
    with site.client() as app:
        states = {f"ticket-{n}": app.get(f"ticket-{n}").status for n in range(4710, 4716)}
    assert states == {
        "ticket-4710": "completed",
        "ticket-4711": "cancelled",
        "ticket-4712": "running",  # it was told what happened, and goes on with the next worker
        "ticket-4713": "running",  # taken up again
        "ticket-4714": "running",  # somebody gave leave
        "ticket-4715": "cancelled",
    }


@pytest.mark.parametrize("command", [command for command in COMMANDS if BY_DOCKER.match(command)])
def test_what_docker_does_is_about_services_that_exist(command: str) -> None:
    """A service that was renamed leaves a command behind that fails at night."""
    words = re.sub(r"--(?:since|tail) \S+", "", command).split()[3:]
    named = [word for word in words if not word.startswith("--")]
    assert [name for name in named if name not in SERVICES] == []
    assert "--scale" not in command  # which the next `up` forgets; it stands in .env


@pytest.mark.parametrize("command", [command for command in COMMANDS if "compose run" in command])
def test_what_is_run_by_hand_starts_nothing_else(command: str) -> None:
    """It is run in an emergency: waiting for a part that is away, or migrating on the way, is the wrong moment."""
    options, name = re.findall(r"compose run((?: --\S+)+) (\w+)", command)[0]
    assert "--no-deps" in options or not SERVICES[name]["depends_on"], command


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    """An alert without a runbook wakes somebody up and leaves them there."""
    assert rule["annotations"]["runbook_url"] == f"ops/runbook.md#{rule['alert'].lower()}"
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"].endswith(".")


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_the_number_in_an_alert_is_the_one_it_tells_of(rule: dict[str, Any]) -> None:
    """`A and B` has the value of A: a count that is shown as a percentage is nonsense."""
    value = rule["expr"].split(" and ")[0]
    told = re.findall(r"\$value(?: \| (\w+))?", rule["annotations"]["summary"])
    assert ("humanizePercentage" in told) == (" / " in value)
    assert ("humanizeDuration" in told) <= ("_seconds" in value)


def test_alerts_and_sections_are_the_same() -> None:
    """A section for an alert that is gone misleads; one that is missing does worse."""
    sections = re.findall(r"^## (\w+)$", RUNBOOK.partition("\n# Alerts\n")[2], re.MULTILINE)
    assert sections == [rule["alert"] for rule in ALERTS]


def test_alerts_are_about_metrics_that_exist(site: Site) -> None:
    """A misspelt one never fires, and nobody hears that it does not."""
    done = subprocess.run(
        ["drangue", "metrics", "--once"], env=site.env("metrics"), cwd=site.folder, capture_output=True, text=True
    )
    told = set(re.findall(r"^# TYPE (\w+) ", done.stdout, re.MULTILINE))
    text = "\n".join(rule["expr"] for rule in ALERTS) + RUNBOOK
    named = set(re.findall(r"\bdrangue_[a-z_]+\b", text)) - {"drangue_admin", "drangue_worker"}
    assert len(named) > 8
    assert named <= told
    labels = set(re.findall(r"(?:by|on) \((\w+)\)", text)) | set(re.findall(r"\{(\w+)=", text)) - {"job"}
    assert labels <= set(re.findall(r"[{,](\w+)=", done.stdout))


def test_prometheus_scrapes_services_at_their_ports() -> None:
    """And it finds the rules where the compose file puts them."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert targets == {"drangue": ["metrics:9464"], "flower": ["flower:5555"]}
    assert "9464" in SERVICES["metrics"]["command"]
    assert any(port.endswith(":5555") for port in SERVICES["flower"]["ports"])
    (folder,) = [volume.split(":") for volume in SERVICES["prometheus"]["volumes"] if volume.startswith("./")]
    for path in [*config["rule_files"], f"{folder[1]}/prometheus.yml"]:
        assert path.startswith(f"{folder[1]}/")
        assert (ROOT / folder[0] / Path(path).name).exists()


def test_links_lead_somewhere() -> None:
    """A dead link at night."""
    links = re.findall(r"\]\((?!http)([^)]+)\)", RUNBOOK)
    titles = {f"#{title.lower().replace(' ', '-')}" for title in re.findall(r"^#+ (.+)$", RUNBOOK, re.MULTILINE)}
    assert [link for link in links if link not in titles and not (ROOT / "ops" / link).exists()] == []
