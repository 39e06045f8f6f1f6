"""The README is executed: its files are written, its commands typed and its snippets run, in the order they stand."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from drangue_client.settings import PREFIX, Settings
from drangue_worker.testing.provider import Provider, ProviderCall, Reply
from tests.kit import starter
from tests.kit.fleet import ROOT, wait_until

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
ELSEWHERE = {"scripts/test": "is running this", "scripts/demo": "test_the_demo_keeps_its_promises"}


def script(call: ProviderCall) -> Reply:
    """A model that looks when it is asked about health, restarts when it is told to, and fills in forms."""
    if "final_answer" in call.tools:
        return Reply(tool_calls=(("final_answer", {"service": "checkout", "healthy": False}),))
    if call.turn == 0 and "Restart" in call.last_user():
        return Reply(text="It hangs, so I restart it.", tool_calls=(("restart", {"service": "checkout"}),))
    if call.turn == 0:
        return Reply(tool_calls=(("error_rate", {"service": "checkout"}),))
    return Reply(text="Checkout is failing: 7.5 % of requests.")


@pytest.fixture
def project(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A newcomer's folder and environment: the programs of this checkout, a provider, nothing else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "OPENAI_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with Provider(script) as provider:
        yield {**kept, "PATH": path, "OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "x", "PWD": str(tmp_path)}


def commands() -> list[str]:
    """Every line of the README that a reader would type."""
    lines = [line for kind, _, text in BLOCKS if kind == "console" for line in text.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ") for line in lines]


def test_every_snippet_and_command_works_in_order(project: dict[str, str], tmp_path: Path) -> None:
    """A newcomer copies them one after the other; none may fail."""
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    dev: subprocess.Popen[bytes] | None = None
    try:
        for kind, name, text in BLOCKS:
            if kind == "python" and name:
                (tmp_path / name).write_text(text)
            elif kind == "python":
                run(["python", "-c", text], project, tmp_path)
            elif kind == "console":
                for line in text.splitlines():
                    command = line.removeprefix("$ ")
                    if command in ELSEWHERE:
                        continue
                    if command.endswith("drangue dev"):
                        dev = start_dev(command, project, tmp_path)
                    else:
                        run(["bash", "-c", command], project, tmp_path)
        assert dev is not None
        dev.send_signal(signal.SIGINT)
        assert dev.wait(60) == 0
    finally:
        if dev is not None and dev.poll() is None:
            dev.kill()
            dev.wait()
        forget_database_of(tmp_path)


def run(command: list[str], env: dict[str, str], folder: Path) -> str:
    if starter.takes(command, env):
        done = starter.run(command, env, folder, 120)
    else:
        done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120)
    waits = "restart-1 --wait" in command[-1]  # for a person, as the next command shows
    assert done.returncode == (3 if waits else 0), f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def start_dev(command: str, env: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    log = folder / "dev.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {command}"], env=env, cwd=folder, stdout=output, stderr=output
        )
    wait_until(lambda: "Ctrl-C" in log.read_text() or process.poll() is not None, 90, "drangue dev is up")
    assert process.poll() is None, log.read_text()
    return process


def forget_database_of(folder: Path) -> None:
    """Root's embedded database is kept outside the folder; this one has served."""
    import shutil

    from drangue_worker.embedded.root import home_of

    if os.geteuid() == 0:
        shutil.rmtree(home_of((folder / ".drangue").resolve()), ignore_errors=True)


def test_the_trace_shown_is_the_trace_printed(project: dict[str, str], tmp_path: Path) -> None:
    """What the README shows as output is the output."""
    (tmp_path / "agents.py").write_text(next(text for kind, name, text in BLOCKS if name == "agents.py"))
    shown = next(text for kind, _, text in BLOCKS if kind == "text" and text.startswith("* "))
    printed = run(["python", "agents.py"], project, tmp_path)
    assert printed.startswith(shown)


def test_the_deaths_shown_are_the_deaths_printed(project: dict[str, str], tmp_path: Path) -> None:
    """And so is this output."""
    snippet = next(text for kind, _, text in BLOCKS if "crash_everywhere(" in text)
    shown = next(text for kind, _, text in BLOCKS if text.startswith("a process died"))
    assert run(["python", "-c", snippet], project, tmp_path) == shown


def test_the_demo_keeps_its_promises() -> None:
    """`scripts/demo` exits with 0 only if each of its claims held."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DRANGUE_", "OPENAI_"))}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo")], env=env, cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BROKEN" not in done.stdout


@pytest.mark.parametrize("field", fields(Settings), ids=lambda field: field.name)
def test_every_setting_stands_in_the_table(field: object) -> None:
    """An operator finds each variable with its default and meaning, and no other."""
    name = PREFIX + field.name.upper()  # type: ignore[attr-defined]
    default = field.default  # type: ignore[attr-defined]
    shown = "" if default in ("", ()) else str(default).lower() if isinstance(default, bool) else f"{default}"
    shown = shown.removesuffix(".0")
    about = field.metadata["about"]  # type: ignore[attr-defined]
    cell = f" {shown} " if shown else " "
    assert f"| `{name}` |{cell}| {about} |" in README


def test_links_lead_somewhere() -> None:
    """A dead link is the first thing a newcomer finds."""
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
