"""Tools that MCP servers offer, as tools of an agent.

`MCPServer` is for agents that a fleet serves: its tools are known when a module is imported, and every process that
calls one opens a session of its own. `stdio_toolset` and `http_toolset` hold one session for the length of a block;
`MCPToolset` and `tools_from_session` take a session that somebody else has opened. The MCP SDK (extra `mcp`) is
imported on connecting and not before. Nothing here serves MCP, samples models for a server or answers its questions.
"""

from drangue_worker.tools.mcp.mapping import tools_from_session
from drangue_worker.tools.mcp.server import MCPServer, MCPToolset, http_toolset, stdio_toolset

__all__ = ["MCPServer", "MCPToolset", "http_toolset", "stdio_toolset", "tools_from_session"]
