"""A run's newest state, sent to MLflow every so many minutes (`tracking.mirror_last_minutes`): it goes on there when
its machine is gone.

A process of its own sends it, so that it holds up no metric, nor the end of the run: a link may be slow, and a request
under way cannot be taken back, but a process can be ended.
"""

import contextlib
import json
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ..storage.files import second_name
from .artifacts import seconds_for
from .sender import Sender

log = logging.getLogger("bestrun")

START_SECONDS = 30.0  # so long a process may take that imports MLflow beside a training


class LastMirror:
    """One upload at a time, and always the newest state. The thread that sends all else does not wait for it."""

    def __init__(self, sender: Sender, minutes: float) -> None:
        """
        Args:
            minutes: from one to the next; 0: none.
        """
        self._sender, self._source, self._seconds = sender, sender.folder.last, 60 * minutes
        self._held = sender.folder.path / "upload-last" / self._source.name
        self._process: subprocess.Popen[str] | None = None
        self._began, self._until = time.monotonic(), 0.0
        self._sending: tuple[int, int] | None = None  # which file, see `_identity`
        self._sent: tuple[int, int] | None = None
        self._told = False

    def hold(self) -> bool:
        """If it is time, keep the state there is now under a name of its own. To be called before the journal is sent:
        what MLflow has then is all that this state stands on.

        Returns:
            Whether there is one to send.
        """
        self._look()
        if not self._seconds or self._process or time.monotonic() < self._began + self._seconds:
            return False
        self._release()  # what a killed process left
        try:
            self._sending = _identity(self._source)
            if self._sending == self._sent:
                return False
            self._held.parent.mkdir()
            second_name(self._source, self._held)
        except OSError:  # it is not there yet, or the disk is full
            return False
        return True

    def begin(self) -> None:
        """Send what is held. Without its best a run cannot be rebuilt, so this waits until MLflow has that."""
        if not self._sender.has_best() or not self._sender.run_id:
            return
        self._began = time.monotonic()
        turn = max(self._seconds, seconds_for(self._held.stat().st_size) + START_SECONDS)
        self._until = self._began + turn
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bestrun.tracking.newest"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run
            text=True,
        )
        # By a pipe, as everybody can read a command line, and the address may hold a password
        task = {"uri": self._sender.uri, "run_id": self._sender.run_id, "path": str(self._held)}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(task), file=self._process.stdin, flush=True)

    def end(self) -> None:
        """Begin nothing more, and end what is under way: something older must not arrive after the run's end."""
        self._seconds = 0.0
        if self._process:
            self._process.kill()
            self._close()
            with contextlib.suppress(Exception):  # a leftover costs space, nothing else
                self._sender.clear_torn_uploads()
        self._release()

    def _look(self) -> None:
        """See how the process under way is doing."""
        if self._process is None or (self._process.poll() is None and time.monotonic() < self._until):
            return
        if self._process.poll() is None:
            self._process.kill()
            answer: dict[str, Any] = {"error": f"it takes longer than {self._until - self._began:.0f} s"}
        else:
            answer = {"error": f"its process ended with {self._process.returncode}"}
            with contextlib.suppress(ValueError):
                answer = json.loads(self._process.stdout.read() if self._process.stdout else "")
        self._close()
        self._release()
        if answer["error"] is None:
            self._sent = self._sending
            return
        if answer.get("is_permanent"):
            self._seconds = 0.0
        hint = {"file_only": True} if self._told else {}
        log.warning("MLflow lacks the newest state, training goes on: %s", answer["error"], extra=hint)
        self._told = True

    def _close(self) -> None:
        if self._process:
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    if pipe:
                        pipe.close()
            self._process.wait()
            self._process = None

    def _release(self) -> None:
        shutil.rmtree(self._held.parent, ignore_errors=True)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns
