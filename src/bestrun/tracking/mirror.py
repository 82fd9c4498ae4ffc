"""The mirror: a thread that repeats a run's journal to MLflow while the run trains. Nothing in it touches training."""

import contextlib
from collections.abc import Callable

from ..errors import UnreadableError
from ..storage.files import StorageError
from ..storage.folder import RunFolder
from .background import Background
from .sender import Sender


class Mirror(Background):
    """A Sender in the background."""

    def __init__(self, folder: RunFolder, uri: str, durable: Callable[[], int] | None = None) -> None:
        super().__init__("mirror", uri, "training")
        self.sender = Sender(folder, uri, durable)
        self.sender.save_every = 1.0

    def send(self, ending: bool) -> None:
        self.sender.catch_up()

    def advanced(self) -> float:
        """When MLflow last took something, by `time.monotonic`; of an upload under way, when its time is over."""
        return max(self.sender.advanced, self.sender.busy_until)

    def give_up(self) -> None:
        """Begin nothing more: the process ends, and MLflow's work at exit must not meet a thread that goes on."""
        self.given_up = self.sender.given_up = True
        self._thread.join(0.5)

    def work(self) -> None:
        with contextlib.suppress(StorageError, UnreadableError):
            self.sender.remember()
        super().work()
        self.sender.save()
        if self.sender.missing and not self.refused:
            name, why = next(iter(self.sender.missing.items()))
            more = f", and {len(self.sender.missing) - 1} more" if len(self.sender.missing) > 1 else ""
            self.refused = f"it lacks {name}{more}: {why}"
