"""Full disks, size limits, folders that cannot be used, and many processes at one database.

R6, R7, R9 and R10 of the test plan.
"""

import contextlib
import fcntl
import logging
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bestrun.storage.checkpoint import load
from bestrun.storage.files import StorageError
from bestrun.storage.folder import RunFolder
from bestrun.storage.home import create_home
from bestrun.storage.journal import Journal, read_journal
from bestrun.tracking.refusals import is_permanent
from bestrun.tracking.sender import Sender
from bestrun.views.screen import Screen
from support.looks import ELSEWHERE, evaluations, same_tensors
from support.processes import bestrun_command
from support.stub import STARTED

# ---- R6: no room ----

PAGE = 4096  # so much a tmpfs gives or refuses at a time
LINE = logging.getLogger("bestrun")


class Disk:
    """A disk of 24 MB of its own, really full when `fill` says so."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, room: int = 0) -> None:
        """Leave `room` bytes, rounded down to pages."""
        self.free()
        with open(self.path / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 20)) == 1 << 20:
                pass
        if room:
            os.truncate(self.path / "ballast", (self.path / "ballast").stat().st_size - room // PAGE * PAGE)

    def free(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)


def _mount(*arguments):
    result = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"no right to mount a small disk: {result.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    _mount("-t", "tmpfs", "-o", "size=24m", "tmpfs", path)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


# A checkpoint of this network has 1.2 MB, more than an empty mlflow.db, so that one limit can let the other pass.
@pytest.fixture
def settings(settings):
    return [*settings, "model.fc_size=256"]


_trained: dict[str, Path] = {}


@pytest.fixture
def whole_and_cut(bestrun, home, settings, tmp_path_factory):
    """Two folders `runs`, made once: of a run of 60 steps, and of the same killed when all of step 40 was saved."""
    for kind, fault in (("whole", None), ("cut", "F10:3")):
        if kind not in _trained:
            place = tmp_path_factory.mktemp(kind)
            shutil.copytree(home / "mlruns", place / "mlruns")
            env = {"BESTRUN_MLRUNS": str(place / "mlruns"), "BESTRUN_FAULT": fault}
            result = bestrun("train", *settings, "name=it", env=env)
            assert result.code == (-signal.SIGKILL if fault else 0), result.err
            _trained[kind] = place / "mlruns" / "runs"
    return _trained["whole"], _trained["cut"]


@pytest.fixture
def cut(whole_and_cut, disk):
    """The run that was killed, in a home on the small disk: (its folder, environment). MLflow is on another disk."""
    mlruns = disk.path / "mlruns"
    shutil.copytree(whole_and_cut[1], mlruns / "runs", ignore=ELSEWHERE)
    (mlruns / ".bestrun").touch()
    database = Path(os.environ["BESTRUN_MLRUNS"]) / "mlflow.db"
    environment = {"BESTRUN_MLRUNS": str(mlruns), "MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    return RunFolder(mlruns / "runs" / "it"), environment


@pytest.fixture
def whole(whole_and_cut):
    return RunFolder(whole_and_cut[0] / "it")


def _assert_refused_for(result, path, doing, mend, again="bestrun resume it"):
    assert result.code == 1, result
    assert "Traceback" not in result.out + result.err and "Logging error" not in result.err
    (line,) = result.err.splitlines()
    assert line.startswith(f"error: {path}: cannot {doing}") and " bytes: " in line, line
    assert line.endswith(f"; {mend}, then: {again}"), line


def _assert_state_is_whole(folder):
    assert load(folder.last).state.step == 40
    best = [line for line in evaluations(folder) if line["improved"]][-1]
    load(folder.path / best["checkpoint"], sha256=best["sha256"])
    assert not list(folder.path.glob(".*"))


def _assert_goes_on_to_the_same_end(bestrun, folder, environment, whole):
    result = bestrun("resume", "it", env=environment)
    assert result.code == 0, result.err
    assert same_tensors(folder.last, whole.last)
    assert same_tensors(folder.bests()[0], whole.bests()[0]) and len(folder.bests()) == 1
    keys = ("step", "val/accuracy", "val/loss", "train/loss", "improved")
    assert [[line[key] for key in keys] for line in evaluations(folder)] == [
        [line[key] for key in keys] for line in evaluations(whole)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("room", "file"),
    [
        pytest.param(0.5, "best-60.safetensors", id="best"),
        pytest.param(1.5, "last.safetensors", id="last", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_at_a_checkpoint_costs_no_saved_state(bestrun, disk, cut, whole, room, file):
    folder, environment = cut
    size = folder.last.stat().st_size
    disk.fill(int(room * size))
    result = bestrun("resume", "it", env=environment)
    _assert_refused_for(result, folder.path / file, f"write {size // 1000:,},", "make room")
    _assert_state_is_whole(folder)
    disk.free()
    _assert_goes_on_to_the_same_end(bestrun, folder, environment, whole)


def _limited(size, *argv):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    bestrun_command(argv)


@pytest.mark.slow
def test_a_file_size_limit_at_a_checkpoint_costs_no_saved_state(bestrun, start_process, cut, whole):
    folder, environment = cut
    limit = folder.last.stat().st_size - 1000
    assert Path(environment["MLFLOW_TRACKING_URI"][10:]).stat().st_size + 200_000 < limit
    result = start_process(_limited, limit, "resume", "it", env=environment).wait()
    _assert_refused_for(result, folder.path / "best-60.safetensors", "write", "raise the limit, see ulimit -f")
    _assert_state_is_whole(folder)
    _assert_goes_on_to_the_same_end(bestrun, folder, environment, whole)


def _pad_to_a_page(path):
    """An event of a kind that nobody reads, so long that the next line needs a new page of the disk."""
    with Journal(path) as journal:
        journal.append("padding", text="")
        journal.append("padding", text="." * (2 * PAGE - (path.stat().st_size + 64) % PAGE))
        missing = -path.stat().st_size % PAGE
        journal.append("padding", text="." * (missing + PAGE - 64 - 8))


@pytest.mark.slow
def test_a_full_disk_at_the_journal_costs_no_saved_state(bestrun, disk, cut, whole):
    folder, environment = cut
    _pad_to_a_page(folder.journal)
    before = folder.journal.read_bytes()
    disk.fill()
    result = bestrun("resume", "it", env=environment)
    _assert_refused_for(result, folder.journal, "append", "make room")
    assert folder.journal.read_bytes() == before
    _assert_state_is_whole(folder)
    disk.free()
    _assert_goes_on_to_the_same_end(bestrun, folder, environment, whole)


def test_a_journal_on_a_full_disk_keeps_its_lines_and_takes_more_when_there_is_room(disk):
    path = disk.path / "it" / "journal.jsonl"
    path.parent.mkdir()
    with Journal(path) as journal:
        journal.append("started", name="it")
        disk.fill()
        for step in range(1000):
            size = path.stat().st_size
            try:
                journal.append("evaluation", step=step)
            except StorageError as error:
                assert str(error).startswith(f"{path}: cannot append ")
                assert str(error).endswith("No space left on device; make room, then: bestrun resume it")
                break
        assert 0 < step < 999 and path.stat().st_size == size
        disk.free()
        journal.append("evaluation", step=step)
    assert [event.get("step") for event in read_journal(path)[0]] == [None, *range(step + 1)]


def test_a_run_that_finds_no_room_to_begin_leaves_nothing(bestrun, disk, settings):
    mlruns = disk.path / "mlruns"
    create_home(mlruns)
    before = sorted(mlruns.rglob("*"))
    disk.fill()
    environment = {"BESTRUN_MLRUNS": str(mlruns)}
    result = bestrun("train", *settings, "name=it", env=environment)
    _assert_refused_for(result, mlruns / "runs" / "it" / "config.yaml", "write", "make room", "the same again")
    assert sorted(mlruns.rglob("*")) == before


@pytest.fixture
def journalled(home):
    """Makes a small run with a journal and one checkpoint in the folder given."""

    def make(path):
        from bestrun.storage.checkpoint import LoopState, encode, save

        folder = RunFolder(path)
        folder.path.mkdir(parents=True)
        import numpy as np

        tensors = {"model/a/kernel": np.arange(1000.0)}
        stamp = dict(run_name=path.name, config_digest="c", data_digest="d")
        sha256 = save(folder.best(10), encode(tensors, LoopState(step=10), **stamp))
        with Journal(folder.journal) as journal:
            journal.append("started", **STARTED, name=path.name)
            figures = {"val/accuracy": 0.5, "val/loss": 1.0, "train/loss": 1.0, "train/accuracy": 0.5}
            saved = {"checkpoint": folder.best(10).name, "sha256": sha256}
            journal.append("evaluation", step=10, improved=True, images_per_second=1.0, **figures, **saved)
            journal.append("stopped", reason="max_steps", step=10, best={"step": 10, **saved})
        return folder

    return make


@pytest.mark.parametrize("full", ["mlflow.db", "mirror.json"])
def test_a_full_disk_only_delays_what_mlflow_gets(home, disk, journalled, full):
    from mlflow import MlflowClient

    store = disk.path / "mlflow.db" if full == "mlflow.db" else home / "mlruns" / "mlflow.db"
    if full == "mlflow.db":
        shutil.copyfile(home / "mlruns" / "mlflow.db", store)
    folder = journalled((disk.path if full == "mirror.json" else home / "mlruns" / "runs") / "it")
    disk.fill()
    sender = Sender(folder, f"sqlite:///{store}")
    with pytest.raises(Exception) as refused:
        sender.catch_up()
    assert not is_permanent(refused.value), refused.value  # the mirror asks again
    disk.free()
    assert sender.catch_up() == 3
    assert Sender(folder, f"sqlite:///{store}").catch_up() == 0
    client = MlflowClient(f"sqlite:///{store}")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "FINISHED" and run.data.metrics["best/accuracy"] == 0.5
    assert [row.step for row in client.get_metric_history(run.info.run_id, "val/loss")] == [10]


@pytest.mark.slow
def test_training_goes_on_though_the_disk_of_mlflow_is_full(bestrun, home, disk, settings, whole):
    store = disk.path / "mlflow.db"
    shutil.copyfile(home / "mlruns" / "mlflow.db", store)
    disk.fill()
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    result = bestrun("train", *settings, "name=it", env=environment)
    assert result.code == 6 and "bestrun sync it" in result.out
    folder = RunFolder(home / "mlruns" / "runs" / "it")
    assert same_tensors(folder.last, whole.last)
    disk.free()
    assert bestrun("sync", "it", env=environment).code == 0
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "FINISHED" and run.data.metrics["best/step"] == 60


def test_a_full_disk_for_run_log_costs_lines_and_one_warning(disk, capsys):
    screen = Screen()
    with screen.shown(disk.path / "run.log"):
        LINE.info("first")
        disk.fill()
        for number in range(3):
            LINE.info("%s", str(number) * PAGE)
        disk.free()
        LINE.info("there is room again")
    out, err = capsys.readouterr()
    assert out.count("run.log lacks lines, the run goes on: No space left on device") == 1
    assert "there is room again" in out and err == ""
    assert (disk.path / "run.log").read_text().splitlines()[0].endswith("INFO    first")
    assert "there is room again" in (disk.path / "run.log").read_text()


def test_a_run_log_that_cannot_be_opened_or_closed_does_not_end_the_run(disk, capsys):
    (disk.path / "file").touch()
    with Screen().shown(disk.path / "file" / "run.log"):
        LINE.info("one")
        LINE.info("two")
    with Screen().shown(disk.path / "run.log"):
        disk.fill()
        LINE.info("." * 100)
    out, err = capsys.readouterr()
    assert out.count("lacks lines") == 2 and err == ""


@pytest.mark.parametrize("where", ["a full disk", "a closed pipe"])
def test_a_screen_that_takes_nothing_does_not_end_the_run(monkeypatch, tmp_path, where):
    if where == "a full disk":
        stream = open("/dev/full", "w")  # noqa: SIM115
    else:
        reader, writer = os.pipe()
        os.close(reader)
        stream = open(writer, "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", stream)
    try:
        with Screen().shown(tmp_path / "run.log"):
            for number in range(3):
                LINE.info("line %d", number)
    finally:
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            stream.close()
    assert len((tmp_path / "run.log").read_text().splitlines()) == 3


# ---- R7: folders that cannot be used ----


def _home_is_a_file(place):
    (place / "file").write_text("mine")
    return place / "file"


def _home_is_below_a_file(place):
    return _home_is_a_file(place) / "mlruns"


def _runs_is_a_file(place):
    (place / "mlruns").mkdir()
    (place / "mlruns" / "runs").write_text("mine")
    return place / "mlruns"


def _name_is_too_long(place):
    return place / "new" / ("n" * 256)


def _path_is_too_long(place):
    return place.joinpath(*["n" * 250] * 20)


def _name_is_not_utf_8(place):
    return Path(os.fsdecode(os.fsencode(place) + b"/caf\xe9"))


def _link_leads_nowhere(place):
    (place / "mlruns").symlink_to(place / "gone")
    return place / "mlruns"


def _read_only(place):
    (place / "marked" / "runs").mkdir(parents=True)
    (place / "marked" / ".bestrun").touch()
    _mount("-o", "remount,ro", place)
    return place / "new"


def _read_only_and_marked(place):
    return _read_only(place).with_name("marked")


HOMES = [
    _home_is_a_file, _home_is_below_a_file, _runs_is_a_file, _name_is_too_long, _path_is_too_long, _name_is_not_utf_8,
    _link_leads_nowhere, _read_only, _read_only_and_marked,
]  # fmt: skip


@pytest.mark.parametrize("make", HOMES, ids=lambda make: make.__name__[1:])
def test_a_home_that_cannot_be_used_is_refused_before_the_first_step(bestrun, disk, settings, make):
    home = make(disk.path)
    before = sorted(disk.path.rglob("*"))
    result = bestrun("train", *settings, "name=it", cwd=Path("/"), env={"BESTRUN_MLRUNS": str(home)})
    assert result.code == 2, result
    (line,) = result.err.splitlines()
    shown = os.fsencode(home).decode(errors="backslashreplace")
    assert line.startswith(f"error: {shown}: cannot be used for runs: ")
    assert line.endswith("; BESTRUN_MLRUNS=FOLDER names another")
    assert result.out == "" and sorted(disk.path.rglob("*")) == before


# ---- R9, R10: eight processes meet at a database that is not there yet ----

WRITERS = 8


@contextlib.contextmanager
def _gate(path):
    """As long as this lasts, whoever calls `_pass` waits; then all of them go at once."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _pass(path):
    print("ready", flush=True)
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def _log_batches(gate, uri, number, batches):
    """What every training process does: open the store, make it if need be, make a run, log to it."""
    from mlflow.entities import Metric

    from bestrun.tracking.store import connect

    _pass(gate)
    store = connect(uri)
    experiment = store.experiment_id("shared")
    run = store.client.create_run(experiment, run_name=f"writer-{number}")
    for step in range(batches):
        store.client.log_batch(run.info.run_id, metrics=[Metric("val/accuracy", step / batches, step, step)])


def _poll(gate, uri, done):
    """The MLflow page, or `bestrun runs`: reads all the time."""
    from bestrun.tracking.store import connect

    _pass(gate)
    store = connect(uri)
    while not done.exists():
        store.client.search_runs(list(store.experiments(None)))


def _wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _addresses(place):
    """The ways to name one database: (URI, current folder, TMPDIR)."""
    (place / "link").symlink_to(place / "mlruns")
    others = [place / "tmp-a", place / "tmp-b"]
    for folder in others:
        folder.mkdir()
    return [
        (f"sqlite:///{place}/mlruns/mlflow.db", place, None),
        ("sqlite:///mlruns/mlflow.db", place, None),
        ("sqlite:///../mlruns/mlflow.db", others[0], None),
        (f"sqlite:///{place}/link/mlflow.db", place, None),
        (f"sqlite:///{place}/mlruns/mlflow.db", place, str(others[0])),
        (f"sqlite:///{place}/link/../mlruns/mlflow.db", place, str(others[1])),
        ("sqlite:///link/mlflow.db", place, str(others[1])),
        (f"sqlite:///{place}/tmp-a/../mlruns/mlflow.db", others[1], str(others[0])),
    ]


KINDS = ("one address", "eight addresses")
REPEATS = [pytest.param(KINDS[0], 30, id=KINDS[0])] + [
    pytest.param(KINDS[number % 2], 200, id=f"{KINDS[number % 2]}, repeat {number + 1}", marks=pytest.mark.slow)
    for number in range(20)
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "batches"), REPEATS)
def test_processes_that_start_at_once_on_a_fresh_database_lose_nothing(start_process, tmp_path, kind, batches):
    place = tmp_path / "place"
    (place / "mlruns").mkdir(parents=True)
    addresses = _addresses(place)
    if kind == "one address":
        addresses = addresses[:1] * WRITERS
    gate, done = tmp_path / "gate", tmp_path / "done"
    with _gate(gate):
        writers = [
            start_process(_log_batches, gate, uri, number, batches, cwd=cwd, env={"TMPDIR": temporary})
            for number, (uri, cwd, temporary) in enumerate(addresses)
        ]
        reader = start_process(_poll, gate, addresses[0][0], done)
        _wait_until(lambda: all("ready" in process.out for process in (*writers, reader)))
    results = [process.wait(280) for process in writers]
    done.touch()
    results.append(reader.wait())
    assert [(result.code, result.err) for result in results] == [(0, "")] * (WRITERS + 1)
    with contextlib.closing(sqlite3.connect(place / "mlruns" / "mlflow.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT count(*) FROM experiments WHERE name = 'shared'").fetchone() == (1,)
        counts = database.execute("SELECT count(*), count(DISTINCT step) FROM metrics GROUP BY run_uuid").fetchall()
    assert counts == [(batches, batches)] * WRITERS
    assert not list(place.rglob("tmp-*/*"))


def test_what_was_installed_is_kept_once_and_the_first_keeps_its_name(tmp_path):
    folder = RunFolder(tmp_path)
    for text in ("a==1\n", "a==1\n", "a==2\n", "a==2\n", "a==1\n"):
        folder.keep_environment(text)
    first, second = folder.environments
    assert (first.name, first.read_text(), second.read_text()) == ("environment.txt", "a==1\n", "a==2\n")
    assert re.fullmatch(r"environment-[0-9a-f]{12}\.txt", second.name)
