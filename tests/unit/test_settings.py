"""Settings: read once, checked together, refused with a sentence that says what to do."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from drangue_client.errors import SettingsError
from drangue_client.settings import Settings

DATABASE = "postgresql://u:secret@db:5432/d"
REDIS = "redis://:secret@queue:6379/0"
FULL = {
    "DRANGUE_DATABASE_URL": DATABASE,
    "DRANGUE_REDIS_URL": REDIS,
    "DRANGUE_AGENTS": "shop.agents,shop.more:oncall",
    "DRANGUE_LEASE_S": "30.0",
    "DRANGUE_SWEEP_S": "2.5",
    "DRANGUE_PATIENCE_S": "7.0",
    "DRANGUE_DRAIN_GRACE_S": "0.5",
    "DRANGUE_MODEL_CONCURRENCY": "7",
    "DRANGUE_TOOL_CONCURRENCY": "1",
    "DRANGUE_MAX_CRASHES": "9",
    "DRANGUE_VISIBILITY_TIMEOUT_S": "60.0",
    "DRANGUE_TASK_EVENTS": "False",
    "DRANGUE_LOG_LEVEL": "debug",
    "DRANGUE_LOG_FORMAT": "console",
}


def test_an_empty_environment_gives_the_defaults() -> None:
    """A checkout with nothing set must work."""
    assert Settings.from_env({"PATH": "/bin", "DRANGUEX": "1"}) == Settings()


def test_recovery_takes_seconds_by_default() -> None:
    """The README promises it: a dead worker's step is free after 15 seconds and found within one more."""
    assert (Settings().lease_s, Settings().sweep_s) == (15.0, 1.0)


def test_every_name_sets_its_own_field() -> None:
    """A name that set nothing would silently mean a default."""
    settings = Settings.from_env(FULL)
    assert (settings.database_url, settings.redis_url, settings.agents) == (
        DATABASE,
        REDIS,
        ("shop.agents", "shop.more:oncall"),
    )
    assert (settings.lease_s, settings.sweep_s, settings.patience_s, settings.drain_grace_s) == (30.0, 2.5, 7.0, 0.5)
    assert (settings.model_concurrency, settings.tool_concurrency, settings.max_crashes) == (7, 1, 9)
    assert (settings.visibility_timeout_s, settings.task_events) == (60.0, False)
    assert (settings.log_level, settings.log_format) == ("debug", "console")


def test_settings_survive_being_handed_to_another_process() -> None:
    """`drangue worker` starts a process per pool with these variables."""
    settings = Settings.from_env(FULL)
    assert settings.to_env() == FULL
    assert Settings.from_env(settings.to_env()) == settings


def test_defaults_are_not_handed_on() -> None:
    """A child with a newer default should use it."""
    assert Settings().to_env() == {}


def test_an_empty_value_is_an_unset_one() -> None:
    """Compose files and manifests leave variables empty."""
    assert Settings.from_env({"DRANGUE_LEASE_S": "", "DRANGUE_AGENTS": ""}) == Settings()


def test_names_in_a_list_may_be_spaced_and_trailing() -> None:
    """People write lists over several lines."""
    assert Settings.from_env({"DRANGUE_AGENTS": " a.b , c:d ,, "}).agents == ("a.b", "c:d")


@pytest.mark.parametrize(("words", "value"), [("1 true TRUE yes on", True), ("0 false False no No off", False)])
def test_flags_take_the_usual_words(words: str, value: bool) -> None:
    """`bool("false")` is true, which is how such a setting goes wrong."""
    read = [Settings.from_env({"DRANGUE_TASK_EVENTS": word}).task_events for word in words.split()]
    assert read == [value] * len(read)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DRANGUE_LEASE_S", "soon"),
        ("DRANGUE_LEASE_S", "0"),
        ("DRANGUE_LEASE_S", "-5"),
        ("DRANGUE_LEASE_S", "nan"),
        ("DRANGUE_LEASE_S", "inf"),
        ("DRANGUE_MODEL_CONCURRENCY", "0"),
        ("DRANGUE_MODEL_CONCURRENCY", "2.5"),
        ("DRANGUE_TASK_EVENTS", "maybe"),
        ("DRANGUE_LOG_LEVEL", "loud"),
        ("DRANGUE_LOG_FORMAT", "xml"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_and_shown(name: str, value: str) -> None:
    """Whoever deploys must see which of thirty lines is wrong."""
    with pytest.raises(SettingsError, match=rf"^{name}: '{value}' cannot be used .*Correct or unset it\.$"):
        Settings.from_env({name: value})


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgres_goes_by_its_usual_schemes(scheme: str) -> None:
    """Hosters hand out either spelling."""
    url = f"{scheme}://u:p@db/d"
    assert Settings.from_env({"DRANGUE_DATABASE_URL": url}).require_database() == url


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_redis_goes_by_its_usual_schemes(scheme: str) -> None:
    """Plain and encrypted."""
    url = f"{scheme}://:p@queue/0"
    assert Settings.from_env({"DRANGUE_REDIS_URL": url}).require_redis() == url


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DRANGUE_DATABASE_URL", "mysql://u:secret@db/d"),
        ("DRANGUE_DATABASE_URL", "secret"),
        ("DRANGUE_DATABASE_URL", "postgresql://u:secret℀@db/d"),
        ("DRANGUE_REDIS_URL", "amqp://u:secret@queue"),
        ("DRANGUE_REDIS_URL", "redis://[secret"),
    ],
)
def test_a_wrong_address_is_refused_without_showing_it(name: str, value: str) -> None:
    """It holds a password, and start-up errors end up in logs."""
    with pytest.raises(SettingsError, match=name) as caught:
        Settings.from_env({name: value})
    assert "secret" not in str(caught.value)


def test_settings_do_not_show_their_passwords() -> None:
    """A repr ends up in tracebacks, in test reports and in log lines."""
    assert "secret" not in repr(Settings(database_url=DATABASE, redis_url=REDIS))


def test_an_unknown_name_is_refused_with_the_one_it_resembles() -> None:
    """A typo must never silently mean a default."""
    with pytest.raises(SettingsError, match=r"^DRANGUE_LEASE is not .* Did you mean DRANGUE_LEASE_S\?"):
        Settings.from_env({"DRANGUE_LEASE": "5"})


def test_a_name_that_resembles_nothing_is_refused_with_the_list() -> None:
    """The list is the documentation at hand."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({"DRANGUE_XYZZY": "5"})
    assert "Did you mean" not in str(caught.value)
    assert all(f"DRANGUE_{f.name.upper()}" in str(caught.value) for f in fields(Settings))


def test_a_lease_too_short_for_the_sweep_is_refused() -> None:
    """Healthy steps would be taken for dead ones and run twice."""
    with pytest.raises(SettingsError, match=r"DRANGUE_LEASE_S \(5\).*DRANGUE_SWEEP_S \(2\)"):
        Settings(lease_s=5.0, sweep_s=2.0)


@pytest.mark.parametrize(("lease_s", "sweep_s"), [(15.0, 5.0), (0.3, 0.1), (0.6, 0.2), (1.2, 0.4)])
def test_a_lease_of_three_sweeps_is_long_enough(lease_s: float, sweep_s: float) -> None:
    """The message says `at least three times`, and 0.3 is three times 0.1 to everyone but a float."""
    assert Settings(lease_s=lease_s, sweep_s=sweep_s).lease_s == lease_s


def test_a_redelivery_sooner_than_two_leases_is_refused() -> None:
    """Redis would hand out messages of steps that are still at work."""
    assert Settings(visibility_timeout_s=30.0).visibility_timeout_s == 30.0
    with pytest.raises(SettingsError, match=r"DRANGUE_VISIBILITY_TIMEOUT_S \(29\).*DRANGUE_LEASE_S \(15\)"):
        Settings(visibility_timeout_s=29.0)


def test_contradictions_are_found_in_the_environment_too() -> None:
    """Each value alone is fine."""
    with pytest.raises(SettingsError, match="three times"):
        Settings.from_env({"DRANGUE_SWEEP_S": "10"})


def test_a_lease_is_renewed_three_times_before_it_lapses() -> None:
    """Two renewals may fail without losing the claim."""
    assert Settings(lease_s=15.0).renew_s == 5.0


@pytest.mark.parametrize(
    ("ask", "name"),
    [(Settings.require_database, "DRANGUE_DATABASE_URL"), (Settings.require_redis, "DRANGUE_REDIS_URL")],
)
def test_a_missing_address_says_how_to_give_one(ask: Any, name: str) -> None:
    """The first error a newcomer sees."""
    with pytest.raises(SettingsError, match=rf"^{name} is not set.*drangue dev"):
        ask(Settings())


def test_settings_cannot_be_changed() -> None:
    """They are read once; a change in one place would be a different worker in another."""
    settings: Any = Settings()
    with pytest.raises(FrozenInstanceError):
        settings.lease_s = 1.0


@pytest.mark.parametrize("behind", ["ssl_cert_reqs=CERT_REQUIRED", "virtual_host=1", "socket_timeout=soon"])
def test_an_address_that_the_queue_s_client_cannot_read_is_refused_at_once(behind: str) -> None:
    """It would fail at every send, and look as if Redis were away."""
    with pytest.raises(SettingsError, match="must be a Redis URL"):
        Settings(redis_url=f"rediss://127.0.0.1:6379/0?{behind}")
    assert Settings(redis_url="rediss://127.0.0.1:6379/0?ssl_cert_reqs=required").redis_url
