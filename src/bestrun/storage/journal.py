"""The journal: an append-only record of a run, one JSON object a line. It is the truth; MLflow repeats it.

Each line names the SHA-256 of the line before, so that none can be changed, taken out or put in without the rest.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

from ..errors import VerificationError
from .files import storage_error, sync_folder, unreadable

Event = dict[str, Any]


class Line(NamedTuple):
    """A complete line of a journal: its event, its bytes, and the byte after it."""

    event: Event
    text: bytes
    end: int


def read_lines(path: Path, start: int = 0) -> list[Line]:
    """The complete lines from byte `start` on.

    A last line without its newline is a write that a crash cut off: it does not count, and is not an error.

    Raises:
        UnreadableError: the system could not read the file.
        VerificationError: a complete line is not an event; names the line.
    """
    try:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(path, error) from error
    lines: list[Line] = []
    end = start
    for number, text in enumerate(data[: data.rfind(b"\n") + 1].splitlines(keepends=True), 1):
        try:
            event = json.loads(text)
            if not (isinstance(event["event"], str) and isinstance(event["time_ms"], int)):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            where = f"line {number}" if start == 0 else f"line {number} after byte {start}"
            raise VerificationError(f"{path}: {where} is damaged: not a journal event: {text[:60]!r}") from error
        end += len(text)
        lines.append(Line(event, text, end))
    return lines


def line_sha256(text: bytes) -> str:
    """What the line after this one names as `previous`.

    Args:
        text: the line with its newline.
    """
    return hashlib.sha256(text).hexdigest()


def first_unlinked(lines: Sequence[Line]) -> int | None:
    """The number of the first line, counted from 1, that does not follow the one before it as it says; None where all
    do. Lines of older versions say nothing, until the first one that does.
    """
    begun = False
    for number, (before, line) in enumerate(pairwise(lines), 2):
        begun = begun or "previous" in line.event
        if begun and line.event.get("previous") != line_sha256(before.text):
            return number
    return None


def read_journal(path: Path, start: int = 0) -> tuple[list[Event], int]:
    """The events from byte `start` on, and the byte after the last complete line. Raises as `read_lines` does."""
    lines = read_lines(path, start)
    return [line.event for line in lines], lines[-1].end if lines else start


class Journal:
    """Appends events; each is on disk before `append` returns. Only the folder's owner may hold one.

    Attributes:
        events: those that are durable.
        end: the byte after the last durable line. Nobody is told of what stands behind it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = read_lines(path)
        self.events, self.end = [line.event for line in lines], lines[-1].end if lines else 0
        self._previous = line_sha256(lines[-1].text) if lines else None
        try:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (it lives as long as the run)
            self._cut_off_rest()  # a torn last line: the next event would be glued to it
            os.fsync(self._file.fileno())  # the process that wrote the last line may have died before it could
            sync_folder(path.parent)
        except OSError as error:
            raise storage_error(path, "append to it", error) from error

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event and fsync it. NaN and infinity become null: no JSON reader knows them.

        Its time is never before the last event's, even if the clock was set back: MLflow sorts a metric by time, and
        its rows would come out of step order.

        Raises:
            StorageError: nothing was added.
        """
        now = max(time.time_ns() // 1_000_000, self.events[-1]["time_ms"] if self.events else 0)
        entry: Event = {"event": event, "time_ms": now, **_finite(fields)}
        if self._previous:
            entry["previous"] = self._previous
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        try:
            self._cut_off_rest()
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # then the next append does it
                self._cut_off_rest()
            raise storage_error(self.path, f"append {len(line):,} bytes", error) from error
        self.events.append(entry)
        self.end += len(line)
        self._previous = line_sha256(line)
        return entry

    def _cut_off_rest(self) -> None:
        """Remove what stands behind the last durable line: half a line, or one whose fsync failed."""
        if os.fstat(self._file.fileno()).st_size > self.end:
            os.ftruncate(self._file.fileno(), self.end)

    def find(self, event: str, **fields: Any) -> Event | None:
        """The last event of this kind with these fields."""
        for entry in reversed(self.events):
            if entry["event"] == event and all(entry.get(key) == value for key, value in fields.items()):
                return entry
        return None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
