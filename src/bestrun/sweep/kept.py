"""Which runs a home's sweeps still need; `bestrun gc` leaves them alone."""

from collections.abc import Iterator
from pathlib import Path

from ..errors import BestrunError
from ..storage.files import read_json
from .manifest import Manifest, Run, is_running, read_manifest, sweep_names
from .winner import winner

Kept = tuple[dict[str, str], dict[str, str]]  # name of a run -> why it stays; name of a sweep -> why all of it stays


def kept(home: Path) -> Kept:
    """The runs that a sweep is to be known by: all, as long as there is something left to do for it or its table is
    not written; then its best, its finalists and its winner.

    Raises:
        UnreadableError: the folder of sweeps cannot be read.
    """
    runs: dict[str, str] = {}
    sweeps: dict[str, str] = {}
    for name in sweep_names(home):
        try:
            manifest = read_manifest(home, name)
        except BestrunError:
            sweeps[name] = "of a sweep whose manifest cannot be read"
            continue
        if not _is_complete(manifest):
            sweeps[manifest.name] = why = "of a sweep that is not complete"
            runs |= {run.name: why for run in manifest.runs()}  # a comparison of seeds has others' runs, too
        for run in _chosen(manifest):
            runs.setdefault(run.name, "best, finalists or winner of a sweep")
    return runs, sweeps


def _is_complete(manifest: Manifest) -> bool:
    """Whether nothing is left to do, and what came of its runs stands in the manifest: it is all that is known of them
    once they are gone.
    """
    if is_running(manifest.path) or manifest.over() < max(manifest.n_trials, len(manifest.trials)):
        return False
    if not all(final.is_over for final in manifest.finals):
        return False
    written = read_json(manifest.path)
    there = [run for key in ("trials", "finals") for trial in written.get(key, []) for run in trial["runs"]]
    outcomes = [(run["name"], run["state"], run["best"], run["best_step"]) for run in there]
    return outcomes == [(run.name, run.state, run.best, run.best_step) for run in manifest.runs()]


def _chosen(manifest: Manifest) -> Iterator[Run]:
    best, won = manifest.best(), winner(manifest)
    yield from best.runs if best else ()
    yield from (run for final in manifest.finals for run in final.runs)
    yield from [won] if won else ()
