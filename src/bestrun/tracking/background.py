"""Sending to MLflow in the background: again and again, until it has everything or refuses it."""

import logging
import threading
import time

from ..formatting import mask_uri
from .refusals import is_permanent, reason

log = logging.getLogger("bestrun")


class Background:
    """A daemon thread that sends. What it sends, `send` says; a server that is away holds nothing up.

    Attributes:
        refused: why MLflow will not have everything however long one waits; None if it may.
        given_up: nothing more is begun.
    """

    def __init__(self, name: str, uri: str, goes_on: str, level: int = logging.WARNING) -> None:
        """
        Args:
            name: of the thread.
            uri: of the store, for messages.
            goes_on: what does without MLflow, as in "training".
            level: of the message that MLflow is behind.
        """
        self.refused: str | None = None
        self.given_up = False
        self._uri, self._goes_on, self._level = uri, goes_on, level
        self._complete = False
        self._finishing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def send(self, ending: bool) -> None:
        """Send what there is. Raises whatever MLflow raises: then it is called again.

        Args:
            ending: nothing comes after what there is now.
        """
        raise NotImplementedError

    def start(self) -> None:
        self._thread.start()

    def finish(self, seconds: float) -> bool:
        """Wait until MLflow has everything, at most so long. Returns whether it has."""
        self._finishing.set()
        deadline = time.monotonic() + seconds
        # In small pieces, so that a signal is noticed
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.1)
        return self._complete

    def _run(self) -> None:
        try:
            self.work()
            self._complete = self.refused is None and not self.given_up
        except BaseException as error:  # a thread that dies of what nobody thought of has not succeeded
            self.refused = f"{mask_uri(self._uri)}: {reason(error)}"
            log.warning("MLflow does not have everything: %s", self.refused)
            log.info("the %s ended", self._thread.name, exc_info=True, extra={"file_only": True})

    def work(self) -> None:
        """Send what there is, rest, and so on, until the end is sent or refused."""
        wait, told = 0.5, False
        while not self.given_up:
            ending = self._finishing.is_set()  # read before sending: what comes later finds us again
            began = time.thread_time()
            try:
                self.send(ending)
                if told:
                    log.log(min(self._level, logging.INFO), "MLflow has caught up")
                wait, told = 0.5, False
                if ending:
                    return
                # Processor time that others miss: a fiftieth of one processor at the most. One start-up is dearer.
                pause = min(max(0.5, 50 * (time.thread_time() - began)), 5)
            except Exception as error:
                text = f"{mask_uri(self._uri)}: {reason(error)}"
                if is_permanent(error):
                    self.refused = text
                    log.warning("MLflow refuses this run, %s goes on without it: %s", self._goes_on, text)
                    return
                if not told:
                    log.log(self._level, "MLflow is behind, %s goes on: %s", self._goes_on, text)
                told = True
                pause, wait = (0.5, wait) if ending else (wait, min(10.0, wait * 2))
            if not ending:
                self._finishing.wait(pause)
            elif told:
                time.sleep(pause)
