"""The post: messages that wait in Redis, taken out of their queues and put back late, in another order.

The invariant: what is taken is taken whole. A message is in its queue or in hand, never in both and never in neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import redis

QUEUES = "drangue.*"  # each queue is a list for each of its priorities

Taken = Mapping[bytes, Sequence[bytes]]  # by list, the next to be served last


def take_all(client: redis.Redis) -> Taken:
    """Take every message that waits out of its queue."""
    taken = {}
    for name in client.scan_iter(QUEUES, _type="list"):
        with client.pipeline(transaction=True) as pipe:
            pipe.lrange(name, 0, -1)
            pipe.delete(name)
            messages = pipe.execute()[0]
        if messages:
            taken[bytes(name)] = messages
    return taken


def put_back(client: redis.Redis, taken: Taken, dice: Random, twice: float = 0.0) -> int:
    """Put messages back into their queues, behind what came meanwhile, in an order that the dice choose.

    This share of them is there twice, one right behind the other: two workers take them at once. Returns how many are.
    """
    doubled = 0
    with client.pipeline(transaction=True) as pipe:
        for name, messages in taken.items():
            for message in dice.sample(messages, len(messages)):
                times = 2 if dice.random() < twice else 1
                pipe.lpush(name, *[message] * times)
                doubled += times - 1
        pipe.execute()
    return doubled


def count(taken: Taken) -> int:
    """How many messages were taken."""
    return sum(len(messages) for messages in taken.values())
