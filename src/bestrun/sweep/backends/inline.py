"""The runs of a sweep in this process, one after another."""

import contextlib
import os
import sys
from collections.abc import Callable

from ...errors import SettingsError
from ...storage.folder import RunFolder
from .devices import Devices
from .work import Ended, Task, work


class Inline:
    """In this process, one after the other, all on the same graphics cards."""

    def __init__(self, devices: Devices) -> None:
        """
        Raises:
            SettingsError: TensorFlow has chosen its cards already.
        """
        if devices.each and "tensorflow" in sys.modules:
            raise SettingsError(
                f"sweep.gpus={devices.each}: TensorFlow was imported before in this process, and keeps the graphics "
                "cards it has seen; type sweep.backend=local"
            )
        os.environ.update(devices.take("inline"))
        self._ended: list[Ended] = []
        self._folder: RunFolder | None = None

    def start(self, task: Task, on_chunk: Callable[[], None]) -> None:
        self._folder = task.folder
        ended = work(task, on_chunk)  # meanwhile `ended` and `stop` are called, too
        self._folder = None
        self._ended.append(ended)

    def ended(self) -> list[Ended]:
        found, self._ended = self._ended, []
        return found

    def stop(self) -> None:
        """For a signal that came before the run heard signals itself; the file is not there before its folder."""
        with contextlib.suppress(OSError):
            if self._folder:
                self._folder.ask_to_stop("interrupted")

    def close(self) -> None:
        pass
