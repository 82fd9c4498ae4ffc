"""Is the folder of runs one that keeps what it is given? Written, synced, locked; and the room that is left."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ..errors import SettingsError
from ..formatting import shown_bytes
from ..storage.files import write_atomically
from .findings import FAILED, OK, WARN, Finding

ELSEWHERE = "keep runs on a disk of this machine: BESTRUN_MLRUNS=FOLDER"
WRITES = 20  # of which the median is taken
SLOW_MS = 50.0  # of one write with its fsync: an evaluation waits for three
LEAST_BYTES, LEAST_FILES = 200_000_000, 2_000  # free, for the trial itself
TIGHT = 0.8  # of the free room, of which a run takes more: others write, too

# Whether another process may take the lock; a network file system may know of no other process
OTHER_PROCESS = """
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(3)
"""


def place_of_trials(home: Path) -> Path:
    """The folder in which the trial's own home is made: beside the home, on its file system, and never in it unless
    that is a file system of its own, or nothing may be made beside it.

    Raises:
        SettingsError: nothing can be made there.
    """
    home = home.resolve()
    above = next(folder for folder in home.parents if folder.is_dir())
    if not home.is_dir():
        places = [above]
    elif home.stat().st_dev == above.stat().st_dev:
        places = [above, home]
    else:
        places = [home]
    for place in places:
        if os.access(place, os.W_OK | os.X_OK):
            return place
    raise SettingsError(f"{home}: cannot be written; get the right to write there, or {ELSEWHERE}")


def writable(home: Path) -> Iterable[Finding]:
    """Whether the folders in which runs are made may be written; nothing is."""
    there = [folder for folder in (home, home / "runs", home / "artifacts") if folder.exists()]
    for folder in there:
        if not os.access(folder, os.W_OK | os.X_OK):
            yield Finding("folder", FAILED, f"{folder}: cannot be written", f"get that right, or {ELSEWHERE}")
            return
    yield Finding("folder", OK, f"{home}: {'may be written' if there else 'is made by the first run'}")


def syncs(place: Path) -> Iterable[Finding]:
    """How long a file takes to be on disk, as the product writes one."""
    took = []
    for number in range(WRITES):
        began = time.perf_counter()
        write_atomically(place / f"sync-{number % 2}", b"0" * 4096)
        took.append(1000 * (time.perf_counter() - began))
    usual = median(took)
    said = f"a file is on disk in {usual:.1f} ms, {max(took):.1f} ms at most"
    if usual > SLOW_MS:
        yield Finding("folder", WARN, f"{said}: each evaluation waits for three of them", ELSEWHERE)
    else:
        yield Finding("folder", OK, said)


def locks(place: Path) -> Iterable[Finding]:
    """Whether a lock keeps a second descriptor and another process out, and is free once it is let go."""
    path = place / "locked"
    path.touch()
    with open(path, "r+b") as first, open(path, "r+b") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_kept = False
        except BlockingIOError:
            is_kept = True
        kept_out = _other_process_is_kept_out(path)
    if not (is_kept and kept_out):
        who = "another process" if not kept_out else "a second descriptor"
        yield Finding(
            "locks", FAILED, f"a file is locked, and {who} locks it, too: two runs could write one", ELSEWHERE
        )
    elif _other_process_is_kept_out(path):
        yield Finding("locks", FAILED, "a lock stays when its file is closed: no run could go on", ELSEWHERE)
    else:
        yield Finding("locks", OK, "a locked file is locked to others, and free afterwards")


def _other_process_is_kept_out(path: Path) -> bool:
    code = subprocess.run([sys.executable, "-I", "-c", OTHER_PROCESS, path], stderr=subprocess.DEVNULL).returncode
    if code not in (0, 3):
        raise SettingsError(f"{path.parent}: a file there cannot be locked; {ELSEWHERE}")
    return code == 3


@dataclass(frozen=True)
class Free:
    """What is left of a file system: bytes, and files (inodes) where it counts them."""

    size: int
    files: int | None

    def __str__(self) -> str:
        files = "" if self.files is None else f" and {self.files:,} files"
        return f"{shown_bytes(self.size)}{files} free"


def free(folder: Path) -> Free:
    facts = os.statvfs(folder)
    return Free(facts.f_bavail * facts.f_frsize, facts.f_favail if facts.f_files else None)


def disk(place: Path) -> Iterable[Finding]:
    """Whether there is room for the trial."""
    there = free(place)
    if there.size < LEAST_BYTES or (there.files is not None and there.files < LEAST_FILES):
        yield Finding("disk", FAILED, f"{place}: {there}", f"make room, or {ELSEWHERE}")
    else:
        yield Finding("disk", OK, f"{there}")


def room(place: Path, a_run: int, files: int, runs: int, once: int = 0) -> Iterable[Finding]:
    """Whether there is room for what is to come.

    Args:
        a_run: bytes that one run leaves, and takes at most.
        files: that one run leaves.
        runs: how many there will be.
        once: bytes of decoded images, which all of them share.
    """
    there, size, count = free(place), a_run * runs + once, files * runs
    said = f"about {shown_bytes(size)}" + (f" for {runs:,} runs of {shown_bytes(a_run)}" if runs > 1 else "")
    said += f", of that {shown_bytes(once)} of decoded images" if once else ""
    said += f", {there}"
    too_many = there.files is not None and count > there.files
    if size > there.size or too_many:
        yield Finding("room", FAILED, f"needs {said}", f"make room, or {ELSEWHERE}")
    elif size > TIGHT * there.size:
        yield Finding("room", WARN, f"needs {said}: hardly enough", f"make room, or {ELSEWHERE}")
    else:
        yield Finding("room", OK, f"needs {said}")
