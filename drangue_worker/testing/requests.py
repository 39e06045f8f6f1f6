"""The switch that keeps tests from asking real models: paid, slow, and another answer every time.

The invariant: while it is on, no adapter of drangue's sends a request to any host but loopback and those that were
named. It holds for the whole process, whatever thread or event loop asks, and for drangue's own adapters alone: a model
object of your own, a tool or a memory is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from drangue_client import checks
from drangue_client.errors import PermanentError
from drangue_worker import asking

# Transports of httpx that reach nobody. Any other one, of somebody's own too, is taken for a real one.
_STAND_INS = {"MockTransport", "ASGITransport", "WSGITransport"}


class ModelRequestForbidden(PermanentError):
    """A test was about to ask a real model. Nothing was sent. `host` holds whom."""

    may_have_cost = False

    def __init__(self, host: str) -> None:
        self.host = host
        super().__init__(
            f"model requests are forbidden in tests, and this one would go to {host}. Use FakeModel or Provider, or "
            "allow it with `allow_model_requests()`."
        )


@contextmanager
def forbid_model_requests(*, hosts: Iterable[str] = ()) -> Iterator[None]:
    """Within the block, a call to a model that is not on loopback raises ModelRequestForbidden, which fails its run.

    `hosts` names further ones that may be asked, such as a model server beside the tests ("ollama"). A client without
    an address, or on one of httpx's transports that reach nobody, is a stand-in and passes. Blocks may be nested; the
    innermost one rules.
    """
    allowed = checks.many("hosts", hosts, "a list of host names")
    with _ruled_by(lambda client: refuse_real(client, allowed)):
        yield


@contextmanager
def allow_model_requests() -> Iterator[None]:
    """Within the block, models may be asked, whatever an outer block or pytest's plugin forbids."""
    with _ruled_by(None):
        yield


def refuse_real(client: Any, allowed: Iterable[str]) -> None:
    """Raise ModelRequestForbidden for a client of a host that is neither loopback nor `allowed`, nor a stand-in."""
    host = urlsplit(str(getattr(client, "base_url", ""))).hostname
    transport = getattr(getattr(client, "_client", None), "_transport", None)
    if host is None or type(transport).__name__ in _STAND_INS:
        return
    if not _is_loopback(host) and host not in {one.lower() for one in allowed}:
        raise ModelRequestForbidden(host)


@contextmanager
def _ruled_by(rule: Callable[[Any], None] | None) -> Iterator[None]:
    before, asking.rule = asking.rule, rule
    try:
        yield
    finally:
        asking.rule = before


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
