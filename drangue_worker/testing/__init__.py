"""For tests of agents, yours and ours: models that follow a script, here or behind a socket, a tracer that remembers,
checks of what you plug in, deaths at every point of a run, and a switch that keeps tests from asking real models.

`plugin` has all of it as pytest fixtures: `drangue_fake_model` and `drangue_provider`, `drangue_recording_tracer`,
`drangue_check`, `drangue_crash_everywhere`, `drangue_allow_model_requests` and `drangue_forbid_model_requests`.
"""

from typing import TYPE_CHECKING

from drangue_worker.lazy import public_names

if TYPE_CHECKING:
    from drangue_worker.testing.public import *  # noqa: F403 (its `__all__` says which)

__getattr__, __dir__ = public_names(__name__)
