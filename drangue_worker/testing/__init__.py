"""For tests of agents, yours and ours: models that follow a script, in the process or behind a socket."""

from drangue_worker.testing.fake import FakeModel
from drangue_worker.testing.provider import Provider, ProviderCall, Reply

__all__ = ["FakeModel", "Provider", "ProviderCall", "Reply"]
