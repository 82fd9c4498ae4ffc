"""Runs in one file, to another machine, and proved where it is opened.

The file is an uncompressed tar: `manifest.json` first, which says of every other file its path, bytes and SHA-256, and
then these files in that order. Whoever opens it believes nothing of it: a member that is not the one the manifest names
at that place ends it before anything is in the home.
"""

import contextlib
import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn, cast

from .. import __version__
from ..errors import SettingsError, VerificationError
from ..storage.files import JOURNAL, MIRROR, read_json, replacing, storage_error, sync_folder, sync_tree, write_json
from ..storage.folder import RunFolder
from ..storage.home import create_home
from ..storage.parcel import (
    OF_A_PROCESS,
    Seal,
    bytes_of,
    files_in,
    prove,
    refuse_too_large,
    refused,
    seal_of,
    write_sealed,
)
from ..storage.reference import REFERENCE, local_folder
from ..storage.workplace import Workplace
from ..tracking.store import is_own_store, resolve_uri
from ..tracking.sync import own_uri, sync
from .whole import refuse_damaged

FORMAT = 1
MANIFEST = "manifest.json"
LEFT_OUT = OF_A_PROCESS | {MIRROR}  # which run of MLflow it is, is found out where it arrives
MAX_MANIFEST_BYTES = 1 << 25  # some 150,000 files
MAX_HEADER_BYTES = 1 << 20  # what tarfile may read at once
MAX_JOURNAL_BYTES = 1 << 28
MAX_DEPTH = 16
MAX_SECONDS = 1 << 33  # a file's time: of the year 2242

Sealed = dict[str, Seal]


# ---- into the file ----


@dataclass(frozen=True)
class Packing:
    """What goes into an archive: `sizes` are files and bytes of each run."""

    folders: list[RunFolder]
    out: Path
    sizes: dict[str, tuple[int, int]]

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.sizes.values())


def plan_packing(references: list[str], home: Path, out: Path) -> Packing:
    """Look at the runs that go into a new file; nothing is written.

    Raises:
        SettingsError: one is not here, or is running; or the file is there already, or would lie in the home.
    """
    out = out.expanduser().absolute()
    if os.path.lexists(out):
        raise SettingsError(f"--out {out}: is there already, and is not overwritten; name another")
    if not out.parent.is_dir():
        raise SettingsError(f"--out {out}: there is no folder {out.parent}; make it, or name another")
    if out.parent.resolve().is_relative_to(home.resolve()):
        raise SettingsError(f"--out {out}: lies in {home}, whose runs it is to keep; name a place outside")
    folders = {folder.name: folder for folder in (local_folder(home, reference) for reference in references)}
    sizes = {}
    for name, folder in folders.items():
        if folder.is_owned():
            with folder.owned():  # it says by whom
                pass
        files = files_in(folder.path, leave=LEFT_OUT)
        sizes[name] = (len(files), bytes_of(folder.path, files))
    refuse_too_large(out.parent, sum(size for _, size in sizes.values()))
    return Packing(list(folders.values()), out, sizes)


def pack_runs(packing: Packing) -> int:
    """Write the file: under another name, which becomes its own when all of it is on disk. Returns its bytes.

    Raises:
        SettingsError: a run has begun to train.
        VerificationError: a run is not whole, or was changed meanwhile; no file is left.
        StorageError: the disk refused; no file is left.
    """
    seals: Sealed = {}
    for folder in packing.folders:
        with folder.owned():
            refuse_damaged(folder)
            for name in files_in(folder.path, leave=LEFT_OUT):
                if not _can_be_in_it(path := f"runs/{folder.name}/{name}", folder.name):
                    raise SettingsError(f"{folder.path / name}: cannot stand in an archive by this name; rename it")
                seals[path] = seal_of(folder.path / name)
    files = [{"path": path, "bytes": seal.bytes, "sha256": seal.sha256} for path, seal in seals.items()]
    names = [folder.name for folder in packing.folders]
    manifest = json.dumps({"format": FORMAT, "bestrun": __version__, "runs": names, "files": files}, indent=1).encode()
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise SettingsError(
            f"--out {packing.out}: {len(files):,} files are more than one archive takes; pack fewer runs"
        )
    try:
        with replacing(packing.out) as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                tar.addfile(_member(MANIFEST, len(manifest), 0), io.BytesIO(manifest))
                for folder in packing.folders:
                    with folder.owned():
                        _add(tar, folder, seals)
            return file.tell()
    except OSError as error:
        raise storage_error(packing.out, "write it", error) from error


def _add(tar: tarfile.TarFile, folder: RunFolder, seals: Sealed) -> None:
    before = f"runs/{folder.name}/"
    for path, seal in seals.items():
        if not path.startswith(before):
            continue
        source = folder.path / path.removeprefix(before)
        with open(source, "rb") as file:
            status = os.fstat(file.fileno())
            read = _Hashing(file)
            if status.st_size == seal.bytes:
                tar.addfile(_member(path, seal.bytes, int(status.st_mtime)), cast(IO[bytes], read))
        if read.digest.hexdigest() != seal.sha256:
            raise VerificationError(f"{source}: was changed while it was packed; no file was made; the same again")


def _member(path: str, size: int, mtime: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.size, member.mtime, member.mode = size, mtime, 0o644
    return member


class _Hashing:
    """A file that is read, and its hash."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


# ---- out of the file ----


@dataclass(frozen=True)
class Opening:
    """What an archive would bring into a home: `arriving` are its runs that are not there yet, `there` the others."""

    path: Path
    home: Path
    seals: Sealed
    arriving: list[str]
    there: list[str]
    made_by: str

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(path.split("/")[1] for path in self.seals))

    @property
    def bytes(self) -> int:
        return sum(seal.bytes for path, seal in self.seals.items() if path.split("/")[1] in self.arriving)


def plan_opening(path: Path, home: Path) -> Opening:
    """Read what an archive says of itself; nothing is written.

    Raises:
        SettingsError: there is no such file, or the home has another run of one of these names.
        VerificationError: it is no archive of runs.
    """
    path, home = path.expanduser().absolute(), home.resolve()
    with _opened(path) as tar:
        seals, made_by = _read_manifest(tar, path)
    names = list(dict.fromkeys(each.split("/")[1] for each in seals))
    there = [name for name in names if _is_here(RunFolder(home / "runs" / name), seals[f"runs/{name}/{JOURNAL}"], home)]
    opening = Opening(path, home, seals, [name for name in names if name not in there], there, made_by)
    if opening.arriving:
        refuse_too_large(home, opening.bytes)
    return opening


def open_archive(opening: Opening) -> None:
    """Put the runs of an archive into the home: unpacked beside, all of them proved, then given their names.

    Raises:
        SettingsError: the home has another run of one of these names.
        VerificationError: something in it is not what it says; nothing of it is in the home.
        StorageError: the disk refused.
    """
    home = opening.home
    if not opening.arriving:
        return
    create_home(home)
    with Workplace(home) as place:
        try:
            _unpack(opening, place)
            sync_tree(place)
        except OSError as error:
            raise refused(home, error) from error
        prove(place, {path: seal for path, seal in opening.seals.items() if path.split("/")[1] in opening.arriving})
        for name in opening.arriving:
            refuse_damaged(RunFolder(place / "runs" / name))
        for name in opening.arriving:
            target = home / "runs" / name
            try:
                os.rename(place / "runs" / name, target)  # an empty folder is replaced, nothing else
            except OSError as error:
                raise refused(target, error) from error
        sync_folder(home / "runs")


def send_opened(opening: Opening, setting: str | None) -> list[dict[str, Any]]:
    """Send the runs of an archive to this home's MLflow, or to the one that is asked for; one report a run.

    Addresses that stand in an archive are somebody else's words, and nothing is sent there by itself: such a run's
    report says what would.
    """
    reports = []
    ours = resolve_uri(setting, opening.home)
    for name in opening.names:
        folder = RunFolder(opening.home / "runs" / name)
        named = setting or _named_uri(folder, opening.home)
        if named and named != ours and not is_own_store(named, opening.home):
            report: dict[str, Any] = {"run_name": name, "run_id": None, "sent": 0, "state": "not sent", "error": None}
            report["told"] = f"its settings name MLflow at {named}; if you trust that: bestrun sync {name}"
        else:
            (report,) = sync([folder], home=opening.home, setting=setting)
            known = read_json(folder.result)
            if known and report.get("run_id"):  # as it is called here
                write_json(folder.result, known | {"run_id": report["run_id"], "folder": str(folder.path)})
        if report["error"] and "bestrun sync" not in report["error"]:
            report["error"] += f"; once that is mended: bestrun sync {name}"
        reports.append(report)
    return reports


def _named_uri(folder: RunFolder, home: Path) -> str | None:
    try:
        return own_uri(folder, None, home)
    except SettingsError as error:  # it takes a password
        return str(error).split(" ")[0]


def _is_here(folder: RunFolder, journal: Seal, home: Path) -> bool:
    """Whether the home has this very run: its journal begins with that of the archive.

    Raises:
        SettingsError: it has another one of this name.
    """
    if not folder.exists():
        if os.path.lexists(folder.path) and not (folder.path.is_dir() and not os.listdir(folder.path)):
            raise SettingsError(f"{folder.path}: is in the way of run {folder.name}; remove it, or rename it")
        return False
    with open(folder.journal, "rb") as file:
        if hashlib.sha256(file.read(journal.bytes)).hexdigest() == journal.sha256:
            return True
    raise SettingsError(
        f"run {folder.name}: {home} has another run of this name, or an older state of it; nothing was changed"
    )


class _Bounded:
    """A file of which a header that lies about its size cannot have all read into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header of that size")
        return self._file.read(size)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """An uncompressed tar; whatever is wrong with it is one line."""
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # a pipe is not waited for
    except OSError as error:
        raise SettingsError(f"--open {path}: cannot be read: {error.strerror}") from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise SettingsError(f"--open {path}: is no file; name one that bestrun archive has made")
        try:
            with tarfile.open(fileobj=cast(IO[bytes], _Bounded(file)), mode="r:") as tar:
                yield tar
        except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
            _refuse(path, f"is no uncompressed tar, or a damaged one: {error}")


def _refuse(path: Path, why: str) -> NoReturn:
    raise VerificationError(f"{path}: {why}; nothing of it was taken")


def _read_manifest(tar: tarfile.TarFile, path: Path) -> tuple[Sealed, str]:
    """What the files of an archive must be, in their order, and which version made it."""
    first = tar.next()
    if first is None or first.name != MANIFEST or not _is_plain(first) or first.size > MAX_MANIFEST_BYTES:
        _refuse(path, f"is no archive of runs: it does not begin with {MANIFEST}")
    text = b"".join(_chunks(tar, first))
    try:
        value = json.loads(text)
        if value["format"] != FORMAT:
            _refuse(path, f"has format {str(value['format'])[:20]!r}, this version reads {FORMAT}; made by a newer one")
        names, files, made_by = value["runs"], value["files"], str(value.get("bestrun", ""))
        if len(set(names)) != len(names):
            raise ValueError("a run stands in it twice")
        seals = {}
        for file in files:
            name = file["path"].split("/")[1] if file["path"].count("/") > 1 else ""
            if name not in names or file["path"] in seals or not _can_be_in_it(file["path"], name):
                raise ValueError(f"its file {file['path'][:80]!r} is of no run in it, or stands in it twice")
            seals[file["path"]] = _seal(file)
        _refuse_unlike_runs(names, seals)
        if (size := sum(seal.bytes for seal in seals.values())) > path.stat().st_size:
            raise ValueError(f"{size:,} bytes are to be in it, it has {path.stat().st_size:,}")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        _refuse(path, f"its {MANIFEST} is damaged: {error}")
    return seals, made_by


def _seal(file: dict[str, Any]) -> Seal:
    size, sha256 = file["bytes"], file["sha256"]
    if type(size) is not int or size < 0 or type(sha256) is not str:
        raise ValueError(f"what it says of {file['path'][:80]!r}")
    return Seal(size, sha256)


def _can_be_in_it(path: str, name: str) -> bool:
    """Whether a file may stand in an archive: in its run's folder, under a name that people can read."""
    parts = path.split("/")
    is_run = REFERENCE.fullmatch(name) and name not in ("latest", "best") and parts[:2] == ["runs", name]
    goes_down = 3 <= len(parts) <= MAX_DEPTH and all(part not in ("", ".", "..") for part in parts)
    fits = all(len(part.encode(errors="replace")) <= 255 for part in parts)
    return bool(is_run and goes_down and fits and path.isprintable() and parts[2:] not in [[one] for one in LEFT_OUT])


def _refuse_unlike_runs(names: list[str], seals: Sealed) -> None:
    folders = {"/".join(path.split("/")[:count]) for path in seals for count in range(1, path.count("/") + 1)}
    if both := folders & set(seals):
        raise ValueError(f"{min(both)[:80]!r} is a file and a folder in it")
    for name in names:
        journal = seals.get(f"runs/{name}/{JOURNAL}")
        if journal is None or journal.bytes > MAX_JOURNAL_BYTES or f"runs/{name}/config.yaml" not in seals:
            raise ValueError(f"run {str(name)[:80]!r} has no journal or no settings in it")


def _is_plain(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file with its bytes, nothing else that a tar may hold."""
    return member.type == tarfile.REGTYPE and member.sparse is None


def _chunks(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    file = tar.extractfile(member)
    while file and (data := file.read(MAX_HEADER_BYTES // 2)):
        yield data


def _unpack(opening: Opening, place: Path) -> None:
    """Write the members of an archive, each of which must be the one that the manifest names next."""
    with _opened(opening.path) as tar:
        if _read_manifest(tar, opening.path)[0] != opening.seals:
            _refuse(opening.path, "was changed meanwhile")
        for path, seal in opening.seals.items():
            member = tar.next()
            if member is None or member.name != path or not _is_plain(member) or member.size != seal.bytes:
                what = "nothing more"
                if member is not None:
                    kind = "file" if _is_plain(member) else "link, device or the like"
                    what = f"the {kind} {member.name[:80]!r} of {member.size:,} bytes"
                _refuse(opening.path, f"has {what} where its {MANIFEST} says {path!r} of {seal.bytes:,} bytes")
            if path.split("/")[1] not in opening.arriving:
                continue
            target = place / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if write_sealed(cast(BinaryIO, tar.extractfile(member)), target, seal.bytes) != seal:
                _refuse(opening.path, f"its {path!r} is not the file that was packed")
            time = min(max(int(member.mtime), 0), MAX_SECONDS)
            os.utime(target, (time, time))  # runs are in the order of times
        if tar.next() is not None:
            _refuse(opening.path, f"has more files than its {MANIFEST} says")
