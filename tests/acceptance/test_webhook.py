"""The webhook example: it plays, and its links decide for one person, once, in time, and only by the form."""

from __future__ import annotations

import asyncio
import runpy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from drangue_worker import Agent, Approval, Autonomy, Client, Settings, SQLiteStore, tool
from drangue_worker.testing import FakeModel
from tests.acceptance.stories.newcomer import FILES, FOLDER, Newcomer, Shown, commands_of
from tests.kit.inline import calls

RUN = "rent"
TO = "<script>alert(1)</script>"
PAY = ("pay", {"to": TO, "amount": 5}, "the-call")


class Office:
    """An agent that pays, turn after turn in the same words, and the desk where people decide about it."""

    def __init__(self, example: dict[str, Any], path: Path, policy: Approval, stack: ExitStack) -> None:
        self.who, self.make_desk = example["WHO"], example["Desk"]
        self.paid: list[int] = []

        @tool(requires_approval=True)
        def pay(to: str, amount: int) -> str:
            """Pay somebody."""
            self.paid.append(amount)
            return "paid"

        store, log = (stack.enter_context(closing(SQLiteStore(path))) for _ in range(2))
        model = FakeModel([calls(PAY), "done", calls(PAY), "done"])
        self.agent = Agent(model, [pay], store=store, autonomy=Autonomy(approval=policy))
        self.client = stack.enter_context(closing(Client(Settings(redis_url="redis://127.0.0.1:1"), log=log)))
        self.desk = self.make_desk(self.client, b"secret")
        self.address = stack.enter_context(self.desk.serving())
        assert self.agent.run_sync("pay", run_id=RUN).status == "paused"

    def link(self, verdict: str = "approve", person: str = "ann", desk: Any = None) -> str:
        """A link about what waits now."""
        (request,) = self.client.pending_approvals(RUN)
        return str((desk or self.desk).link(request, person, verdict))

    def visit(self, link: str, person: str = "ann", sent: dict[str, str] | None = None) -> httpx2.Response:
        """Open the page of a link, or send its form."""
        headers = {self.who: person} if person else {}
        return httpx2.request("GET" if sent is None else "POST", f"{self.address}/{link}", data=sent, headers=headers)

    def refuses(self, status: int, why: str, link: str, person: str = "ann") -> None:
        """The page and its form both say so, and nothing is decided."""
        before = self.verdicts
        for sent in (None, {"reason": "x"}):
            answer = self.visit(link, person, sent)
            assert (answer.status_code, why in answer.text) == (status, True), answer.text
        assert self.verdicts == before

    @property
    def verdicts(self) -> list[tuple[str, str, str]]:
        found = [event for event in self.client.events(RUN) if event.type in ("approval_granted", "approval_denied")]
        return [(event.type, event.payload["by"], event.payload["reason"]) for event in found]


OpenOffice = Callable[..., Office]


@pytest.fixture
def open_office(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[OpenOffice]:
    monkeypatch.syspath_prepend(FOLDER)
    example = runpy.run_path(str(FILES["webhook"]))
    with ExitStack() as stack:
        yield lambda policy=None: Office(example, tmp_path / "runs.db", policy or Approval(), stack)


def test_the_story_is_played_by_one_command(tmp_path: Path) -> None:
    """What a reader sees first, and each of its lines is true."""
    done = Newcomer.at(tmp_path).types(commands_of("webhook")[0])
    assert (done.code, done.err) == (0, "")
    shown = Shown.read(done.out, "openai")
    assert shown.lines == [
        "rent  paused: (paused: awaiting approval)",
        "lamp  paused: (paused: awaiting approval)",
        "the chat tells ann: pay({'to': 'the landlord', 'amount_usd': 900})",
        "  ann opens the link    200 approve?",
        "  bob sends its form    403 This link is for ann, and you are signed in as bob.",
        "  with another end      403 This link is none of ours, or somebody has changed it.",
        "  so there wait         ['lamp', 'rent']",
        "  ann sends its form    200 Recorded: approve.",
        "  and once more         410 Nothing waits here any more: it was decided, or its time was over.",
        "the chat tells ann: pay({'to': 'the shop', 'amount_usd': 80})",
        "  ann sends its form    200 Recorded: reject.",
        "rent  completed: Done: paid 900 USD to the landlord.",
        "lamp  completed: The lamp never came, so it is not paid.",
    ]
    assert shown.asked == 4


@pytest.mark.parametrize("verdict", ["approve", "reject"])
def test_opening_a_link_shows_the_case_and_decides_nothing(open_office: OpenOffice, verdict: str) -> None:
    """Mail programs and chats open every link they carry, to look for viruses or for a picture."""
    office = open_office()
    for _ in range(2):
        page = office.visit(office.link(verdict))
        assert (page.status_code, '<form method="post">' in page.text) == (200, True)
        assert httpx2.head(f"{office.address}/{office.link(verdict)}").status_code >= 400
    assert (office.verdicts, len(office.client.pending_approvals(RUN))) == ([], 1)
    assert TO not in page.text  # what a model says must not run in the browser of whoever judges it
    assert "&lt;script&gt;" in page.text
    assert (page.headers["Cache-Control"], page.headers["Referrer-Policy"]) == ("no-store", "no-referrer")


@pytest.mark.parametrize(
    ("verdict", "recorded", "paid"), [("approve", "approval_granted", [5]), ("reject", "approval_denied", [])]
)
def test_the_form_decides_once(open_office: OpenOffice, verdict: str, recorded: str, paid: list[int]) -> None:
    """With who and why; the same link again, or the other one, says that it is over."""
    office = open_office()
    link, other = office.link(verdict), office.link("reject" if verdict == "approve" else "approve")
    assert office.visit(link, sent={"reason": "I know it"}).status_code == 200
    for late in (link, other):
        office.refuses(410, "Nothing waits here any more", late)
    assert office.verdicts == [(recorded, "ann", "I know it")]
    assert office.agent.run_sync(run_id=RUN).status == "completed"
    assert office.paid == paid


def test_a_link_that_somebody_made_or_changed_is_refused(open_office: OpenOffice) -> None:
    """Each part of it: whose it is, what for, when, and the signature. So is one that another secret has signed."""
    office = open_office()
    link = office.link()
    payload, signed_at, signature = link.split(".")
    forged = office.link(person="bob").split(".")[0]
    for one in (
        f"{forged}.{signed_at}.{signature}",
        f"{payload}.{signed_at[:-1]}{'A' if signed_at[-1] != 'A' else 'B'}.{signature}",
        f"{payload}.{signed_at}.{signature[::-1]}",
        payload,
        "favicon.ico",
        "",
        office.link(desk=office.make_desk(office.client, b"another secret")),
    ):
        office.refuses(403, "none of ours", one)
    assert office.visit(link).status_code == 200


def test_an_expired_link_is_refused(open_office: OpenOffice) -> None:
    """What lies in a chat for a week must not decide any more; the request itself may wait on."""
    office = open_office()
    link = office.link()
    office.desk.link_s = -1
    office.refuses(410, "has expired", link)
    office.desk.link_s = 900
    assert office.visit(link).status_code == 200


@pytest.mark.parametrize("person", ["bob", "", "Ann"])
def test_a_link_is_for_whom_it_was_sent_to(open_office: OpenOffice, person: str) -> None:
    """A message that is passed on gives nobody else a say, and the log names who was signed in."""
    office = open_office()
    office.refuses(403, "This link is for ann", office.link(), person)


def test_a_link_is_for_the_arguments_that_were_shown(open_office: OpenOffice) -> None:
    """Bob has changed them: Ann's old link is void, and the new one of hers counts."""
    office = open_office(Approval(people=2))
    old = office.link()
    office.client.approve(RUN, arguments={"to": TO, "amount": 4}, by="bob")
    office.refuses(409, "changed the arguments", old)
    assert office.visit(office.link(), sent={}).status_code == 200
    office.agent.run_sync(run_id=RUN)
    assert office.paid == [4]


def test_one_person_is_not_two_by_sending_a_link_again(open_office: OpenOffice) -> None:
    """It still waits, so the link still opens; but her word is given."""
    office = open_office(Approval(people=2))
    link = office.link()
    assert "It needs 1 more" in office.visit(link, sent={}).text
    again = office.visit(link, sent={})
    assert (again.status_code, "ann has granted" in again.text) == (409, True)
    assert (len(office.verdicts), office.client.get(RUN).status) == (1, "paused")


def test_a_link_does_not_pass_to_a_later_call_that_looks_the_same(open_office: OpenOffice) -> None:
    """The same words, the same arguments and a call id that the provider repeats: it is another payment, and is
    recorded under an id of its own."""
    office = open_office()
    link = office.link()
    assert office.visit(link, sent={}).status_code == 200
    office.agent.run_sync(run_id=RUN)
    assert asyncio.run(office.agent.run("once more", run_id=RUN, turn_id="2")).status == "paused"
    (request,) = office.client.pending_approvals(RUN)
    assert (request["call_id"], request["arguments"]) == ("call_5", {"to": TO, "amount": 5})
    office.refuses(410, "Nothing waits here any more", link)
    assert office.paid == [5]
