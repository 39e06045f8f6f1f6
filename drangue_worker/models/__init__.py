"""Models: whatever has an async `generate`, and the adapters to providers."""

from drangue_client.messages import ModelResponse, ToolCall
from drangue_worker.models.anthropic import AnthropicModel
from drangue_worker.models.model import Model
from drangue_worker.models.named import model_named
from drangue_worker.models.openai import OpenAIModel
from drangue_worker.models.routing import FallbackModel, FallbackRouter, Router, RuleRouter, SingleModel

__all__ = [
    "AnthropicModel",
    "FallbackModel",
    "FallbackRouter",
    "Model",
    "ModelResponse",
    "OpenAIModel",
    "Router",
    "RuleRouter",
    "SingleModel",
    "ToolCall",
    "model_named",
]
