"""Durability: a process is killed in the middle of a tool, and another one goes on with the same run.

The log is a file. What was recorded is not done again. What was cut off is, under the same key, by which the tool knows
that it has had its effect already.

Nothing must run first. Without an API key a scripted model answers. It takes 20 seconds: a process counts as dead when
it has not been heard of for 15.

    python scripts/examples/durable.py
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _model import MODEL, scripted

from drangue_worker import Agent, LeaseHeldError, SQLiteStore, tool


def work(folder: Path) -> None:
    """What your program does, at its first start as at every later one."""
    bookings = folder / "bookings"

    @tool
    def book(what: str, idempotency_key: str) -> str:
        """Book a flight, a hotel or a train."""
        if bookings.exists() and idempotency_key in bookings.read_text():
            print(f"  {what}: found under {idempotency_key}", flush=True)
            return f"{what} is booked"
        with bookings.open("a") as file:
            file.write(f"{idempotency_key} {what}\n")
        print(f"  {what}: booked under {idempotency_key}", flush=True)
        time.sleep(60 if what == "hotel" else 0)  # long enough to be killed between the effect and its record
        return f"{what} is booked"

    agent = Agent(MODEL, [book], "Book what is asked for, one after the other.", store=SQLiteStore(folder / "runs.db"))
    while True:
        try:
            result = agent.run_sync("Book a flight, a hotel and a train.", run_id="trip")
        except LeaseHeldError:  # another process works on the run, or did so a moment ago
            time.sleep(0.5)
        else:
            print(f"  {result.status}: {result.output}", flush=True)
            return


def main(folder: Path) -> None:
    command = [sys.executable, __file__, "--work", str(folder)]
    print("the first process", flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        for line in first.stdout:
            print(line, end="", flush=True)
            if "hotel" in line:
                break
        first.kill()
    print("is killed; the second one waits until the claim of the first has lapsed", flush=True)
    subprocess.run(command, check=True)
    print(f"bookings: {', '.join((folder / 'bookings').read_text().splitlines())}")


SCRIPT = [*([("book", {"what": what})] for what in ("flight", "hotel", "train")), "All three are booked."]

if __name__ == "__main__":
    if "--work" in sys.argv:
        work(Path(sys.argv[-1]))
    else:
        with tempfile.TemporaryDirectory() as name, scripted(SCRIPT):
            main(Path(name))
