"""A run's artifacts in MLflow: sent so that they stay, with time for their size, looked for, and taken from there."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..class_names import FILE, MAX_BYTES
from ..errors import BestrunError, VerificationError
from ..storage.files import sync_folder
from . import beginning
from .refusals import status_of
from .store import Store, local_path, sqlite_path

BYTES_A_SECOND = 50_000  # the slowest link that an upload is given time for
WRITTEN = (
    "checkpoints",
    "keyframes",
    "config",
    "code",
    "images",
    "pictures",
)  # artifact folders of a run's own process
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"


def seconds_for(size: int) -> int:
    """So long an upload of `size` bytes may take, in whole seconds."""
    return 5 + size // BYTES_A_SECOND


@contextlib.contextmanager
def time_for(size: int) -> Iterator[None]:
    """Give MLflow's client time for an upload; it reads its time-out at each request from this variable alone."""
    before = os.environ.get(TIMEOUT, "5")
    os.environ[TIMEOUT] = str(max(seconds_for(size), int(before) if before.isdecimal() else 0))
    try:
        yield
    finally:
        os.environ[TIMEOUT] = before


def upload(
    store: Store, owner: Any, path: Path, to: str | None, *, began: Callable[[float], None] = lambda seconds: None
) -> None:
    """Send a file, or all files in a folder, to the artifact folder `to`; a local one has them on disk afterwards.

    Args:
        owner: the run, or the LoggedModel, whose artifacts they are.
        began: told, before anything is sent, how many seconds all of it may take.

    Raises:
        TooLargeError: the server, or what stands before it, takes no file of this size.
    """
    files = [found for found in path.rglob("*") if found.is_file()] if path.is_dir() else [path]
    repository = store.artifacts(owner)
    sizes = [file.stat().st_size for file in files]
    began(sum(map(seconds_for, sizes)))
    try:
        with time_for(max(sizes, default=0)):
            if path.is_dir():
                repository.log_artifacts(str(path), to)
            else:
                repository.log_artifact(str(path), to)
    except Exception as error:
        if status_of(error) == 413:
            largest = max(files, key=lambda file: file.stat().st_size)
            raise TooLargeError(f"{largest.name} has {max(sizes) / 1e6:,.1f} MB") from error
        raise
    if root := local_path(repository.artifact_uri):
        place, top = root / (to or ""), path if path.is_dir() else path.parent
        _make_durable(root, [place / file.relative_to(top) for file in files], sqlite_path(store.uri))


class TooLargeError(BestrunError):
    """A file is larger than MLflow's server, or what stands before it, takes."""


def _make_durable(root: Path, files: list[Path], database: Path | None) -> None:
    """MLflow leaves it to the system when a copy reaches the disk; the tag that names it would be sooner."""
    folders = set()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        folders |= {folder for folder in file.parents if folder == root or root in folder.parents}
    above = [folder for folder in root.parents if database and database.parent in (folder, *folder.parents)]
    for folder in [*sorted(folders, reverse=True), *above]:
        sync_folder(folder)


def is_there(store: Store, run: Any, artifact: str, path: Path, sha256: str) -> bool:
    """Whether MLflow's store has this file: by size and hash where it is local, else by size alone, not downloaded.

    Args:
        path: the file as it is here, or was.
    """
    repository = store.artifacts(run)
    if root := local_path(repository.artifact_uri):
        try:
            return hashlib.sha256((root / artifact).read_bytes()).hexdigest() == sha256
        except (FileNotFoundError, NotADirectoryError):
            return False
    sizes = {item.path: item.file_size for item in repository.list_artifacts(artifact.rpartition("/")[0])}
    if not path.is_file():  # no size to compare with
        return artifact in sizes
    return artifact in sizes and sizes[artifact] in (None, path.stat().st_size)


def at_the_top(store: Store, run: Any) -> set[str]:
    """The names of a run's artifacts, of those in folders the folder's: one question, however many there are."""
    return {item.path for item in store.artifacts(run).list_artifacts()}


def clear_torn_uploads(store: Store, run: Any) -> None:
    """Remove what a process killed in an upload left among a run's artifacts on this machine, under MLflow's own name
    for what is not whole. Only its writer may call this; `register` uploads to model/ at its own time.
    """
    root = local_path(store.artifacts(run).artifact_uri)
    for folder in (root, *(root / name for name in WRITTEN)) if root else ():
        for torn in folder.glob(".artifact.uploading.*"):
            with contextlib.suppress(OSError):
                torn.unlink()


def download_class_names(store: Store, run: Any, place: Path) -> bytes:
    """What the classes of a run's data are called, as the file says it; b"" where they have no names."""
    found = download_if_there(store, run, f"config/{FILE}", place, MAX_BYTES)
    return found.read_bytes() if found else b""


def download_beginning(store: Store, run: Any, place: Path) -> bytes:
    """How a run began, as its file says it; b"" of a run of before, whose tags tell."""
    found = download_if_there(store, run, beginning.FILE, place, beginning.MAX_BYTES)
    return found.read_bytes() if found else b""


def download_if_there(store: Store, run: Any, artifact: str, place: Path, most: int) -> Path | None:
    """As `download`; None where there is no such artifact, or none that can be used."""
    with contextlib.suppress(VerificationError):
        return download(store, run, artifact, place, most)
    return None


def download(store: Store, run: Any, artifact: str, to: Path, most: int) -> Path:
    """An artifact of an MLflow run, of at most so many bytes, in the folder `to`.

    Raises:
        VerificationError: it is not there, is larger, or a link.
    """
    run_id = run.info.run_id
    if root := local_path(store.here(run.info.artifact_uri)):
        return _copied(run_id, root.resolve(), artifact, to, most)
    artifacts = store.artifacts(run)
    listed = {item.path: item.file_size for item in artifacts.list_artifacts(artifact.rpartition("/")[0] or None)}
    _refuse(run_id, artifact, artifact in listed, listed.get(artifact) or 0, most)
    found = Path(artifacts.download_artifacts(artifact, str(to)))  # below the artifact's own folder
    path = to / found.name
    if path != found:
        os.replace(found, path)
        found.parent.rmdir()
    return path


def _copied(run_id: str, root: Path, artifact: str, to: Path, most: int) -> Path:
    """The same from a folder on this machine, for which MLflow need not be imported."""
    source, path = root / artifact, to / Path(artifact).name
    if source.resolve() != source:  # MLflow, too, would not follow a link out of it
        raise VerificationError(f"run {run_id}: artifact {artifact} is a link in MLflow's artifact store")
    is_there = source.is_file()
    _refuse(run_id, artifact, is_there, source.stat().st_size if is_there else 0, most)
    shutil.copyfile(source, path)
    return path


def _refuse(run_id: str, artifact: str, is_there: bool, size: int, most: int) -> None:
    """Raises VerificationError: an artifact is not there, or has more than so many bytes."""
    if not is_there:
        raise VerificationError(f"run {run_id}: its artifact {artifact} is gone from MLflow's artifact store")
    if size > most:
        raise VerificationError(f"run {run_id}: artifact {artifact} has {size:,} bytes, at most {most:,}")
