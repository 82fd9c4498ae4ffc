"""Runs taken into another home: folder, artifacts and MLflow's record together.

In this order, so that a process killed anywhere leaves each run whole in one place at least, and the same line, typed
again, goes on: copied beside, proved there by every file's hash, put into the store there, given its name there;
then removed here, from the store first and the folder last. Whoever finds both finds them the same.

What MLflow keeps on a server stays there, and its address of the folder follows. The registry stays where it is.
"""

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from ..formatting import mask_uri
from ..settings.compose import config_now
from ..storage.files import StorageError, read_json, sync_folder, write_json
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.home import DATABASE, create_home, has_run, identity, is_home, settle, whereabouts
from ..storage.locks import is_locked, locked
from ..storage.parcel import (
    bytes_of,
    copy_files,
    differing,
    files_in,
    refuse_too_large,
    refused,
)
from ..storage.reference import local_folder, run_folders
from ..storage.workplace import Workplace, remove_dead
from ..tracking.names import TAG_CHILDREN, TAG_FOLDER, TAG_WRITER
from ..tracking.store import (
    Store,
    connect,
    is_own_store,
    local_path,
    own_store,
    reaching,
    sqlite_path,
    store_of,
)
from ..tracking.sync import NOT_COMPARED, sync
from ..tracking.transfer import (
    MlflowRecord,
    is_older_record,
    is_same_record,
    read_record,
    registered_as,
    remove_record,
    write_record,
)
from ..tracking.writers import writer
from .whole import refuse_damaged

CHANGES = {"mirror.json", "run.log", "result.json"}  # in a run's folder, without its journal


@dataclass(frozen=True)
class Moving:
    """One run on its way.

    Attributes:
        files, bytes: of its folder, and of its artifacts where those go with it.
        store: where MLflow's record of it is: `home`, which goes with it, or an address, where it stays.
        is_there: it has arrived before, and only what is left of it here goes.
        stays: what does not go with it, in words.
    """

    folder: RunFolder
    target: RunFolder
    run_id: str | None
    files: int
    bytes: int
    store: str
    is_there: bool
    stays: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """As `bestrun move --json` says it."""
        figures = {"run_name": self.folder.name, "run_id": self.run_id, "files": self.files, "bytes": self.bytes}
        return figures | {"store": self.store, "was_there": self.is_there, "stays": self.stays}


@dataclass(frozen=True)
class Move:
    """What `bestrun move` is going to do; nothing has been done yet.

    Attributes:
        arrived: runs that have gone before, of which nothing is left here.
        sweep: the folder of a sweep that goes with all its runs.
        parent_run_id: of that sweep, in MLflow.
    """

    source: Path
    target: Path
    runs: list[Moving]
    arrived: list[str]
    sweep: Path | None = None
    parent_run_id: str | None = None

    @property
    def bytes(self) -> int:
        return sum(run.bytes for run in self.runs)


def plan_move(
    references: Iterable[str],
    source: Path,
    target: Path,
    *,
    sweep: str | None = None,
    parent_run_id: str | None = None,
) -> Move:
    """Look at the runs that are to go into another home; nothing is written.

    Args:
        sweep: a sweep of this home, whose folder goes last.
        parent_run_id: its parent run in MLflow.

    Raises:
        SettingsError: one of them cannot go there; says which and why.
    """
    source, target = source.resolve(), target.expanduser().resolve()
    _refuse_target(source, target)
    found: dict[str, RunFolder] = {}
    arrived: list[str] = []
    for reference in references:
        try:
            folder = local_folder(source, reference)
            found[folder.name] = folder
        except SettingsError:
            if not _has_arrived(target, reference):
                raise
            arrived.append(reference)
    runs = [_look(folder, target, set(found), sweep) for folder in found.values()]
    path = source / "sweeps" / sweep if sweep and (source / "sweeps" / sweep).is_dir() else None
    if path:
        _refuse_another_sweep(path, target / "sweeps" / path.name)
    refuse_too_large(target, sum(run.bytes for run in runs if not run.is_there))
    return Move(source, target, runs, arrived, path, parent_run_id)


def carry_out(move: Move) -> Iterator[tuple[Moving, str | None]]:
    """Move one run after the other; gives each with what went wrong in telling MLflow of it, once it is there.

    Raises:
        SettingsError, VerificationError, StorageError: one cannot go; those before it have gone.
    """
    create_home(move.target)
    for home in (move.source, move.target):
        settle(home)
        _refuse_unsettled(home)
        remove_dead(home)  # what a killed call has left of a run that is whole elsewhere
    for run in move.runs:
        with run.folder.owned():
            if not run.folder.exists():  # another call was quicker
                continue
            _take(run, move)
        yield run, _tell(run, move.target)
    if move.sweep:
        with locked(move.sweep / "lock", f"sweep {move.sweep.name}"):
            _take_sweep(move.sweep, move)


# ---- what may go where ----


def _refuse_target(source: Path, target: Path) -> None:
    if target == source or (target.exists() and source.exists() and target.samefile(source)):
        raise SettingsError(f"--to {target}: is the home that the runs are in; name another")
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise SettingsError(f"--to {target}: one home cannot lie in another; the runs are in {source}")
    if target.exists() and not (is_home(target) or (target.is_dir() and not os.listdir(target))):
        inside = f", as in --to {target / 'mlruns'}" if target.is_dir() else ""
        raise SettingsError(f"--to {target}: is no home of runs; name one, or a folder that is to be made{inside}")


def _refuse_unsettled(home: Path) -> None:
    """Addresses are written for where a home lies; one that was moved gets its own when nothing is at work in it."""
    lies = whereabouts(home)
    if lies and lies.path != home and not (lies.path.exists() and lies.path.samefile(home)):
        raise SettingsError(
            f"{home}: was moved here from {lies.path}, and a run is at work in it; when that is over, the same again"
        )


def _has_arrived(target: Path, reference: str) -> bool:
    try:
        local_folder(target, reference)
    except SettingsError:
        return False
    return reference != "latest"


def _look(folder: RunFolder, target: Path, going: set[str], sweep: str | None) -> Moving:
    home, there = folder.path.parents[1], RunFolder(target / "runs" / folder.name)
    folder.refuse_copy()
    if folder.is_owned():
        with folder.owned():  # it says by whom
            pass
    history, run_id = History.read(folder.journal), read_json(folder.mirror).get("run_id")
    is_there = there.exists()
    names = files_in(folder.path)
    if is_there:
        refuse_another(folder, there, names)
    elif os.path.lexists(there.path):
        raise SettingsError(f"{there.path}: is in the way of run {folder.name}, and no run; remove it, or rename it")
    store, stays = _store_words(folder, history)
    files, size = len(names), bytes_of(folder.path, names)
    record = read_record(home / DATABASE, run_id) if store == "home" and run_id else None
    if record:
        refuse_registered(home, folder.name, record.run_id)
        _refuse_another_record(there, record.run_id)
        for place in _artifact_folders(home, record).values():
            inside = files_in(place, leave=()) if place.is_dir() else []
            files, size = files + len(inside), size + bytes_of(place, inside)
        if record.artifact_uri not in _artifact_folders(home, record):
            stays.append(f"its artifacts stay at {mask_uri(record.artifact_uri)}")
        if children := [name for name in record.tags.get(TAG_CHILDREN, "").split(",") if name and name not in going]:
            stays.append(f"started from it: {', '.join(children)}")
    parent = history.started.get("parent")
    if parent and parent not in going and (home / "runs" / str(parent)).exists():
        stays.append(f"it started from {parent}")
    if (of := history.started.get("sweep")) and of != sweep and (home / "sweeps" / of).exists():
        stays.append(f"its sweep {of}")
    return Moving(folder, there, run_id, files, size, store, is_there, stays)


def _store_words(folder: RunFolder, history: History) -> tuple[str, list[str]]:
    """`home`, or the address of the store that a run's record stays in; what else stays with it, in words."""
    home = folder.path.parents[1]
    named = config_now(folder.config, history).tracking.uri
    uri = named or store_of(read_json(folder.mirror), home)
    if not named and (not uri or is_own_store(uri, home)):
        return "home", []
    uri = mask_uri(str(uri))
    stays = [f"MLflow's record of it stays at {uri}"]
    if not uri.startswith("http") and not sqlite_path(uri):
        artifacts = home / "artifacts" / history.started["experiment"]
        if artifacts.is_dir():  # a database keeps no files: the home that was first does, see Store.experiment_id
            stays.append(f"its artifacts stay in {artifacts}")
    return uri, stays


def _refuse_another_record(there: RunFolder, run_id: str) -> None:
    """Refuse a run that has a record of its own in the other home, as one that was opened from an archive has.

    Raises:
        SettingsError: there would be two records of it; says how there is one.
    """
    theirs, target = read_json(there.mirror).get("run_id"), there.path.parents[1]
    if theirs != run_id and has_run(target, theirs):
        raise SettingsError(
            f"run {there.name}: {target} has it already, as {theirs} in MLflow, and here it is {run_id}; nothing was "
            f"changed; go on with that one there; or, to have this one: set {there.path} aside, then: "
            f"MLFLOW_TRACKING_URI={shlex.quote(own_store(target))} mlflow runs delete --run-id {theirs}, then the same "
            "again"
        )


def refuse_registered(home: Path, name: str, run_id: str) -> None:
    """Raises SettingsError: a version in the registry names the run's artifacts by their address."""
    if versions := registered_as(home / DATABASE, run_id):
        raise SettingsError(
            f"run {name}: is registered as {', '.join(versions)}, and the registry does not move; move the whole home: "
            "bestrun move --home NEW; or take a copy of the run: bestrun archive"
        )


def refuse_another(folder: RunFolder, there: RunFolder, names: Iterable[str]) -> None:
    """Refuse a run whose name is taken by anything but itself, whole, as an earlier call brought it.

    Raises:
        SettingsError: says what is there.
    """
    ours, theirs = folder.journal.read_bytes(), there.journal.read_bytes()
    if theirs == ours:
        other = differing(folder.path, there.path, (name for name in names if name not in CHANGES))
        if other:
            raise SettingsError(
                f"run {folder.name}: is in {there.path.parents[1]}, too, but its {other} is another one there; nothing "
                "was changed; keep one of the two folders"
            )
    elif theirs.startswith(ours):
        refuse_damaged(there)  # it has gone on there
    elif ours.startswith(theirs):
        raise SettingsError(
            f"run {folder.name}: {there.path} is an older copy of it; set that aside, then the same again"
        )
    else:
        raise SettingsError(
            f"run {folder.name}: {there.path.parents[1]} has another run of this name; nothing was changed"
        )


# ---- how a run goes ----


def _take(run: Moving, move: Move) -> None:
    names = files_in(run.folder.path)
    if run.target.exists():
        refuse_another(run.folder, run.target, names)
        run_id = read_json(run.folder.mirror).get("run_id")
        if run.store == "home" and run_id and not has_run(move.target, run_id):
            _copy_record(run.folder.name, run_id, move.source, move.target)
        _note_origin(run, run.target.mirror, move.source)
    else:
        with Workplace(move.target) as place:
            _copy_run(run, place / "run", names, move)
    _remove(run, move.source)


def _copy_run(run: Moving, copy: Path, names: list[str], move: Move) -> None:
    """Bring a run to the other home; the last thing is its name there."""
    copy_files(run.folder.path, copy, names)
    _note_origin(run, copy / run.folder.mirror.name, move.source)
    run_id = read_json(run.folder.mirror).get("run_id")
    if run.store == "home":
        known = read_json(copy / run.folder.mirror.name)
        if run_id and (experiment_id := _copy_record(run.folder.name, run_id, move.source, move.target)):
            known |= {"experiment_id": experiment_id}
        if known:
            write_json(copy / run.folder.mirror.name, known | {"uri": own_store(move.target), "store": "home"})
    try:
        os.rename(copy, run.target.path)  # an empty folder is replaced, nothing else
        sync_folder(run.target.path.parent)
    except OSError as error:
        raise refused(run.target.path, error) from error


def _note_origin(run: Moving, mirror: Path, source: Path) -> None:
    """Keep from which home a run came, whose record stays in a store elsewhere: who writes there goes on to do so."""
    came_from = [*read_json(run.folder.mirror).get("moved_from", []), identity(source)]
    if run.store != "home" and run.run_id:
        write_json(mirror, read_json(mirror) | {"moved_from": [home for home in came_from if home]})


def _copy_record(name: str, run_id: str, source: Path, target: Path) -> str | None:
    """Bring the artifacts of a run, then MLflow's record of it; returns the ID of its experiment there.

    Raises:
        SettingsError: it was registered meanwhile, or the experiment there keeps its artifacts elsewhere.
    """
    record = read_record(source / DATABASE, run_id)
    if record is None:
        return None
    refuse_registered(source, name, run_id)
    if there_already := read_record(target / DATABASE, run_id):
        if is_same_record(record, there_already):  # a call was killed before its folder had its name
            return str(there_already.rows["runs"][0]["experiment_id"])
        if not is_older_record(there_already, record):
            raise SettingsError(
                f"run {name}: MLflow has more of it in {target} than here; nothing was changed; keep one of the two"
            )
        _remove_record(target, run_id)  # of an older copy, whose folder is no longer there
    experiment_id, location, theirs = _experiment_there(record.experiment, source, target)
    folders = _artifact_folders(source, record)
    for address, folder in folders.items():
        if not folder.is_dir():
            continue
        there = local_path(theirs.here(_address_there(address, location)))
        if there is None or not there.resolve().is_relative_to(target):
            raise SettingsError(f"experiment {record.experiment}: keeps its artifacts in {location}, not in {target}")
        there = there.resolve()
        with Workplace(target) as place:
            copy_files(folder, place / "artifacts", files_in(folder, leave=()))
            if there.exists():  # of a call that was killed: the store there does not know of it
                shutil.rmtree(there)
            there.parent.mkdir(parents=True, exist_ok=True)
            os.rename(place / "artifacts", there)
            for above in (there.parent, *there.parent.parents):
                sync_folder(above)
                if above == target:
                    break
    arrived = RunFolder(target / "runs" / name)
    tags = {TAG_FOLDER: str(arrived.path), TAG_WRITER: json.dumps(writer(arrived))}
    here = {address: _address_there(address, location) for address in folders}
    write_record(target / DATABASE, record, experiment_id, lambda address: here.get(address, address), tags)
    return experiment_id


def _experiment_there(name: str, source: Path, target: Path) -> tuple[str, str, Store]:
    """The experiment in the store of the other home, made if it is new: its ID, where its artifacts are; the store."""
    with reaching(own_store(source)):
        connect(own_store(source), create=False)  # both have the tables of this MLflow
    with reaching(own_store(target)):
        store = connect(own_store(target))
        experiment_id = store.experiment_id(name, target)
        return experiment_id, str(store.client.get_experiment(experiment_id).artifact_location), store


def _artifact_folders(home: Path, record: MlflowRecord) -> dict[str, Path]:
    """The addresses of a run's artifacts and models that lie in its home, and the folders they mean."""
    lies = whereabouts(home)
    addresses = [record.artifact_uri, *(row["artifact_location"] for row in record.rows["logged_models"])]
    found: dict[str, Path] = {}
    for address in addresses:
        folder = local_path(lies.here(address) if lies else address)
        if folder and folder.resolve().is_relative_to(home):
            found[address] = folder
    return found


def _address_there(address: str, location: str) -> str:
    """An address in MLflow's own form, EXPERIMENT/ID/artifacts or EXPERIMENT/models/ID/artifacts, in another place."""
    words = address.rstrip("/").split("/")
    count = 3 if words[-3:-2] == ["models"] else 2
    return "/".join([location.rstrip("/"), *words[-count:]])


def _remove(run: Moving, source: Path) -> None:
    """Remove what is left here of a run that has arrived whole. The folder is last: it tells that there is more."""
    run_id = read_json(run.folder.mirror).get("run_id")
    if run.store == "home" and run_id:
        _remove_record(source, run_id)
    with Workplace(source) as place:  # gone at once, not file by file
        os.rename(run.folder.path, place / "run")
        sync_folder(run.folder.path.parent)


def _remove_record(source: Path, run_id: str) -> None:
    record = read_record(source / DATABASE, run_id)
    if record is None:
        return
    for folder in _artifact_folders(source, record).values():
        try:
            if folder.exists():
                shutil.rmtree(folder)
        except OSError as error:  # as long as the store knows of it, the next call does it
            raise StorageError(
                f"{error.filename or folder}: cannot be removed: {error.strerror}; the same again"
            ) from error
        with contextlib.suppress(OSError):
            folder.parent.rmdir()  # of its ID
    remove_record(source / DATABASE, run_id)


def _tell(run: Moving, target: Path) -> str | None:
    """Let MLflow elsewhere know where a run's folder is; returns why it does not, and what to type."""
    if run.store == "home" or not run.run_id:
        return None
    (report,) = sync([run.target], home=target, setting=None)
    if not (error := _not_told(report)):
        return None
    return f"{error}; in that home: bestrun sync {run.folder.name}"


def _not_told(report: dict[str, Any]) -> str | None:
    """Why MLflow could not be told where a run is; a store that was complete, and does not answer, was not, either."""
    silent = "MLflow does not answer, and has its former address" if report["state"] == NOT_COMPARED else None
    return report["error"] or silent


def tell_servers(home: Path) -> list[tuple[str, str]]:
    """Let MLflow elsewhere know where the runs of a home lie that was moved; gives those it could not be told of, and
    what to type.
    """
    folders = []
    for folder in run_folders(home):
        store, _ = _store_words(folder, History.read(folder.journal))
        if store != "home" and read_json(folder.mirror).get("run_id"):
            folders.append(folder)
    reports = sync(folders, home=home, setting=None) if folders else []
    return [(report["run_name"], error) for report in reports if (error := _not_told(report))]


def stay_behind(home: Path) -> list[str]:
    """What a whole home cannot take along: addresses of its artifacts in databases that are not in it."""
    found: dict[str, None] = {}
    for folder in run_folders(home):
        found |= dict.fromkeys(_store_words(folder, History.read(folder.journal))[1][1:])
    return list(found)


# ---- a sweep ----


def _refuse_another_sweep(path: Path, there: Path) -> None:
    if is_locked(path / "lock"):
        with locked(path / "lock", f"sweep {path.name}"):  # it says by whom
            pass
    ours, theirs = (read_json(folder / "manifest.json") for folder in (path, there))
    if theirs and any(theirs.get(key) != ours.get(key) for key in ("name", "created_ms", "line")):
        raise SettingsError(f"sweep {path.name}: {there.parents[1]} has another sweep of this name")
    if not theirs and os.path.lexists(there):
        raise SettingsError(f"{there}: is in the way of sweep {path.name}, and no sweep; remove it, or rename it")


def _take_sweep(path: Path, move: Move) -> None:
    """Its parent in MLflow and its folder, once all its runs have gone."""
    there = move.target / "sweeps" / path.name
    names, parent = files_in(path), move.parent_run_id
    in_home = bool(parent) and has_run(move.source, parent)
    if parent and in_home and not has_run(move.target, parent):
        _copy_record(path.name, parent, move.source, move.target)
    if not there.exists():
        with Workplace(move.target) as place:
            copy_files(path, place / "sweep", names)
            there.parent.mkdir(exist_ok=True)
            os.rename(place / "sweep", there)
            sync_folder(there.parent)
    if parent and in_home:
        _remove_record(move.source, parent)
    with Workplace(move.source) as place:
        os.rename(path, place / "sweep")
        sync_folder(path.parent)
