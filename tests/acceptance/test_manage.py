"""`scripts/manage.py` as an operator types it: with whatever Python the machine has, from whatever folder.

Each test makes a checkout of its own, because the real one may hold a stack that somebody is using.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from drangue_client.client import Client
from drangue_client.settings import Settings
from drangue_client.stackfile import Addresses, write_stack
from tests.acceptance.shell import Done, environment, run
from tests.kit.fleet import ROOT

MINE = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"

pytestmark = pytest.mark.skipif(not MINE.exists(), reason="there is no Python outside the environment")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout that is installed already, with the programs of this one."""
    root = tmp_path_factory.mktemp("checkout")
    install_nothing(root, root / ".venv")
    return root


def install_nothing(root: Path, venv: Path) -> None:
    """Copy the scripts to `root` and make an environment of theirs that finds what is installed here."""
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, root / name)
    subprocess.run([MINE, "-m", "venv", "--without-pip", venv], check=True)
    site = sysconfig.get_path("purelib", vars={"base": str(venv)})
    Path(site, "here.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    fingerprint = "import bootstrap; print(bootstrap._fingerprint())"
    wanted = subprocess.check_output([MINE, "-c", fingerprint], cwd=root / "scripts", text=True)
    (venv / "drangue-stamp").write_text(f"{wanted}\n")


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Settings:
    """The test's servers, with one run on them."""
    settings = Settings(database_url=database_url, redis_url=redis_url)
    client = Client(settings)
    client.submit("clerk", "hello", run_id="managed")
    client.close()
    return settings


def manage(root: Path, cwd: Path, *arguments: str, **variables: str) -> Done:
    env = environment(**variables)
    del env["PYTHONPATH"]  # the machine's own Python knows nothing of drangue
    return run([str(MINE), str(root / "scripts" / "manage.py"), *arguments], env, cwd, 15.0)


def test_it_goes_on_under_the_environment_of_its_checkout(checkout: Path, settings: Settings, tmp_path: Path) -> None:
    """Nobody has to know of `.venv`: the addresses come from the environment, the programs from the checkout."""
    alone = run([str(MINE), "-c", "import drangue_client"], {"PATH": os.environ["PATH"]}, tmp_path)
    assert alone.code == 1, "this Python finds drangue by itself, so the test would show nothing"
    done = manage(checkout, tmp_path, "runs", **settings.to_env())
    assert (done.code, done.err) == (0, "")
    assert [line.split()[:3] for line in done.out.splitlines()[1:]] == [["managed", "clerk", "queued"]]


def test_it_finds_the_stack_of_its_checkout_from_anywhere(checkout: Path, settings: Settings, tmp_path: Path) -> None:
    """An operator calls it by its path; `drangue dev` runs in the checkout."""
    folder = checkout / ".drangue"
    write_stack(folder, Addresses(settings.database_url, settings.redis_url), {})
    try:
        done = manage(checkout, tmp_path, "show", "managed", "--json")
    finally:
        shutil.rmtree(folder)
    assert (done.code, done.json["run_id"]) == (0, "managed")
    assert "drangue dev" in done.err


def test_it_has_the_operators_commands_and_no_others(checkout: Path, tmp_path: Path) -> None:
    """Starting servers and workers is not an operator's business."""
    done = manage(checkout, tmp_path, "--help")
    assert (done.code, done.err) == (0, "")
    listed = [line.split()[0] for line in done.out.partition("Commands:")[2].splitlines() if line[2:3].strip()]
    decide = ["approvals", "approve", "cancel", "outcome", "prune", "reject", "retry", "say", "submit"]
    look = ["agents", "doctor", "queues", "runs", "show", "tail", "workers"]
    assert listed == sorted([*decide, *look, "migrate"])


def test_a_mistake_is_one_line_and_the_exit_code_comes_through(checkout: Path, settings: Settings) -> None:
    """Going on under another Python must not change what a script sees."""
    line = manage(checkout, checkout, "approve", "nowhere", **settings.to_env()).one_line()
    assert "no run 'nowhere'" in line


def test_an_environment_behind_a_link_is_used(settings: Settings, tmp_path: Path) -> None:
    """Whoever keeps environments on another disk links them; it must not go on for ever under itself."""
    root = tmp_path / "checkout"
    root.mkdir()
    elsewhere = tmp_path / "environments" / "drangue"
    elsewhere.parent.mkdir()
    install_nothing(root, elsewhere)
    (root / ".venv").symlink_to(elsewhere)
    try:
        done = manage(root, tmp_path, "runs", **settings.to_env())
    except subprocess.TimeoutExpired:
        pytest.fail("it starts itself again and again")
    assert (done.code, done.err) == (0, "")
