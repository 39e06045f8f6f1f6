"""What a process holds of logs: exactly the beginning of one, of the right run, and never too much."""

from __future__ import annotations

from drangue_client.events import Event
from drangue_client.store.conversations import NOTHING, Conversations


def event(seq: int) -> Event:
    return Event(seq, "user_message", {"text": str(seq)})


def read(held: Conversations, run_id: str, seqs: range, *, created_at: float = 1.0, size: int = 10) -> list[int] | None:
    """Read the events of these places after what is known, as a claim does; returns the places of the whole log."""
    log = held.grown(run_id, created_at, held.known(run_id), [event(seq) for seq in seqs], size, seqs.stop - 1)
    return None if log is None else [one.seq for one in log]


def test_a_log_grows_by_its_tail() -> None:
    """What was read once is not read again."""
    held = Conversations()
    assert read(held, "r", range(3)) == [0, 1, 2]
    assert held.known("r").seen == 2
    assert read(held, "r", range(3, 5)) == [0, 1, 2, 3, 4]


def test_parts_that_do_not_fit_are_no_log() -> None:
    """A gap, or a tail that begins too early, would show a model another conversation."""
    held = Conversations()
    read(held, "r", range(3))
    assert read(held, "r", range(4, 5)) is None
    assert read(held, "r", range(2, 5)) is None
    assert read(held, "r", range(3, 4)) == [0, 1, 2, 3]


def test_another_run_of_the_same_id_is_another_run() -> None:
    """A run that was pruned and submitted anew has a past of its own."""
    held = Conversations()
    read(held, "r", range(3))
    assert read(held, "r", range(3, 5), created_at=2.0) is None


def test_the_least_lately_read_goes_first() -> None:
    """A process that thinks for many runs holds what it is at."""
    held = Conversations(most_bytes=25)
    read(held, "a", range(1))
    read(held, "b", range(1))
    read(held, "a", range(1, 2), size=5)
    read(held, "c", range(1))
    assert [held.known(name).seen for name in ("a", "b", "c")] == [1, -1, 0]


def test_what_is_larger_than_everything_is_not_held() -> None:
    """One huge conversation must not cost all others theirs."""
    held = Conversations(most_bytes=25)
    read(held, "a", range(1))
    assert read(held, "huge", range(1), size=26) == [0]
    assert (held.known("a").seen, held.known("huge")) == (0, NOTHING)


def test_nothing_is_held_of_a_run_that_has_stopped() -> None:
    """Thousands of runs that wait for people cost a worker nothing."""
    held = Conversations(most_bytes=25)
    read(held, "a", range(1), size=20)
    held.forget("a")
    held.forget("a")
    assert held.known("a") == NOTHING
    read(held, "b", range(1), size=20)
    assert held.known("b").seen == 0
