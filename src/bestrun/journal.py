"""The journal: an append-only record of a run, one JSON object a line. It is the truth; MLflow repeats it."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any, Self

from .errors import VerificationError
from .folder import storage_error

Event = dict[str, Any]


def read_journal(path: Path, start: int = 0) -> tuple[list[Event], int]:
    """The events from byte `start` on, and the byte after the last complete line.

    A last line without its newline is a write that a crash cut off: it does not count, and is not an error.

    Raises:
        VerificationError: a complete line is not an event; names the line.
    """
    try:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return [], start
    except OSError as error:
        raise VerificationError(f"{path}: cannot be read: {error.strerror}") from error
    complete = data[: data.rfind(b"\n") + 1]
    events: list[Event] = []
    for number, line in enumerate(complete.splitlines(), 1):
        try:
            event = json.loads(line)
            if not (isinstance(event["event"], str) and isinstance(event["time_ms"], int)):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            where = f"line {number}" if start == 0 else f"line {number} after byte {start}"
            raise VerificationError(f"{path}: {where} is damaged: not a journal event: {line[:60]!r}") from error
        events.append(event)
    return events, start + len(complete)


class Journal:
    """Appends events; each is on disk before `append` returns. Only the folder's owner may hold one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events, end = read_journal(path)
        try:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (it lives as long as the run)
            if self._file.tell() > end:  # a torn last line: cut it off, or the next event would be glued to it
                os.truncate(path, end)
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
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(28, "No space left on device")
            os.fsync(self._file.fileno())
        except OSError as error:
            os.truncate(self.path, end)  # half a line must not stand before a later, whole one
            raise storage_error(self.path, f"append {len(line):,} bytes", error) from error
        self.events.append(entry)
        return entry

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


def best_of(journal: Journal) -> dict[str, Any] | None:
    """The best evaluation of a journal: step, metric, value, checkpoint, sha256."""
    line = journal.find("evaluation", improved=True)
    if not line:
        return None
    metric = journal.events[0]["settings"]["objective.metric"]
    return {"step": line["step"], "metric": metric, "value": line[metric]} | {
        key: line[key] for key in ("checkpoint", "sha256")
    }


def is_over(events: list[Event]) -> bool:
    """Whether the last word of a journal on its run is that it stopped."""
    words = [event["event"] for event in events if event["event"] in ("started", "resumed", "stopped")]
    return bool(words) and words[-1] == "stopped"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
