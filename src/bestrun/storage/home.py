"""The home: which `mlruns` folder is ours, and what follows when it is moved or copied.

MLflow keeps whole paths: of experiments, of runs' artifacts, of model versions. A home's marker says which home it is
and below which path the addresses in the store inside it lie. So a moved or copied home finds its own files, and a copy
never those of the original: reading verbs translate the addresses in memory, the first writing verb rewrites them.
"""

import contextlib
import errno
import fcntl
import functools
import itertools
import json
import logging
import os
import pwd
import re
import secrets
import shlex
import sqlite3
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from ..errors import SettingsError, VerificationError
from ..terminal import say
from .files import StorageError, write_json
from .folder import RunFolder
from .locks import is_locked

log = logging.getLogger("bestrun")

MARKER = ".bestrun"  # a folder named mlruns that is ours holds this file
DATABASE = "mlflow.db"
FORMAT = 1
MAX_FORMER = 50
MAX_MARKER_BYTES = 1 << 20

# Where MLflow keeps paths: table, column, of which rows
ADDRESSES = [
    ("experiments", "artifact_location", "1"),
    ("runs", "artifact_uri", "1"),
    ("model_versions", "source", "1"),
    ("model_versions", "storage_location", "1"),
    ("logged_models", "artifact_location", "1"),
    ("workspaces", "default_artifact_root", "1"),
    ("workspaces", "trace_archival_location", "1"),
    ("trace_tags", "value", "key = 'mlflow.artifactLocation'"),
    ("tags", "value", "key = 'bestrun.folder'"),
]


def find_home(*, writes: bool = False) -> Path:
    """The mlruns folder to use: BESTRUN_MLRUNS, else the nearest marked `mlruns` at or above here, else ./mlruns.

    One that was found, and is somebody else's, is read and said to be theirs. Where others may put it, so may a trap.

    Raises:
        SettingsError: with `writes`, it is somebody else's.
    """
    home = _find()
    if owners := foreign_owners(home):
        if writes:
            raise SettingsError(
                f"{home}: belongs to {owners[0]}, not to {owners[1]}; nothing was written; if you trust it, type "
                f"BESTRUN_MLRUNS={shlex.quote(str(home))} before the command, or name a folder of your own so"
            )
        _tell_whose(home, *owners)
    return home


@functools.cache  # once a process
def _tell_whose(home: Path, owner: str, us: str) -> None:
    say(f"warning: {home} belongs to {owner}, not to {us}", err=True)


def foreign_owners(home: Path) -> tuple[str, str] | None:
    """Whose a home is, and who we are, where neither it nor its marker is ours and BESTRUN_MLRUNS does not name it."""
    if os.environ.get("BESTRUN_MLRUNS") or not os.path.lexists(home):
        return None
    # A link to a folder that may not be looked into is its owner's who made the link
    owners = [(home.stat() if os.access(home, os.F_OK) else home.lstat()).st_uid]
    with contextlib.suppress(OSError):
        marker = (home / MARKER).lstat()
        if stat.S_ISREG(marker.st_mode) and marker.st_nlink == 1:  # a second name of a file of ours is no sign of ours
            owners.append(marker.st_uid)
    us = os.geteuid() or Path.cwd().stat().st_uid  # root, as in a container, writes for whose folder it stands in
    if {us, os.geteuid()} & set(owners):
        return None
    return user_of(owners[0]), user_of(us)


def user_of(uid: int) -> str:
    """A user's name, else number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _find() -> Path:
    if named := os.environ.get("BESTRUN_MLRUNS"):
        return Path(named).expanduser().absolute()
    here = Path.cwd()
    return next((home for folder in (here, *here.parents) if _is_marked(home := folder / "mlruns")), here / "mlruns")


def _is_marked(home: Path) -> bool:
    """Whether it holds our marker. What may not be looked into may: whoever would use another home instead, is told."""
    try:
        (home / MARKER).stat()
    except PermissionError:
        return True
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    return True


def create_home(home: Path) -> None:
    """Make, mark and settle the home.

    Raises:
        SettingsError: if it cannot be created or written to.
    """
    advice = "BESTRUN_MLRUNS=FOLDER names another"
    try:
        str(home).encode()
    except UnicodeEncodeError:  # neither MLflow nor its database could hold it
        name = os.fsencode(home).decode(errors="backslashreplace")
        raise SettingsError(f"{name}: cannot be used for runs: the name is not UTF-8; {advice}") from None
    made: list[Path] = []
    try:
        for folder in (*reversed(home.parents), home, home / "runs"):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                made.append(folder)
        with tempfile.TemporaryFile(dir=home / "runs"):  # a marker may be there where nothing can be made
            pass
        if not (home / MARKER).exists():
            _say(_settle(home))
    except (OSError, StorageError) as error:
        with contextlib.suppress(OSError):  # others may have put something there meanwhile
            if home in made:
                (home / f"{DATABASE}.lock").unlink(missing_ok=True)
            for folder in reversed(made):
                folder.rmdir()
        cause = error if isinstance(error, OSError) else error.__cause__
        why = getattr(cause, "strerror", None) or str(error)
        raise SettingsError(f"{home}: cannot be used for runs: {why}; {advice}") from error
    settle(home)


# ---- the marker: who a home is, and where its addresses lie ----


@dataclass(frozen=True)
class Marker:
    """What the file says, or, where it is empty, what the store tells.

    Attributes:
        identity: 32 random hexadecimal digits; None before the first verb that writes.
        path: the folder below which the addresses in the home's store lie.
        former: other folders below which there may be some: those it lay in before, the latest first.
        copied_from: identities of the homes it is a copy of.
    """

    identity: str | None
    path: Path
    former: tuple[Path, ...]
    copied_from: tuple[str, ...] = ()


def read_marker(home: Path) -> Marker:
    """The marker of a home, whose links are resolved.

    Raises:
        StorageError: it cannot be read.
        VerificationError: it is something else.
    """
    path = home / MARKER
    try:
        data = _read_unlinked(path)
    except FileNotFoundError:
        data = b""
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link, which is not followed, and replaced by the first verb that writes
            raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
        data = b""
    if not data.strip():  # made by an earlier version, or copied without its hidden files
        return Marker(None, home, tuple(_lay_at(home)))
    try:
        value = json.loads(data)
        if value["format"] != FORMAT or not re.fullmatch("[0-9a-f]{32}", value["identity"]):
            raise ValueError("another format")
        former, copied_from = (tuple(value.get(key, [])) for key in ("former", "copied_from"))
        return Marker(value["identity"], Path(value["path"]), tuple(map(Path, former)), copied_from)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VerificationError(
            f"{path}: not the marker of a home: {data[:60]!r}; to have it made anew from what the store says: "
            f"truncate -s 0 {path}"
        ) from error


def _read_unlinked(path: Path) -> bytes:
    """The bytes of a file, which a link in its place does not lead to another."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        return file.read(MAX_MARKER_BYTES)


def _write_marker(home: Path, marker: Marker) -> None:
    former = [str(path) for path in dict.fromkeys(marker.former) if path != marker.path][:MAX_FORMER]
    known = {"format": FORMAT, "identity": marker.identity, "path": str(marker.path), "former": former}
    write_json(home / MARKER, known | ({"copied_from": list(marker.copied_from)} if marker.copied_from else {}))


def _lay_at(home: Path) -> list[Path]:
    """Where a home without an identity lay: its experiments have their artifacts at PATH/artifacts/NAME, its runs their
    folders at PATH/runs/NAME, and some of these are here. Not where it lies.
    """
    paths: dict[Path, None] = {}
    with contextlib.suppress(sqlite3.Error), _opened(home / DATABASE) as connection:
        located = connection.execute("SELECT artifact_location, 'artifacts', name FROM experiments").fetchall()
        runs = connection.execute("SELECT value FROM tags WHERE key = 'bestrun.folder'").fetchall()
        for address, folder, name in located + [(path, "runs", Path(path).name) for (path,) in runs]:
            path, tail = Path(unquote(_split(address or "")[1])), (folder, *Path(name).parts)
            if path.parts[-len(tail) :] == tail and home.joinpath(*tail).exists():
                paths[path.parents[len(tail) - 1]] = None
    return [path for path in paths if path != home and len(path.parts) > 1]


def identity(home: Path) -> str | None:
    """Which home this is, whatever it is called and wherever it lies; None before the first verb that writes."""
    return read_marker(home.resolve()).identity


def copied_from(home: Path) -> tuple[str, ...]:
    """The identities of the homes that this one is a copy of: the store inside it was theirs."""
    return read_marker(home.resolve()).copied_from


def is_home(home: Path) -> bool:
    """Whether runs of ours lie there: marked, or copied without hidden files."""
    return (home / MARKER).exists() or (home / "runs").is_dir()


def _same(path: Path, other: Path) -> bool:
    """Whether two paths lead to one file: by a link, or mounted twice."""
    try:
        return path == other or path.samefile(other)
    except OSError:
        return False


def _is_copy(home: Path, marker: Marker) -> bool:
    """Whether the home that the marker speaks of still lies there, and is not this one."""
    try:
        return bool(json.loads(_read_unlinked(marker.path / MARKER))["identity"] == marker.identity)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return False
    except OSError:  # somebody else's, perhaps: what still lies there was not moved here
        return True


# ---- reading: addresses are translated ----


@dataclass(frozen=True)
class Whereabouts:
    """Where a home lies, and where it lay.

    Attributes:
        home: the folder, links resolved.
        path: below which new addresses in its store are written: that of the marker, as long as that is not rewritten.
        former: below which there may be addresses that mean the home.
    """

    home: Path
    path: Path
    former: tuple[Path, ...]

    def here(self, address: str) -> str:
        """An address of the home's store, as it leads into the home where it lies now."""
        return rebased(address, self.former, self.home)

    def check(self) -> None:
        """Refuse to write where the home no longer is: MLflow would make all folders of its old path anew.

        Raises:
            StorageError: it is gone.
        """
        if not is_home(self.home):
            raise StorageError(f"{self.home}: is gone, it was moved or deleted; go on where it lies now")


def whereabouts(home: Path) -> Whereabouts | None:
    """Where a home lies; None where no runs of ours lie."""
    home = home.resolve()
    if not is_home(home):
        return None
    marker = read_marker(home)
    # Those, too, by which it is still reached: a second mount may be gone tomorrow
    return Whereabouts(home, marker.path, tuple(path for path in (marker.path, *marker.former) if path != home))


def rebased(address: str, former: Iterable[Path], to: Path) -> str:
    """An address below one of the former folders as one below `to`; any other as it is.

    Whole names are compared: what lies in /a/mlruns2 is not below /a/mlruns. The longest folder decides, so that this
    does the same once as twice, even where one of them lies in the other.

    Args:
        address: a file URI, percent-encoded, or a path.
    """
    scheme, path = _split(address)
    words = [word for word in path.split("/") if word]
    names = [unquote(word) for word in words] if scheme else words
    found = [base for base in (to, *former) if tuple(names[: len(base.parts) - 1]) == base.parts[1:]]
    base = max(found, key=lambda base: len(base.parts), default=to)
    if not words or base == to:
        return address
    return "/".join([to.as_uri() if scheme else str(to), *words[len(base.parts) - 1 :]])


def _split(address: str) -> tuple[str, str]:
    """Scheme and absolute path of an address of this machine; of another, nothing."""
    found = re.fullmatch(r"(file:(?://(?:localhost)?)?)?(/.*)", address, re.DOTALL)
    return (found[1] or "", found[2]) if found else ("", "")


# ---- writing: addresses are rewritten, once ----


def settle(home: Path) -> None:
    """Let a home be at home where it lies; for verbs that write, before they do so.

    The path its marker names is the same folder, by a link or a second mount: nothing changes. It holds the same home:
    this one is a copy, and gets an identity of its own. Else it was moved. The addresses in the store inside it are
    rewritten if nothing is at work in the home; otherwise they go on being translated, and a later verb does it.

    Raises:
        SettingsError: a copy shares its store or its artifacts with the original.
        VerificationError: the marker is something else.
    """
    home = home.resolve()
    if not is_home(home):
        return
    marker = read_marker(home)
    if marker.identity and _same(marker.path, home):
        return
    try:
        told = _settle(home)
    except (OSError, sqlite3.Error, StorageError) as error:
        told = None  # a home that was never elsewhere gets its identity another time
        if marker.identity or marker.former:
            told = f"{home}: this mlruns was moved or copied, and that could not be written down: {error}"
    _say(told)


def _say(told: str | None) -> None:
    if told:
        log.warning("%s", told)


def _settle(home: Path) -> str | None:
    """Returns what there is to tell. In an order that a crash does not harm: the store first, then the marker."""
    home = home.resolve()
    with _store_lock(home):
        marker = read_marker(home)  # another process may have done it meanwhile
        if marker.identity and _same(marker.path, home):
            return None
        copied_from = marker.copied_from
        if marker.identity is None:
            alias = next((path for path in marker.former if _same(path, home)), None)
            lay_at = [path for path in marker.former if not _same(path, home)]
            _refuse_what_is_shared(home, *lay_at)
            told = f"{home}: this mlruns lay at {lay_at[0]}; " if lay_at else None
            identity, path = secrets.token_hex(16), alias or home
        elif _is_copy(home, marker):
            _refuse_what_is_shared(home, marker.path)
            told = f"{home}: this mlruns is a copy of {marker.path}, and from here on a home of its own; "
            identity, path, lay_at = secrets.token_hex(16), home, [marker.path, *marker.former]
            copied_from = (str(marker.identity), *marker.copied_from)
        else:
            told = f"{home}: this mlruns was moved, it lay at {marker.path}; "
            identity, path, lay_at = marker.identity, home, [marker.path, *marker.former]
        if lay_at and is_at_work(home):  # whoever is at work has old addresses at hand
            if identity != marker.identity:
                _write_marker(home, Marker(identity, lay_at[0], tuple(lay_at[1:]), copied_from))
            return None
        _rewrite(home / DATABASE, lay_at, path)
        _write_marker(home, Marker(identity, path, tuple(lay_at), copied_from))
        return told and told + "the addresses in its MLflow store follow"


def address_anew(copy: Path, to: Path) -> None:
    """Let a whole copy of a home, which nobody uses yet, be that home at `to`, where it will lie."""
    marker = read_marker(copy)
    former = (marker.path, *marker.former)
    _rewrite(copy / DATABASE, list(former), to)
    _write_marker(copy, Marker(marker.identity, to, former, marker.copied_from))


def _refuse_what_is_shared(home: Path, *originals: Path) -> None:
    """A copy made of links would change the original.

    Raises:
        SettingsError: names what is shared.
    """
    for original, name in itertools.product(originals, (DATABASE, "artifacts", "runs", "sweeps")):
        if _same(home / name, original / name):
            raise SettingsError(
                f"{home / name}: this mlruns is a copy of {original}, and shares {name} with it by a link; a whole "
                f"copy is made by: cp -rL {original} FOLDER"
            )


def is_at_work(home: Path) -> bool:
    """Whether a run or a sweep of the home is owned by a living process."""
    runs = (RunFolder(lock.parent).is_owned() for lock in (home / "runs").glob("*/lock"))
    return any(runs) or any(map(is_locked, (home / "sweeps").glob("*/lock")))


@contextlib.contextmanager
def _store_lock(home: Path) -> Iterator[None]:
    """The lock of the store in the home, which whoever makes or opens the database holds."""
    descriptor = os.open(home / f"{DATABASE}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    """The database, which is not made; what is not committed is undone."""
    connection = sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=20, isolation_level=None)
    with contextlib.closing(connection):
        yield connection


def _rewrite(database: Path, former: list[Path], to: Path) -> None:
    """All addresses in a store of ours that lie below the former folders, in one transaction. Twice is as once."""
    if not former or not database.exists() or database.is_symlink():  # a link leads to a store of other homes, too
        return
    with _opened(database) as connection:
        connection.create_function("rebased", 1, lambda text: text and rebased(text, former, to), deterministic=True)
        connection.execute("BEGIN IMMEDIATE")
        for table, column, which in ADDRESSES:
            if column in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
                connection.execute(
                    f"UPDATE {table} SET {column} = rebased({column}) WHERE {which} AND rebased({column}) <> {column}"
                )
        connection.execute("COMMIT")


def has_run(home: Path, run_id: str | None) -> bool:
    """Whether the store in the home has this run."""
    if not run_id:
        return False
    with contextlib.suppress(sqlite3.Error), _opened(home.resolve() / DATABASE) as connection:
        return bool(connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone())
    return False
