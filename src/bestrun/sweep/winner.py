"""The one run of a sweep that is tested, once nothing is left to choose: the best of the best trial."""

from pathlib import Path
from typing import Any

from ..errors import BestrunError
from ..settings.config import Config
from ..storage.history import History
from ..storage.workplace import Workplace
from ..views.screen import Screen
from . import finalists
from .backends.work import places
from .manifest import Manifest, Run


def winner(manifest: Manifest) -> Run | None:
    """The best run of the finalist that won, or without finalists of the best trial; of several alike the first."""
    if final := finalists.winner(manifest):
        return final
    best = manifest.best()
    if best is None:
        return None
    return manifest.best_run(best.runs)


def figures_of(manifest: Manifest) -> dict[str, Any] | None:
    """What the test of the winner gave: run_name, step, accuracy, loss and further metrics; None without one."""
    run = winner(manifest)
    try:
        test = History.read(manifest.folder(run).journal).test if run else None
    except BestrunError:
        return None
    return {"run_name": run.name, **test} if run and test else None


def examine(manifest: Manifest, config: Config, uri: str, *, home: Path, stderr: bool) -> str | None:
    """Test it as `bestrun restore` does, if it has not been.

    Args:
        config: of the sweep's line, which says where the data is now.

    Returns:
        Why that could not be done; None where it was.
    """
    run = winner(manifest)
    if run is None or figures_of(manifest):
        return None
    from ..results.fetch import fetch_local
    from ..results.restore import restore

    try:
        with Workplace() as place, Screen(stderr=stderr).shown():
            found = fetch_local(manifest.folder(run))
            restore(found, home=home, tracking_uri=uri, out=place, data_overrides=places(config))
    except BestrunError as error:
        return f"{run.name} is not tested: {error}; bestrun restore best --sweep {manifest.name} tests it"
    return None
