"""What an evaluation leaves behind in files: the profile, for later ones to be compared with, and who overrode it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from drangue_client.errors import DrangueError
from drangue_worker.evals.evaluation import Evaluation
from drangue_worker.evals.report import to_keep


def recorder(path: Path, evaluation: Evaluation) -> Callable[[dict[str, Any]], None]:
    """What appends an override to a file, one JSON object a line."""

    def record(decided: dict[str, Any]) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"at": at, **decided, **to_keep(evaluation), "baseline": evaluation.baseline}
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise DrangueError(f"the override was not recorded, so it does not hold: {error}.") from error

    return record


def save(path: Path, evaluation: Evaluation) -> None:
    """Write the profile, whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(json.dumps(to_keep(evaluation), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(fresh, path)
    except OSError as error:
        raise DrangueError(f"the profile was not saved: {error}. Name another place with --save.") from error
