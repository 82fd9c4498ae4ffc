"""Will MLflow take the runs? Asked by the library that sends them; see tracking/probe.py."""

from collections.abc import Iterable
from pathlib import Path

from ..formatting import mask_uri, shown_bytes
from ..tracking import probe
from ..tracking.store import TrackingError, sqlite_path
from .findings import FAILED, OK, WARN, Finding

LATER = "training would go on without it, and bestrun sync send it all later"
SLOW_SECONDS = 2.0
LARGEST = 200_000_000  # bytes of a checkpoint that is sent to see whether it is taken


def store(uri: str, experiment: str, home: Path) -> Iterable[Finding]:
    """Whether a store can be used: on a server by a run that is made and deleted, a database of SQLite by looking."""
    if path := sqlite_path(uri):
        is_there = probe.look_at_sqlite(uri)
        said = "can be opened and written" if is_there else "is made by the first run"
        yield Finding("server", OK, f"none: {path} {said}")
        return
    where = mask_uri(uri)
    try:
        answered = probe.ask(uri, experiment, home)
    except TrackingError as error:
        yield Finding("server", FAILED, str(error), f"start it, or mend tracking.uri; {LATER}")
        return
    version = f"MLflow {answered.version}" if answered.version else "MLflow of a version that it does not say"
    said = f"{where}: {version}, answers in {answered.seconds:.2f} s"
    if answered.seconds > SLOW_SECONDS:
        yield Finding("server", WARN, f"{said}, which is slow", f"no run waits for it; {LATER}")
    else:
        yield Finding("server", OK, said)
    left = probe.try_writing(uri, experiment, home).left
    if left:
        said = f"a run and an artifact were written in experiment {experiment}, and not all was deleted: {left}"
        yield Finding("server", WARN, said, "delete it there; superseded checkpoints of runs would stay as well")
    else:
        yield Finding("server", OK, f"may write: a run and an artifact in experiment {experiment}, deleted again")


def upload(uri: str, experiment: str, home: Path, checkpoint: Path) -> Iterable[Finding]:
    """Whether a server takes a file as large as a checkpoint, which a proxy before it may refuse; and how fast."""
    if sqlite_path(uri):
        return
    size = checkpoint.stat().st_size
    if size > LARGEST:
        yield Finding("server", OK, f"an upload of {shown_bytes(size)}, as large as a checkpoint, was not tried")
        return
    took = max(1e-3, probe.try_writing(uri, experiment, home, checkpoint).seconds)
    said = f"takes a checkpoint of {shown_bytes(size)} in {took:.1f} s, {shown_bytes(size / took)} a second"
    yield Finding("server", OK, said)
