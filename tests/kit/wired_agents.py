"""The agents of `agents`, for workers whose wire to Postgres is cut: their tools leave their effects past it."""

from __future__ import annotations

import os

import psycopg

from tests.kit import agents

EFFECTS_URL = "EFFECTS_URL"  # not ours to cut: what a tool does to the world does not go through drangue's database


def effect(key: str, name: str) -> None:
    """Count one execution of a tool, durably and at once."""
    with psycopg.connect(os.environ[EFFECTS_URL], autocommit=True) as connection:
        connection.execute("insert into effects (key, tool, process) values (%s, %s, %s)", (key, name, os.getpid()))


agents.effect = effect
worker_agent = agents.worker_agent
