"""What a person sees on the console while an agent works."""

from __future__ import annotations

import io
from typing import Any

import pytest

from drangue_worker.observability.tracers import ConsoleTracer, NullTracer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(kind: str, /, *, on: io.StringIO | None = None, later: dict[str, Any] | None = None, **attrs: Any) -> str:
    """What is printed for one span, opened with `attrs` and completed with `later`."""
    stream = on or io.StringIO()
    with ConsoleTracer(stream).span(kind, **attrs) as span:
        assert stream.getvalue() == ""
        for key, value in (later or {}).items():
            span.set(key, value)
    return stream.getvalue()


def test_a_model_s_text_and_calls_are_a_line_each() -> None:
    """The order is the one in which they happen."""
    calls = [{"name": "read", "arguments": {"city": "Oslo", "n": 1}}, {"name": "now", "arguments": {}}]
    later = {"text": "Let me look.", "tool_calls": calls}
    assert shown("model", seq=1, model="m", later=later) == (
        "* model  Let me look.\n* tool   read(city='Oslo', n=1)\n* tool   now()\n"
    )


@pytest.mark.parametrize("text", ["", "  \n", None])
def test_a_model_without_text_prints_none(text: str | None) -> None:
    """Most calls come without a word."""
    calls = [{"name": "now", "arguments": {}}]
    assert shown("model", later={"text": text, "tool_calls": calls}) == "* tool   now()\n"


def test_a_result_is_indented_behind_an_arrow() -> None:
    """It belongs to the call above it."""
    assert shown("tool", name="read", later={"content": "cold"}) == "       -> cold\n"


@pytest.mark.parametrize(("length", "printed"), [(200, "x" * 200), (201, "x" * 200 + "...")])
def test_a_long_result_is_cut(length: int, printed: str) -> None:
    """A page of JSON would push everything else away."""
    assert shown("tool", later={"content": "x" * length}) == f"       -> {printed}\n"


def test_a_run_ends_with_an_empty_line() -> None:
    """The answer that follows stands apart."""
    assert shown("run", run_id="r1", later={"output": "done"}) == "\n"


@pytest.mark.parametrize("name", ["tool", "model", "other"])
def test_a_span_that_has_nothing_to_show_prints_nothing(name: str) -> None:
    """A call that was retried has no result yet."""
    assert shown(name) == ""


def test_a_span_that_breaks_prints_nothing_and_hides_nothing() -> None:
    """The error is the caller's to report."""
    stream = io.StringIO()
    with pytest.raises(LookupError), ConsoleTracer(stream).span("tool", content="half"):
        raise LookupError
    assert stream.getvalue() == ""


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thoughts blue, calls green, results dim."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    later = {"text": "Hm.", "tool_calls": [{"name": "now", "arguments": {}}]}
    assert shown("model", on=Terminal(), later=later) == (
        "\x1b[34m*\x1b[0m model  Hm.\n\x1b[32m*\x1b[0m tool   now()\n"
    )
    assert shown("tool", on=Terminal(), content="cold") == "\x1b[2m       -> cold\x1b[0m\n"


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set to anything; set to nothing it means nothing."""
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown("tool", on=Terminal(), content="cold") == "       -> cold\n"
    monkeypatch.setenv("NO_COLOR", "")
    assert shown("tool", on=Terminal(), content="cold").startswith("\x1b[2m")


def test_without_a_stream_it_prints_where_print_does(capsys: pytest.CaptureFixture[str]) -> None:
    """Looked up when it prints, so that redirected output is followed."""
    with ConsoleTracer().span("tool", content="cold"):
        pass
    assert capsys.readouterr().out == "       -> cold\n"


def test_each_line_is_seen_as_it_happens() -> None:
    """Through a pipe too, where output waits for a full buffer."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(io.BufferedWriter(raw))  # type: ignore[arg-type]
    with ConsoleTracer(stream).span("tool", content="cold"):
        pass
    assert raw.getvalue() == b"       -> cold\n"


def test_the_null_tracer_sees_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Silent unless asked, and yet a span to set things on."""
    with NullTracer().span("model", name="a name is an attribute too") as span:
        span.set("text", "hello")
    assert capsys.readouterr() == ("", "")
