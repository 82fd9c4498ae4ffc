"""One run of a sweep, carried through from wherever it is; and what a backend is."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...errors import BestrunError, DataError
from ...settings.compose import Composed, as_typed
from ...settings.config import Config
from ...settings.own import use
from ...signals import NUMBERS
from ...storage.folder import RunFolder
from ..manifest import home_of


@dataclass(frozen=True)
class Task:
    """One run to start, or to go on with if its folder exists.

    Attributes:
        manifest: the sweep's, which is where its runs are looked for.
        extra: goes into its `started` event.
        config_dir: the folder of one's own that the sweep's line named.
        data_digest: of the images that the sweep's trials learn; None where only the run itself knows them.
    """

    run_name: str
    composed: Composed
    manifest: Path
    extra: dict[str, Any]
    config_dir: str | None = None
    data_digest: str | None = None

    @property
    def home(self) -> Path:
        return home_of(self.manifest)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.home / "runs" / self.run_name)


@dataclass(frozen=True)
class Ended:
    """A task is over; `error` is why, where it is not a stop reason of its journal. `signal`: it was told to stop."""

    run_name: str
    error: str | None = None
    signal: int | None = None


def work(task: Task, on_chunk: Callable[[], None] = lambda: None) -> Ended:
    """Carry one run through, from wherever it is. Never raises: a failed trial is not the end of a sweep.

    Args:
        on_chunk: called between chunks of steps.
    """
    from ...run.resume import resume
    from ...run.start import load_data, start
    from ...views.screen import Screen

    folder, screen = task.folder, Screen(quiet=True)

    def stop_requested() -> str | None:
        on_chunk()
        with contextlib.suppress(OSError):
            return folder.stop.read_text("utf-8") or None
        return None

    how: dict[str, Any] = dict(home=task.home, screen=screen, stop_requested=stop_requested, tells=False)
    try:
        if not task.manifest.exists():  # else the run would be made where nobody looks
            return Ended(task.run_name, f"{task.home} is gone: it was moved or deleted")
        use(task.config_dir)  # in a process that was started for it, perhaps on another machine
        if folder.exists():
            result = resume(folder, places(task.composed.config), **how)
        else:
            data = load_data(task.composed.config, screen.reading)
            if task.data_digest not in (None, data.digest):
                raise DataError(
                    f"{data.name}: other images now (digest {data.digest[:12]}) than when the sweep began (digest "
                    f"{str(task.data_digest)[:12]}); put those back, and the same again tries it once more"
                )
            result = start(task.composed, data=data, extra=task.extra, **how)
    except BestrunError as error:
        return Ended(task.run_name, str(error))
    except Exception as error:
        return Ended(task.run_name, f"{type(error).__name__}: {error}")
    code = result.exit_code - 128
    return Ended(task.run_name, signal=code if code in NUMBERS else None)


def places(config: Config) -> list[str]:
    """Where things lie now, as the sweep's line says: the data may have been moved since the run began, and the
    password of a store stands in no file.
    """
    lie = {f"data.{key}": getattr(config.data, key, None) for key in ("dir", "path")}
    lie["tracking.uri"] = config.tracking.uri
    return [as_typed(name, text) for name, text in lie.items() if text]


class Backend(Protocol):
    """What the scheduler needs of a place to work."""

    def start(self, task: Task, on_chunk: Callable[[], None]) -> None:
        """Begin; an inline one comes back when the run is over, and calls `on_chunk` meanwhile."""

    def ended(self) -> list[Ended]:
        """Those that are over, each once."""

    def stop(self) -> None:
        """Ask all runs to save and leave."""

    def close(self) -> None:
        """After the last run."""
