"""Statements and transactions, read from what Postgres logs with `log_statement = all`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

PREFIX = "counting|%p|%d|%a|"
LINE = re.compile(r"counting\|(\d+)\|([^|]*)\|([^|]*)\|LOG:  (?:statement|execute [^:]*): (.*)", re.DOTALL)
BEGIN = re.compile(r"(begin|start transaction)\b", re.IGNORECASE)
COMMIT = re.compile(r"(commit|end)\b", re.IGNORECASE)
ROLLBACK = re.compile(r"(rollback|abort)\b(?! to\b)", re.IGNORECASE)
SHOWN = 300  # characters of a statement that are kept


@dataclass
class Session:
    """What one session sent. `texts` are its statements by how often each was sent, `words` counts the BEGINs and their
    ends, `commits` transactions, also those of a single statement."""

    application: str
    texts: Counter[str] = field(default_factory=Counter)
    words: int = 0
    commits: int = 0
    open: bool = False


def read_sessions(log: str, database: str) -> dict[int, Session]:
    """The sessions that sent something to a database, by the process id of each."""
    found: dict[int, Session] = {}
    for entry in _entries(log):
        match = LINE.match(entry)
        if match is not None and match[2] == database:
            session = found.setdefault(int(match[1]), Session(match[3]))
            _count(session, " ".join(match[4].split()))
    return found


def _count(session: Session, text: str) -> None:
    if BEGIN.match(text):
        session.words += 1
        session.open = True
    elif COMMIT.match(text) or ROLLBACK.match(text):
        session.words += 1
        session.commits += bool(COMMIT.match(text))
        session.open = False
    else:
        session.texts[text[:SHOWN]] += 1
        session.commits += not session.open


def _entries(log: str) -> list[str]:
    """Whole entries: further lines of a statement begin with a tab."""
    entries: list[str] = []
    for line in log.splitlines():
        if line.startswith("\t") and entries:
            entries[-1] += line
        else:
            entries.append(line)
    return entries
