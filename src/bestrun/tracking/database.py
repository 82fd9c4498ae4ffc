"""How a store comes to be that no server stands before: whole, or not at all, by one process at a time.

In SQLite MLflow makes its tables by some seventy migrations, whose statements are committed one by one. Killed in
between, it leaves a database that it can neither use nor finish. So a child process makes the database under another
name, and only a complete one is given the name of the store. PostgreSQL takes each migration whole; there it is enough
to take turns.

What is known here of MLflow's inside: where its migrations are, and what a database without any run holds.
tests/tracking/test_fresh_store.py fails where a new version differs.
"""

import contextlib
import ctypes
import fcntl
import functools
import glob
import importlib.util
import logging
import os
import re
import secrets
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ..errors import SettingsError
from ..storage.files import StorageError, storage_error, sync_folder

if TYPE_CHECKING:
    import sqlalchemy

log = logging.getLogger("bestrun")

QUIET_SECONDS = 5.0  # what is half made and has not changed for so long is no living process' work
BUSY_SECONDS = 20.0  # so long MLflow waits for another process' transaction, too

# The rows that MLflow puts into every new database, as conditions for all others.
ALWAYS_THERE = {
    "alembic_version": "FALSE",
    "experiments": "NOT (experiment_id = 0 AND name = 'Default' AND lifecycle_stage = 'active')",
    "workspaces": "name != 'default'",
}


def ready(path: Path, *, create: bool, load: Callable[[], object]) -> None:
    """The database at `path` is complete when this returns; a missing one is made, by one process at a time.

    One that was left half made, by MLflow itself or by an earlier version of this program, is made anew if there is
    no row in it; the old file is set aside. The common case, a complete database, takes no lock and writes nothing.

    Args:
        create: make what is missing; else nothing is made or moved.
        load: imports MLflow. It is called while the child works, as both take seconds.

    Raises:
        SettingsError: there is none, with `create=False`; or it is another program's or another MLflow's.
        StorageError: it cannot be read or made; nothing is concluded from that.
    """
    if _is_complete(path, load):
        return
    if not create:
        raise SettingsError(f"{path}: there are no runs here yet; the first is made by: bestrun train")
    with locked(path) as lock:
        try:
            for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.new*"):  # their makers are dead, see _make
                leftover.unlink(missing_ok=True)
            while not _is_complete_once_quiet(path, load):
                _set_aside(path)
                _make(path, lock, load)
        except OSError as error:
            raise storage_error(path, "make it", error) from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the lock of the store at `path`, waiting for it; gives the lock's file descriptor.

    Raises:
        StorageError: the lock file cannot be made.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise storage_error(lock, "open it", error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


# ---- what is there ----


@contextlib.contextmanager
def asked(path: Path) -> Iterator[sqlite3.Connection]:
    """A database that is there, to ask and not to write; all answers are of one moment.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    # Not mode=ro: SQLite must be able to undo what a killed process began to write, as MLflow would let it
    address = f"file:{quote(os.fsencode(path))}?mode=rw"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS)) as database:
        database.execute("BEGIN")  # another process may be migrating
        yield database


def _is_complete(path: Path, load: Callable[[], object]) -> bool:
    """Whether it has the tables of this MLflow. If not, there is nothing to lose: it is missing, or holds no row.

    Raises:
        SettingsError: there is something to lose.
        StorageError: it cannot be read.
    """
    try:
        if path.stat().st_size == 0:
            return False
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(path, "read it", error) from error
    load()
    try:
        with asked(path) as database:
            return _has_our_schema(path, database)
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise SettingsError(
                f"{path}: is no SQLite database; it was left as it is; name another: tracking.uri=sqlite:///FILE"
            ) from error
        raise StorageError(f"{path}: cannot be read, and was left as it is: {error}") from error


def _has_our_schema(path: Path, database: sqlite3.Connection) -> bool:
    import mlflow

    head, known = _revisions()
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    tables = {name for (name,) in database.execute(query)}
    found = None
    if "alembic_version" in tables:
        found = ", ".join(str(revision) for (revision,) in database.execute("SELECT version_num FROM alembic_version"))
    if found == head:
        return True
    # A migration copies a table to _alembic_tmp_NAME, drops it, and renames the copy
    names = {table: table.removeprefix("_alembic_tmp_") for table in tables}
    if found and found not in known:
        raise SettingsError(
            f"{path}: has schema {found}, which MLflow {mlflow.__version__} does not know; it was left as it is; "
            "install the newer MLflow that made it, or name another: tracking.uri=sqlite:///FILE"
        )
    if tables - {"alembic_version"} and "experiments" not in names.values():
        raise SettingsError(
            f"{path}: is another program's database; it was left as it is; name another: tracking.uri=sqlite:///FILE"
        )
    for table, name in sorted(names.items()):
        condition = ALWAYS_THERE.get(name, "TRUE")
        quoted = '"' + table.replace('"', '""') + '"'
        if database.execute(f"SELECT EXISTS (SELECT 1 FROM {quoted} WHERE {condition})").fetchone()[0]:
            file, backup = shlex.quote(str(path)), shlex.quote(f"{path}.backup")
            raise SettingsError(
                f"{path}: has schema {found or 'none'}, MLflow {mlflow.__version__} needs {head}; as its table "
                f"{name} holds rows, it was left as it is; make a backup: cp {file} {backup}; "
                f"then: mlflow db upgrade {shlex.quote(f'sqlite:///{path}')}"
            )
    return False


@functools.cache
def _revisions() -> tuple[str, frozenset[str]]:
    """The schema of this MLflow, and all that led to it.

    By the text of its migrations: alembic would import all of them, and itself, in 0.4 s.
    """
    package = importlib.util.find_spec("mlflow")
    folders = package.submodule_search_locations if package else None
    folder = Path((folders or [""])[0]) / "store" / "db_migrations"
    before: dict[str, list[str]] = {}
    for file in (folder / "versions").glob("*.py"):
        lines = dict(re.findall(r"^(revision|down_revision)\b[^=\n]*=(.*)", file.read_text("utf-8"), re.MULTILINE))
        named = {name: re.findall(r"""["'](\w+)["']""", line) for name, line in lines.items()}
        before |= {revision: named.get("down_revision", []) for revision in named.get("revision", [])}
    heads = before.keys() - {revision for each in before.values() for revision in each}
    if len(heads) == 1:
        return heads.pop(), frozenset(before)
    from alembic.script import ScriptDirectory  # which knows every way to write them

    scripts = ScriptDirectory(str(folder))
    (head,) = scripts.get_heads()
    return head, frozenset(script.revision for script in scripts.walk_revisions())


def is_of_this_mlflow(path: Path) -> bool:
    """Whether there is a database with the tables of the MLflow installed here, which is not imported for that."""
    try:
        if not path.is_file() or not path.stat().st_size:
            return False
        with asked(path) as database:
            return database.execute("SELECT version_num FROM alembic_version").fetchall() == [(_revisions()[0],)]
    except (OSError, sqlite3.Error):  # why it cannot be read is told where it is opened for more than this
        return False


def _is_complete_once_quiet(path: Path, load: Callable[[], object]) -> bool:
    """As `_is_complete`, but a half-made one is watched for a while: an MLflow server may be making it just now."""
    seen, since = None, time.monotonic()
    while not _is_complete(path, load):
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        if seen != (seen := (status.st_mtime_ns, status.st_size)):
            since = time.monotonic()
        elif time.monotonic() - since > QUIET_SECONDS:
            return False
        time.sleep(0.1)
    return True


def _set_aside(path: Path) -> None:
    """Rename what is half made. Journals go first: beside a new database, SQLite would apply an old one's to it."""
    aside = f"{path}.half-made-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    found = [suffix for suffix in ("-journal", "-wal", "-shm", "") if os.path.lexists(f"{path}{suffix}")]
    for suffix in found:
        os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    if found:
        what = "was left half made, and holds no run" if "" in found else "is gone, but not its journal"
        log.warning("%s: %s; it is made anew, what was there is now %s", path, what, aside + found[-1])


# ---- in PostgreSQL ----

LOCK_OF_TABLES = 0x62657374  # any number that nobody else takes a lock of


@contextlib.contextmanager
def taking_turns(uri: str) -> Iterator[None]:
    """Be alone where MLflow's tables are to be made: of processes that make them at once, all but one fail.

    A database that is away is an error at once, where MLflow tries for minutes.

    Raises:
        sqlalchemy.exc.SQLAlchemyError, ImportError: it cannot be opened.
    """
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    engine = sqlalchemy.create_engine(uri, poolclass=NullPool)
    try:
        # Without a transaction, which would hold locks that MLflow's migrations wait for
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if engine.dialect.name == "postgresql" and not _has_head(connection):
                # Held until the connection is closed, so that it dies with this process
                connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({LOCK_OF_TABLES})"))
            yield
    finally:
        engine.dispose()


def _has_head(connection: "sqlalchemy.Connection") -> bool:
    """Whether the tables are those of this MLflow."""
    import sqlalchemy

    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return False
    found = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalars().all()
    return found == [_revisions()[0]]


# ---- how it is made ----


def _make(path: Path, lock: int, load: Callable[[], object]) -> None:
    """Let a child process make the database beside `path`, then give it that name, unless something has it by now.

    MLflow keeps its connections by address, so nothing in this process may open the other name with MLflow. The child
    inherits the lock: if this process is killed, nobody is in before the child, too, is dead.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    location = (path.parent / "artifacts" / "Default").as_uri()
    # What this process can import, the child can; -P keeps files of the current folder from being taken for modules
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folder or "." for folder in sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", "-m", __name__, new, location, str(os.getpid())],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[lock],
        start_new_session=True,  # Ctrl-C is for this process, which may finish
    )
    try:
        load()
        said = child.communicate()[1].decode(errors="replace").splitlines()
        if child.returncode or not _is_complete(new, load):
            why = said[-1] if said and child.returncode > 0 else f"its process ended with {child.returncode}"
            raise StorageError(f"{path}: cannot be made: {why}; mend that, then: the same again")
        _publish(new, path)
    finally:
        child.kill()
        child.wait()
        for suffix in ("", "-journal"):
            Path(f"{new}{suffix}").unlink(missing_ok=True)


def _publish(new: Path, path: Path) -> None:
    """Give a complete database its name, never over an existing file; on disk before its name is."""
    descriptor = os.open(new, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(new, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links: the lock keeps all but MLflow's own processes away
        if not os.path.lexists(path):
            os.rename(new, path)
    sync_folder(path.parent)


def _make_in_child(new: str, location: str, parent: str) -> None:
    """Make a database with MLflow's tables and the Default experiment, whose artifacts are at `location`."""
    with contextlib.suppress(AttributeError):  # elsewhere than on Linux it ends by itself, seconds later
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the parent
    if os.getppid() != int(parent):
        sys.exit("the parent has died")
    import mlflow

    mlflow.MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
    # MLflow has put it below the current folder
    with contextlib.closing(sqlite3.connect(new)) as database, database:
        database.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0", [location])


if __name__ == "__main__":
    try:
        _make_in_child(*sys.argv[1:])
    except Exception as error:
        sys.exit((str(error).splitlines() or [type(error).__name__])[0])
