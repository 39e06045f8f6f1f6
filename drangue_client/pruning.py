"""Pruning: forget runs that ended long ago, once they are safe in an archive."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from drangue_client import checks
from drangue_client.errors import DrangueError
from drangue_client.run import ENDED, Ended
from drangue_client.store.port import Log

PAGE = 200  # runs that are archived, and then deleted, at once


def prune(
    log: Log,
    older_than_s: float,
    *,
    statuses: Sequence[Ended] = ENDED,
    archive: Path | None = None,
    dry: bool = False,
    done: Callable[[int], None] = lambda _: None,
) -> int:
    """Forget the runs of these statuses that ended more than so many seconds ago; returns how many.

    What somebody still works on stays, and so does what has an outcome that nobody knows. The id of a forgotten run is
    free again: a late repetition of its submission would be a new run.

    With `archive` each is appended to that file first, a line of JSON with its row and its events, and the file is on
    disk before anything of it is deleted; DrangueError where it cannot be written. A run that moves meanwhile is kept;
    one that was archived and then kept, or whose deletion was interrupted, is archived again the next time. With `dry`
    they are only counted. `done` is told how many are forgotten so far.
    """
    checks.seconds("older_than_s", older_than_s, zero=True)
    for status in statuses:
        checks.one_of("statuses", status, ENDED)
    if dry:
        return len(log.ended_before(older_than_s, statuses, limit=10**9))
    if archive is not None:
        try:
            archive.open("a").close()
        except OSError as error:
            raise DrangueError(f"{archive} cannot be written: {error.strerror}. Nothing was forgotten.") from error
    forgotten = 0
    while rows := log.ended_before(older_than_s, statuses, limit=PAGE):
        if archive is not None:
            with archive.open("a", encoding="utf-8") as file:
                for row in rows:
                    told = {"run": asdict(row), "events": [event.to_json() for event in log.events(row.run_id)]}
                    file.write(json.dumps(told, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        gone = log.forget(rows)
        forgotten += len(gone)
        done(forgotten)
        if not gone:  # all of them moved: they are not old any more
            break
    return forgotten
