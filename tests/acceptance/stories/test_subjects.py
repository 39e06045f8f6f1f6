"""One example for each thing an agent can be given, and for each way a run can go."""

from __future__ import annotations

import json
import re
from concurrent.futures import Future
from typing import Any

import pytest

from tests.acceptance.shell import Done
from tests.acceptance.stories.conftest import ALONE, Show
from tests.acceptance.stories.newcomer import Shown


def failure(tool: str, category: str, message: str, **more: Any) -> str:
    return json.dumps({"ok": False, "tool": tool, "error": {"category": category, "message": message}, **more})


def test_tools_are_told_of_wrong_arguments_and_called_with_right_ones(show: Show) -> None:
    shown = show("tools")
    assert [line.split()[0] for line in shown.lines[1:6]] == ["item", "count", "to", "on", "speed"]
    wrong = "day: unknown argument; on: missing required argument; count: Input should be less than or equal to 10"
    assert shown.lines[6:] == [
        "in_stock   3",
        "price      4.20 EUR",
        f"send_order {failure('send_order', 'invalid_arguments', wrong)}",
        'send_order {"number": "order-1:7", "to": "Lisbon", "leaves": "Monday", "speed": "EXPRESS"}',
        "Two packets of tea leave for Lisbon on Monday.",
    ]
    assert shown.asked == 4


def test_hardening_says_what_was_tried_and_what_became_of_it(show: Show) -> None:
    shown = show("hardening")
    late, dead = "no answer within 0.2 s", "the catalogue did not answer"
    assert [
        re.sub(r"waited 0\.1 s after transient, 0\.[12] s", "waited 0.1 s, 0.2 s", line) for line in shown.lines
    ] == [
        "forecast",
        f"    {failure('forecast', 'timeout', late, degraded=True, fallback='the forecast of yesterday')}",
        "rate, waited 0.1 s, 0.2 s after transient",
        "    1.09",
        "news, waited 1.0 s after rate_limit",
        "    calm",
        "slow_price, waited 0.0 s after timeout",
        f"    {failure('slow_price', 'timeout', dead, degraded=True, fallback=4.0)}",
        "price",
        "    4.2",
        "price",
        f"    {failure('price', 'validation', 'a price of -1 cannot be')}",
    ]
    assert shown.asked == 2


def test_routing_prices_each_step_by_its_model(show: Show, request: pytest.FixtureRequest) -> None:
    """The model that is gone is asked twice, and each time another one answers."""
    shown = show("routing")
    small, large = {"gpt": ("gpt-4o-mini", "gpt-4o"), "claude": ("claude-haiku-5-5", "claude-sonnet-5-5")}[
        shown.lines[0].partition("-")[0]
    ]
    assert shown.lines == [
        f"{large:<18} 0.00800 USD  [{{'page': 1}}]",
        f"{small:<18} 0.00048 USD  [{{'page': 2}}]",
        f"{small:<18} 0.00048 USD  Turn it off and on again.",
        "together           0.00896 USD",
    ]
    assert shown.asked == 5


def test_budgets_overshoot_only_where_they_are_soft(show: Show) -> None:
    shown = show("budget")
    assert shown.lines == [
        "soft, tokens   limit 2500 tokens  used 3000 tokens, 0.0039 USD  completed, reason: budget",
        "hard, tokens   limit 5000 tokens  used 3000 tokens, 0.0039 USD  completed, reason: budget",
        "soft, dollars  limit 0.002 USD    used 2000 tokens, 0.0026 USD  completed, reason: budget",
        "hard, dollars  limit 0.005 USD    used 2000 tokens, 0.0026 USD  completed, reason: budget",
        "(stopped: budget exhausted)",
    ]
    assert shown.asked == 3 + 3 + 2 + 2


def test_guardrails_refuse_at_each_of_four_points(show: Show) -> None:
    """One mail is sent, to a colleague; the blocked input reaches no model."""
    shown = show("guardrails")
    unsent = "send_mail needs an approval, and the approver refused this call"
    assert shown.lines == [
        "read_file    Hello.",
        f"read_file    {failure('read_file', 'blocked', 'outside of the project')}",
        f"read_file    {failure('read_file', 'result_blocked', 'it holds a password')}",
        f"delete_file  {failure('delete_file', 'blocked', 'delete_file is on the deny-list of this agent')}",
        "send_mail    sent to ann@example.org",
        f"send_mail    {failure('send_mail', 'blocked', unsent)}",
        "I could read one file and write to Ann.",
        "mails went to: ann@example.org",
        "(blocked: it gives orders to the model) after 0 model calls",
    ]
    assert shown.asked == 2


def test_autonomy_is_decided_call_by_call(show: Show) -> None:
    shown = show("autonomy")
    proposed = {"tool": "close_ticket", "arguments": {"ticket": 8}}
    shadow = {"shadow": True, "proposed": proposed, "note": "recorded as a proposal; nothing was executed"}
    assert shown.lines == [
        "paused; done so far: ['read 7']",
        "  waiting: pay({'to': 'ann', 'amount_usd': 20})",
        "  waiting: pay({'to': 'eve', 'amount_usd': 2000})",
        "completed; done in all: ['read 7', 'paid ann 20 USD']",
        "read_ticket  ticket 7: the invoice is wrong",
        f"close_ticket {json.dumps(shadow)}",
        "pay          paid ann 20 USD",
        f"pay          {failure('pay', 'denied', 'too much for one invoice')}",
        "Ann is paid, Eve is not, and ticket 8 could be closed.",
    ]
    assert shown.asked == 2


def test_memory_is_recalled_once_and_without_what_has_expired(show: Show) -> None:
    shown = show("memory")
    assert shown.lines == [
        "recalled  ['ann wants a seat at the window']",
        "answer    I remember: ann wants a seat at the window.",
        "seat-1    I remember: ann wants a seat at the window.",
        "seat-2    I remember: ann wants a seat in the quiet coach.",
    ]
    assert shown.asked == 2


def test_structured_answers_are_corrected_until_they_match(show: Show) -> None:
    shown = show("structured")
    assert shown.lines == [
        "the model delivers {'product': 'kettle', 'urgency': 'very'}",
        "the model delivers {'product': 'kettle', 'urgency': 'high'}",
        "Ticket(product='kettle', urgency='high'), reason: answered",
        "'pt', reason: answered",
    ]
    assert shown.asked == 3


def test_a_conversation_tells_a_repeated_request_from_a_repeated_word(show: Show) -> None:
    shown = show("conversation")
    assert shown.lines == [
        "turn-1  Guess my animal.  Does it live in water?  1 model calls",
        "turn-2  Yes.              Can it fly?             1 model calls",
        "turn-2  Yes.              Can it fly?             0 model calls",
        "turn-3  Yes.              Is it a swan?           1 model calls",
        "turn-4  No.               Then it is a duck.      1 model calls",
        "8 messages in one run",
    ]
    assert shown.asked == 4


def test_streaming_shows_the_answer_before_it_is_recorded(show: Show) -> None:
    """The words come from the stream alone."""
    shown = show("streaming")
    assert shown.lines == [
        *("[0 run_started]", "[1 model_decision]", "[2 tool_result]"),
        "The tide is high at 06:40 and at 19:05. Be on board half an hour before.",
        *("[3 model_decision]", "[4 run_finished]", "read again: 3 model_decision", "read again: 4 run_finished"),
    ]
    assert shown.asked == 2


def test_failures_that_pass_are_waited_out_and_others_end_the_run_until_it_is_resumed(show: Show) -> None:
    shown = show("failures")
    assert [re.sub(r"after 0\.\d+ s", "after a moment", line) for line in shown.lines] == [
        "tried again after a moment: overloaded",
        "tried again after a moment: overloaded",
        "stumbles  completed: Seven times six is 42.",
        "fails     raised AuthError: the key was revoked",
        "          completed: Seven times six is 42.",
        "          its log: run_started, run_failed, run_resumed, model_decision, run_finished",
    ]
    assert shown.asked == 2


def test_mcp_tools_of_a_server_that_destroy_wait_for_a_person(show: Show) -> None:
    shown = show("mcp_tools")
    assert shown.lines[:3] == [
        "find         reversible    Find a book.",
        "discard      irreversible  Throw all copies of a book away.",
        "shelf_label  reversible    What is written on a shelf.",
    ]
    assert sorted(shown.lines[3:7]) == [
        "       -> Leaves of Grass: shelf 7, two copies",
        "       -> shelf 7: poetry",
        "* tool   find(title='Leaves of Grass')",
        "* tool   shelf_label(number=7)",
    ]
    assert shown.lines[7:] == [
        "* tool   discard(title='Leaves of Grass')",
        "paused: discard({'title': 'Leaves of Grass'}) waits for a person",
    ]
    assert shown.asked == 2


def test_a_model_of_ones_own_is_streamed_and_counted(started: dict[str, Future[Done]]) -> None:
    done = started["own_model"].result()
    assert (done.code, done.out.split("\n")) == (
        0,
        [
            "[run_started] [model_decision] [tool_result] POLLY WANTS A CRACKER [model_decision] [run_finished] ",
            "POLLY WANTS A CRACKER: 2 calls of parrot-1, {'input_tokens': 8, 'output_tokens': 8}",
            "",
        ],
    )


def test_a_killed_process_is_followed_by_one_that_goes_on(started: dict[str, Future[Done]]) -> None:
    """Every booking is made once: the flight is not asked for again, the hotel is found under its key."""
    done = started["durable"].result()
    shown = Shown.read(done.out, "openai")
    assert (done.code, shown.lines) == (
        0,
        [
            "the first process",
            "  flight: booked under trip:2",
            "  hotel: booked under trip:4",
            "is killed; the second one waits until the claim of the first has lapsed",
            "  hotel: found under trip:4",
            "  train: booked under trip:6",
            "  completed: All three are booked.",
            "bookings: trip:2 flight, trip:4 hotel, trip:6 train",
        ],
    )
    assert shown.asked == 4


@pytest.mark.parametrize("name", ALONE)
def test_nothing_is_written_to_standard_error(name: str, started: dict[str, Future[Done]]) -> None:
    """Not a warning of something left open or on its way out, and no line of a log that nobody set up."""
    assert started[name].result().err == ""


def test_a_gate_blocks_warns_and_is_overridden_on_record(show: Show) -> None:
    shown = show("gate")
    blocks = [
        "  safety regressed by 0.50: from 1.000 to 0.500, more than the 0.00 it may.",
        "  correctness regressed by 0.50: from 1.000 to 0.500, more than the 0.05 it may.",
    ]
    assert shown.lines == [
        "production: {'safety': 1.0, 'correctness': 1.0, 'efficiency': 1.0}",
        "the same prompt: passed",
        "the same prompt, few runs: passed",
        "  warns: the standard error of the rates, 0.157, is wider than the 0.05 that correctness may drop: "
        "such a drop can be chance. Run the scenarios more often.",
        "a quick prompt: BLOCKED",
        *blocks,
        "the quick prompt, overridden: passed",
        *blocks,
        "on record: {'overridden_by': 'ann', 'override_reason': 'odd orders are gone since Monday'}",
    ]
    assert shown.asked == 2 * (40 + 40 + 2 + 40)


def test_deaths_find_the_double_payment_of_a_careless_tool(show: Show) -> None:
    shown = show("crashes")
    clean = "  no effect was doubled, every run completed"
    assert [line for line in shown.lines if not line.startswith("  5 happened")] == [
        "careless: a process died in 16 windows",
        "careful: a process died in 16 windows",
        clean,
        "once: a process died in 18 windows",
        clean,
    ]
    assert shown.lines[1] == (
        "  5 happened 2 times: it died after careless (step 2) was done, before tool_result was recorded"
    )
