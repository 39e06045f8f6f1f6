"""What the scripted provider answers in the demo: a plausible model, without a key and without the internet."""

from __future__ import annotations

from drangue_worker.testing.provider import ProviderCall, Reply

THINKING_S = 0.4


def script(call: ProviderCall) -> Reply:
    """The reply to one call, from the tools on offer and how far the conversation is."""
    if "wire_funds" in call.tools:
        return _treasurer(call)
    service = call.last_user().split()[-1].strip("?.")
    if call.turn == 0:
        return Reply(
            text=f"I look at {service} from three sides at once.",
            tool_calls=(
                ("check_service", {"service": service}),
                ("read_logs", {"service": service, "minutes": 15}),
                ("file_incident", {"service": service, "summary": f"{service} is slow"}),
            ),
            input_tokens=180,
            output_tokens=60,
            delay_s=THINKING_S,
        )
    return Reply(
        text=f"{service} runs out of database connections; filed as {call.results()[-1]}.",
        input_tokens=320,
        output_tokens=30,
        delay_s=THINKING_S,
    )


def _treasurer(call: ProviderCall) -> Reply:
    if call.turn == 0:
        return Reply(
            text="Invoice 4711 is due today and matches the order, so I pay it.",
            tool_calls=(("wire_funds", {"to": "ACME Hosting", "amount_usd": 1250.0}),),
            input_tokens=150,
            output_tokens=40,
            delay_s=THINKING_S,
        )
    return Reply(text=f"Settled: {call.results()[-1]}", input_tokens=210, output_tokens=25, delay_s=THINKING_S)
