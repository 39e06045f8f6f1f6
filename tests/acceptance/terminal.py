"""A person at a real terminal, with an inbox open on it: what stands there, what is typed, what the editor does."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import termios
import threading
from pathlib import Path

from tests.acceptance.shell import PATIENCE_S, drangue, environment
from tests.kit.fleet import Fleet, wait_until

KEYS = "a approve, e edit, r reject, s skip, q quit: "
COMES = ", q quits, and what comes is shown here"
NOTHING = f"nothing waits for approval{COMES}"
PUT_OFF = "put off; any key shows them again"
WATCH = drangue("approvals", "--watch", "--by", "ann")


class Person:
    """Somebody at a terminal, and all that stands on it."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int) -> None:
        self.process = process
        self._terminal = terminal
        self._said = b""
        self._seen = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._terminal, 65536)
            except OSError:  # the last one at the other side has left
                return
            if not piece:
                return
            self._said += piece

    @property
    def said(self) -> str:
        return self._said.decode().replace("\r\n", "\n")

    def sees(self, text: str) -> str:
        """Wait until it is said behind what was waited for before; returns what was said up to there."""

        def there() -> bool:
            assert self.process.poll() is None or text in self.said[self._seen :], self.said
            return text in self.said[self._seen :]

        wait_until(there, PATIENCE_S, f"{text!r} behind {self.said[self._seen :]!r}")
        began, self._seen = self._seen, self.said.index(text, self._seen) + len(text)
        return self.said[began : self._seen]

    def types(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def answers(self, key: str) -> str:
        """Press a key when it is asked for; returns what was shown before."""
        shown = self.sees(KEYS)
        self.types(key)
        return shown

    def leaves(self, key: str = "q") -> int:
        self.types(key)
        return self.process.wait(PATIENCE_S)

    def is_done(self) -> bool:
        """Whether nothing is left on the screen that waits; what was put off is let go, as it waits no more."""
        answered = 0

        def over() -> bool:
            nonlocal answered
            said = self.said
            if len(said) > answered and said.endswith((KEYS, f"{PUT_OFF}{COMES}\n")):
                self.types("s" if said.endswith(KEYS) else " ")
                answered = len(said)
            return self.process.poll() is not None or said.endswith(f"{NOTHING}\n")

        wait_until(over, PATIENCE_S)
        self._seen = len(self.said)
        return self.process.poll() is None

    def modes(self) -> int:
        """The terminal's own: whether it echoes, and reads lines."""
        return int(termios.tcgetattr(self._terminal)[3]) & (termios.ECHO | termios.ICANON)


class Desk:
    """Inboxes of Ann's, at terminals of their own, and her editor: lines of shell about the file $1."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.folder = folder
        self._env = environment(**fleet.supervisor.env, TERM="xterm", EDITOR=str(folder / "editor"))
        self._opened: list[tuple[Person, int]] = []

    def opens(self, **variables: str) -> Person:
        """Another inbox."""
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (50, 120))
        process = subprocess.Popen(
            WATCH,
            env={**self._env, **variables},
            cwd=self.folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
        )
        os.close(theirs)
        self._opened.append((Person(process, ours), ours))
        return self._opened[-1][0]

    def edits(self, *lines: str) -> None:
        """What the editor does from here on."""
        path = self.folder / "editor.new"
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)
        path.rename(self.folder / "editor")

    def close(self) -> None:
        for person, terminal in self._opened:
            if person.process.poll() is None:
                person.process.kill()
                person.process.wait()
            os.close(terminal)
