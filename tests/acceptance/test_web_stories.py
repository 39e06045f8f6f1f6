"""The web applications among the examples, each started by a newcomer with its one command, and what it prints."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.acceptance.conftest import new_database
from tests.acceptance.shell import Done
from tests.acceptance.stories.newcomer import Newcomer, commands_of

NAMES = ("fastapi_app", "django_app")


@pytest.fixture(scope="module")
def played(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """What each prints, each in a database of its own: both serve an agent of the same name."""

    def play(name: str, redis_number: int) -> Done:
        redis_url = urlsplit(servers.redis_url)._replace(path=f"/{redis_number}").geturl()
        with new_database(servers.database_url) as url:
            named = {"DRANGUE_DATABASE_URL": url, "DRANGUE_REDIS_URL": redis_url}
            return Newcomer.at(tmp_path_factory.mktemp(name)).types(commands_of(name)[0], **named)

    with ThreadPoolExecutor(len(NAMES)) as pool:
        return dict(zip(NAMES, pool.map(play, NAMES, (5, 6)), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_each_is_played_by_its_one_command(name: str, played: dict[str, Done]) -> None:
    """A ticket is made, watched, approved and answered, and one that is rolled back leaves no run."""
    done = played[name]
    assert done.code == 0, done
    assert [line.rstrip() for line in done.out.splitlines() if line][1:] == [
        "POST /tickets         201 queued",
        "GET  .../events       after -1: [run_started] [model_decision] [tool_result] [model_decision] "
        "[approval_requested]",
        "GET  /tickets/ID      paused: restart({'service': 'checkout'}) waits for a person",
        "POST .../approve      200 by ann",
        "GET  .../events       after 4: [approval_granted] [step_started] [tool_result] "
        "Checkout failed 7.5 % of its requests, so it was restarted.[model_decision] [run_finished]",
        "POST .../approve      409 once more",
        "GET  /tickets/ID      completed: Checkout failed 7.5 % of its requests, so it was restarted.",
        "POST /tickets         409 for the same once more; runs of it: 1",
        "(the scripted model was asked 3 times)",
    ]
