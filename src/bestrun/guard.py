"""`python -m bestrun.guard PIPE COMMAND...`: a program that is not to outlive us, whose stdin is a pipe from us.

When the other end of stdin closes, because we closed it or died in whatever way, the command and all that it started
are told to end, and ended 10 s later. Else this ends with the command, and its exit code. PIPE, a descriptor, is told
the command's process group: should the guard be killed, we end that group ourselves.
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
    stdin, lifeline = os.pipe()
    answer, answering = os.pipe()
    try:
        words = [sys.executable, "-P", "-m", "bestrun.guard", str(answering), *command]
        process = subprocess.Popen(words, stdin=stdin, pass_fds=[answering], start_new_session=True, **options)
    except BaseException:
        os.close(lifeline)
        os.close(answer)
        raise
    finally:
        os.close(stdin)
        os.close(answering)
    try:
        yield process
    finally:
        os.close(lifeline)
        process.wait()
        with os.fdopen(answer) as file:
            group = file.read()
        if process.returncode < 0 and group:  # the guard itself was killed: what it watched is ended from here
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(group), signal.SIGKILL)


def _watch(answering: int, command: list[str]) -> int:
    """The command's exit code; 128 + the signal's number, as a shell has it, where a signal ended it."""
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: stopping.append(number))
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    os.write(answering, str(child.pid).encode())
    os.close(answering)
    while child.poll() is None and not stopping:
        # A pipe is readable at its end, and a device as stdin at once: nobody holds the other end of that
        if select.select([0], [], [], 0.2)[0] and not os.read(0, 1):
            break
    _end(child)
    code = child.wait()
    return code if code >= 0 else 128 - code


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
    sys.exit(_watch(int(sys.argv[1]), sys.argv[2:]))
