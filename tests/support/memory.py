"""How much memory a process has for itself: RssAnon, without pages of files, which the system may take back."""

import re
import threading
from pathlib import Path


def anonymous_bytes(pid: int) -> int:
    """Now; 0 where the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


class Peak:
    """The most that a process had while this lasts, sampled."""

    def __init__(self, pid: int, seconds: float = 0.02) -> None:
        self.bytes = 0
        self._pid, self._seconds, self._over = pid, seconds, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(self._seconds):
            self.bytes = max(self.bytes, anonymous_bytes(self._pid))
