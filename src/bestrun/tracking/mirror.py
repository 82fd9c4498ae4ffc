"""The mirror: a thread that repeats a run's journal to MLflow while the run trains. Nothing in it touches training."""

import contextlib
from collections.abc import Callable

from ..errors import UnreadableError
from ..storage.files import StorageError
from ..storage.folder import RunFolder
from .background import Background
from .last import LastMirror
from .sender import Sender


class Mirror(Background):
    """A Sender in the background."""

    def __init__(
        self, folder: RunFolder, uri: str, durable: Callable[[], int] | None = None, last_minutes: float = 0.0
    ) -> None:
        """
        Args:
            durable: as `Sender`'s.
            last_minutes: as `LastMirror`'s.
        """
        super().__init__("mirror", uri, "training")
        self.sender = Sender(folder, uri, durable)
        self.sender.save_every = 1.0
        self.last = LastMirror(self.sender, last_minutes)

    def send(self, ending: bool) -> None:
        if ending:
            self.last.end()
        is_held = self.last.hold()
        self.sender.catch_up()
        if is_held:
            self.last.begin()

    def advanced(self) -> float:
        """When MLflow last took something, by `time.monotonic`; of an upload under way, when its time is over."""
        return max(self.sender.advanced, self.sender.busy_until)

    def give_up(self) -> None:
        """Begin nothing more: the process ends, and MLflow's work at exit must not meet a thread that goes on."""
        self.given_up = self.sender.given_up = True
        self._thread.join(0.5)
        self.last.end()

    def work(self) -> None:
        with contextlib.suppress(StorageError, UnreadableError):
            self.sender.remember()
        super().work()
        self.last.end()
        self.sender.save()
        if self.sender.missing and not self.refused:
            name, why = next(iter(self.sender.missing.items()))
            more = f", and {len(self.sender.missing) - 1} more" if len(self.sender.missing) > 1 else ""
            self.refused = f"it lacks {name}{more}: {why}"
