"""Failures: a model that stumbles is asked again; one that fails for good ends the run, until it is resumed.

Nothing must run first. Without an API key a scripted model answers.

    python scripts/examples/failures.py
"""

from _model import SMALL, model, scripted

from drangue_worker import Agent, AuthError, InMemoryStore, TransientError


class Unlucky:
    """Your model, after raising what it is given."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.inner = model(SMALL)
        self.model = self.inner.model

    async def generate(self, **asked):
        if self.errors:
            raise self.errors.pop(0)
        return await self.inner.generate(**asked)

    async def aclose(self) -> None:
        await self.inner.aclose()


SCRIPT = ["Seven times six is 42."]

if __name__ == "__main__":
    store = InMemoryStore()
    with scripted(SCRIPT):
        agent = Agent(Unlucky(TransientError("overloaded"), TransientError("overloaded")), store=store)
        result = agent.run_sync("What is seven times six?", run_id="stumbles")
        for event in result.events:
            for retry in event.payload.get("retries", []):
                print(f"tried again after {retry['delay_s']} s: {retry['error']}")
        print(f"stumbles  {result.status}: {result.output}\n")

        agent = Agent(Unlucky(AuthError("the key was revoked")), store=store)
        try:
            agent.run_sync("What is seven times six?", run_id="fails")
        except AuthError as error:
            print(f"fails     raised AuthError: {error}")
        result = agent.run_sync(run_id="fails")  # somebody has mended the key; the run goes on where it stopped
        print(f"          {result.status}: {result.output}")
        print(f"          its log: {', '.join(event.type for event in result.events)}")
