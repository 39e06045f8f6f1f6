"""The inbox: what waits for leave, one case at a time, and one key decides it.

The invariant: a grant is for what was on the screen. It names the arguments that were shown, and a key that was pressed
before a case was shown does not decide it. A case that is refused, or put off, comes back as long as it waits.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

import click

from drangue_client import checks
from drangue_client.aio import AsyncClient
from drangue_client.client import Client
from drangue_client.console.keys import Hand, hand_here
from drangue_client.console.shell import OK, say
from drangue_client.console.steering import arguments_from, by_whom, earlier, say_verdict
from drangue_client.console.views import approval_case, shown, when
from drangue_client.errors import (
    ChangedArgumentsError,
    NotPendingError,
    SamePersonError,
    UnknownRunError,
    ValidationError,
    WaitTimeout,
)
from drangue_client.events import Event, normalise
from drangue_client.terms import arguments_hash

Case = dict[str, Any]
KEYS = "a approve, e edit, r reject, s skip, q quit: "
UNMADE_S = 10.0  # how long to wait for a guard's word on arguments that a person changed
UNMADE = ("blocked", "invalid_arguments")  # of a call that was not made, by its guards or its tool


class Inbox:
    """A person's way through what waits. `by` is who decides."""

    def __init__(self, client: Client, by: str) -> None:
        self._client = client
        self._by = str(checks.text("by", by, "who decides", blank=False))
        self._hand: Hand = hand_here()
        self._aside: dict[tuple[str, int], Case] = {}  # as they were when they were put off
        self._drafts: dict[tuple[str, int, str], str] = {}  # what somebody typed and was refused

    def work(self) -> int:
        """Show case after case until the person, or what is typed, has come to an end."""
        asked = [item for item in self._client.unknown_outcomes() if item["asked"]]
        if asked:
            click.echo(f"{len(asked)} calls wait for word of what became of them, not for leave: drangue approvals")
        while True:
            waiting = {_key(case): case for case in self._client.watch_approvals(timeout=0)}
            self._aside = {key: case for key, case in self._aside.items() if key in waiting}
            cases = [case for case in waiting.values() if self._is_new(case)]
            for number, case in enumerate(cases, start=1):
                if not self._ask(case, f"{number} of {len(cases)}"):
                    return OK
            if not cases and not self._wait():
                return OK

    def _is_new(self, case: Case) -> bool:
        return self._aside.get(_key(case)) != case

    def _wait(self) -> bool:
        """Come back when there is something to show; False: it is over."""
        count = len(self._aside)
        told = f"{count} put off; any key shows them again" if count else "nothing waits for approval"
        click.echo(f"{told}, q quits, and what comes is shown here")
        typed = asyncio.run(self._next())
        if typed == "again":
            self._aside.clear()
        return typed != "over"

    async def _next(self) -> str:
        """Nothing when a case comes that was not put off; else what the person wants: "again" or "over"."""
        async with AsyncClient(self._client.settings) as client:

            async def come() -> str:
                async with aclosing(client.watch_approvals()) as cases:
                    async for case in cases:
                        if self._is_new(case):
                            break
                return ""

            waiting = [asyncio.create_task(come()), asyncio.create_task(self._hand.wants(bool(self._aside)))]
            try:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                return max(one.result() for one in done)
            finally:
                for one in waiting:
                    one.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)

    def _ask(self, case: Case, place: str) -> bool:
        """Show a case as it stands now and do what the person says; False: it is over."""
        current = self._now(case)
        if current is None:
            return True  # somebody else was quicker
        asked = earlier(self._client, current["run_id"], current["call_id"], "approval_requested")
        click.echo(f"\n{place}")
        say(approval_case(current, asked.ts if asked else None))
        while True:
            match self._hand.key(KEYS):
                case "a":
                    self._decide(current, "approved")
                case "e":
                    self._edit(current)
                case "r":
                    self._reject(current)
                case "s":
                    self._aside[_key(current)] = current
                case "q":
                    return False
                case other:
                    click.echo(f"{shown(other)!r} is none of a, e, r, s and q")
                    continue
            return True

    def _edit(self, case: Case) -> None:
        key = (*_key(case), case["arguments_hash"])
        before = json.dumps(case["arguments"], indent=2, ensure_ascii=False)
        text = self._hand.edited(self._drafts.get(key, before))
        if text is None or not text.strip():
            click.echo("nothing was changed")
            return
        try:
            arguments = arguments_from(text)
        except ValueError as error:
            click.echo(shown(" ".join(str(error).split())))
        else:
            if arguments_hash(normalise(arguments)) == case["arguments_hash"]:
                self._drafts.pop(key, None)
                click.echo("nothing was changed")
                return
            if self._decide(case, "approved", arguments=arguments):
                return
        self._drafts[key] = text

    def _reject(self, case: Case) -> None:
        reason = self._hand.line("reason, which the model is told (empty: do not reject): ").strip()
        if reason:
            self._decide(case, "rejected", reason=reason)

    def _decide(self, case: Case, word: str, arguments: dict[str, Any] | None = None, reason: str = "") -> bool:
        """Record a verdict and say so, or say in one line why it does not count; whether it does."""
        run_id, call_id = case["run_id"], case["call_id"]
        try:
            if word == "approved":
                seen = case["arguments_hash"]
                request = self._client.approve(run_id, call_id, arguments=arguments, arguments_hash=seen, by=self._by)
            else:
                request = self._client.reject(run_id, call_id, by=self._by, reason=reason)
        except (ChangedArgumentsError, ValidationError) as error:  # it waits on, and comes back as it is by now
            _refused(str(error))
            return False
        except (NotPendingError, SamePersonError, UnknownRunError) as error:
            self._aside[_key(case)] = case
            _refused(str(error) if isinstance(error, SamePersonError) else self._why_over(case, error))
            return False
        say_verdict(word, request)
        if request["missing"]:  # somebody else's turn
            now = self._now(case)
            self._aside |= {_key(now): now} if now else {}
        elif arguments is not None and request["executor"] == "celery":
            self._say_if_unmade(case)
        return True

    def _now(self, case: Case) -> Case | None:
        """A case as it stands; None where it waits no more."""
        waiting = self._client.pending_approvals(case["run_id"])
        return next((one for one in waiting if one["step"] == case["step"]), None)

    def _why_over(self, case: Case, error: Exception) -> str:
        """Why a case cannot be decided any more."""
        run_id, call_id = case["run_id"], case["call_id"]
        if self._now(case) is not None:  # no worker has come to saying so yet
            return "it has expired"
        last = earlier(self._client, run_id, call_id, "approval_granted", "approval_denied", "approval_expired")
        if last is None or self._client.get(run_id).status == "cancelled":
            return str(error)
        if last.type == "approval_expired":
            return f"it expired at {when(last.ts)} UTC"
        return f"it was {'approved' if last.type == 'approval_granted' else 'rejected'} {by_whom(last)}"

    def _say_if_unmade(self, case: Case) -> None:
        """A worker asks the author's guards about changed arguments too, at once as a rule: say what they refuse."""
        try:
            for event in self._client.stream(case["run_id"], timeout=UNMADE_S):
                if event.step == case["step"] and event.type in ("step_started", "tool_result"):
                    refusal = _unmade(event)
                    if refusal:
                        _refused(f"the run goes on without it: {refusal}")
                    return
        except WaitTimeout:
            click.echo("no worker has taken it up yet, so whether its guards let it pass is not known")


def _unmade(event: Event) -> str:
    """Why a call was not made although a person approved it, or nothing."""
    try:
        error = json.loads(event.payload["content"])["error"]
        return str(error["message"]) if error["category"] in UNMADE else ""
    except (KeyError, TypeError, ValueError):  # it was made, or has just begun
        return ""


def _refused(why: str) -> None:
    click.echo(f"not done: {shown(' '.join(why.split()))}")


def _key(case: Case) -> tuple[str, int]:
    return case["run_id"], case["step"]
