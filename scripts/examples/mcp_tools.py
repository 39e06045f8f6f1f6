"""MCP: the tools of a server, beside your own. What the server marks as destructive never runs twice, nor unasked here.

The server is this same file, started as a child process. It needs the extra `mcp`: `pip install -e ".[mcp]"`.

Nothing must run first. Without an API key a scripted model answers.

    python scripts/examples/mcp_tools.py
"""

import sys

from _model import MODEL, scripted

from drangue_worker import Agent, Guardrails
from drangue_worker.tools.mcp import MCPServer


def serve() -> None:
    """A library's server; yours may be anybody's."""
    from mcp.server.mcpserver import MCPServer as Server
    from mcp.types import ToolAnnotations

    server = Server("library", log_level="ERROR")

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    def find(title: str) -> str:
        """Find a book."""
        return f"{title}: shelf 7, two copies"

    @server.tool(annotations=ToolAnnotations(destructive_hint=True))
    def discard(title: str) -> str:
        """Throw all copies of a book away."""
        return f"{title} is gone"

    server.run("stdio")


def shelf_label(number: int) -> str:
    """What is written on a shelf."""
    return f"shelf {number}: poetry"


SCRIPT = [
    [("find", {"title": "Leaves of Grass"}), ("shelf_label", {"number": 7})],
    [("discard", {"title": "Leaves of Grass"})],
]


def main() -> None:
    library = MCPServer.stdio(sys.executable, [__file__, "serve"], name="library")
    agent = Agent(
        MODEL,
        [*library.tools(), shelf_label],
        guardrails=Guardrails(require_approval_for_irreversible=True),
    )
    for tool in agent.tools.values():
        print(f"{tool.name:<12} {'reversible' if tool.reversible else 'irreversible':<13} {tool.description}")
    with scripted(SCRIPT):
        result = agent.run_sync("Find Leaves of Grass, then throw it away.", trace=True)
        for request in result.pending_approvals:
            print(f"{result.status}: {request['tool']}({request['arguments']}) waits for a person")


if __name__ == "__main__":
    serve() if "serve" in sys.argv else main()
