"""A worker tells of an answer while it is written, on a real Redis: in order, in few commands, never in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from threading import Event as Signal
from typing import Any

import pytest

from drangue_client.events import Event, delta
from drangue_client.store.values import RunRow
from drangue_client.wire.tokens import TokenStream
from drangue_worker.fleet import telling
from drangue_worker.fleet.telling import Telling
from tests.contract.log_scenes import eventually

NOBODY_THERE = "redis://127.0.0.1:1/0"


def texts(events: list[Event]) -> list[str]:
    return [event.payload["text"] for event in events]


class Journal(TokenStream):
    """A stream that notes each command to Redis, and can be held up in the middle of the first one."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(redis_url)
        self.published: list[Event] = []
        self.entered, self.may_go_on = Signal(), Signal()
        self.may_go_on.set()

    def publish(self, run_id: str, pieces: Any) -> None:
        self.published += pieces
        if not self.entered.is_set():
            self.entered.set()
            assert self.may_go_on.wait(10)
        super().publish(run_id, pieces)


@pytest.fixture
def journal(redis_url: str) -> Iterator[Journal]:
    with closing(Journal(redis_url)) as made:
        yield made


def run_row(run_id: str = "r", **overrides: Any) -> RunRow:
    return RunRow(run_id, "oncall", "running", "celery", 5, {}, "", 1, None, 0.0, 0.0, None, None, overrides)


def call_of(stream: TokenStream, step: int = 1, attempt: int = 1) -> Any:
    """The watcher of one model call of a run that is watched."""
    call = Telling(stream).watch(run_row(tokens=True), step, attempt)
    assert call is not None
    return call


async def soon(condition: Callable[[], Any]) -> None:
    await asyncio.to_thread(eventually, condition, 2.0)


class TestTelling:
    @pytest.mark.parametrize("overrides", [{}, {"tokens": False}, {"turn_id": "t1"}], ids=str)
    def test_a_run_that_nobody_asked_to_watch_is_not_told_of(self, journal: Journal, overrides: dict[str, Any]) -> None:
        """It would cost Redis a command per moment for nothing, and models stream only where somebody looks."""
        assert Telling(journal).watch(run_row(**overrides), 1, 1) is None

    def test_what_was_said_is_read_in_order_and_whole(self, journal: Journal) -> None:
        """Some of it together, none of it twice."""

        async def talk() -> None:
            call = call_of(journal)
            for word in range(300):
                await call.say(f"{word} ")
                if word % 50 == 0:
                    await soon(lambda: journal.published)
            await call.done()

        asyncio.run(talk())
        read, _ = journal.read("r")
        assert "".join(texts(read)) == "".join(f"{word} " for word in range(300))
        assert [event.payload["index"] for event in read] == list(range(len(read)))
        assert len(read) < 30

    def test_pieces_that_come_within_a_moment_go_together(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A fast model says hundreds of them a second; its watchers' eyes need twenty."""
        monkeypatch.setattr(telling, "TOGETHER_S", 0.5)

        async def talk() -> None:
            call = call_of(journal)
            for letter in "together":
                await call.say(letter)
                for _ in range(5):
                    await asyncio.sleep(0)
            await soon(lambda: journal.published)
            await call.done()

        asyncio.run(talk())
        assert journal.published == [delta("together", 1, 1, 0)]

    def test_the_rest_is_told_before_the_call_is_over(self, journal: Journal) -> None:
        """The decision is recorded right after; a piece behind it would be thrown away."""

        async def talk() -> list[str]:
            call = call_of(journal)
            await call.say("an")
            await call.say("swer")
            await call.done()
            return texts(journal.read("r")[0])

        assert asyncio.run(talk()) == ["answer"]

    def test_a_call_that_said_nothing_tells_nothing(self, journal: Journal) -> None:
        """Most of them ask for tools."""

        async def talk() -> None:
            silent, empty = call_of(journal), call_of(journal)
            await silent.done()
            await empty.say("")
            await empty.done()

        asyncio.run(talk())
        assert journal.published == []

    def test_another_attempt_marks_its_first_piece(self, journal: Journal) -> None:
        """What was shown of the step before is void, and the watcher must wipe it."""

        async def talk() -> None:
            for attempt in (1, 2):
                call = call_of(journal, step=4, attempt=attempt)
                await call.say("so")
                await soon(lambda: journal.published)
                await call.say("on")
                await call.done()
                journal.published.clear()

        asyncio.run(talk())
        read, _ = journal.read("r")
        told = [(text, 4, attempt, index) for attempt in (1, 2) for index, text in enumerate(("so", "on"))]
        assert read == [delta(*one) for one in told]
        assert [event.payload.get("retry", False) for event in read] == [False, False, True, False]

    def test_what_is_said_while_a_piece_is_on_its_way_comes_after_it(self, journal: Journal) -> None:
        """A slow Redis must not turn an answer round."""
        journal.may_go_on.clear()

        async def talk() -> None:
            call = call_of(journal)
            await call.say("first ")
            await soon(journal.entered.is_set)
            await call.say("second")
            ending = asyncio.create_task(call.done())
            await asyncio.wait({ending}, timeout=0.1)  # in which the second could overtake the first
            journal.may_go_on.set()
            await ending
            await soon(lambda: len(journal.read("r")[0]) == 2)

        asyncio.run(talk())
        assert texts(journal.read("r")[0]) == ["first ", "second"]

    def test_what_is_said_while_a_piece_is_on_its_way_does_not_wait_for_the_next_word(self, journal: Journal) -> None:
        """A model that pauses to think would leave its last words unseen for as long."""
        journal.may_go_on.clear()

        async def talk() -> None:
            call = call_of(journal)
            await call.say("first ")
            await soon(journal.entered.is_set)
            await call.say("second")
            journal.may_go_on.set()
            try:
                await soon(lambda: texts(journal.published) == ["first ", "second"])
            finally:
                await call.done()

        asyncio.run(talk())

    def test_half_a_character_does_not_lose_the_words_around_it(self, journal: Journal) -> None:
        """A provider may cut a stream between the two halves of an emoji."""

        async def talk() -> None:
            call = call_of(journal)
            for word in ("well \ud83d", "\ude42 done"):
                await call.say(word)
            await call.done()

        asyncio.run(talk())
        told = "".join(texts(journal.read("r")[0]))
        assert (told[:5], told[-5:]) == ("well ", " done")

    def test_a_redis_that_is_away_costs_the_view_and_nothing_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The call goes on to its end, is told of no failure, and asks once, not at every word."""
        monkeypatch.setattr(telling, "TOGETHER_S", 0.0)
        asked: list[str] = []

        async def talk() -> None:
            with closing(TokenStream(NOBODY_THERE)) as away:
                publish = away.publish
                monkeypatch.setattr(away, "publish", lambda *given: (asked.append(given[0]), publish(*given)))
                call = call_of(away)
                for word in range(20):
                    await call.say(f"{word} ")
                    await soon(lambda: asked)
                await call.done()

        asyncio.run(talk())
        assert asked == ["r"]
