"""A home's first moments: killed while its database is made, the next command finds none or a whole one.

Half-made databases come from MLflow itself, killed in the middle of its migrations.
"""

import contextlib
import fcntl
import functools
import logging
import os
import random
import shutil
import signal
import sqlite3
import tempfile
import time
from pathlib import Path

import pytest

from bestrun.errors import SettingsError
from bestrun.storage.files import StorageError
from bestrun.tracking import database
from bestrun.tracking.store import connect, import_mlflow
from support.looks import until
from support.processes import Starter

# ---- databases, whole and half made ----


def _tables_in_place(path, statements=0, pause=0.0):
    """MLflow's own way to a database, as this program went before; dies before the given statement, or lives."""
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine, event

    engine = create_engine(f"sqlite:///{path}")
    passed = 0

    @event.listens_for(engine, "before_cursor_execute")
    def count(*_):
        nonlocal passed
        passed += 1
        time.sleep(pause)
        if passed == statements:
            os.kill(os.getpid(), signal.SIGKILL)

    _initialize_tables(engine)
    print(passed)


@pytest.fixture(scope="module")
def killed_before(_forkserver, tmp_path_factory):
    """`killed_before(300)`: the folder of a database whose 300th statement never came; it stays as it is."""
    starter = Starter(tmp_path_factory.mktemp("processes"))

    @functools.cache
    def make(statements):
        path = tmp_path_factory.mktemp("half") / "mlflow.db"
        assert starter(_tables_in_place, path, statements).wait().code == -signal.SIGKILL
        return path.parent

    return make


@pytest.fixture
def half_made(killed_before, tmp_path):
    """`half_made(300)`: the path of such a database, alone in its folder."""
    return lambda statements: shutil.copytree(killed_before(statements), tmp_path / "half") / "mlflow.db"


@pytest.fixture
def whole(ready_made_store, tmp_path):
    (tmp_path / "whole").mkdir()
    return Path(shutil.copyfile(ready_made_store, tmp_path / "whole" / "mlflow.db"))


def rows(path, query):
    with contextlib.closing(sqlite3.connect(path)) as opened, opened:
        return opened.execute(query).fetchall()


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def assert_good(path):
    """A whole database of this MLflow, in whose folder no maker left anything."""
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert rows(path, "SELECT version_num FROM alembic_version") == [(database._revisions()[0],)]
    (location,) = rows(path, "SELECT artifact_location FROM experiments WHERE name = 'Default'")
    assert location == ((path.parent / "artifacts" / "Default").as_uri(),)
    assert not [name for name in os.listdir(path.parent) if name.startswith(".mlflow") or name == "mlflow.db-journal"]


def use(path):
    """What the first run does in a store; returns how many runs there are then."""
    store = connect(f"sqlite:///{path}")
    experiment = store.experiment_id("first")
    store.client.create_run(experiment)
    return len(store.client.search_runs([experiment]))


def ready(path, create=True):
    database.ready(path, create=create, load=import_mlflow)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(database, "QUIET_SECONDS", 0.3)


@pytest.fixture
def made_at_once(ready_made_store, monkeypatch):
    """A new database is a copy of a whole one, where it does not matter that a child takes 5 s to make it."""

    def make(path, lock, load):
        new = Path(shutil.copyfile(ready_made_store, path.with_name(".mlflow.db.1.new")))
        default = f"0, 'Default', '{(path.parent / 'artifacts' / 'Default').as_uri()}', 'active'"
        columns = "experiment_id, name, artifact_location, lifecycle_stage"
        rows(new, f"INSERT INTO experiments ({columns}) VALUES ({default})")
        database._publish(new, path)
        new.unlink(missing_ok=True)

    monkeypatch.setattr(database, "_make", make)


# ---- what an earlier version, or MLflow, left half made ----


@pytest.mark.parametrize("statements", [300, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 900))])
def test_a_half_made_database_is_made_anew_and_the_old_one_kept(half_made, made_at_once, impatient, statements, caplog):
    path = half_made(statements)
    before = path.read_bytes()
    with caplog.at_level(logging.WARNING, "bestrun"):
        assert use(path) == 1
    assert_good(path)
    (aside,) = (file for file in path.parent.glob("*.half-made-*") if not file.name.endswith("-journal"))
    assert aside.read_bytes() == before or statements > 4  # what stood in its journal was undone
    (said,) = caplog.messages
    assert said.startswith(f"{path}: was left half made") and said.endswith(str(aside))
    caplog.clear()
    kept = contents(path.parent).keys()
    assert use(path) == 2 and not caplog.messages and contents(path.parent).keys() == kept


def _many_half_made(folder, share, shares):
    """Kill MLflow before every 40th statement, and say what `_is_complete` makes of each database."""
    number = 40 * share + 1
    while True:
        path = folder / str(number) / "mlflow.db"
        path.parent.mkdir()
        if not (pid := os.fork()):
            _tables_in_place(path, number)
            os._exit(0)
        if os.waitpid(pid, 0)[1] == 0:
            break
        before = path.read_bytes()
        assert database._is_complete(path, import_mlflow) is False
        assert path.read_bytes() == before or number > 4
        number += 40 * shares
    print(f"up to {number}")


@pytest.mark.slow
def test_wherever_mlflow_was_killed_there_is_nothing_to_lose(start_process, tmp_path):
    shares = [start_process(_many_half_made, tmp_path, share, 2) for share in range(2)]
    for share in shares:
        result = share.wait(280)
        assert result.code == 0 and "up to " in result.out, result.err
    assert len(list(tmp_path.iterdir())) > 30


def _write_until_killed(path):
    with contextlib.closing(sqlite3.connect(path)) as opened:
        opened.execute("PRAGMA cache_size = 1")
        opened.execute("UPDATE alembic_version SET version_num = 'gone'")
        opened.execute("CREATE TABLE padding (text)")
        opened.executemany("INSERT INTO padding VALUES (?)", [("." * 5000,)] * 500)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_journal_whose_database_is_gone_is_not_applied_to_the_new_one(whole, made_at_once, start_process):
    start_process(_write_until_killed, whole).wait()
    journal = whole.with_name("mlflow.db-journal")
    undone = journal.read_bytes()
    assert len(undone) > 512
    whole.unlink()  # what people do with a database that does not work
    assert use(whole) == 1
    assert_good(whole)
    (aside,) = whole.parent.glob("*.half-made-*-journal")
    assert aside.read_bytes() == undone


def test_a_whole_database_whose_writer_was_killed_is_whole(whole, start_process):
    start_process(_write_until_killed, whole).wait()
    assert whole.with_name("mlflow.db-journal").exists()
    assert use(whole) == 1
    assert rows(whole, "PRAGMA integrity_check") == [("ok",)] and not list(whole.parent.glob("*.half-made-*"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.1, pytest.param(0.5, marks=pytest.mark.slow)])
def test_mlflows_own_server_that_makes_it_just_now_is_waited_for(start_process, tmp_path, moment):
    path = tmp_path / "mlflow.db"
    import_mlflow()
    database._revisions()
    other = start_process(_tables_in_place, path, 0, 0.005)
    while not path.exists() or path.stat().st_size < moment * 950_000:
        assert other.poll() is None
        time.sleep(0.005)
    assert not database._is_complete(path, import_mlflow)
    assert use(path) == 1
    assert other.wait().code == 0
    assert not list(tmp_path.glob("*half-made*")) and rows(path, "PRAGMA integrity_check") == [("ok",)]


def test_what_a_migration_changes_between_two_questions_is_not_seen(half_made, monkeypatch):
    path = half_made(400)
    rows(path, "CREATE TABLE _alembic_tmp_runs AS SELECT * FROM runs")
    refused = []

    class Interrupted(sqlite3.Connection):
        def execute(self, query, *values):
            found = super().execute(query, *values)
            if "sqlite_master" in query:
                found = found.fetchall()
                try:
                    with contextlib.closing(sqlite3.Connection(path, timeout=0)) as other, other:
                        other.execute("DROP TABLE _alembic_tmp_runs")
                except sqlite3.OperationalError as error:
                    refused.append(str(error))
            return found

    connect_ = functools.partial(sqlite3.connect, factory=Interrupted)
    monkeypatch.setattr(database.sqlite3, "connect", connect_)
    assert not database._is_complete(path, import_mlflow)
    assert refused == ["database is locked"]


# ---- what is refused, and left as it was ----

ROWS = {
    "a run": "INSERT INTO runs (run_uuid, experiment_id) VALUES ('a', 0)",
    "an experiment": "INSERT INTO experiments (experiment_id, name) VALUES (1, 'mine')",
    "a renamed Default": "INSERT INTO experiments (experiment_id, name) VALUES (0, 'mine')",
    "a setting": "INSERT INTO params VALUES ('seed', '1', 'a')",
    "a note": "INSERT INTO experiment_tags VALUES ('note', 'mine', 0)",
    "a model": "INSERT INTO registered_models (name, creation_time) VALUES ('mine', 1)",
}


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("row", ROWS)
def test_a_half_made_database_with_any_row_is_refused(half_made, impatient, row, create):
    path = half_made(400)
    rows(path, ROWS[row])
    before = contents(path.parent)
    with pytest.raises(SettingsError) as refused:
        ready(path, create)
    assert "\n" not in str(refused.value)
    assert f"make a backup: cp {path} {path}.backup; then: mlflow db upgrade sqlite:///{path}" in str(refused.value)
    assert {name: data for name, data in contents(path.parent).items() if name != "mlflow.db.lock"} == before


def test_rows_in_the_copy_that_a_migration_was_at_count_too(half_made, impatient):
    path = half_made(400)
    rows(path, "CREATE TABLE _alembic_tmp_runs AS SELECT * FROM runs")
    rows(path, "INSERT INTO _alembic_tmp_runs (run_uuid) VALUES ('a')")
    with pytest.raises(SettingsError, match="as its table runs holds rows"):
        ready(path)


def test_a_database_of_an_older_mlflow_is_refused_if_it_holds_a_run(whole, impatient):
    assert use(whole) == 1
    rows(whole, "UPDATE alembic_version SET version_num = '451aebb31d03'")
    before = whole.read_bytes()
    with pytest.raises(SettingsError, match="has schema 451aebb31d03, .* needs .*; then: mlflow db upgrade"):
        connect(f"sqlite:///{whole}")
    assert whole.read_bytes() == before


def _newer(path):
    rows(path, "UPDATE alembic_version SET version_num = 'ffffffffffff'")


def _text(path):
    path.write_text("this is no database, and longer than the header of one. " * 20)


def _of_another_program(path):
    path.unlink()
    rows(path, "CREATE TABLE recipes (name)")


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_newer, "has schema ffffffffffff, which MLflow .* does not know"),
        (_text, "is no SQLite database"),
        (_of_another_program, "is another program's database"),
    ],
)
def test_what_is_not_ours_is_refused_in_one_line_and_not_touched(whole, spoil, why, create):
    spoil(whole)
    before = contents(whole.parent)
    with pytest.raises(SettingsError, match=why) as refused:
        connect(f"sqlite:///{whole}", create=create)
    assert str(refused.value).startswith(f"{whole}: ") and "\n" not in str(refused.value)
    assert contents(whole.parent) == before


def _use_without_rights(path):
    os.setuid(65534)
    with pytest.raises(StorageError) as refused:
        ready(Path(path))
    print(refused.value)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give up the right to read")
@pytest.mark.parametrize("size", ["empty", "half made", "whole"])
def test_a_database_that_may_not_be_read_is_an_error_and_not_set_aside(start_process, half_made, whole, size):
    path = half_made(300) if size == "half made" else whole
    if size == "empty":
        os.truncate(path, 0)
    for folder in path.parents:
        if folder.is_relative_to(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
            folder.chmod(0o755)
    path.parent.chmod(0o777 if size == "half made" else 0o700 if size == "whole" else 0o755)
    path.chmod(0o600)
    before = contents(path.parent)
    result = start_process(_use_without_rights, str(path), cwd=Path("/")).wait()
    assert result.code == 0, result.err
    assert str(path) in result.out and result.out.count("\n") == 1
    assert contents(path.parent) == before


def test_a_damaged_database_is_an_error_and_not_set_aside(whole):
    with open(whole, "r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 200_000)
    before = contents(whole.parent)
    with pytest.raises(StorageError, match="mlflow.db: cannot be read, and was left as it is: .*malformed"):
        ready(whole)
    assert contents(whole.parent) == before


def test_without_create_nothing_is_made(tmp_path, half_made):
    half = half_made(300)
    with pytest.raises(SettingsError, match="there are no runs here yet"):
        connect(f"sqlite:///{tmp_path}/new/mlflow.db", create=False)
    before = os.listdir(half.parent)
    with pytest.raises(SettingsError, match="there are no runs here yet"):
        connect(f"sqlite:///{half}", create=False)
    assert not (tmp_path / "new").exists() and sorted(os.listdir(half.parent)) == sorted(before)


# ---- how it gets its name ----


@pytest.fixture(params=["with hard links", "without"])
def hard_links(request, monkeypatch):
    """File systems of both kinds."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    if request.param == "without":
        monkeypatch.setattr(os, "link", refuse)


def test_a_new_database_gets_its_name_and_never_replaces_one_that_came_meanwhile(hard_links, tmp_path):
    new, path = tmp_path / ".mlflow.db.1.new", tmp_path / "mlflow.db"
    for text in ("first", "second"):
        new.write_text(text)
        database._publish(new, path)
        new.unlink(missing_ok=True)
        assert path.read_text() == "first"


def test_the_lock_is_neither_followed_nor_emptied(tmp_path):
    (tmp_path / "mine").write_text("mine")
    lock = tmp_path / "mlflow.db.lock"
    lock.symlink_to(tmp_path / "mine")
    with pytest.raises(StorageError, match="mlflow.db.lock: cannot open it"):
        ready(tmp_path / "mlflow.db")
    lock.unlink()
    lock.write_text("mine")
    with database.locked(tmp_path / "mlflow.db"):
        assert (tmp_path / "mine").read_text() == lock.read_text() == "mine"


def test_what_the_child_says_is_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "Unheard")
    with pytest.raises(StorageError) as refused:
        ready(tmp_path / "mlflow.db")
    assert "mlflow.db: cannot be made: " in str(refused.value) and "\n" not in str(refused.value)
    assert os.listdir(tmp_path) == ["mlflow.db.lock"]


@pytest.mark.slow
def test_files_of_the_current_folder_are_not_taken_for_modules(tmp_path, monkeypatch):
    (tmp_path / "mlflow.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert use(tmp_path / "home" / "mlflow.db") == 1


# ---- what is known of MLflow's inside ----


def test_the_schema_is_the_one_that_mlflow_asks_for(whole):
    from mlflow.store.db.utils import _get_latest_schema_revision

    head, known = database._revisions()
    assert head == _get_latest_schema_revision() and head in known and "451aebb31d03" in known
    assert rows(whole, "SELECT version_num FROM alembic_version") == [(head,)]


def test_an_empty_file_counts_as_half_made_and_the_new_database_holds_no_row_but_those_known(tmp_path, impatient):
    path = tmp_path / "mlflow.db"
    path.touch()
    ready(path)
    connect(f"sqlite:///{path}").client.search_registered_models()
    assert_good(path)
    tables = [name for (name,) in rows(path, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert {"runs", "registered_models", "model_versions", "logged_models", "experiments"} <= set(tables)
    found = [name for name in tables if rows(path, f'SELECT 1 FROM "{name}"')]
    assert sorted(found) == sorted(database.ALWAYS_THERE)
    assert rows(path, "PRAGMA journal_mode") == [("delete",)]
    rows(path, "UPDATE alembic_version SET version_num = '451aebb31d03'")
    assert database._is_complete(path, import_mlflow) is False


# ---- killed while it is made ----


def _first_use(path):
    print("begun", flush=True)
    print(use(path))


def _makers(folder):
    """The living processes that make a database in this folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{folder}/.mlflow.db." in file.read_bytes().decode(errors="replace"):
                found.append(int(file.parent.name))
    return found


def _lock_is_free(path):
    """A dead process loses its command line a moment before its files, so ask a few times."""
    with open(path) as file:
        for _ in range(100):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(0.01)
    return False


def _gone(folder):
    deadline = time.monotonic() + 5
    while _makers(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not _makers(folder)


def _until_it_is_made(folder, process):
    """Wait until one child is making the database, under the lock."""
    until(lambda: list(folder.glob(".mlflow.db.*.new")), process)
    assert len(_makers(folder)) == 1
    assert not _lock_is_free(folder / "mlflow.db.lock")


@pytest.mark.slow  # its quick sibling is a first run that is killed, at the end
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_the_maker_dies_with_its_parent_and_the_next_removes_what_it_left(start_process, tmp_path, number):
    path = tmp_path / "home" / "mlflow.db"
    process = start_process(_first_use, path)
    _until_it_is_made(path.parent, process)
    process.kill(number)
    assert process.wait(10).code == -number
    assert _gone(path.parent) and not path.exists()
    assert _lock_is_free(f"{path}.lock")
    assert bool(list(path.parent.glob(".mlflow.db.*"))) == (number != signal.SIGINT)
    assert use(path) == 1
    assert_good(path)


@pytest.mark.slow
def test_a_maker_that_is_killed_alone_is_an_error_and_the_next_makes_it(start_process, tmp_path):
    path = tmp_path / "home" / "mlflow.db"
    process = start_process(_first_use, path)
    _until_it_is_made(path.parent, process)
    os.kill(*_makers(path.parent), signal.SIGKILL)
    assert "mlflow.db: cannot be made: its process ended with -9; mend that, then: the same again" in process.wait().err
    assert os.listdir(path.parent) == ["mlflow.db.lock"]
    assert use(path) == 1
    assert_good(path)


def kill(process, manner):
    """SIGKILL, SIGHUP, SIGINT, or SIGINT twice."""
    process.kill(signal.Signals["SIGINT" if manner == "twice" else manner])
    if manner == "twice":
        time.sleep(0.05)
        process.kill(signal.SIGINT)


MANNERS = ["SIGKILL", "SIGHUP", "SIGINT", "twice"]
MOMENTS = [(MANNERS[n % 4], n * 10 / 100) for n in range(100)]  # of the first ten seconds


@pytest.mark.slow
@pytest.mark.parametrize("moments", [pytest.param(MOMENTS[n::20], id=f"share {n:02}") for n in range(20)])
def test_a_fresh_home_killed_at_any_moment_has_a_good_store_at_the_next_command(start_process, tmp_path, moments):
    for number, (manner, moment) in enumerate(moments):
        path = tmp_path / str(number) / "mlruns" / "mlflow.db"
        process = start_process(_first_use, path)
        while "begun" not in process.out:
            time.sleep(0.001)
        time.sleep(moment)
        kill(process, manner)
        first = process.wait()
        second = start_process(_first_use, path).wait()
        assert second.code == 0, (manner, moment, second.err)
        assert second.err == "" and int(second.out.split()[-1]) in (1, 2), (manner, moment, first)
        assert_good(path)
        assert not list(path.parent.glob("*half-made*")) and _gone(path.parent)


def _assert_the_next_run_finds_a_good_store(command, settings, home):
    listed = command("runs")
    assert listed.code in (0, 2) and "Traceback" not in listed.err
    assert listed.code == 0 or "there are no runs here yet" in listed.err, listed.err
    synced = command("sync")
    assert synced.code == 0, synced
    trained = command("train", *settings, "name=b")
    assert trained.code == 0, trained.err
    assert_good(home / "mlflow.db")
    assert not list(home.glob("*half-made*"))
    assert rows(home / "mlflow.db", "SELECT status FROM runs WHERE name = 'b'") == [("FINISHED",)]


@pytest.fixture
def fresh(tmp_path):
    """A home that is not there yet."""
    return tmp_path / "fresh" / "mlruns"


@pytest.fixture
def command(bestrun, fresh):
    """`bestrun` in that home."""
    return functools.partial(bestrun, env={"BESTRUN_MLRUNS": str(fresh)})


def test_a_first_run_that_is_killed_takes_the_maker_of_its_store_along_and_the_next_run_makes_a_good_one(
    bestrun, command, settings, fresh
):
    process = bestrun.start("train", *settings, "name=a", env={"BESTRUN_MLRUNS": str(fresh)})
    _until_it_is_made(fresh, process)
    process.kill()
    assert process.wait(10).code == -signal.SIGKILL
    assert _gone(fresh) and not (fresh / "mlflow.db").exists()
    assert _lock_is_free(fresh / "mlflow.db.lock")
    assert list(fresh.glob(".mlflow.db.*"))  # what it left, which the next one removes
    _assert_the_next_run_finds_a_good_store(command, settings, fresh)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(16))
def test_a_first_run_killed_while_its_store_is_made_leaves_a_good_one(bestrun, command, settings, fresh, number):
    process = bestrun.start("train", *settings, "name=a", env={"BESTRUN_MLRUNS": str(fresh)})
    time.sleep(random.Random(number).uniform(0.5, 10))
    kill(process, MANNERS[number % 4])
    process.wait()
    assert _gone(fresh)
    _assert_the_next_run_finds_a_good_store(command, settings, fresh)
