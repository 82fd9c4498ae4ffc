"""`python -m bestrun.guard COMMAND...`: a program that is not to outlive us, whose stdin is a pipe from us.

When the other end of the pipe closes, because we closed it or died in whatever way, the command and all that it started
are told to end, and ended 10 s later. Else this ends with the command, and its exit code.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

PATIENCE_SECONDS = 10.0


@contextlib.contextmanager
def guarded(command: list[str], **options: Any) -> "Iterator[subprocess.Popen[bytes]]":
    """A command under guard, in a group of its own, that ends with this block at the latest.

    Args:
        options: of subprocess.Popen, without stdin.
    """
    ours, lifeline = os.pipe()
    try:
        words = [sys.executable, "-P", "-m", "bestrun.guard", *command]
        process = subprocess.Popen(words, stdin=ours, start_new_session=True, **options)
    except BaseException:
        os.close(lifeline)
        raise
    finally:
        os.close(ours)
    try:
        yield process
    finally:
        os.close(lifeline)
        process.wait()


def _watch(command: list[str]) -> int:
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: stopping.append(number))
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while child.poll() is None and not stopping:
        # A pipe is readable at its end, and a device as stdin at once: nobody holds the other end of that
        if select.select([0], [], [], 0.2)[0] and not os.read(0, 1):
            break
    _end(child)
    return child.wait()


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End the whole group: the workers of a server outlive it otherwise."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            child.poll()  # a dead leader would count as one of the group until it is asked
            os.killpg(child.pid, 0)
            time.sleep(0.1)
        os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(max(0, _watch(sys.argv[1:])))
