"""Whom the model adapters may ask: tests forbid real models here. It imports nothing, so that forbidding costs nothing.

`rule` is shown the SDK's client before each call that an adapter makes, and raises to prevent it; None lets all pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

rule: Callable[[Any], None] | None = None
