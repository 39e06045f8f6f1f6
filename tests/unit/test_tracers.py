"""What a person sees on the console while an agent works."""

from __future__ import annotations

import io
from typing import Any

import pytest

from drangue_worker.observability.tracers import ConsoleTracer, NullTracer
from drangue_worker.testing import RecordingTracer


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


@pytest.mark.parametrize("gone", [BrokenPipeError(), OSError("disk full"), ValueError("I/O operation on closed file")])
def test_a_console_that_is_gone_stops_no_run(gone: Exception) -> None:
    """`| head` has seen enough; the agent has not done enough."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise gone

    with ConsoleTracer(Gone()).span("tool", content="cold"):
        pass
    closed = io.StringIO()
    closed.close()
    with ConsoleTracer(closed).span("run"):
        pass


def test_what_a_console_has_no_character_for_is_a_question_mark() -> None:
    """A terminal of another age, a half of a character pair in a result."""
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding="ascii")  # which closes `raw` when it goes
    with ConsoleTracer(terminal).span("tool", content="7 °C"):
        pass
    assert raw.getvalue() == b"       -> 7 ?C\n"
    assert shown("tool", content="half \ud800") == "       -> half ?\n"


def test_a_recording_tracer_keeps_spans_in_closing_order() -> None:
    """With what was set later; a parent follows its children."""
    tracer = RecordingTracer()
    with tracer.span("run", run_id="r1") as run:
        with tracer.span("model", seq=1, model="m") as model:
            model.set("text", "hi")
            model.set("seq", 2)
        with tracer.span("tool", name="read"):
            assert tracer.spans == [("model", {"seq": 2, "model": "m", "text": "hi"})]
        run.set("output", "done")
    assert tracer.spans[1:] == [("tool", {"name": "read"}), ("run", {"run_id": "r1", "output": "done"})]


def test_a_recording_tracer_keeps_a_span_that_breaks() -> None:
    """What was tried matters most when it failed."""
    tracer = RecordingTracer()
    with pytest.raises(LookupError), tracer.span("model", seq=1):
        raise LookupError
    assert tracer.spans == [("model", {"seq": 1})]
