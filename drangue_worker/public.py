"""Every public name of `drangue_worker`, which loads this module when the first of them is asked for."""

from drangue_client.autonomy import Approval, Autonomy
from drangue_client.budget import Budget
from drangue_client.client import Client
from drangue_client.errors import (
    AuthError,
    ConflictError,
    DrangueError,
    LeaseHeldError,
    PermanentError,
    RateLimitError,
    ToolError,
    TransientError,
    UnknownRunError,
    ValidationError,
)
from drangue_client.events import Event
from drangue_client.limits import Limits
from drangue_client.messages import ModelResponse, ToolCall
from drangue_client.result import Result
from drangue_client.settings import Settings
from drangue_client.store import InMemoryStore, PostgresStore, SQLiteStore, Store
from drangue_client.trace import Span
from drangue_worker.agent import Agent
from drangue_worker.evals import (
    Check,
    EvalReport,
    Gate,
    GateDecision,
    Judge,
    Scenario,
    ScenarioResult,
    evaluate,
    forbids_tool,
    judged,
    output_contains,
    output_satisfies,
    scenario_from_result,
    tools_called,
    within_steps,
    within_tokens,
)
from drangue_worker.fleet.install import install
from drangue_worker.memory import Memory, MemoryItem, NullMemory
from drangue_worker.models import (
    AnthropicModel,
    FallbackModel,
    FallbackRouter,
    Model,
    OpenAIModel,
    Router,
    RuleRouter,
    SingleModel,
)
from drangue_worker.observability import ConsoleTracer, NullTracer, OTelTracer, Tracer
from drangue_worker.registry import Registry as AgentRegistry
from drangue_worker.tools.guards import Guardrails
from drangue_worker.tools.tool import DEFAULT_RETRY_ON, Done, NotDone, Tool, ToolPolicy, harden, tool

__all__ = [
    "DEFAULT_RETRY_ON",
    "Agent",
    "AgentRegistry",
    "AnthropicModel",
    "Approval",
    "AuthError",
    "Autonomy",
    "Budget",
    "Check",
    "Client",
    "ConflictError",
    "ConsoleTracer",
    "Done",
    "DrangueError",
    "EvalReport",
    "Event",
    "FallbackModel",
    "FallbackRouter",
    "Gate",
    "GateDecision",
    "Guardrails",
    "InMemoryStore",
    "Judge",
    "LeaseHeldError",
    "Limits",
    "Memory",
    "MemoryItem",
    "Model",
    "ModelResponse",
    "NotDone",
    "NullMemory",
    "NullTracer",
    "OTelTracer",
    "OpenAIModel",
    "PermanentError",
    "PostgresStore",
    "RateLimitError",
    "Result",
    "Router",
    "RuleRouter",
    "SQLiteStore",
    "Scenario",
    "ScenarioResult",
    "Settings",
    "SingleModel",
    "Span",
    "Store",
    "Tool",
    "ToolCall",
    "ToolError",
    "ToolPolicy",
    "Tracer",
    "TransientError",
    "UnknownRunError",
    "ValidationError",
    "evaluate",
    "forbids_tool",
    "harden",
    "install",
    "judged",
    "output_contains",
    "output_satisfies",
    "scenario_from_result",
    "tool",
    "tools_called",
    "within_steps",
    "within_tokens",
]
