"""What `bestrun gc` asks of MLflow and has it remove: runs, their artifacts, their models, and files that nobody owns.

MLflow's own delete marks a run or a model as deleted and leaves all of its files. So the files of what is marked are
leftovers, whoever marked it: a removal that is killed after the mark is completed by the next one.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..environment import user_name
from ..errors import BestrunError
from ..storage.files import fault, names_in, read_json
from ..storage.folder import RunFolder
from ..storage.home import copied_from, identity
from ..storage.leftovers import Piece, remove_tree, size_of
from .artifacts import time_for
from .lookup import OURS
from .names import TAG_CHILDREN, TAG_KEEP
from .refusals import status_of
from .store import Store, is_own_store, local_path, paged, store_of
from .writers import writer_of

PAGE = 200  # runs in one answer of MLflow's: a server has five seconds for it
RUN_ID, MODEL_ID = re.compile("[0-9a-f]{32}"), re.compile("m-[0-9a-f]{32}")


class KeptError(BestrunError):
    """It must not go after all; says why."""


# ---- what there is ----


@dataclass(frozen=True)
class Files:
    """The files of a run or of a model.

    Attributes:
        address: as MLflow has it.
        owner: the run's or the model's ID.
    """

    store: Store
    address: str
    owner: str

    @property
    def is_its_own(self) -> bool:
        """Whether nothing else can lie there: MLflow's own address of a run or model ends so, and a server that gave
        any other would have us remove that.
        """
        return self.address.rstrip("/").endswith(f"/{self.owner}/artifacts")

    @property
    def _folder(self) -> Path | None:
        """On this machine; None where it is elsewhere."""
        path = local_path(self.store.here(self.address))
        return path if path and path.is_absolute() else None

    def bytes(self) -> int:
        if not self.is_its_own:
            return 0
        if self._folder:
            return size_of(self._folder)
        return sum(size for _, size in self._listed())

    def _listed(self, path: str | None = None) -> Iterator[tuple[str, int]]:
        for item in self.store.files_at(self.address).list_artifacts(path):
            if item.is_dir:
                yield from self._listed(item.path)
            else:
                yield item.path, item.file_size or 0

    def remove(self) -> int:
        """Gives how many bytes that freed.

        Raises:
            BestrunError: MLflow says that it did, and they are still there.
            Exception: whatever the store of the artifacts raises.
        """
        size = self.bytes()
        if not self.is_its_own or (self._folder and not self._folder.exists()):
            return 0
        with time_for(size):
            self.store.files_at(self.address).delete_artifacts()
        if left := self.bytes():
            raise BestrunError(f"{self.address}: of its files {left:,} bytes are still there")
        if self._folder:
            with contextlib.suppress(OSError):  # the folder named like the run, where nothing else is in it
                self._folder.parent.rmdir()
        return size


def files_of_run(store: Store, run: Any) -> Files:
    return Files(store, run.info.artifact_uri, run.info.run_id)


def files_of_model(store: Store, model: Any) -> Files:
    return Files(store, model.artifact_location, model.model_id)


@dataclass(frozen=True)
class Inventory:
    """What a store has, asked once.

    Attributes:
        experiments: ID -> name, deleted ones too.
        runs: ID -> run, deleted ones too: all of this program's, and in a home's own store those of others as well.
        models: ID of a run -> models that were logged by it and not deleted.
        versions: of all registered models.
    """

    store: Store
    experiments: dict[str, str]
    runs: dict[str, Any]
    models: dict[str, list[Any]]
    versions: list[Any]

    def is_registered(self, run_id: str) -> bool:
        """Whether a registered model has its files among this run's or its models'."""
        owners = {run_id, *(model.model_id for model in self.models.get(run_id, []))}
        return any(_is_of(version, owners) for version in self.versions)


def _is_of(version: Any, owners: set[str]) -> bool:
    places = (version.source, getattr(version, "storage_location", None))
    named = {version.run_id, getattr(version, "model_id", None)}
    return bool(owners & named) or any(owner in (place or "") for owner in owners for place in places)


def take_stock(store: Store, home: Path) -> Inventory:
    """Ask a store for all it has."""
    from mlflow.entities import ViewType

    client = store.client
    everything = {"view_type": ViewType.ALL, "max_results": PAGE}
    experiments = {each.experiment_id: each.name for each in paged(client.search_experiments, **everything)}
    asked: dict[str, Any] = {"run_view_type": ViewType.ALL, "max_results": PAGE}
    if not is_own_store(store.uri, home):
        asked["filter_string"] = OURS
    runs = list(paged(client.search_runs, list(experiments), **asked)) if experiments else []
    models: dict[str, list[Any]] = {}
    for model in _models(client, list(experiments)):
        models.setdefault(model.source_run_id or "", []).append(model)
    versions = list(paged(client.search_model_versions, max_results=PAGE))
    return Inventory(store, experiments, {run.info.run_id: run for run in runs}, models, versions)


def _models(client: Any, experiments: Sequence[str]) -> list[Any]:
    """The models that were logged and not deleted; a server that is older than such models has none."""
    found: list[Any] = []
    try:
        for first in range(0, len(experiments), 100):
            some = list(experiments[first : first + 100])
            found += paged(client.search_logged_models, some, max_results=50)
    except Exception as error:
        if status_of(error) not in (404, 405, 501):
            raise
    return found


def is_deleted(run: Any) -> bool:
    return bool(run.info.lifecycle_stage != "active")


def is_pinned(run: Any) -> bool:
    """Whether a person has put the tag on it that keeps it."""
    return TAG_KEEP in run.data.tags


def is_written_here(run: Any, home: Path, uri: str) -> bool:
    """Whether it was this user who wrote it last, from this home."""
    who = writer_of(run)
    if not who:  # older than the tag
        return is_own_store(uri, home)
    if who.get("user") not in (None, "", user_name()):
        return False
    if is_own_store(uri, home):
        return who.get("home") in ("", None, identity(home), *copied_from(home))
    return bool(who.get("home")) and who["home"] == identity(home)


def writer_words(run: Any) -> str:
    """Who wrote a run last, for people."""
    who = writer_of(run)
    return f"{who.get('user') or 'somebody'} on {who.get('host') or 'another machine'}"


# ---- leftovers ----


def leftovers(stock: Inventory, home: Path) -> list[Piece]:
    """Files of runs and models that MLflow has deleted, and in a home's own store those that nobody owns."""
    return [*_of_deleted_runs(stock, home), *_unowned(stock, home)]


def _of_deleted_runs(stock: Inventory, home: Path) -> Iterator[Piece]:
    """A registered model may need them; on a server others may want to bring their runs back."""
    store = stock.store
    for run_id, run in stock.runs.items():
        if not is_deleted(run) or not is_written_here(run, home, store.uri) or stock.is_registered(run_id):
            continue
        sizes, models = {"artifacts of deleted runs": files_of_run(store, run).bytes()}, stock.models.get(run_id, [])
        if models:
            sizes["models of deleted runs"] = sum(files_of_model(store, model).bytes() for model in models)
        if models or any(sizes.values()):
            yield Piece(
                f"deleted run {run.info.run_name or run_id}",
                {kind: size for kind, size in sizes.items() if size or models},
                partial(_remove_of_deleted, store, run, models),
            )


def _remove_of_deleted(store: Store, run: Any, models: Sequence[Any]) -> int:
    now = store.client.get_run(run.info.run_id)
    if not is_deleted(now):
        raise KeptError("was brought back meanwhile, and stays")
    refuse_registered(store, run, models)
    return remove_files(store, run, models)


def _unowned(stock: Inventory, home: Path) -> Iterator[Piece]:
    """Folders that are named like a run or a model which the store in the home does not have, or has deleted."""
    store = stock.store
    if not is_own_store(store.uri, home) or _has_other_stores(home):
        return
    known = {model.model_id for models in stock.models.values() for model in models}
    for folder in _owned_folders(home / "artifacts"):
        owner = folder.name
        if owner in stock.runs or owner in known or any(_is_of(version, {owner}) for version in stock.versions):
            continue
        kind = "models that were deleted" if MODEL_ID.fullmatch(owner) else "artifacts of no run"
        if size := size_of(folder):
            yield Piece(str(folder), {kind: size}, partial(_remove_unowned, store, folder))


def _has_other_stores(home: Path) -> bool:
    """Whether runs of the home are in other databases: they may keep their artifacts here, too."""
    for name in names_in(home / "runs"):
        with contextlib.suppress(BestrunError):
            uri = store_of(read_json(RunFolder(home / "runs" / name).mirror), home)
            if uri and not uri.startswith("http") and not is_own_store(uri, home):
                return True
    return False


def _owned_folders(root: Path) -> Iterator[Path]:
    """Folders below the artifacts of a home that are named like a run, or in a folder `models` like a model."""
    for place, names, _ in os.walk(root):
        inside = []
        for name in sorted(names):
            path = Path(place, name)
            is_model = MODEL_ID.fullmatch(name) and Path(place).name == "models"
            if not path.is_symlink() and (is_model or RUN_ID.fullmatch(name)) and (path / "artifacts").is_dir():
                yield path
            else:
                inside.append(name)
        names[:] = inside


def _remove_unowned(store: Store, folder: Path) -> int:
    """It is asked for once more: a run is made in MLflow before it has a file."""
    from mlflow.exceptions import MlflowException

    is_model = MODEL_ID.fullmatch(folder.name)
    try:
        (store.client.get_logged_model if is_model else store.client.get_run)(folder.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return remove_tree(folder)
    raise KeptError("has an owner by now, and stays")


# ---- a whole run ----


def refuse_changed(store: Store, run: Any, models: Sequence[Any]) -> bool:
    """Look once more before a run goes; whether MLflow still has it undeleted.

    Raises:
        KeptError: it was pinned or registered meanwhile, or goes on.
    """
    now = store.client.get_run(run.info.run_id)
    if is_pinned(now):
        raise KeptError(f"has the tag {TAG_KEEP} by now, and stays")
    if now.data.tags.get(TAG_CHILDREN) != run.data.tags.get(TAG_CHILDREN):
        raise KeptError("another run was started from it meanwhile, and it stays")
    if now.info.status == "RUNNING":
        raise KeptError("goes on, and stays")
    refuse_registered(store, run, models)
    return not is_deleted(now)


def refuse_registered(store: Store, run: Any, models: Sequence[Any]) -> None:
    """Raises KeptError: a registered model has its files there."""
    owners = {run.info.run_id, *(model.model_id for model in models)}
    versions = store.client.search_model_versions(f"run_id = '{run.info.run_id}'")
    if any(_is_of(version, owners) for version in versions):
        raise KeptError("was registered meanwhile, and stays")


def remove_model(store: Store, model: Any) -> int:
    """A LoggedModel, its files first: MLflow's own deletion leaves them all, and then nobody knows of them."""
    freed = files_of_model(store, model).remove()
    store.client.delete_logged_model(model.model_id)
    return freed


def remove_files(store: Store, run: Any, models: Sequence[Any]) -> int:
    """The files of a deleted run, and its models with theirs; gives how many bytes that freed."""
    freed = 0
    for model in models:
        freed += remove_model(store, model)
    fault("G4")
    return freed + files_of_run(store, run).remove()
