"""A model of your own: any object with an async `generate`. Name `on_delta` in it and it can be streamed as well.

Nothing must run first, and no API key is needed: this model is a parrot.

    python scripts/examples/own_model.py
"""

import asyncio

from drangue_worker import Agent, ModelResponse, ToolCall


class Parrot:
    model = "parrot-1"  # the name that is recorded, and priced

    async def generate(self, *, system, messages, tools, idempotency_key=None, on_delta=None) -> ModelResponse:
        heard = messages[-1]["content"]
        usage = {"input_tokens": len(heard.split()), "output_tokens": len(heard.split())}
        if messages[-1]["role"] == "user":
            return ModelResponse(tool_calls=[ToolCall("", tools[0].name, {"text": heard})], usage=usage)
        for word in heard.split():
            if on_delta:  # somebody watches
                await on_delta(word)
        return ModelResponse(text=heard, usage=usage)


def louder(text: str) -> str:
    """Say it louder."""
    return text.upper()


agent = Agent(Parrot(), [louder])


async def main() -> None:
    async for event in agent.stream("polly wants a cracker", run_id="parrot"):
        print(event.payload["text"] if event.type == "model_delta" else f"[{event.type}]", end=" ", flush=True)
    result = await agent.run(run_id="parrot")  # a finished run is only read
    print(f"\n{result.output}: {result.steps} calls of {result.events[1].payload['model']}, {result.usage}")


if __name__ == "__main__":
    asyncio.run(main())
