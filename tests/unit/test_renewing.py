"""How long a sweep waits when the database is back, so that nobody who lives is taken for dead."""

from __future__ import annotations

import pytest

from drangue_client.settings import Settings
from drangue_worker.engine.sweep import renewing_s


@pytest.mark.parametrize(
    ("lease_s", "away_s", "waits_s"),
    [
        (15.0, 0.5, 0.0),
        (15.0, 4.0, 0.0),  # 15 - 5 - 1 - 4 = 5: by then who lives has renewed
        (15.0, 4.1, 5.0),
        (15.0, 3600.0, 5.0),
        (3.0, 0.1, 3.0),  # never longer than a lease, after which everybody has lapsed or renewed
        (60.0, 30.0, 0.0),
    ],
)
def test_a_sweep_waits_only_where_a_living_worker_could_have_lapsed(
    lease_s: float, away_s: float, waits_s: float
) -> None:
    """A short outage delays no recovery; after a long one the living are given the time to renew."""
    assert renewing_s(Settings(lease_s=lease_s), away_s) == waits_s
