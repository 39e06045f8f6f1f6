"""A newcomer at a terminal: starts examples as their docstrings say, and reads what they print.

Warnings are errors in whatever is started here: an example must not teach what is on its way out.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.shell import Done, environment, run
from tests.kit.fleet import ROOT

FOLDER = ROOT / "scripts" / "examples"
FILES = {path.stem: path for path in sorted(FOLDER.glob("[!_]*.py"))}
ABOUT = {name: ast.get_docstring(ast.parse(path.read_text())) or "" for name, path in FILES.items()}
NO_KEY = "(no {}_API_KEY: a scripted model on loopback answers, through the real SDK)"


def commands_of(name: str) -> list[list[str]]:
    """What the docstring of an example tells its reader to type, in that order."""
    lines = [line.strip() for line in ABOUT[name].splitlines() if line.startswith("    ")]
    return [shlex.split(line) for line in lines]


@dataclass(frozen=True)
class Newcomer:
    """Somebody at the root of a checkout, its environment active, without an API key."""

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> Newcomer:
        """With the scripts of this checkout in a folder that holds nothing else."""
        (folder / "scripts").symlink_to(ROOT / "scripts")
        return cls(folder)

    def types(self, command: list[str], *paths: Path, **variables: str) -> Done:
        """Run a command to its end; `paths` are where it finds modules besides."""
        return run(command, self.env(*paths, **variables), self.folder, timeout_s=180.0)

    def env(self, *paths: Path, **variables: str) -> dict[str, str]:
        kept = {name: value for name, value in environment(*paths).items() if not name.startswith("ANTHROPIC_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        return {**kept, "PATH": path, "PYTHONWARNINGS": "error", **variables}


@dataclass(frozen=True)
class Shown:
    """What an example printed, empty lines left out, and how often its scripted model was asked."""

    lines: list[str]
    asked: int

    @classmethod
    def read(cls, printed: str, wire: str) -> Shown:
        """Take the lines apart that every example prints of its model. AssertionError where they are missing."""
        lines = [line for line in printed.splitlines() if line]
        asked = re.fullmatch(r"\(the scripted model was asked (\d+) times\)", lines[-1])
        said = NO_KEY.format(wire.upper())
        assert asked, printed
        assert said in lines, printed
        return cls([line for line in lines[:-1] if line != said], int(asked[1]))
