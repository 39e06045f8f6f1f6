"""Make or reuse the checkout's `.venv` and go on inside it. Standard library only.

Every script of this folder starts here, so that a fresh machine needs nothing but Python 3.11 and a package index.
The environment is rebuilt when `pyproject.toml` or `constraints.txt` changed since it was made; installing is
repeated safely after an interruption, because the stamp is written last.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "scripts" / "constraints.txt"
OLDEST = (3, 11)


def go_on_inside(extras: str) -> None:
    """Return at once when this process already is the checkout's Python; else install and replace this process.

    `extras` names the optional dependencies, comma separated (`"embedded,flower"`), "" none in particular. Exits with
    2 and one line when the machine lacks something that only its owner can install.
    """
    if Path(sys.prefix).resolve() == VENV.resolve():
        return
    prepare(extras)
    os.execv(PYTHON, [str(PYTHON), *sys.argv])


def prepare(extras: str) -> None:
    """Make `.venv` hold drangue (editable) with at least `extras`, at the versions of `constraints.txt`."""
    stamp = VENV / "drangue-stamp"
    wanted = _fingerprint()
    have = stamp.read_text().splitlines() if stamp.exists() else []
    current = have[:1] == [wanted] and PYTHON.exists()
    installed = _names(have[1]) if current and len(have) > 1 else set()
    if current and _names(extras) <= installed:
        return
    extras = ",".join(sorted(installed | _names(extras)))
    if not (PYTHON.exists() and PYTHON.with_name("pip").exists()):  # the second is missing after an interruption
        _make_venv()
    print(
        f"installing drangue{f'[{extras}]' if extras else ''} into {VENV.relative_to(ROOT)} (once) ...",
        file=sys.stderr,
        flush=True,
    )
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--constraint", str(CONSTRAINTS), "--editable", f"{ROOT}[{extras}]" if extras else str(ROOT)]
    # pip builds the package in an environment of its own, which hears of constraints through variables alone; as an
    # address, since a variable is split at spaces.
    pinned = {name: CONSTRAINTS.as_uri() for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")}
    environment = {**os.environ, **pinned}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        _stop(
            f"{done.stdout}\ninstalling failed; pip's message above says why. Mend it and run the same command again."
        )
    stamp.write_text(f"{wanted}\n{extras}\n")


def _names(extras: str) -> set[str]:
    names = {name for name in extras.split(",") if name}
    return (
        names | {"bench", "embedded", "examples", "flower", "mcp", "metrics", "otel"} if "dev" in names else names
    )  # as pyproject.toml has it


def _fingerprint() -> str:
    content = str(ROOT).encode() + (ROOT / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes()
    return hashlib.sha256(content).hexdigest()


def _make_venv() -> None:
    shutil.rmtree(VENV, ignore_errors=True)
    made = subprocess.run([_python(), "-m", "venv", str(VENV)], capture_output=True, text=True)
    if made.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        _stop(
            "this Python cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv.\n"
            + made.stdout
            + made.stderr
        )


def _python() -> str:
    if sys.version_info >= OLDEST:
        return sys.executable
    newer = filter(None, (shutil.which(f"python3.{minor}") for minor in range(19, OLDEST[1] - 1, -1)))
    found = next(newer, None)
    if found:
        return found
    return _stop(f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed; this is {sys.version.split()[0]}.")


def _stop(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)
