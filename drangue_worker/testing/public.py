"""Every public name of `drangue_worker.testing`, which loads this module when the first of them is asked for."""

from drangue_worker.testing.conformance import (
    check_memory,
    check_model_interface,
    check_router,
    check_store,
    check_store_claims,
    check_store_idempotent_append,
    check_store_with_agent,
    check_tracer,
)
from drangue_worker.testing.crash import CrashReport, crash_everywhere
from drangue_worker.testing.fake import FakeModel
from drangue_worker.testing.provider import Provider, ProviderCall, Reply
from drangue_worker.testing.requests import ModelRequestForbidden, allow_model_requests, forbid_model_requests
from drangue_worker.testing.tracers import RecordingTracer

__all__ = [
    "CrashReport",
    "FakeModel",
    "ModelRequestForbidden",
    "Provider",
    "ProviderCall",
    "RecordingTracer",
    "Reply",
    "allow_model_requests",
    "check_memory",
    "check_model_interface",
    "check_router",
    "check_store",
    "check_store_claims",
    "check_store_idempotent_append",
    "check_store_with_agent",
    "check_tracer",
    "crash_everywhere",
    "forbid_model_requests",
]
