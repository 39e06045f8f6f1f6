"""Models: whatever has an async `generate`, and the adapters to providers."""

from drangue_client.messages import ModelResponse, ToolCall
from drangue_worker.models.model import Model
from drangue_worker.models.openai import OpenAIModel
from drangue_worker.models.routing import Router, RuleRouter, SingleModel

__all__ = ["Model", "ModelResponse", "OpenAIModel", "Router", "RuleRouter", "SingleModel", "ToolCall"]
