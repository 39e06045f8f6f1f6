"""The floors of the house: a module imports from its own floor's list or from below, never upwards.

The list is read from the bottom up. A package named here stands for all its modules; the first entry that matches a
module's name, longest first, is its floor.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS = [
    # drangue_client: what happened
    "drangue_client.errors",
    "drangue_client.checks",
    "drangue_client.stackfile drangue_client.settings drangue_client.events",
    "drangue_client.outcomes",
    "drangue_client.messages drangue_client.trace drangue_client.budget drangue_client.answer",
    "drangue_client.autonomy",
    "drangue_client.terms",
    "drangue_client.limits",
    "drangue_client.run",
    "drangue_client.folding",
    "drangue_client.result",
    "drangue_client.store.values drangue_client.store.tables drangue_client.store.driver"
    " drangue_client.store.database drangue_client.store.conversations",
    "drangue_client.store.port",
    "drangue_client.store.reading drangue_client.store.statements drangue_client.store.taking",
    "drangue_client.store.claiming drangue_client.store.settling drangue_client.store.sweeping"
    " drangue_client.store.holding drangue_client.store.listing drangue_client.store.checking"
    " drangue_client.store.forgetting drangue_client.store.counting drangue_client.store.serving"
    " drangue_client.store.submitting drangue_client.store.together",
    "drangue_client.store.onefile",
    "drangue_client.store.log drangue_client.store.migrate",
    "drangue_client.store.riding",
    "drangue_client.store",
    "drangue_client.wire",
    "drangue_client.appending",
    "drangue_client.submission drangue_client.turns drangue_client.unknowns drangue_client.verdicts"
    " drangue_client.waiting",
    "drangue_client.steering",
    "drangue_client.doctor drangue_client.metrics drangue_client.pruning drangue_client.client",
    "drangue_client.aio_steering",
    "drangue_client.aio",
    "drangue_client",
    "drangue_client.console",
    # drangue_worker: what happens next
    "drangue_worker.lazy drangue_worker.asking drangue_worker.errors drangue_worker.events",
    "drangue_worker.rules drangue_worker.observability.logs drangue_worker.observability.tracers",
    "drangue_worker.observability drangue_worker.tools.schema",
    "drangue_worker.tools.tool",
    "drangue_worker.tools",
    "drangue_worker.models",
    "drangue_worker.memory",
    "drangue_worker.blueprint",
    "drangue_worker.registry",
    "drangue_worker.engine",
    "drangue_worker.evals",
    "drangue_worker.steering",
    "drangue_worker.agent drangue_worker.fleet",
    "drangue_worker.public",
    "drangue_worker",
    "drangue_worker.celery",
    "drangue_worker.testing.script",
    "drangue_worker.testing.anthropic_messages drangue_worker.testing.chat_completions",
    "drangue_worker.testing",
    "drangue_worker.embedded.errors",
    "drangue_worker.embedded.process drangue_worker.embedded.root",
    "drangue_worker.embedded.programs",
    "drangue_worker.embedded.postgres drangue_worker.embedded.redis",
    "drangue_worker.embedded",
    "drangue_worker.supervisor drangue_worker.exporting",
    "drangue_worker.dev",
    "drangue_worker.demo drangue_worker.chaos drangue_worker.bench",
    "drangue_worker.cli",
]
HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names.split()}

PURE = [
    "drangue_client.checks",
    "drangue_client.events",
    "drangue_client.run",
    "drangue_client.folding",
    "drangue_client.folding",
    "drangue_client.messages",
    "drangue_client.outcomes",
    "drangue_client.autonomy",
    "drangue_client.terms",
    "drangue_client.limits",
    "drangue_client.trace",
    "drangue_client.result",
    "drangue_client.budget",
    "drangue_client.answer",
    "drangue_worker.rules",
]
IMPURE = {"time", "random", "os", "socket", "threading", "asyncio", "subprocess", "datetime", "secrets", "uuid"}


def modules() -> list[str]:
    paths = [*ROOT.glob("drangue_client/**/*.py"), *ROOT.glob("drangue_worker/**/*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if "migrations" not in path.parts]
    return sorted(name.removesuffix(".__init__") for name in names)


def height_of(module: str) -> int:
    """The floor of a module: its own entry, or that of the closest package above it."""
    name = module
    while name not in HEIGHT:
        assert "." in name, f"{module} stands on no floor; add it to FLOORS"
        name = name.rpartition(".")[0]
    return HEIGHT[name]


def imports_of(module: str, *, run_time_only: bool = False) -> set[str]:
    path = ROOT.joinpath(*module.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(
                name if (ROOT.joinpath(*name.split("."))).with_suffix(".py").exists() else node.module for name in names
            )
    return found


@pytest.mark.parametrize("module", modules())
def test_a_module_only_looks_down(module: str) -> None:
    """An import that climbs is a circle waiting to happen, and drags the upper floor into whoever imports the lower."""
    for imported in imports_of(module):
        if imported.split(".")[0] in ("drangue_client", "drangue_worker"):
            assert height_of(imported) <= height_of(module), f"{module} imports {imported}, which stands above it"


@pytest.mark.parametrize("module", [m for m in modules() if any(m == p or m.startswith(p + ".") for p in PURE)])
def test_pure_modules_reach_for_nothing_outside(module: str) -> None:
    """What decides must give the same answer tomorrow, on another machine, from the same log."""
    reached = {name.split(".")[0] for name in imports_of(module)}
    assert not reached & IMPURE


def test_every_floor_is_built() -> None:
    """A floor that names no module is a leftover; delete it."""
    built = set(modules())
    assert [name for name in HEIGHT if name not in built] == []


def test_the_client_loads_no_sdk_no_worker_and_no_celery() -> None:
    """An application that only enqueues must not pay for what executes."""
    program = (
        "import sys, drangue_client; "
        "print(*[m for m in ('openai', 'anthropic', 'drangue_worker', 'celery', 'alembic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
