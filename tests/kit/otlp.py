"""A receiver of OpenTelemetry's protocol on loopback, as a collector has it, that remembers the spans it was sent."""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Received:
    """One span as it came over the wire; ids are hex, `parent` is empty for a root, times are epoch nanoseconds."""

    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    failed: bool
    process: int
    attributes: dict[str, Any]


class Receiver:
    """Takes OTLP over HTTP at `endpoint` as long as the block lasts."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, name="otlp", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def tree(self) -> str:
        """The spans as a picture: each below its parent, in the order of their beginnings."""
        known = {span.id for span in self.spans}
        lines: list[str] = []

        def draw(span: Received, depth: int) -> None:
            told = span.attributes
            about = [
                told.get("gen_ai.tool.name") or told.get("gen_ai.response.model") or told.get("status") or "",
                f"{told['gen_ai.usage.output_tokens']} tokens" if "gen_ai.usage.output_tokens" in told else "",
                ",".join(told.get("gen_ai.response.finish_reasons", ())),
                told.get("error.type", ""),
            ]
            lines.append(f"{'  ' * depth}{' '.join(one for one in (span.name, *about) if one)}")
            below = [child for child in self.spans if child.parent == span.id]
            for child in sorted(below, key=lambda child: child.start):
                draw(child, depth + 1)

        for root in sorted(self.spans, key=lambda span: span.start):
            if root.parent not in known:
                draw(root, 0)
        return "\n".join(lines)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    about = _values(resource.resource.attributes)
                    for scope in resource.scope_spans:
                        spans.extend(_received(span, about) for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler


def _received(span: Any, about: dict[str, Any]) -> Received:
    return Received(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == span.status.STATUS_CODE_ERROR,
        about.get("process.pid", 0),
        _values(span.attributes),
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, str(kind))
