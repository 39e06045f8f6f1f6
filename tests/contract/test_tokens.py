"""Token streams on a real Redis: what a worker tells of an answer is what a watcher reads, and neither needs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest
import redis
from redis.exceptions import ConnectionError as RedisAway

from drangue_client.events import Event, delta
from drangue_client.wire import tokens
from drangue_client.wire.tokens import BEGINNING, TokenStream
from tests.contract.log_scenes import eventually

NOBODY_THERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def connect(redis_url: str) -> Iterator[Callable[[], TokenStream]]:
    """Streams on an empty Redis, closed after the test."""
    with ExitStack() as opened:
        yield lambda: opened.enter_context(closing(TokenStream(redis_url)))


@pytest.fixture
def stream(connect: Callable[[], TokenStream]) -> TokenStream:
    return connect()


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    """Redis, past the system under test."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


def pieces(*texts: str, step: int = 1, attempt: int = 1) -> list[Event]:
    return [delta(text, step, attempt, index) for index, text in enumerate(texts)]


def texts(events: list[Event]) -> list[str]:
    return [event.payload["text"] for event in events]


class TestStream:
    def test_what_was_published_is_read_in_order_and_as_it_was(self, connect: Callable[[], TokenStream]) -> None:
        """By another process, through connections of its own."""
        told = [*pieces("a", "é\n\x00 ", "🙂"), *pieces("b", step=3), *pieces("c", "d", step=3, attempt=2)]
        connect().publish("r", told[:2])
        connect().publish("r", told[2:])
        read, place = connect().read("r")
        assert read == told
        assert [event.payload.get("retry", False) for event in read] == [False] * 4 + [True, False]
        assert connect().read("r", place) == ([], place)

    def test_a_reader_goes_on_behind_its_place_or_from_the_beginning(self, stream: TokenStream) -> None:
        """Any process can attach, late too, and one that was away goes on where it was."""
        stream.publish("r", pieces("a", "b"))
        first, place = stream.read("r")
        stream.publish("r", pieces("c"))
        assert texts(first) == ["a", "b"]
        assert texts(stream.read("r", place)[0]) == ["c"]
        assert texts(stream.read("r")[0]) == ["a", "b", "c"]
        assert stream.read("r", BEGINNING) == stream.read("r")

    def test_every_run_has_a_stream_of_its_own(self, stream: TokenStream) -> None:
        """What one customer's agent says is not for another's eyes."""
        stream.publish("r", pieces("a"))
        stream.publish("r2", pieces("b"))
        assert [texts(stream.read(run_id)[0]) for run_id in ("r", "r2", "nobody")] == [["a"], ["b"], []]

    def test_a_long_answer_is_read_in_several_goes(self, stream: TokenStream) -> None:
        """A watcher who comes late must not be handed all of it as one."""
        for _ in range(5):
            stream.publish("r", pieces(*["x"] * 500))
        counts, place = [], BEGINNING
        while (got := stream.read("r", place))[0]:
            counts.append(len(got[0]))
            place = got[1]
        assert (sum(counts), max(counts)) == (2500, 1000)

    def test_a_stream_is_forgotten_an_hour_after_its_last_piece(self, stream: TokenStream, server: Any) -> None:
        """Nobody deletes it; Redis must not fill up with answers that were read long ago."""
        stream.publish("r", pieces("a"))
        assert 3500 < server.ttl("drangue:tokens:r") <= 3600
        server.expire("drangue:tokens:r", 10)
        stream.publish("r", pieces("b"))
        assert server.ttl("drangue:tokens:r") > 3500

    def test_a_stream_keeps_only_its_latest_pieces(
        self, stream: TokenStream, server: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A model that never ends must not take the queue's memory; Redis trims in blocks of a hundred."""
        monkeypatch.setattr(tokens, "KEPT_PIECES", 200)
        for batch in range(10):
            stream.publish("r", pieces(*[f"{batch}.{n}" for n in range(100)]))
        assert 200 <= server.xlen("drangue:tokens:r") <= 400
        read, _ = stream.read("r")
        assert texts(read)[-200:] == [f"{batch}.{n}" for batch in (8, 9) for n in range(100)]

    def test_publishing_nothing_writes_nothing(self, stream: TokenStream, server: Any) -> None:
        """Nor does it ask anything of Redis."""
        server.config_resetstat()
        stream.publish("r", [])
        assert "cmdstat_expire" not in server.info("commandstats")
        assert server.keys("*") == []

    def test_a_waiting_reader_is_woken_by_a_piece(self, connect: Callable[[], TokenStream], server: Any) -> None:
        """A watcher sees a piece when it comes, not when its patience is over."""
        reader, writer = connect(), connect()
        with ThreadPoolExecutor(1) as pool:
            began = time.monotonic()
            reading = pool.submit(reader.read, "r", BEGINNING, 4.0)
            eventually(lambda: [one for one in server.client_list() if one["cmd"] == "xread" and "b" in one["flags"]])
            writer.publish("r", pieces("a"))
            assert texts(reading.result()[0]) == ["a"]
        assert time.monotonic() - began < 4

    @pytest.mark.parametrize("url", ["", NOBODY_THERE], ids=["no Redis", "Redis away"])
    def test_without_redis_there_is_nothing_to_read(self, url: str) -> None:
        """The log has it all; and a reader that waits keeps its pace, instead of asking Postgres without a pause."""
        with closing(TokenStream(url)) as away:
            assert away.read("r") == ([], BEGINNING)
            began = time.monotonic()
            assert away.read("r", "7-0", wait_s=0.2) == ([], "7-0")
            assert time.monotonic() - began >= 0.2

    def test_without_redis_publishing_is_nobodys_failure(self) -> None:
        """In one process there is none; one that is away says so to whoever publishes."""
        with closing(TokenStream("")) as none, closing(TokenStream(NOBODY_THERE)) as away:
            none.publish("r", pieces("a"))
            with pytest.raises(RedisAway):
                away.publish("r", pieces("a"))

    def test_a_redis_that_forgot_everything_goes_on_from_there(self, stream: TokenStream, server: Any) -> None:
        """It was restarted without its data; the answer's rest is still worth showing."""
        stream.publish("r", pieces("a"))
        _, place = stream.read("r")
        server.flushdb()
        milliseconds = int(place.partition("-")[0])
        eventually(lambda: server.time()[0] * 1000 + server.time()[1] // 1000 > milliseconds + 1)
        stream.publish("r", pieces("b"))  # the clock goes on, as it does while a server is started
        assert texts(stream.read("r", place)[0]) == ["b"]

    @pytest.mark.parametrize(
        "fields", [{"mine": "x"}, {"text": "x", "step": "one", "attempt": "1", "index": "0"}], ids=str
    )
    def test_what_somebody_else_wrote_there_is_passed_over(
        self, stream: TokenStream, server: Any, fields: dict[str, str]
    ) -> None:
        """Whoever can write to Redis can write anything there, and must not end a watcher by it."""
        server.xadd("drangue:tokens:r", fields)
        stream.publish("r", pieces("a"))
        assert texts(stream.read("r")[0]) == ["a"]
