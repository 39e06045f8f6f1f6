"""Events and what is read from them, by the name the worker's users look under; they are the client's."""

from drangue_client.events import EVENT_TYPES, Event, EventType
from drangue_client.result import Result
from drangue_client.trace import Span

__all__ = ["EVENT_TYPES", "Event", "EventType", "Result", "Span"]
