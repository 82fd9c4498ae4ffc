"""Text from outside (notes, tags, names of classes, a server's words) is text on a terminal, never a command to it.

A terminal that is gone, or a full disk in its place, costs what is shown, never the work.
"""

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

# All but tab and newline: C0, DEL, C1, and what turns the direction of a line
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with its control characters written out: ESC becomes \\x1b."""
    return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """As `printable`, on one line: text from outside that stands beside our own must not begin a line of it."""
    return printable(text.replace("\n", "\\n"))


def say(text: str = "", *, err: bool = False, raw: bool = False) -> None:
    """Print a line, or several, on stdout. A reader that leaves early, as `head` does, has all it wanted.

    Args:
        raw: as it is, for a program that reads it.
    """
    with contextlib.suppress(BrokenPipeError):
        print(text if raw else printable(text), file=sys.stderr if err else sys.stdout, flush=True)


def say_json(document: object) -> None:
    """One JSON document on stdout, for programs."""
    say(json.dumps(document, indent=2))


def say_lines(lines: Iterable[str]) -> None:
    """Print lines; what came from outside ends none of them, and so begins none that looks like ours."""
    say("\n".join(map(one_line, lines)))


class Unbreakable:
    """sys.stdout or sys.stderr for what is shown while work goes on. Lines that cannot be written are lost: the reader
    left, the program closed the stream, the terminal is gone, the disk is full. The last two are told on stderr, once.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lost = False

    @property
    def _stream(self) -> TextIO | None:
        stream = getattr(sys, self._name)  # each time: a program may put another in its place
        stream = getattr(stream, "rich_proxied_file", stream)  # behind a live table
        return None if self._lost or stream is None or getattr(stream, "closed", False) else stream

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return bool(self._stream and self._stream.isatty())

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError(f"{self._name} is closed")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        if self._stream:
            with self._losing():
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream:
            with self._losing():
                self._stream.flush()

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._lost = True
            if self._name == "stdout" and not isinstance(error, BrokenPipeError):
                with contextlib.suppress(OSError):
                    say(f"warning: stdout takes no more lines ({error.strerror}); the work goes on", err=True)
