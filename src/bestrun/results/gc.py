"""What of a home and its MLflow store can go, and how it goes: `bestrun gc`.

A run goes in an order that a kill cannot harm. First its folder gets a name that no run has: it is decided, and stands
on disk. Then MLflow marks its run as deleted, then its files there go, at last the folder. Each state in between is a
leftover by itself, so any later `bestrun gc` completes it.
"""

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..errors import BestrunError, SettingsError
from ..formatting import mask_uri, shown
from ..metrics import best_key, goodness, metric_of
from ..storage import leftovers
from ..storage.events import metric_value
from ..storage.files import fault, read_json
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.leftovers import Piece
from ..storage.locks import locked
from ..storage.reasons import StopReason
from ..storage.reference import check_reference, local_folder, run_folders
from ..tracking import removal
from ..tracking.listing import number
from ..tracking.lookup import Lookup, find_run
from ..tracking.names import (
    TAG_BEST_RUN,
    TAG_KEEP,
    TAG_PARENT_RUN,
    TAG_RERUN_OF,
    TAG_ROLE,
    TAG_RUN,
    TAG_STOP_REASON,
    TAG_SWEEP,
)
from ..tracking.refusals import is_permanent, reason
from ..tracking.removal import Inventory, KeptError
from ..tracking.sender import Sender
from ..tracking.store import Place, Store, connect, is_same_store, reaching, sqlite_path, store_of

UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}
FOLDERS, ARTIFACTS, MODELS = "run folders", "their artifacts in MLflow", "their models in MLflow"
BEST = "best of their experiment"


def seconds_of(text: str) -> int:
    """The seconds that `30d`, `12h` or `2w` means.

    Raises:
        SettingsError: it means none.
    """
    found = re.fullmatch(r"([0-9]{1,6})([hdw])", text.strip())
    if not found:
        raise SettingsError(
            f"--older-than {shown(text)}: takes a number of hours, days or weeks, as in --older-than 30d (12h, 2w)"
        )
    return int(found[1]) * UNITS[found[2]]


@dataclass(frozen=True)
class Selection:
    """Which whole runs may go; none of it: only leftovers.

    Attributes:
        references: these RUNs; each must be free to go.
        older_than: as typed: that ended longer ago.
        keep_best: that are not among so many best of their experiment and objective.
        experiment: only there.
    """

    references: Sequence[str] = ()
    older_than: str | None = None
    keep_best: int | None = None
    experiment: str | None = None

    def __bool__(self) -> bool:
        return bool(self.references) or self.older_than is not None or self.keep_best is not None


def refuse_contradictions(selection: Selection) -> None:
    """Raises SettingsError: options that make no sense together, or alone."""
    for reference in selection.references:
        check_reference(reference)
    if selection.older_than is not None:
        seconds_of(selection.older_than)
    narrowed = [name for name in ("older_than", "keep_best", "experiment") if getattr(selection, name) is not None]
    options = " ".join(f"--{name.replace('_', '-')}" for name in narrowed)
    if selection.references and narrowed:
        raise SettingsError(f"RUN {options}: a RUN that is named goes alone; type bestrun gc RUN, or gc {options} ...")
    if narrowed == ["experiment"]:
        raise SettingsError(
            "--experiment: which of its runs? type --older-than 30d or --keep-best 10 too; leftovers of all "
            "experiments: bestrun gc"
        )


@dataclass(frozen=True, eq=False)
class Run:
    """A run of the home, by its folder, by MLflow, or by both.

    Attributes:
        there: MLflow's run; None where this store has none of it.
        history: None where there is no folder.
    """

    name: str
    experiment: str
    folder: RunFolder | None
    history: History | None
    there: Any

    @property
    def run_id(self) -> str | None:
        return self.there.info.run_id if self.there else None

    @property
    def is_active(self) -> bool:
        """Whether MLflow has it and it is not deleted there."""
        return self.there is not None and not removal.is_deleted(self.there)

    @property
    def objective(self) -> str:
        if self.history:
            return self.history.metric
        return str(self.there.data.params.get("objective.metric", ""))

    @property
    def value(self) -> float | None:
        """The objective at its best."""
        if self.history:
            return metric_value(self.history.best, self.objective)
        return number(self.there.data.metrics.get(best_key(self.objective))) if self.objective else None

    @property
    def stop_reason(self) -> str | None:
        if self.history:
            return self.history.stopped["reason"] if self.history.stopped else None
        return None if self.there.info.status == "RUNNING" else self.there.data.tags.get(TAG_STOP_REASON)

    @property
    def ended_ms(self) -> int:
        if self.history:
            return self.history.ended_ms
        return int(self.there.info.end_time or self.there.info.start_time)

    @property
    def started_ms(self) -> int:
        return int(self.history.started["time_ms"] if self.history else self.there.info.start_time)

    @property
    def sweep(self) -> str | None:
        return self.history.started.get("sweep") if self.history else self.there.data.tags.get(TAG_SWEEP)

    @property
    def names(self) -> set[str]:
        """What it is called, and what it was called when it began: others name it so."""
        return {self.name, str(self.history.started["name"])} if self.history else {self.name}

    @property
    def parents(self) -> set[str]:
        """Names of the runs that it was made from."""
        if self.history:
            named = [self.history.started.get("parent"), self.history.started.get("rerun_of")]
        else:
            named = [self.there.data.tags.get(TAG_PARENT_RUN), self.there.data.tags.get(TAG_RERUN_OF)]
        return {name for name in named if name}


@dataclass
class Plan:
    """What can go, and why the rest stays.

    Attributes:
        runs, leftovers: what can go.
        stays: name of a run -> why it stays; empty where no runs were asked for.
    """

    place: Place
    runs: list[Piece] = field(default_factory=list)
    leftovers: list[Piece] = field(default_factory=list)
    stays: dict[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(piece.bytes for piece in (*self.leftovers, *self.runs))

    @property
    def kinds(self) -> list[tuple[str, int, int]]:
        """Kind, how many, bytes."""
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for piece in (*self.runs, *self.leftovers):
            for kind, size in piece.sizes.items():
                counts[kind] += 1
                sizes[kind] += size
        return [(kind, counts[kind], sizes[kind]) for kind in counts]

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """Why runs stay, and how many of them."""
        return Counter(self.stays.values()).most_common()

    def as_json(self) -> dict[str, Any]:
        """What `--json` says of it."""
        return {
            "folder": str(self.place.home),
            "uri": mask_uri(self.place.uri),
            "bytes": self.bytes,
            "kinds": [{"kind": kind, "number": count, "bytes": size} for kind, count, size in self.kinds],
            "runs": [{"run_name": piece.name, "bytes": piece.sizes} for piece in self.runs],
            "leftovers": [{"what": piece.name, "bytes": piece.sizes} for piece in self.leftovers],
            "stays": dict(self.reasons),
            "kept": self.stays,
        }


# ---- what can go ----


def plan(place: Place, selection: Selection, sweeps: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})) -> Plan:
    """See what can go; nothing is changed.

    Args:
        sweeps: as sweep/kept.py says: name of a run, and of a sweep, -> why it stays.

    Raises:
        SettingsError: a RUN that is named must stay.
        TrackingError: MLflow does not answer.
    """
    refuse_contradictions(selection)
    found = Plan(place, leftovers=leftovers.leftovers(place.home))
    database = sqlite_path(place.uri)
    if database and not database.exists() and not selection:
        _plan_thrown_away(found, None)
        return found
    with reaching(place.uri):
        store = connect(place.uri, create=False)
        stock = removal.take_stock(store, place.home)
        _plan_thrown_away(found, stock)
        found.leftovers += removal.leftovers(stock, place.home)
        if selection:
            _plan_runs(found, stock, selection, sweeps)
    return found


def _plan_thrown_away(found: Plan, stock: Inventory | None) -> None:
    """Removals that were cut off: MLflow may still have the run."""
    for name, thrown in leftovers.thrown_away(found.place.home):
        if thrown.is_owned():  # another call is at it
            continue
        known, run = read_json(thrown.mirror), None
        run_id = str(known.get("run_id") or "")
        if run_id:
            if not stock or not is_same_store(known, stock.store.uri, found.place.home):
                where = store_of(known, found.place.home) or "another store"
                found.stays[name] = f"half removed; the rest is at {mask_uri(where)}, see --tracking-uri"
                continue
            run = stock.runs.get(run_id)
        sizes = {"half removed runs": leftovers.run_size(thrown)}
        models: list[Any] = []
        if run and stock and not removal.is_deleted(run):  # of one that is, MLflow's files are a piece of their own
            models = stock.models.get(run_id, [])
            sizes["half removed runs"] += _artifacts_of(stock.store, run) + _models_of(stock.store, models)
        store = stock.store if stock else None
        found.leftovers.append(Piece(name, sizes, partial(_complete, store, name, thrown, run, models)))


def _artifacts_of(store: Store, run: Any) -> int:
    return removal.files_of_run(store, run).bytes()


def _models_of(store: Store, models: Sequence[Any]) -> int:
    return sum(removal.files_of_model(store, model).bytes() for model in models)


def _plan_runs(
    found: Plan, stock: Inventory, selection: Selection, sweeps: tuple[Mapping[str, str], Mapping[str, str]]
) -> None:
    all_runs = _Runs(found.place, stock, sweeps)
    chosen, refused = _chosen(all_runs, selection), []
    if not (selection.references or selection.experiment):
        found.stays |= all_runs.unreadable
    for run in all_runs.runs:
        if run not in chosen:
            continue
        why = all_runs.why_it_stays(run) or _spared(all_runs, run, selection)
        if why:
            found.stays[run.name] = why
            refused.append(f"run {run.name}: stays: {why}; see bestrun gc --help")
        else:
            found.runs.append(_piece(found.place, stock, run))
    if selection.references and refused:
        raise SettingsError(*refused)


def _chosen(all_runs: "_Runs", selection: Selection) -> list[Run]:
    """Those that are asked for, before it is looked whether they may go."""
    if not selection.references:
        runs = [run for run in all_runs.runs if selection.experiment in (None, run.experiment)]
        if selection.experiment and not runs:
            names = ", ".join(sorted({run.experiment for run in all_runs.runs})) or "none"
            raise SettingsError(f"--experiment {shown(selection.experiment)}: no run of it here; there are: {names}")
        return runs
    return [all_runs.find(reference) for reference in dict.fromkeys(selection.references)]


def _spared(all_runs: "_Runs", run: Run, selection: Selection) -> str | None:
    """Why a selection spares a run that could go."""
    if selection.keep_best and all_runs.rank(run) < selection.keep_best:
        return f"among the {selection.keep_best} best of their experiment and objective"
    if selection.older_than and run.ended_ms > (time.time() - seconds_of(selection.older_than)) * 1000:
        return f"ended less than {selection.older_than.strip()} ago"
    return None


class _Runs:
    """All runs of a home that gc may think of, and what speaks for keeping each."""

    def __init__(self, place: Place, stock: Inventory, sweeps: tuple[Mapping[str, str], Mapping[str, str]]) -> None:
        self.place, self.stock, self._sweeps = place, stock, sweeps
        self.unreadable: dict[str, str] = {}
        self.runs: list[Run] = []
        self._elsewhere: dict[str, str] = {}
        seen = {read_json(thrown.mirror).get("run_id") for _, thrown in leftovers.thrown_away(place.home)}
        for folder in run_folders(place.home):
            try:
                known = read_json(folder.mirror)
                seen.add(known.get("run_id"))
                history = History.read(folder.journal)
                is_here = is_same_store(known, stock.store.uri, place.home)
                there = stock.runs.get(known.get("run_id") or "") if is_here else None
                if known.get("uri") and not is_here:
                    self._elsewhere[folder.name] = "in another store, see --tracking-uri"
                run = Run(folder.name, history.started["experiment"], folder, history, there)
                run.objective, run.value, run.ended_ms  # noqa: B018  (an old or damaged journal may lack them)
            except (BestrunError, KeyError, TypeError, ValueError):
                self.unreadable[folder.name] = "their folder cannot be read"
                continue
            self.runs.append(run)
        for run_id, there in stock.runs.items():
            name = there.data.tags.get(TAG_RUN)
            if not name or name in self.unreadable or run_id in seen or removal.is_deleted(there):
                continue
            if removal.is_written_here(there, place.home, stock.store.uri):
                experiment = stock.experiments.get(there.info.experiment_id, "")
                self.runs.append(Run(name, experiment, None, None, there))

    def find(self, reference: str) -> Run:
        """The run that a RUN means.

        Raises:
            SettingsError: none, or one that is not this home's.
        """
        name = None
        if reference not in ("best", "latest") and "@" not in reference:
            with contextlib.suppress(SettingsError):
                name = local_folder(self.place.home, reference).name
        if name in self.unreadable:
            raise SettingsError(f"run {reference}: stays: its folder cannot be read; see bestrun show {reference}")
        if named := [run for run in self.runs if run.folder and run.name == name]:
            return named[0]
        run_id = find_run(self.stock.store, Lookup(reference)).info.run_id
        for run in self.runs:
            if run.run_id == run_id:
                return run
        who = removal.writer_words(self.stock.runs[run_id]) if run_id in self.stock.runs else "somebody else"
        raise SettingsError(f"run {reference}: stays: written by {who}, and only they may remove it")

    # ---- what speaks for a run ----

    def why_it_stays(self, run: Run) -> str | None:
        """The first of the reasons for which no selection takes a run."""
        return self._is_at_work(run) or self._is_elsewhere(run) or self._is_needed(run)

    def _is_at_work(self, run: Run) -> str | None:
        if run.folder and run.folder.is_owned():
            return "running"
        if run.there and run.is_active and run.there.info.status == "RUNNING" and not run.folder:
            return "running"
        if run.stop_reason is None or StopReason.of(run.stop_reason) is StopReason.INTERRUPTED:
            return "interrupted, and could go on"
        return None

    def _is_elsewhere(self, run: Run) -> str | None:
        """Somebody else's, or only here: MLflow lacks something, which `sync` is to send."""
        if run.folder and run.folder.path.lstat().st_uid not in (os.geteuid(), self.place.home.stat().st_uid):
            return "another user's folder"
        if run.folder and run.folder.original():
            return "copies of a run's folder beside it, or links to it"
        if run.name in self._elsewhere:
            return self._elsewhere[run.name]
        if run.there and not removal.is_written_here(run.there, self.place.home, self.stock.store.uri):
            return f"written by {removal.writer_words(run.there)}"
        if run.folder and (run.there is None or Sender(run.folder, self.stock.store.uri).behind()):
            return "not yet sent to MLflow, see bestrun sync"
        if run.there and not removal.files_of_run(self.stock.store, run.there).is_its_own:
            return "their artifacts are not where MLflow puts a run's"
        return None

    def _is_needed(self, run: Run) -> str | None:
        by_run, by_sweep = self._sweeps
        if run.there and removal.is_pinned(run.there):
            return f"pinned by the tag {TAG_KEEP}"
        if run.run_id and self.stock.is_registered(run.run_id):
            return "registered as models"
        if found := next((by_run[name] for name in run.names if name in by_run), None):
            return found
        if run.sweep in by_sweep:
            return by_sweep[run.sweep or ""]
        if run.name in self._best:
            return BEST
        if why := self._of_sweeps_in_mlflow.get(run.run_id or ""):
            return why
        if run.names & self._parents:
            return "others were started from them"
        return None

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], list[Run]]:
        """The runs of each experiment and objective, the best first, ties to the earlier start."""
        groups: dict[tuple[str, str], list[Run]] = {}
        for run in self.runs:
            if run.value is not None and (run.is_active or run.there is None):
                groups.setdefault((run.experiment, run.objective), []).append(run)
        return {key: _best_first(runs) for key, runs in groups.items()}

    def rank(self, run: Run) -> int:
        """0 for the best of its experiment and objective; one without a value, or deleted in MLflow, is the last."""
        group = self._ranks.get((run.experiment, run.objective), [])
        return group.index(run) if run in group else len(self.runs)

    @cached_property
    def _best(self) -> set[str]:
        """Names: the first of each experiment and objective, and the first of those that finished, which `best` is."""
        found = set()
        for group in self._ranks.values():
            found |= {run.name for run in (group[:1] + [run for run in group if _has_finished(run)][:1])}
        return found

    @cached_property
    def _of_sweeps_in_mlflow(self) -> dict[str, str]:
        """Run ID -> why it stays, by what MLflow has of sweeps: their manifests may lie elsewhere."""
        found: dict[str, str] = {}
        children: dict[str, list[Run]] = {}
        for run in self.runs:
            if run.is_active and run.sweep:
                children.setdefault(run.there.data.tags.get("mlflow.parentRunId") or run.sweep, []).append(run)
        for parent_id, runs in children.items():
            parent = self.stock.runs.get(parent_id)
            if parent is not None and self._is_open(parent):
                found |= dict.fromkeys((str(run.run_id) for run in runs), "of a sweep that is not complete")
                continue
            for objective in {run.objective for run in runs}:
                ranked = _best_first([run for run in runs if run.objective == objective and run.value is not None])
                top = ranked[:1] + [run for run in ranked if _has_finished(run)][:1]
                found |= dict.fromkeys((str(run.run_id) for run in top), "best, finalists or winner of a sweep")
            won = parent.data.tags.get(TAG_BEST_RUN) if parent else None
            found |= {won: "best, finalists or winner of a sweep"} if won else {}
        return found

    def _is_open(self, parent: Any) -> bool:
        """Whether something is left to do for the sweep of a parent run. One of which trials failed for good ends as
        FAILED, too, and its manifest says more, where it is here.
        """
        tags, status = parent.data.tags, parent.info.status
        if removal.is_deleted(parent) or not tags.get(TAG_ROLE) or status == "FINISHED":
            return False
        manifest = self.place.home / "sweeps" / Path(tags.get(TAG_SWEEP) or "nowhere").name / "manifest.json"
        return status != "FAILED" or not manifest.is_file()

    @cached_property
    def _parents(self) -> set[str]:
        """Names of runs that others, anybody's, were made from."""
        found: set[str] = set()
        for run in self.runs:
            found |= run.parents
        for there in self.stock.runs.values():
            if not removal.is_deleted(there):
                found |= {there.data.tags.get(TAG_PARENT_RUN, ""), there.data.tags.get(TAG_RERUN_OF, "")}
        return found - {""}


def _best_first(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (-goodness(metric_of(run.objective).direction, run.value or 0), run.started_ms))


def _has_finished(run: Run) -> bool:
    return run.stop_reason is not None and StopReason.of(run.stop_reason).is_finished


# ---- how it goes ----


@dataclass
class Outcome:
    """What a plan came to.

    Attributes:
        freed: bytes.
        problems: what could not be removed and why, a line each.
    """

    freed: int = 0
    problems: list[str] = field(default_factory=list)


def carry_out(found: Plan, told: Callable[[str], None] = lambda name: None) -> Outcome:
    """Remove what a plan says. What stands in the way of one is told, and the others go on; where MLflow does not
    answer, nothing more is asked of it.

    Args:
        told: the name of each piece before it goes.
    """
    outcome = Outcome()
    for piece in (*found.leftovers, *found.runs):
        told(piece.name)
        try:
            outcome.freed += piece.remove()
        except Exception as error:
            is_local = isinstance(error, OSError) and error.filename is not None  # requests' errors, too, are OSErrors
            if is_local or isinstance(error, BestrunError):
                outcome.problems.append(f"{piece.name}: {error}")
                continue
            outcome.problems.append(f"{piece.name}: MLflow at {mask_uri(found.place.uri)}: {reason(error)}")
            if not is_permanent(error):
                outcome.problems.append("nothing more was tried; the same again completes it")
                break
    return outcome


def _piece(place: Place, stock: Inventory, run: Run) -> Piece:
    models = stock.models.get(run.run_id or "", [])
    sizes = {FOLDERS: leftovers.run_size(run.folder)} if run.folder else {}
    if run.is_active:  # else what MLflow has of it is a leftover anyway
        sizes[ARTIFACTS] = _artifacts_of(stock.store, run.there)
        if models:
            sizes[MODELS] = _models_of(stock.store, models)
    return Piece(run.name, sizes, partial(_remove, stock.store, run, models))


def _remove(store: Store, run: Run, models: Sequence[Any]) -> int:
    """Remove a run, unless something has changed since it was looked at."""
    if run.folder is None:
        is_active = removal.refuse_changed(store, run.there, models)
        return _remove_in_mlflow(store, run.there, models) if is_active else 0
    with locked(run.folder.lock, f"run {run.name}"):
        if run.history is None or len(History.read(run.folder.journal).events) != len(run.history.events):
            raise KeptError("has gone on meanwhile, and stays")
        is_active = bool(run.there) and removal.refuse_changed(store, run.there, models)
        fault("G1")
        thrown = leftovers.throw_away(run.folder)
        fault("G2")
        try:
            freed = _remove_in_mlflow(store, run.there, models) if is_active else 0
        except Exception:
            with contextlib.suppress(Exception):  # refused, or away: where it still has the run, so have we
                if not removal.is_deleted(store.client.get_run(run.run_id)):
                    leftovers.take_back(thrown, run.folder)
            raise
        fault("G6")
        return freed + leftovers.destroy(thrown)


def _remove_in_mlflow(store: Store, run: Any, models: Sequence[Any]) -> int:
    """Mark MLflow's run as deleted, then remove its files, which is all that takes room."""
    store.client.delete_run(run.info.run_id)
    fault("G3")
    freed = removal.remove_files(store, run, models)
    fault("G5")
    return freed


def _complete(store: Store | None, name: str, thrown: RunFolder, run: Any, models: Sequence[Any]) -> int:
    """Go on with a removal that was cut off, or undo it, where the run must stay after all."""
    with locked(thrown.lock, f"run {name}"):
        freed = 0
        if store and run and not removal.is_deleted(run):
            try:
                is_active = removal.refuse_changed(store, run, models)
                freed = _remove_in_mlflow(store, run, models) if is_active else 0
            except KeptError:
                leftovers.take_back(thrown, RunFolder(thrown.path.with_name(name)))
                raise
        return freed + leftovers.destroy(thrown)
