"""Text from outside (notes, tags, names of classes, a server's words) is text on a terminal, never a command to it."""

import os
import re
import sys
from collections.abc import Iterable

import click

# All but tab and newline: C0, DEL, C1, and what turns the direction of a line
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


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
    try:
        # Without `color`, click takes out of a tag what looks like a colour
        click.echo(text if raw else printable(text), err=err, color=True)
    except BrokenPipeError:  # to click an error; and what is left in the buffer would fail again at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_lines(lines: Iterable[str]) -> None:
    """Print lines; what came from outside ends none of them, and so begins none that looks like ours."""
    say("\n".join(map(one_line, lines)))
