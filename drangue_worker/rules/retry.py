"""How long to wait before another attempt."""

from __future__ import annotations

import math

from drangue_client.errors import RateLimitError

MODEL_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0


def delay_s(error: BaseException, failures: int, base_s: float, cap_s: float, chance: float) -> float:
    """Seconds before the attempt that follows `failures` earlier failed ones (0 for the first retry).

    What the other side asked for (`retry_after`) is taken as it is. Otherwise half of min(base * 2**failures, cap) is
    certain and half is spread by `chance` in [0, 1), so that callers that failed together do not return together
    ("equal jitter", Brooker, Exponential Backoff And Jitter, 2015).
    """
    if isinstance(error, RateLimitError) and error.retry_after is not None and math.isfinite(error.retry_after):
        return max(0.0, error.retry_after)
    if base_s <= 0:
        return 0.0
    ceiling = min(base_s * 2.0 ** min(failures, 60), cap_s)
    return float(ceiling * (0.5 + 0.5 * chance))
