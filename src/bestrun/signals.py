"""Ctrl-C, SIGTERM and a lost terminal: save first, then do what the program around us would have done."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

log = logging.getLogger("bestrun")

NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

second_leaves_at_once = False  # true in the command; in a notebook the process is the user's


class Interrupted(BaseException):
    """A signal came where nothing is lost by leaving at once."""


class Signals:
    """The first signal asks the loop to stop; the second leaves at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.graceful = False  # while the loop runs: it asks `reason` between chunks of steps
        self.answer = "stopping after this chunk of steps, with everything saved"

    def reason(self) -> str | None:
        return "interrupted" if self.received else None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.received and second_leaves_at_once:
            os._exit(128 + number)  # every file is replaced atomically, so there is nothing to tidy up
        if self.received:
            raise KeyboardInterrupt
        self.received = number
        if not self.graceful:
            raise Interrupted
        with suppress(RuntimeError):  # the signal may have come in the middle of writing a line
            log.warning("%s; again leaves at once", self.answer)

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Hear signals as long as this lasts. In a thread there is nothing to hear: Python tells the main one."""
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: handler for number in heard() if (handler := signal.getsignal(number)) is not None}
        for number in before:
            signal.signal(number, self.handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def heard() -> list[int]:
    """The signals that end a run. One that was ignored when we began, as `nohup` has it, stays ignored."""
    return [number for number in NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]


def pass_on(number: int) -> None:
    """Give a signal that a run has heard, and saved for, to the handler that would have had it.

    Raises:
        KeyboardInterrupt, SystemExit: as Python does for Ctrl-C, and as a shell says it of other signals.
    """
    handler = signal.getsignal(number)
    if callable(handler):
        handler(number, None)
    elif handler is signal.SIG_DFL:
        raise SystemExit(128 + number)
