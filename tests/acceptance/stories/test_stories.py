"""The three stories of the specification, as examples that a newcomer starts with one command."""

from __future__ import annotations

import re
from typing import Any

from tests.acceptance.stories.conftest import Show


def test_weather_shows_every_step_of_one_question(show: Show) -> None:
    """Story one."""
    shown = show("weather")
    assert [re.sub(r"[\d.]+ms", "TIME", line) for line in shown.lines] == [
        "* tool   weather(city='Lisbon')",
        "       -> Lisbon: 14 degrees, rain until six",
        "* model  Take an umbrella: it rains in Lisbon until six, at 14 degrees.",
        "completed: 2 model calls, {'input_tokens': 20, 'output_tokens': 10}",
        *("run  TIME", "  model  TIME", "  tool  TIME", "  model  TIME"),
    ]
    assert shown.asked == 2


def test_refunds_move_money_once_or_not_at_all(show: Show) -> None:
    """Story two; seven calls in all leave none for the ticket that came twice, nor for the injected one."""
    shown = show("refunds")
    assert shown.lines == [
        "ticket-1  completed: One charge was too many: you get back 19 USD for A-17.",
        "          once more with the same id: 0 new model calls; ledger {'ticket-1:8': '19 USD for A-17'}",
        "ticket-2  paused: big_refund({'order_id': 'B-42', 'amount_usd': 480}), "
        "because: the customer says it never came.",
        "          completed: We do not refund B-42, since the parcel was signed for at the door.",
        "          ledger {'ticket-1:8': '19 USD for A-17'}",
        "ticket-3  completed: (blocked: the ticket gives orders); 0 model calls",
    ]
    assert shown.asked == 7


def test_sre_changes_nothing_before_a_person_has_agreed(show: Show) -> None:
    """Story three; a trail with a line that has no time is none."""
    shown = show("sre")
    trail = [re.fullmatch(r"(\d\d:\d\d:\d\d\.\d{6})  (\w+) +(.*)", line) for line in shown.lines[5:]]
    assert shown.lines[:5] == [
        "paused; running: {'checkout': 'v42'}",
        "inbox: rollback({'service': 'checkout', 'version': 'v41'})",
        "       The errors began with v42 at 14:02, so going back to v41 should end them.",
        "completed; running: {'checkout': 'v41'}",
        "Checkout is back on v41 and fails 0.2 % of its requests.",
    ]
    assert [(line[2], line[3]) if line else "" for line in in_order(trail)] == [
        ("run_started", "Checkout is failing."),
        ("model_decision", "error_rate, deploys"),
        ("tool_result", 'deploys: ["v42 at 14:02", "v41 yesterday"]'),
        ("tool_result", "error_rate: 31 %"),
        ("model_decision", "The errors began with v42 at 14:02, so going back to v41 should end them."),
        ("approval_requested", "rollback({'service': 'checkout', 'version': 'v41'})"),
        ("approval_granted", "by ann: seen it on the graph"),
        ("step_started", "rollback"),
        ("tool_result", "rollback: checkout runs v41 (change page-1:5)"),
        ("model_decision", "error_rate"),
        ("tool_result", "error_rate: 0.2 %"),
        ("model_decision", "Checkout is back on v41 and fails 0.2 % of its requests."),
        ("run_finished", "answered"),
    ]
    assert shown.asked == 4


def in_order(trail: list[Any]) -> list[Any]:
    """The trail with the results of one decision by name: they are recorded as they come."""
    return [*trail[:2], *sorted(trail[2:4], key=lambda line: str(line and line[3])), *trail[4:]]
