"""Which servers a command talks to: the environment's, else those of the stack that runs in this folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drangue_client.errors import SettingsError
from drangue_client.settings import Settings
from drangue_client.stackfile import Addresses, find_settings, write_stack

HERE = Addresses("postgresql://drangue:a@127.0.0.1:1/here", "redis://:b@127.0.0.1:2/0")
THERE = Addresses("postgresql://drangue:a@127.0.0.1:3/there", "redis://:b@127.0.0.1:4/0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and an environment that names nothing."""
    for name in [name for name in os.environ if name.startswith("DRANGUE_")]:
        monkeypatch.delenv(name)
    inner = tmp_path / "here" / "deep"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    return tmp_path


def test_without_servers_the_defaults_stand(folder: Path) -> None:
    """Whoever needs a server then says how to get one."""
    told: list[str] = []
    assert find_settings(tell=told.append) == Settings()
    assert told == []


def test_the_stack_of_this_folder_is_used_and_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody should wonder which database a command wrote to; other settings still come from the environment."""
    write_stack(folder / "here" / ".drangue", HERE, {})
    monkeypatch.setenv("DRANGUE_MAX_CRASHES", "7")
    told: list[str] = []
    settings = find_settings(tell=told.append)
    assert settings == Settings(database_url=HERE.database_url, redis_url=HERE.redis_url, max_crashes=7)
    assert len(told) == 1


@pytest.mark.parametrize("name", ["DRANGUE_DATABASE_URL", "DRANGUE_REDIS_URL"])
def test_an_environment_that_names_a_server_is_obeyed_alone(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half production and half playground would be a queue whose runs nobody finds."""
    write_stack(folder / "here" / ".drangue", HERE, {})
    monkeypatch.setenv(name, "postgresql://u@db/d" if "DATABASE" in name else "redis://queue/0")
    settings = find_settings()
    assert "127.0.0.1" not in settings.database_url + settings.redis_url


def test_this_folder_comes_before_other_places(folder: Path) -> None:
    """The checkout of the command is only the second guess."""
    write_stack(folder / "there" / ".drangue", THERE, {})
    assert find_settings([folder / "there"]).redis_url == THERE.redis_url
    write_stack(folder / "here" / ".drangue", HERE, {})
    assert find_settings([folder / "there"]).redis_url == HERE.redis_url


def test_a_wrong_environment_is_refused_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typo must not fall through to the playground."""
    monkeypatch.setenv("DRANGUE_DATABSE_URL", "postgresql://u@db/d")
    with pytest.raises(SettingsError, match="Did you mean DRANGUE_DATABASE_URL"):
        find_settings()
