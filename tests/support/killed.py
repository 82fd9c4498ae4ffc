"""A process that is killed before its N-th change of a folder."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from support.processes import Result

CHANGES = {"os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir"}


def die_at(place: Path, moment: int, target: Callable[..., object], *args: object) -> None:
    """Run `target`, and die before its change number `moment` below `place`; prints how many there were."""
    seen = 0

    def hook(event: str, words: tuple[object, ...]) -> None:
        nonlocal seen
        if event in CHANGES:
            below = any(str(word).startswith(str(place)) for word in words) or (seen and words[-1] not in (-1, None))
        else:
            below = event == "open" and str(words[0]).startswith(str(place)) and words[2] & (os.O_CREAT | os.O_WRONLY)  # type: ignore[operator]
        if below:
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    tempfile.tempdir = None  # what the forkserver has found
    tempfile.gettempdir()  # looks for it by making a file
    sys.addaudithook(hook)
    try:
        target(*args)
    finally:
        print("changes", seen)


def changes(result: Result) -> int:
    """How many a process made that was to die before none."""
    found = re.search(r"changes (\d+)", result.out)
    assert found, result
    return int(found[1])
