"""What the workers' sweeps sent, read from what the workers logged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Swept:
    """`resent`: messages of waiting steps that were taken for lost. `recovered`: steps taken up again after their
    worker was taken for dead."""

    resent: int = 0
    recovered: int = 0


def swept(folder: Path) -> Swept:
    """The sum over every worker whose log (one JSON object per line) lies in the folder."""
    return total(
        line for path in sorted(folder.glob("*.log")) for line in path.read_text(errors="replace").splitlines()
    )


def total(lines: Iterable[str]) -> Swept:
    """The sum over these log lines."""
    told = list(_told(lines))
    return Swept(sum(one["resent"] for one in told), sum(one["recovered"] for one in told))


def _told(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if '"swept"' in line:
            try:
                told = json.loads(line)
            except ValueError:
                continue  # its worker was killed while it wrote
            if told.get("event") == "swept":
                yield told
