"""What the environment configures, read once at the edge and handed down as a frozen value.

`Settings.from_env()` is the only place that knows a `DRANGUE_*` name. Unknown names are refused, so that a typo never
silently means a default; values that contradict each other are refused before anything starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlsplit

from drangue_client import checks
from drangue_client.errors import SettingsError

PREFIX = "DRANGUE_"


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of value: `what` it must be, how it is `read` from a variable, and which values `fit`.

    `read` may raise ValueError for what cannot be read; what it gives is then judged as one given directly is.
    """

    what: str
    read: Callable[[str], Any]
    fits: Callable[[Any], bool]
    secret: bool = False


def _one_of(*words: str) -> _Kind:
    return _Kind(f"one of {', '.join(words)}", str.lower, lambda value: isinstance(value, str) and value in words)


def _address(what: str, fits: Callable[[str], bool]) -> _Kind:
    return _Kind(what, str, lambda value: isinstance(value, str) and (not value or fits(value)), secret=True)


def _scheme(url: str) -> str:
    try:
        parts = urlsplit(url)
        return parts.scheme if parts.port != 0 else ""
    except ValueError:  # its text quotes the address, and that holds a password
        return ""


def _is_postgres(url: str) -> bool:
    return _scheme(url) in {"postgresql", "postgres", "postgresql+psycopg"}


def _is_redis(url: str) -> bool:
    number = urlsplit(url).path.strip("/") if _scheme(url) else "?"
    small = url.startswith(("redis://", "rediss://"))  # as redis-py reads it
    return small and (number == "" or number.isdecimal()) and _can_be_opened(url)


def _can_be_opened(url: str) -> bool:
    """Whether redis-py understands the address with all that stands behind its `?`; nothing is connected."""
    import redis

    try:
        redis.Redis.from_url(url).connection_pool.make_connection()
    except (redis.RedisError, TypeError, ValueError):
        return False
    return True


def _read_flag(value: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if value.lower() not in known:
        raise ValueError(value)
    return known[value.lower()]


_database_url = _address("a Postgres URL such as postgresql://user:password@host:5432/name", _is_postgres)
_redis_url = _address("a Redis URL such as redis://:password@host:6379/0", _is_redis)
_seconds = _Kind(
    "a positive number of seconds, under ten million", float, lambda value: checks.is_number(value) and 0 < value < 1e7
)
_count = _Kind("a whole number of at least 1", int, lambda value: checks.is_count(value) and value >= 1)
_flag = _Kind("true or false", _read_flag, lambda value: isinstance(value, bool))
_place = _Kind("text such as pkg.module:function", str, lambda value: isinstance(value, str))
_path = _Kind("the path of a file", str, lambda value: isinstance(value, str) and "\0" not in value)
_names = _Kind(
    "a tuple of names, or in a variable names with commas between them",
    lambda value: tuple(name.strip() for name in value.split(",") if name.strip()),
    lambda value: isinstance(value, tuple) and all(isinstance(name, str) and name.strip() for name in value),
)


def _setting(kind: _Kind, default: Any, about: str) -> Any:
    return field(default=default, repr=not kind.secret, metadata={"kind": kind, "about": about})


def _refusal(place: str, kind: _Kind, value: object, then: str) -> SettingsError:
    told = "its value" if kind.secret else checks.shown(value)  # a URL holds a password
    return SettingsError(f"{place}: {told} cannot be used (must be {kind.what}). {then}")


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, its unit and its default; the environment name is `DRANGUE_` and the field's name in capitals."""

    database_url: str = _setting(_database_url, "", "Postgres, the log of every run")
    redis_url: str = _setting(_redis_url, "", "Redis, the queue and the signals")
    agents: tuple[str, ...] = _setting(_names, (), "agents a worker serves: pkg.module or pkg.module:name, by commas")
    lease_s: float = _setting(_seconds, 15.0, "how long a claim outlives its worker; renewed every third of it")
    sweep_s: float = _setting(_seconds, 1.0, "how often every worker looks for work that stopped moving")
    patience_s: float = _setting(_seconds, 5.0, "how long a sent step may stay unclaimed before its message is doubted")
    drain_grace_s: float = _setting(_seconds, 20.0, "how long a stopping worker lets running steps finish")
    model_concurrency: int = _setting(_count, 100, "steps in flight per model-pool process")
    tool_concurrency: int = _setting(_count, 4, "child processes per tool-pool process")
    max_crashes: int = _setting(_count, 5, "workers a step may take down before its run fails")
    call_timeout_s: float = _setting(
        _seconds, 900.0, "how long a model, a guard or a memory of yours may take to answer"
    )
    eager_dispatch: bool = _setting(
        _flag, True, "a worker with room goes on with the steps it opens itself, past Redis and without another claim"
    )
    visibility_timeout_s: float = _setting(
        _seconds, 3600.0, "when Redis redelivers a message that it has kept a copy of"
    )
    broker_acks: bool = _setting(
        _flag, False, "keep a copy of each fetched message in Redis until its step is done: eight commands more a step"
    )
    liveness_file: str = _setting(
        _path, "", "touched every second while the worker lives and its event loop answers, for health checks"
    )
    task_events: bool = _setting(_flag, True, "send the task events that Flower shows")
    log_level: str = _setting(_one_of("debug", "info", "warning", "error"), "info", "least severe line logged")
    log_format: str = _setting(_one_of("json", "console"), "json", "shape of a log line")
    tracer: str = _setting(_one_of("none", "console", "otel"), "none", "who is told of the steps a worker does")
    trace_content: bool = _setting(_flag, False, "export prompts, arguments and answers with OpenTelemetry spans")
    trace_redact: str = _setting(_place, "", "what such content passes through first: pkg.module:function")

    def __post_init__(self) -> None:
        for f in fields(self):
            kind, value = f.metadata["kind"], getattr(self, f.name)
            if not kind.fits(value):
                raise _refusal(f.name, kind, value, "Correct it or leave it out.")
        if self.lease_s < 3 * self.sweep_s * (1 - 1e-9):  # three times 0.1 is a little more than 0.3
            raise SettingsError(
                f"DRANGUE_LEASE_S ({self.lease_s:g}) must be at least three times DRANGUE_SWEEP_S ({self.sweep_s:g}), "
                "else a healthy step is taken for a dead one. Raise the one or lower the other."
            )
        if self.visibility_timeout_s < 2 * self.lease_s:
            raise SettingsError(
                f"DRANGUE_VISIBILITY_TIMEOUT_S ({self.visibility_timeout_s:g}) must be at least twice DRANGUE_LEASE_S "
                f"({self.lease_s:g}). Raise it; recovery does not wait for it."
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read `environ` (by default the process's). Raises SettingsError naming the variable that is wrong."""
        environ = os.environ if environ is None else environ
        by_name = {PREFIX + f.name.upper(): f for f in fields(cls)}
        unknown = sorted(name for name in environ if name.startswith(PREFIX) and name not in by_name)
        if unknown:
            close = get_close_matches(unknown[0], by_name, n=1)
            raise SettingsError(
                f"{unknown[0]} is not a setting of drangue."
                + (f" Did you mean {close[0]}?" if close else "")
                + f" Unset it; the settings are {', '.join(by_name)}."
            )
        values: dict[str, Any] = {}
        for name, f in by_name.items():
            if environ.get(name, "") != "":
                kind = f.metadata["kind"]
                with suppress(ValueError):
                    values[f.name] = kind.read(environ[name])
                if f.name not in values or not kind.fits(values[f.name]):
                    raise _refusal(name, kind, environ[name], "Correct or unset it.")
        return cls(**values)

    def to_env(self) -> dict[str, str]:
        """The variables that make `from_env` give this value again; defaults are left out."""
        env = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.default is not MISSING and value != f.default:
                env[PREFIX + f.name.upper()] = ",".join(value) if isinstance(value, tuple) else str(value)
        return env

    @property
    def renew_s(self) -> float:
        """Seconds between two renewals of a lease."""
        return self.lease_s / 3

    def require_database(self) -> str:
        """The Postgres URL; SettingsError says how to give one."""
        if not self.database_url:
            raise SettingsError(
                "DRANGUE_DATABASE_URL is not set. Set it to your Postgres, or start `drangue dev` in this folder and "
                "leave it unset."
            )
        return self.database_url

    def require_redis(self) -> str:
        """The Redis URL; SettingsError says how to give one."""
        if not self.redis_url:
            raise SettingsError(
                "DRANGUE_REDIS_URL is not set. Set it to your Redis, or start `drangue dev` in this folder and leave "
                "it unset."
            )
        return self.redis_url
