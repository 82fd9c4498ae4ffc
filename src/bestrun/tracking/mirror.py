"""The mirror: a thread that repeats a run's journal to MLflow while the run trains. Nothing in it touches training."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from ..errors import UnreadableError
from ..formatting import mask_uri
from ..storage.files import StorageError
from ..storage.folder import RunFolder
from .refusals import is_permanent, reason
from .sender import Sender

log = logging.getLogger("bestrun")


class Mirror:
    """A daemon thread around a Sender.

    Attributes:
        refused: why MLflow will not have everything however long one waits; None if it may.
    """

    def __init__(self, folder: RunFolder, uri: str, durable: Callable[[], int] | None = None) -> None:
        self.sender = Sender(folder, uri, durable)
        self.sender.save_every = 1.0
        self.refused: str | None = None
        self._complete = False
        self._finishing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def advanced(self) -> float:
        """When MLflow last took something, by `time.monotonic`; of an upload under way, when its time is over."""
        return max(self.sender.advanced, self.sender.busy_until)

    def finish(self, seconds: float) -> bool:
        """Wait until MLflow has everything, at most so long. Returns whether it has."""
        self._finishing.set()
        deadline = time.monotonic() + seconds
        # In small pieces, so that a signal is noticed
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.1)
        return self._complete

    def give_up(self) -> None:
        """Begin nothing more: the process ends, and MLflow's work at exit must not meet a thread that goes on."""
        self.sender.given_up = True
        self._thread.join(0.5)

    def _run(self) -> None:
        try:
            with contextlib.suppress(StorageError, UnreadableError):
                self.sender.remember()
            self._repeat()
            self.sender.save()
            if self.sender.missing and not self.refused:
                name, why = next(iter(self.sender.missing.items()))
                more = f", and {len(self.sender.missing) - 1} more" if len(self.sender.missing) > 1 else ""
                self.refused = f"it lacks {name}{more}: {why}"
            self._complete = self.refused is None and not self.sender.given_up
        except BaseException as error:  # a thread that dies of what nobody thought of has not succeeded
            self.refused = f"{mask_uri(self.sender.uri)}: {reason(error)}"
            log.warning("MLflow does not have everything: %s", self.refused)
            log.info("the mirror ended", exc_info=True, extra={"file_only": True})

    def _repeat(self) -> None:
        """Send what there is, rest, and so on, until the run is over and all is sent or refused."""
        wait, told = 0.5, False
        while True:
            if self.sender.given_up:
                return
            finishing = self._finishing.is_set()  # read before sending: what is appended later finds us again
            began = time.thread_time()
            try:
                self.sender.catch_up()
                if told:
                    log.info("MLflow has caught up")
                wait, told = 0.5, False
                if finishing:
                    return
                # Processor time that training misses: a fiftieth of one processor at the most. One start-up is dearer.
                pause = min(max(0.5, 50 * (time.thread_time() - began)), 5)
            except Exception as error:
                text = f"{mask_uri(self.sender.uri)}: {reason(error)}"
                if is_permanent(error):
                    self.refused = text
                    log.warning("MLflow refuses this run, training goes on without it: %s", text)
                    return
                if not told:
                    log.warning("MLflow is behind, training goes on: %s", text)
                told = True
                pause, wait = (0.5, wait) if finishing else (wait, min(10.0, wait * 2))
            if not finishing:
                self._finishing.wait(pause)
            elif told:
                time.sleep(pause)
