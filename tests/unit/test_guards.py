"""Guardrails: what can be one, what of it is recorded, and how a guard is asked."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from drangue_client.errors import TransientError
from drangue_client.terms import Guards
from drangue_worker.tools.guards import Guardrails, approved, refusal
from tests.kit.naming import shown


def no(*about: Any) -> str:
    return "no"


def ask(guard: Any, *about: Any) -> str | None:
    return asyncio.run(refusal(guard, *about, of="the input guard"))


def test_guardrails_that_say_nothing_let_everything_pass() -> None:
    """An agent with an empty Guardrails is an agent without."""
    assert Guardrails().terms() == Guards()


def test_what_is_data_is_recorded_and_of_functions_that_they_are_there() -> None:
    """A worker of another deploy then knows that a guard is missing, instead of going on without it."""
    every = Guardrails(
        allow=["read", "pay", "read"],
        deny={"pay"},
        require_approval_for_irreversible=True,
        approver=no,
        input_guard=no,
        output_guard=no,
        result_guard=no,
    )
    assert every.terms() == Guards(frozenset({"read", "pay"}), frozenset({"pay"}), True, True, True, True, True)


@pytest.mark.parametrize("name", ["input_guard", "output_guard", "result_guard", "approver"])
def test_each_guard_is_recorded_as_itself(name: str) -> None:
    """Taken for another, it would never be asked."""
    recorded = Guardrails(**{name: no}).terms()
    assert recorded == Guards(**{name.removesuffix("_guard"): True})


def test_an_allow_list_that_is_empty_allows_nothing() -> None:
    """It is not the same as none."""
    assert (Guardrails(allow=()).terms().allow, Guardrails().terms().allow) == (frozenset(), None)


def test_names_may_come_in_anything_that_has_them() -> None:
    """And are taken once: an iterator that is used up would leave a list that forbids nothing."""
    made = Guardrails(deny=(name for name in ("pay", "send")))
    assert [made.terms().deny, made.terms().deny] == [frozenset({"pay", "send"})] * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"allow": "read"}, "allow is 'read'; it must be a set of tool names"),
        ({"deny": "pay"}, "deny is 'pay'"),
        ({"deny": None}, "deny is None"),
        ({"allow": 5}, "allow is 5"),
        ({"deny": {"pay", 5}}, "deny holds 5"),
        ({"allow": [no]}, "allow holds <function no"),
        ({"input_guard": "no"}, "input_guard is 'no'; it must be a function"),
        ({"output_guard": {}}, "output_guard is {}"),
        ({"result_guard": 0}, "result_guard is 0"),
        ({"approver": True}, "approver is True"),
        ({"require_approval_for_irreversible": "no"}, "require_approval_for_irreversible is 'no'"),
        ({"require_approval_for_irreversible": None}, "require_approval_for_irreversible is None"),
        ({"deny": [["pay"]]}, r"deny holds \['pay'\]"),
    ],
    ids=shown,
)
def test_what_could_not_guard_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    """Where the agent is written: `deny="pay"` denied the tools p, a and y once."""
    with pytest.raises(TypeError, match=message):
        Guardrails(**given)


# Asking


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (None, None),
        (False, None),
        ("", None),
        (0, None),
        ([], None),
        ("secrets", "secrets"),
        (True, "refused by the input guard"),
        (["a", "b"], "['a', 'b']"),
        (1, "1"),
        (ValueError("x"), "x"),
    ],
    ids=repr,
)
def test_what_is_true_refuses_and_is_the_reason(verdict: Any, reason: str | None) -> None:
    """One rule for every guard: False and an empty text once blocked at one of them and passed at another."""
    assert ask(lambda text: verdict, "hello") == reason


def test_sync_and_async_guards_are_asked_alike() -> None:
    """A check against a service is a coroutine, one against a word list is not."""

    async def later(text: str) -> str:
        await asyncio.sleep(0)
        return f"{text}: no"

    def handed_out(text: str) -> Any:
        return later(text)

    class Kept:
        async def __call__(self, text: str) -> str:
            return await later(text)

    guards = [later, handed_out, Kept(), lambda text: f"{text}: no"]
    assert [ask(guard, "hello") for guard in guards] == ["hello: no"] * 4


def test_a_guard_that_blocks_its_thread_blocks_no_other_run() -> None:
    """Hundreds of steps share the event loop."""
    release = threading.Event()

    async def both() -> str | None:
        waiting = asyncio.create_task(refusal(lambda: release.wait(30) and "no", of="it"))
        await asyncio.sleep(0)
        release.set()  # it does not come to this while a guard holds the loop
        return await waiting

    assert asyncio.run(both()) == "no"


def test_a_guard_judges_and_changes_nothing() -> None:
    """What it was shown is what will be done; a change would be made by no one's decision."""
    arguments = {"to": ["ann"]}

    def greedy(name: str, given: dict[str, Any]) -> None:
        given["to"].append("bob")

    ask(greedy, "pay", arguments)
    asyncio.run(approved(greedy, "pay", arguments))
    assert arguments == {"to": ["ann"]}


def test_a_guard_is_shown_all_there_is_to_judge() -> None:
    """The name and the arguments, in this order."""
    assert ask(lambda name, given: f"{name} {given}", "pay", {"sum": 1}) == "pay {'sum': 1}"


@pytest.mark.parametrize(
    ("verdict", "leave"), [(True, True), ("yes", True), (False, False), (None, False), ("", False)]
)
def test_an_approver_grants_by_what_is_true_alone(verdict: Any, leave: bool) -> None:
    """One that forgets to return anything has granted nothing."""

    async def later(name: str, arguments: dict[str, Any]) -> Any:
        return verdict

    given = ("pay", {"sum": 1})
    assert asyncio.run(approved(lambda name, arguments: verdict, *given)) is leave
    assert asyncio.run(approved(later, *given)) is leave


@pytest.mark.parametrize("asked", [lambda guard: refusal(guard, of="it"), lambda guard: approved(guard, "pay", {})])
def test_what_a_guard_raises_comes_out(asked: Any) -> None:
    """One that cannot answer has not let anything pass; whoever asks decides whether to ask again."""

    def broken(*about: Any) -> None:
        raise LookupError("no policy server")

    with pytest.raises(LookupError, match="no policy server"):
        asyncio.run(asked(broken))


@pytest.mark.parametrize(
    "asked", [lambda guard: refusal(guard, of="it", limit_s=0.01), lambda guard: approved(guard, "pay", {}, 0.01)]
)
def test_a_guard_that_hangs_is_not_waited_for_and_is_worth_another_attempt(asked: Any) -> None:
    """The step's claim is held meanwhile, and a service that hangs now may answer in a moment."""
    release = threading.Event()
    try:
        with pytest.raises(TransientError, match=r"no answer within 0\.01 s"):
            asyncio.run(asked(lambda *about: release.wait(60)))
    finally:
        release.set()


def test_a_long_reason_is_cut() -> None:
    """It stands in the run's control state, which every step rewrites."""
    assert ask(lambda text: "x" * 10_000, "hello") == "x" * 2000
