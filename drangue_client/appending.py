"""Appending to a run from outside its steps: decide from the run as it stands, write if nothing moved, else again.

What a person or an application adds to a log (a turn, a verdict, a cancel, an outcome) goes through here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from drangue_client.events import Fact
from drangue_client.folding import fold
from drangue_client.store.port import Log
from drangue_client.store.values import Look, Move, Moved


def append(log: Log, run_id: str, facts: Callable[[Look], Sequence[Fact]], **more: Any) -> tuple[Look, Moved | None]:
    """Append what `facts` says of the run as it stands; asked anew whenever the run has moved meanwhile.

    Returns the run as it stood before, and what was written: None where `facts` named nothing. `more` is as in Move.
    Whether repeating is safe is the business of `facts`. Raises what it raises, and UnknownRunError.
    """
    look = log.look(run_id)
    while True:
        new = tuple(facts(look))
        if not new:
            return look, None
        run = fold((fact.at(seq) for seq, fact in enumerate(new, start=look.run.seq + 1)), onto=look.run)
        moved = log.settle([Move(run_id, look.row.head_seq, run, facts=new, **more)])[0]
        if moved.look is None:
            return look, moved
        look = moved.look
