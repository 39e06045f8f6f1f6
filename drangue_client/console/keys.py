"""What somebody types: single keys on a terminal, and lines where another program does the typing.

On a terminal a key counts only from when it was asked for; lines are answers to what is asked, in their order.
"""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import click

from drangue_client.console.views import shown

Wish = Literal["again", "over"]
STDIN = 0
QUIT = "q"
ENDS = ("", QUIT, "\x04")  # nobody is there any more, q, and Ctrl-D
JSON_PROMPT = "the arguments as one line of JSON (empty: as they are): "


class Hand(Protocol):
    """Whoever types."""

    def key(self, prompt: str) -> str:
        """The key that is pressed; `q` when nobody is there any more."""

    def line(self, prompt: str) -> str:
        """A line of text; empty when nobody is there any more."""

    def edited(self, text: str) -> str | None:
        """What somebody made of a text; None where nothing was changed."""

    async def wants(self, again: bool) -> Wish:
        """Come back when something is typed while nothing is asked: "again" if that is to be had, or "over"."""


def hand_here() -> Hand:
    """Whoever types at standard input."""
    return Terminal() if sys.stdin.isatty() else Lines()


class Terminal:
    """A person."""

    def key(self, prompt: str) -> str:
        with _single_keys(termios.TCSAFLUSH):  # what was pressed before is not meant for this
            click.echo(prompt, nl=False)
            pressed = os.read(STDIN, 32).decode(errors="replace")
        click.echo(shown(pressed))
        return QUIT if pressed in ENDS else pressed

    def line(self, prompt: str) -> str:
        try:
            return input(prompt)
        except EOFError:
            click.echo()
            return ""

    def edited(self, text: str) -> str | None:
        try:
            return click.edit(text, extension=".json")
        except click.ClickException as error:  # there is none, or it gave up
            click.echo(error.format_message())
            return self.line(JSON_PROMPT) or None

    async def wants(self, again: bool) -> Wish:
        with _single_keys(termios.TCSADRAIN):
            while True:
                await _readable()
                if os.read(STDIN, 32).decode(errors="replace") in ENDS:
                    return "over"
                if again:
                    return "again"


class Lines:
    """Another program, or a file. Its end is a `q`."""

    def __init__(self) -> None:
        self._read = b""
        self._ended = False

    def key(self, prompt: str) -> str:
        line = self._next(prompt)
        return QUIT if line is None else line.strip()

    def line(self, prompt: str) -> str:
        return self._next(prompt) or ""

    def edited(self, text: str) -> str | None:
        return self._next(JSON_PROMPT) or None

    async def wants(self, again: bool) -> Wish:
        while not (self._ended or b"\n" in self._read):
            await _readable()
            self._fill()
        line, end, _ = self._read.partition(b"\n")
        if line.strip() == QUIT.encode() or not (line or end):
            return "over"
        if not again:
            await asyncio.Event().wait()  # it is an answer to what is asked next
        return "again"

    def _next(self, prompt: str) -> str | None:
        """The next line; None at the end."""
        click.echo(prompt, nl=False)
        while not (self._ended or b"\n" in self._read):
            self._fill()
        line, end, self._read = self._read.partition(b"\n")
        told = line.decode(errors="replace")
        click.echo(shown(told))
        return told if line or end else None

    def _fill(self) -> None:
        piece = os.read(STDIN, 65536)
        self._read += piece
        self._ended = not piece


async def _readable() -> None:
    """Return when standard input has something, or its end."""
    ready, loop = asyncio.Event(), asyncio.get_running_loop()
    try:
        loop.add_reader(STDIN, ready.set)
    except PermissionError:
        return  # a file: it never makes anybody wait
    try:
        await ready.wait()
    finally:
        loop.remove_reader(STDIN)


@contextmanager
def _single_keys(when: int) -> Iterator[None]:
    """The terminal without lines and echo; Ctrl-C stays what it is."""
    before = termios.tcgetattr(STDIN)
    try:
        tty.setcbreak(STDIN, when)
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)
