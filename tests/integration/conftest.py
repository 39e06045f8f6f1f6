"""What several tests of this folder share."""

from __future__ import annotations

from typing import Any

import pytest

from drangue_worker import tool


@pytest.fixture
def ran() -> list[int]:
    """The calls that were made in this test."""
    return []


@pytest.fixture
def act(ran: list[int]) -> Any:
    """A tool that does something."""

    @tool
    def act(n: int = 1) -> str:
        """Has an effect."""
        ran.append(n)
        return "acted"

    return act
