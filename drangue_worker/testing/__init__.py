"""For tests of agents, yours and ours: models that follow a script, here or behind a socket, a recording tracer."""

from drangue_worker.testing.fake import FakeModel
from drangue_worker.testing.provider import Provider, ProviderCall, Reply
from drangue_worker.testing.tracers import RecordingTracer

__all__ = ["FakeModel", "Provider", "ProviderCall", "RecordingTracer", "Reply"]
