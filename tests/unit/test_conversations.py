"""What a process holds of logs: exactly the beginning of one, of the right run, and never too much."""

from __future__ import annotations

from drangue_client.events import Event
from drangue_client.store.conversations import NOTHING, Conversations


def event(seq: int) -> Event:
    return Event(seq, "user_message", {"text": str(seq)})


def read(held: Conversations, run_id: str, seqs: range, *, created_at: float = 1.0, size: int = 10) -> list[int] | None:
    """Read the events of these places after what is known, as a claim does; returns the places of the whole log."""
    known = held.known(run_id)
    again = [event(known.after + 1)] if known.events else []
    log = held.grown(run_id, created_at, known, [*again, *(event(seq) for seq in seqs)], size, seqs.stop - 1)
    return None if log is None else [one.seq for one in log]


def test_a_log_grows_by_its_tail() -> None:
    """What was read once is not read again."""
    held = Conversations()
    assert read(held, "r", range(3)) == [0, 1, 2]
    assert held.known("r").after == 1
    assert read(held, "r", range(3, 5)) == [0, 1, 2, 3, 4]


def test_parts_that_do_not_fit_are_no_log() -> None:
    """A gap, or a tail that begins too early, would show a model another conversation."""
    held = Conversations()
    read(held, "r", range(3))
    assert read(held, "r", range(4, 5)) is None
    assert held.known("r") == NOTHING, "what did not fit is read anew"
    read(held, "r", range(3))
    assert read(held, "r", range(2, 5)) is None


def test_another_past_of_the_same_run_is_another_log() -> None:
    """A database that failed over without its last commits goes on with other events at the same places."""
    held = Conversations()
    read(held, "r", range(3))
    other = [Event(2, "user_message", {"text": "of another past"}), event(3)]
    assert held.grown("r", 1.0, held.known("r"), other, 10, 3) is None
    assert held.grown("r", 1.0, held.known("r"), [event(seq) for seq in range(4)], 10, 3) is not None


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
    assert [len(held.known(name).events) for name in ("a", "b", "c")] == [2, 0, 1]


def test_what_is_larger_than_everything_is_not_held() -> None:
    """One huge conversation must not cost all others theirs."""
    held = Conversations(most_bytes=25)
    read(held, "a", range(1))
    assert read(held, "huge", range(1), size=26) == [0]
    assert (len(held.known("a").events), held.known("huge")) == (1, NOTHING)


def test_nothing_is_held_of_a_run_that_has_stopped() -> None:
    """Thousands of runs that wait for people cost a worker nothing."""
    held = Conversations(most_bytes=25)
    read(held, "a", range(1), size=20)
    held.forget("a")
    held.forget("a")
    assert held.known("a") == NOTHING
    read(held, "b", range(1), size=20)
    assert len(held.known("b").events) == 1
