"""Nothing lost, nothing false: one section for each way in which other hands broke the record, and its siblings."""

import contextlib
import errno
import json
import logging
import os
import shutil
import sqlite3
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bestrun.errors import UnreadableError
from bestrun.settings.compose import compose, config_now, read_config
from bestrun.settings.config import to_yaml
from bestrun.signals import Signals
from bestrun.storage.checkpoint import LoopState, encode, newest_checkpoint, save
from bestrun.storage.files import StorageError, names_in, read_json
from bestrun.storage.folder import RunFolder
from bestrun.storage.history import History
from bestrun.storage.home import settle
from bestrun.storage.journal import Journal, read_journal
from bestrun.storage.reference import run_folders
from bestrun.tracking.listing import state
from bestrun.tracking.mirror import Mirror
from bestrun.tracking.refusals import is_permanent, remedy
from bestrun.tracking.sender import Sender
from bestrun.tracking.sync import end_for_dead_process, sync
from bestrun.tracking.writers import OvertakenError
from support.looks import ELSEWHERE
from support.made_runs import add_evaluation, add_stop, make_run
from support.proxy import Proxy

ERRORS = pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.EACCES], ids=["EIO", "EMFILE", "EACCES"])


@pytest.fixture
def uri(home):
    return f"sqlite:///{home / 'mlruns' / 'mlflow.db'}"


@pytest.fixture
def client(uri):
    from mlflow import MlflowClient

    return MlflowClient(uri)


@pytest.fixture
def proxy(mlflow_server):
    proxy = Proxy(mlflow_server.port)
    yield proxy
    proxy.close()


def rows(client, run_id, key="val/accuracy"):
    return [(row.step, row.value) for row in client.get_metric_history(run_id, key)]


@pytest.fixture
def refuse(monkeypatch):
    """`refuse("open", path, code)`: opening this path fails, so many times."""
    import builtins
    import io

    def install(path, code, times=10**9):
        left = [times]
        real_open, real_os_open, real_listdir = builtins.open, os.open, os.listdir

        def check(name):
            if left[0] > 0 and not isinstance(name, int) and os.fspath(name) == str(path):
                left[0] -= 1
                raise OSError(code, os.strerror(code), str(path))

        def patched(real):
            def call(name=".", *args, **kwargs):
                check(name)
                return real(name, *args, **kwargs)

            return call

        for module, name, real in (
            (builtins, "open", real_open),
            (io, "open", real_open),
            (os, "open", real_os_open),
            (os, "listdir", real_listdir),
        ):
            monkeypatch.setattr(module, name, patched(real))
        return left

    return install


# ---- L1: what cannot be read is not missing ----


@ERRORS
def test_a_journal_that_cannot_be_read_once_is_a_run_all_the_same(home, refuse, code):
    folder = make_run(home)
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    with folder.owned():
        refuse(folder.journal, code, times=1)  # the look at the end, when the lock is left
    assert {path.name: path.read_bytes() for path in folder.path.iterdir() if path.name != "lock"} == before


@ERRORS
def test_an_error_in_reading_a_journal_names_it_and_is_no_answer(home, refuse, code):
    folder = make_run(home)
    refuse(folder.journal, code)
    for ask in (folder.exists, lambda: read_journal(folder.journal), lambda: History.read(folder.journal)):
        with pytest.raises(UnreadableError, match=str(folder.journal)):
            ask()
    assert run_folders(home / "mlruns") == [folder]


@ERRORS
def test_sync_reports_the_run_it_cannot_read_and_sends_the_others(home, uri, client, refuse, code):
    one, _ = make_run(home, "one"), make_run(home, "other")
    refuse(one.journal, code)
    reports = sync(run_folders(home / "mlruns"), home=home / "mlruns", setting=None)
    assert [report["state"] for report in reports] == ["behind", "complete"]
    assert str(one.journal) in reports[0]["error"] and one.config.exists()
    assert len(client.search_runs(["1"])) == 1


def test_what_is_no_run_is_still_cleared_away(home):
    for content in (None, b"", b'{"event": "started", "time_ms": 1'):
        folder = RunFolder(home / "mlruns" / "runs" / "none")
        folder.path.mkdir(parents=True)
        if content is not None:
            folder.journal.write_bytes(content)
        with folder.owned():
            folder.config.write_text("seed: 0\n")
        assert not folder.path.exists()


def test_mirror_json_that_cannot_be_read_sends_nothing_to_another_store(
    home, uri, client, refuse, tmp_path, ready_made_store
):
    folder, elsewhere = make_run(home), tmp_path / "elsewhere.db"
    shutil.copyfile(ready_made_store, elsewhere)
    Sender(folder, f"sqlite:///{elsewhere}").catch_up()
    refuse(folder.mirror, errno.EIO)
    (report,) = sync([folder], home=home / "mlruns", setting=None)
    assert report["state"] == "behind" and str(folder.mirror) in report["error"]
    assert client.search_runs(["0"]) == [] and len(client.search_experiments()) == 1


@ERRORS
def test_a_lock_that_cannot_be_asked_is_not_free(home, refuse, code):
    folder = make_run(home, reason=None)
    with folder.owned():
        refuse(folder.lock, code)
        with pytest.raises(UnreadableError):
            folder.is_owned()
        assert state("RUNNING", folder) == "running"


@ERRORS
def test_a_newest_state_that_cannot_be_read_is_not_replaced_by_an_older_one(home, refuse, code):
    folder = make_run(home, reason=None)
    stamp = dict(run_name="r", config_digest="c", data_digest="f" * 64)
    save(folder.last, encode({"model/a/kernel": np.zeros(3)}, LoopState(step=30), **stamp))
    with Journal(folder.journal) as journal:
        refuse(folder.last, code)
        with pytest.raises(UnreadableError, match=str(folder.last)):
            newest_checkpoint(folder, journal)


def test_a_folder_that_cannot_be_listed_is_not_empty(home, refuse):
    folder = make_run(home)
    refuse(folder.path, errno.EACCES)
    with pytest.raises(UnreadableError):
        names_in(folder.path)
    with pytest.raises(UnreadableError):
        folder.bests()


# ---- one read model: two faults that came from having several ----


def test_the_time_of_a_run_is_not_the_time_until_somebody_looks_at_it(home):
    folder = make_run(home)
    events, _ = read_journal(folder.journal)
    late = events[-1]["time_ms"] + 52 * 60_000
    looked = [
        {"event": "picture", "time_ms": late, "path": "p.png", "step": 20},
        {"event": "tested", "time_ms": late, "split": "test", "step": 20},
    ]
    assert History([*events, *looked]).seconds == History(events).seconds < 60
    died = {"event": "stopped", "time_ms": late, "reason": "interrupted", "step": 30, "message": "the process died"}
    assert History([*events[:-1], died]).seconds < 60


def test_a_run_that_diverged_is_not_called_finished_where_mlflow_is_behind(home):
    for reason, word in (
        ("diverged", "failed, behind"),
        ("max_steps", "finished, behind"),
        ("pruned", "stopped, behind"),
    ):
        folder = make_run(home, reason, reason=reason)
        assert state("RUNNING", folder) == word


# ---- L3: the end of a run that cannot be written ----


def stubbed(*argv):
    """A command around a network of three arrays."""
    from bestrun.cli import main as cli
    from support.failing_calls import replace_what_computes

    replace_what_computes()
    sys.argv = ["bestrun", *argv]
    cli.main()


def unwritable_end(kind, *argv):
    """`bestrun train` where the last journal line, or result.json, meets a full disk."""
    from bestrun.run import carry
    from bestrun.storage import files, journal

    if kind == "stopped":
        real = journal.Journal.append

        def append(self, event, **fields):
            if event == "stopped":
                raise files.storage_error(
                    self.path, "append 99 bytes", OSError(errno.ENOSPC, "No space left on device")
                )
            return real(self, event, **fields)

        journal.Journal.append = append
    else:

        def write_json(path, value):
            raise files.storage_error(path, "write 99 bytes", OSError(errno.ENOSPC, "No space left on device"))

        carry.write_json = write_json
    stubbed(*argv)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["stopped", "result"])
def test_a_run_whose_end_cannot_be_written_says_so_and_sync_completes_it(bestrun, start_process, home, kind):
    words = ["train", "training.max_steps=30", "training.evaluate_every_steps=10", "training.patience_steps=30"]
    words += ["training.batch_size=8", "tracking.log_model=none", "pictures=false", "name=it"]
    result = start_process(unwritable_end, kind, *words, cwd=home).wait()
    folder = RunFolder(home / "mlruns" / "runs" / "it")
    name = folder.journal if kind == "stopped" else folder.result
    assert result.code == 1, result
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert str(name) in line and "make room, then: bestrun " in line and not folder.result.exists()
    advice = line.rpartition("then: bestrun ")[2].split()
    assert start_process(stubbed, *advice, cwd=home).wait().code == 0
    assert History.read(folder.journal).stopped["reason"] == "max_steps" and folder.result.exists()
    assert start_process(stubbed, "restore", "best", cwd=home).wait().code == 0
    rows = json.loads(bestrun("runs", "--json").out)
    assert [(row["state"], row["stop_reason"]) for row in rows] == [("finished", "max_steps")]
    again = start_process(stubbed, "resume", "it", cwd=home).wait()
    assert again.code == 2 and "is complete" in again.err


@pytest.mark.parametrize(
    ("steps", "improved", "settings", "behind", "reason"),
    [
        ((0, 10, 20, 30), (10, 20), {"max_steps": "30", "patience_steps": "30"}, 0, "max_steps"),
        ((0, 10, 20, 30), (10,), {"max_steps": "90", "patience_steps": "20"}, 0, "patience"),
        ((0, 10, 20, 30), (10, 20), {"max_steps": "90", "patience_steps": "30"}, 0, "interrupted"),
        ((), (), {"max_steps": "90", "patience_steps": "30"}, 0, "interrupted"),
        ((0, 10, 20, 30), (10, 20), {"max_steps": "30", "patience_steps": "30"}, 10, "interrupted"),  # `last` is older
    ],
)
def test_the_stop_rule_tells_a_dead_run_that_was_over_from_one_that_was_not(
    home, steps, improved, settings, behind, reason
):
    folder = make_run(home, steps=steps, improved=improved, reason=None)
    words = [f"training.{key}={value}" for key, value in settings.items()]
    folder.config.write_text(to_yaml(compose([*words, "training.evaluate_every_steps=10"]).config))
    stamp = dict(run_name="r", config_digest="c", data_digest="f" * 64)
    if steps:
        save(folder.last, encode({"model/a/kernel": np.zeros(3)}, LoopState(step=steps[-1] - behind), **stamp))
    with folder.owned():
        end_for_dead_process(folder)
    stopped = History.read(folder.journal).stopped
    assert stopped["reason"] == reason and stopped["step"] == (steps[-1] if steps else 0)
    assert folder.result.exists() == (reason != "interrupted")


# ---- L4: nobody is told of a line before it is durable ----


def test_the_mirror_is_not_told_of_a_line_whose_fsync_fails(home, uri, client, monkeypatch):
    folder = make_run(home, reason=None)
    journal = Journal(folder.journal)
    sender = Sender(folder, uri, lambda: journal.end)
    sender.catch_up()
    real, in_fsync, go_on = os.fsync, threading.Event(), threading.Event()

    def slow_and_failing(descriptor):
        if os.path.samefile(f"/proc/self/fd/{descriptor}", folder.journal):
            in_fsync.set()
            go_on.wait(10)
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow_and_failing)
    failed = []

    def append():
        try:
            add_evaluation(folder, journal, 40, False)
        except StorageError as error:
            failed.append(error)

    thread = threading.Thread(target=append)
    thread.start()
    assert in_fsync.wait(10)
    assert b'"step": 40' in folder.journal.read_bytes(), "the line is there, and not durable"
    assert sender.catch_up() == 0 and [step for step, _ in rows(client, sender.run_id)] == [0, 10, 20, 30]
    go_on.set()
    thread.join()
    monkeypatch.undo()
    assert failed and b'"step": 40' not in folder.journal.read_bytes()
    add_evaluation(folder, journal, 40, False)
    assert sender.catch_up() == 1
    assert [step for step, _ in rows(client, sender.run_id)] == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("as_long", [True, False], ids=["an offset that fits by chance", "a shorter journal"])
def test_a_journal_that_lost_acknowledged_lines_is_completed_row_by_row(home, uri, client, as_long):
    folder = make_run(home, steps=(0, 10, 20), reason=None)
    with Journal(folder.journal) as journal:
        kept = journal.end
        add_evaluation(folder, journal, 30, False, images_per_second=1.0, system={"cpu": 50.0})
        whole = journal.end
    sender = Sender(folder, uri)
    sender.catch_up()
    os.truncate(folder.journal, kept)  # power was lost before its last line reached the disk
    time.sleep(0.002)
    with Journal(folder.journal) as journal:
        add_evaluation(folder, journal, 30, False, images_per_second=2.0, system={"cpu": 60.0})
        if not as_long:
            add_stop(journal, "max_steps")
    assert (folder.journal.stat().st_size == whole) == as_long
    sync([folder], home=home / "mlruns", setting=None)
    for key in ("val/accuracy", "val/loss", "images_per_second", "system/cpu", "train/loss"):
        steps = [step for step, _ in rows(client, sender.run_id, key)]
        assert len(steps) == len(set(steps)), key
    assert not Sender(folder, uri).behind()


def test_sync_makes_the_journal_durable_before_it_reads(home, uri, monkeypatch):
    folder = make_run(home)
    settle(home / "mlruns")
    order, real = [], os.fsync

    def noted(descriptor):
        order.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    real_connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: (order.append("database"), real_connect(*a, **k))[1])
    sync([folder], home=home / "mlruns", setting=None)
    assert str(folder.journal) in order
    assert "database" not in order[: order.index(str(folder.journal))]


def test_half_a_line_that_cannot_be_removed_is_removed_before_the_next(home, monkeypatch):
    folder = make_run(home, reason=None)
    journal = Journal(folder.journal)
    real, written = os.ftruncate, journal._file.write
    monkeypatch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))

    class Half:
        def __getattr__(self, name):
            return getattr(journal_file, name)

        def write(self, line):
            return written(line[: len(line) // 2])

    journal_file, journal._file = journal._file, Half()
    with pytest.raises(StorageError):
        journal.append("stopped", reason="max_steps", step=30, best=None)
    journal._file = journal_file
    with pytest.raises(StorageError):
        journal.append("stopped", reason="max_steps", step=30, best=None)
    monkeypatch.setattr(os, "ftruncate", real)
    journal.append("stopped", reason="max_steps", step=30, best=None)
    assert [event["event"] for event in read_journal(folder.journal)[0]].count("stopped") == 1


# ---- L7: the settings now are what the journal says ----


def resumed_run(home, journal_says, file_says):
    folder = make_run(home, reason=None)
    base = ["training.max_steps=300", "training.evaluate_every_steps=10", "training.patience_steps=300"]
    started = compose(base).config
    folder.journal.unlink()
    from bestrun.settings.config import flatten

    with Journal(folder.journal) as journal:
        journal.append("started", settings=flatten(started), name="r")
        if journal_says:
            changed = {"training.max_steps": ["300", journal_says]}
            journal.append("resumed", from_step=0, changed=changed, places={"tracking.uri": "http://there"})
    folder.config.write_text(to_yaml(compose([*base, f"training.max_steps={file_says}"]).config))
    return folder


@pytest.mark.parametrize(
    ("journal_says", "file_says", "now"), [("600", "300", 600), (None, "600", 300), ("600", "600", 600)]
)
def test_a_kill_between_journal_and_settings_leaves_what_the_journal_says(home, journal_says, file_says, now):
    folder = resumed_run(home, journal_says, file_says)
    config = config_now(folder.config, History.read(folder.journal))
    assert config.training.max_steps == now
    assert config.tracking.uri == ("http://there" if journal_says else None)
    assert read_config(folder.config).training.max_steps == int(file_says)


def killed_before_the_settings(*argv):
    from bestrun.cli import main as cli
    from bestrun.run import resume

    real = resume.write_atomically

    def write(path, data):
        if path.name == "config.yaml":
            os.kill(os.getpid(), 9)
        real(path, data)

    resume.write_atomically = write
    sys.argv = ["bestrun", *argv]
    cli.main()


def test_a_resume_killed_between_its_line_and_the_settings_is_gone_on_with_as_recorded(
    bestrun, start_process, home, trained
):
    folder = RunFolder(home / "mlruns" / "runs" / "trained")
    shutil.copytree(trained.folder, folder.path, ignore=ELSEWHERE)
    further = ["resume", "trained", "training.max_steps=80", "tracking.log_model=none"]
    killed = start_process(killed_before_the_settings, *further, cwd=home).wait()
    assert killed.code == -9
    assert bestrun("resume", "trained").code == 0
    history, changed = History.read(folder.journal), {"training.max_steps": ["60", "80"]}
    changed["tracking.log_model"] = ["best", "none"]
    assert history.stopped["step"] == 80 and history.changed == changed
    assert read_config(folder.config).training.max_steps == 80
    told = json.loads(bestrun("show", "trained", "--json").out)
    assert told["changed"] == changed


# ---- L9: durable in MLflow's store before anything counts on it ----


def test_the_new_best_and_its_folders_are_durable_before_the_older_one_goes(home, uri, monkeypatch):
    folder = make_run(home, steps=(0, 10), improved=(10,), reason=None)
    sender = Sender(folder, uri)
    sender.catch_up()
    order, fsync, unlink = [], os.fsync, os.unlink

    def noted(descriptor):
        order.append(("fsync", os.path.realpath(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "unlink", lambda path, **k: (order.append(("unlink", str(path))), unlink(path, **k))[1])
    monkeypatch.setattr(os, "remove", lambda path, **k: (order.append(("unlink", str(path))), unlink(path, **k))[1])
    with Journal(folder.journal) as journal:
        add_evaluation(folder, journal, 20, True)
    order.clear()
    sender.catch_up()
    root = home / "mlruns" / "artifacts" / "e" / sender.run_id / "artifacts"
    gone = order.index(("unlink", str(root / "checkpoints" / "best-10.safetensors")))
    for path in (root / "checkpoints" / "best-20.safetensors", root / "checkpoints", root, *list(root.parents)[:3]):
        assert ("fsync", str(path)) in order[:gone], path


@pytest.mark.parametrize("damage", ["gone", "empty", "other bytes"])
def test_sync_compares_the_best_that_mlflow_names_and_sends_it_again(home, uri, client, damage):
    folder = make_run(home)
    sender = Sender(folder, uri)
    sender.catch_up()
    (path,) = (home / "mlruns" / "artifacts").rglob("best-20.safetensors")
    whole = path.read_bytes()
    if damage == "gone":
        shutil.rmtree(path.parent)
    else:
        path.write_bytes(b"" if damage == "empty" else whole[::-1])
    (report,) = sync([folder], home=home / "mlruns", setting=None)
    assert report["state"] == "complete" and path.read_bytes() == whole


def test_a_new_run_folder_is_durable_in_its_parent(home, monkeypatch):
    from bestrun.storage.folder import create_run_folder

    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.path.realpath(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    folder = create_run_folder(home / "mlruns", "new")
    Journal(folder.journal).close()
    assert {str(folder.path), str(folder.path.parent)} <= set(synced)


# ---- L10: what MLflow says it took ----


def test_asynchronous_logging_in_the_environment_loses_no_row(home, uri, client, monkeypatch):
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    folder = make_run(home)
    real, failures = SqlAlchemyStore.log_batch, [1]

    def failing(self, run_id, metrics, params, tags):
        if metrics and failures:
            failures.pop()
            raise RuntimeError("database is locked")
        return real(self, run_id, metrics, params, tags)

    monkeypatch.setattr(SqlAlchemyStore, "log_batch", failing)
    sender = Sender(folder, uri)
    with pytest.raises(Exception, match="database is locked"):
        sender.catch_up()
    sender.catch_up()
    assert [step for step, _ in rows(client, sender.run_id)] == [0, 10, 20, 30]
    assert os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] == "true"


def test_every_call_that_mlflow_could_defer_says_synchronous():
    import ast

    import bestrun

    deferrable = {"log_batch", "log_metric", "log_param", "set_tag", "log_image"}
    for path in Path(bestrun.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in deferrable:
                assert "synchronous" in {word.arg for word in node.keywords}, f"{path.name}:{node.lineno}"


def test_rows_that_mlflow_acknowledged_and_lost_are_sent_again(home, uri, client):
    folder = make_run(home, reason=None)
    sender = Sender(folder, uri)
    sender.catch_up()
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:
        database.execute("delete from metrics where step = 10")
    with Journal(folder.journal) as journal:
        add_stop(journal, "max_steps")
    sender.catch_up()
    for key in ("val/accuracy", "val/loss", "best/step"):
        assert 10 in [step for step, _ in rows(client, sender.run_id, key)], key
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:
        database.execute("delete from metrics where step = 20")
    (report,) = sync([folder], home=home / "mlruns", setting=None)
    assert report["state"] == "complete" and 20 in [step for step, _ in rows(client, sender.run_id)]


# ---- L11: two machines go on with one run ----


def another_home(tmp_path, name):
    folder = tmp_path / name / "mlruns"
    (folder / "runs").mkdir(parents=True)
    (folder / ".bestrun").write_text(json.dumps({"format": 1, "identity": name * 32, "path": str(folder)}))
    return folder.parent


@pytest.fixture
def overtaken(home, uri, tmp_path):
    """Two folders of one run: one at step 30, and one on another machine that has gone on to step 60."""
    old = make_run(another_home(tmp_path, "a"), reason="interrupted")
    Sender(old, uri).catch_up()
    new = RunFolder(another_home(tmp_path, "b") / "mlruns" / "runs" / "r")
    shutil.copytree(old.path, new.path)
    with Journal(new.journal) as journal:
        journal.append("resumed", from_step=30, changed={}, versions={})
        for step in (40, 50, 60):
            add_evaluation(new, journal, step, True)
        add_stop(journal, "max_steps")
    Sender(new, uri).catch_up()
    return old, new


def record(client, run_id):
    run = client.get_run(run_id)
    keys = ("val/accuracy", "best/step", "val/loss")
    return dict(run.data.tags), {key: rows(client, run_id, key) for key in keys}, run.info.status


def test_a_mirror_does_not_write_over_another_machine_that_went_further(uri, client, overtaken):
    old, new = overtaken
    run_id = read_json(new.mirror)["run_id"]
    before = record(client, run_id)
    assert before[1]["best/step"][-1] == (60, 60)
    with Journal(old.journal) as journal:
        journal.append("resumed", from_step=30, changed={}, versions={})
        add_evaluation(old, journal, 35, True)
    with pytest.raises(OvertakenError, match=r"on with it to step 60 .* from here it has step 30; .*--from-mlflow"):
        Sender(old, uri).catch_up()
    assert record(client, run_id) == before
    mirror = Mirror(old, uri)
    mirror.start()
    assert mirror.finish(30) is False and "has gone on with it" in mirror.refused
    (report,) = sync([old], home=old.path.parents[1], setting=uri)
    assert report["state"] == "refused" and "--from-mlflow" in report["error"]
    assert record(client, run_id)[1:] == before[1:]


def test_a_copy_that_has_sent_the_same_lines_has_not_gone_further(uri, client, tmp_path):
    old = make_run(another_home(tmp_path, "a"), steps=(0, 10), improved=(10,), reason=None)
    Sender(old, uri).catch_up()
    with Journal(old.journal) as journal:
        for step in (20, 30):
            add_evaluation(old, journal, step, True)
        add_stop(journal, "interrupted")
    copy = RunFolder(another_home(tmp_path, "b") / "mlruns" / "runs" / "r")
    shutil.copytree(old.path, copy.path)
    Sender(copy, uri).catch_up()
    before = record(client, read_json(old.mirror)["run_id"])
    Sender(old, uri).catch_up()
    after = record(client, read_json(old.mirror)["run_id"])
    assert after[1:] == before[1:] and len(after[1]["val/accuracy"]) == 4
    assert not Sender(old, uri).behind()


def test_a_mirror_that_is_overtaken_while_it_runs_does_not_replace_the_better_best(home, uri, client, overtaken):
    old, new = overtaken
    third = make_run(home, "live", reason=None)
    live = Sender(third, uri)
    live.catch_up()
    other = json.dumps({"host": "far", "user": "eve", "home": "x"})
    client.set_tag(live.run_id, "bestrun.writer", other)  # somebody resumed it elsewhere meanwhile
    before = client.get_run(live.run_id).data.tags["bestrun.best_checkpoint"]
    with Journal(third.journal) as journal:
        add_evaluation(third, journal, 40, True)
    with pytest.raises(OvertakenError, match="eve on far is going on with it"):
        live.catch_up()
    assert client.get_run(live.run_id).data.tags["bestrun.best_checkpoint"] == before


def test_the_same_writer_with_a_backup_put_back_repeats_and_doubles_nothing(home, uri, client, tmp_path):
    folder = make_run(home, reason="interrupted")
    Sender(folder, uri).catch_up()
    shutil.copytree(folder.path, tmp_path / "backup")

    def go_on(speed):
        with Journal(folder.journal) as journal:
            journal.append("resumed", from_step=30, changed={}, versions={})
            for step in (40, 50):
                add_evaluation(folder, journal, step, step == 40, images_per_second=speed, system={"cpu": speed})
            add_stop(journal, "max_steps")
        Sender(folder, uri).catch_up()

    go_on(1.0)
    run_id = read_json(folder.mirror)["run_id"]
    before = record(client, run_id)[1]
    shutil.rmtree(folder.path)
    shutil.copytree(tmp_path / "backup", folder.path)
    time.sleep(0.002)
    go_on(2.0)
    assert record(client, run_id)[1] == before
    for key in ("images_per_second", "system/cpu"):  # which are never the same twice
        steps = [step for step, _ in rows(client, run_id, key)]
        assert steps[-1] == 50 and len(steps) == len(set(steps)), key


def test_a_better_best_is_never_replaced_by_a_worse_one(home, uri, client, tmp_path):
    folder = make_run(home, steps=(0, 10, 20), improved=(10, 20), reason="interrupted")
    Sender(folder, uri).catch_up()
    shutil.copytree(folder.path, tmp_path / "backup")
    with Journal(folder.journal) as journal:
        journal.append("resumed", from_step=20, changed={}, versions={})
        add_evaluation(folder, journal, 90, True)
    Sender(folder, uri).catch_up()
    run_id = read_json(folder.mirror)["run_id"]
    shutil.rmtree(folder.path)
    shutil.copytree(tmp_path / "backup", folder.path)
    with Journal(folder.journal) as journal:
        add_evaluation(folder, journal, 30, True)  # 0.30, MLflow has 0.90
    sender = Sender(folder, uri)
    sender.catch_up()
    tags = client.get_run(run_id).data.tags
    assert tags["bestrun.best_checkpoint"] == "checkpoints/best-90.safetensors"
    assert "MLflow has a better best" in next(iter(sender.missing.values())) and sender.behind()
    assert [item.path for item in client.list_artifacts(run_id, "checkpoints")] == [tags["bestrun.best_checkpoint"]]


@pytest.mark.slow
def test_resume_on_an_old_folder_is_refused_and_goes_on_from_mlflow(bestrun, home, settings, tmp_path, uri):
    shared = [f"tracking.uri={uri}"]
    homes = {name: {"BESTRUN_MLRUNS": str(another_home(tmp_path, name) / "mlruns")} for name in "ab"}
    assert bestrun("train", *settings, *shared, "name=it", env=homes["a"]).code == 0
    run_id = json.loads((tmp_path / "a" / "mlruns" / "runs" / "it" / "mirror.json").read_text())["run_id"]
    gone_on = bestrun("resume", run_id, "training.max_steps=120", "--tracking-uri", uri, env=homes["b"])
    assert gone_on.code == 0, gone_on.err
    before = json.loads((tmp_path / "a" / "mlruns" / "runs" / "it" / "result.json").read_text())
    refused = bestrun("resume", "it", "training.max_steps=100", env=homes["a"])
    assert refused.code == 2, refused
    (line,) = refused.err.splitlines()
    assert "has gone on with it to step 120" in line and "bestrun resume it --from-mlflow" in line
    assert json.loads((tmp_path / "a" / "mlruns" / "runs" / "it" / "result.json").read_text()) == before
    done = bestrun("resume", "it", "--from-mlflow", "training.max_steps=140", env=homes["a"])
    assert done.code == 0, done.err
    folder = RunFolder(tmp_path / "a" / "mlruns" / "runs" / "it")
    history = History.read(folder.journal)
    assert history.step == 140 and [line["step"] for line in history.evaluations] == list(range(0, 141, 20))
    (aside,) = (tmp_path / "a" / "mlruns" / "aside").iterdir()
    assert History.read(aside / "journal.jsonl").step == 60
    restored = bestrun("restore", run_id, "--tracking-uri", uri, "--json", env=homes["b"])
    assert json.loads(restored.out)["validation"]["agrees"] is True


@pytest.mark.slow
def test_mlflows_silence_does_not_keep_a_resume_from_training(bestrun, home, settings, proxy):
    assert bestrun("train", *settings, "name=it", f"tracking.uri={proxy.uri}").code == 0
    proxy.fail("hang")
    result = bestrun("resume", "it", "training.max_steps=80", env={"MLFLOW_HTTP_REQUEST_TIMEOUT": "2"})
    assert result.code == 6 and "bestrun sync it" in result.out
    assert History.read(home / "mlruns" / "runs" / "it" / "journal.jsonl").step == 80
    proxy.heal()
    assert bestrun("sync", "it").code == 0


def test_restoring_what_does_not_score_as_logged_ends_with_5_and_looks_at_no_test(trained, database):
    assert trained.bestrun("restore", "trained").code == 0
    for table in ("metrics", "latest_metrics"):
        with database:
            database.execute(f"update {table} set value = value - 0.04 where key = 'best/accuracy'")
    result = trained.bestrun("restore", "trained")
    assert result.code == 5 and "was logged" in result.err and result.err.count("\n") == 1
    assert "test " not in result.out and "the test split was not looked at" in result.err


# ---- L12: one artifact is refused ----


def s3_error(status):
    """As botocore raises it: `response` is a dict."""
    error = type("ClientError", (Exception,), {})("An error occurred (AccessDenied) when calling PutObject")
    error.response = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return error


def wrapped(error):
    """As boto3 raises it when an upload fails."""
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("Failed to upload best.safetensors") from cause
    except RuntimeError as outer:
        return outer


REFUSALS = {
    "no right in S3": (lambda: s3_error(403), "right to write"),
    "no right, wrapped": (lambda: wrapped(s3_error(403)), "right to write"),
    "too large for a proxy": (lambda: s3_error(413), "client_max_body_size"),
    "no client library": (lambda: ModuleNotFoundError("No module named 'boto3'", name="boto3"), "pip install boto3"),
    "no credentials": (lambda: type("NoCredentialsError", (Exception,), {})("none"), "credentials"),
    "a read-only folder": (lambda: PermissionError(errno.EACCES, "Permission denied"), "right to write"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refused_artifact_costs_neither_metrics_nor_the_end(home, uri, client, monkeypatch, kind):
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository as Repository

    make, advice = REFUSALS[kind]
    assert is_permanent(make()) and advice in remedy(make())
    real = Repository.log_artifact

    def refusing(self, path, to=None):
        if "best-" in str(path):
            raise make()
        real(self, path, to)

    folder = make_run(home)
    monkeypatch.setattr(Repository, "log_artifact", refusing)
    mirror = Mirror(folder, uri)
    mirror.start()
    assert mirror.finish(60) is False
    assert "checkpoints/best-20.safetensors" in mirror.refused and advice in mirror.refused
    run = client.get_run(mirror.sender.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["bestrun.stop_reason"] == "max_steps"
    assert [step for step, _ in rows(client, run.info.run_id)] == [0, 10, 20, 30]
    assert "bestrun.best_checkpoint" not in run.data.tags
    (report,) = sync([folder], home=home / "mlruns", setting=None)
    assert report["state"] == "behind" and advice in report["error"] and "bestrun sync r" in report["error"]
    monkeypatch.setattr(Repository, "log_artifact", real)
    (report,) = sync([folder], home=home / "mlruns", setting=None)
    assert report["state"] == "complete" and not Sender(folder, uri).behind()
    assert client.get_run(run.info.run_id).data.tags["bestrun.best_checkpoint"] == "checkpoints/best-20.safetensors"


def test_an_artifact_store_that_is_away_holds_up_neither_metrics_nor_the_end(home, uri, client, monkeypatch):
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository as Repository

    real, calls = Repository.log_artifact, []

    def away(self, path, to=None):
        calls.append(path)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(Repository, "log_artifact", away)
    folder = make_run(home)
    sender = Sender(folder, uri)
    with pytest.raises(ConnectionError):
        sender.catch_up()
    assert client.get_run(sender.run_id).info.status == "FINISHED" and sender.behind()
    assert len(calls) == 1, "each question would cost a time-out"
    monkeypatch.setattr(Repository, "log_artifact", real)
    sender.catch_up()
    assert not sender.behind() and not Sender(folder, uri).behind()
    names = {item.path for item in client.list_artifacts(sender.run_id)}
    assert {"checkpoints", "config"} <= names


def test_a_proxy_that_takes_no_large_file_is_named_with_its_remedy(bestrun, home, settings, proxy):
    proxy.fail("413", r"^PUT \S*checkpoints/best", only=True)
    result = bestrun("train", *settings, "name=large", f"tracking.uri={proxy.uri}")
    assert result.code == 6 and "client_max_body_size" in result.out and "bestrun sync large" in result.out
    rows = json.loads(bestrun("runs", "--json", "--tracking-uri", proxy.uri).out)
    assert [row["state"] for row in rows if row["run_name"] == "large"] == ["finished"]
    told = bestrun("sync", "large")
    assert told.code == 6 and "client_max_body_size" in told.out
    proxy.heal()
    assert bestrun("sync", "large").code == 0
    assert bestrun("restore", "large", "--tracking-uri", proxy.uri).code == 0


@pytest.mark.parametrize("error", [SystemExit(0), KeyError("x"), MemoryError()], ids=lambda e: type(e).__name__)
def test_an_unexpected_end_of_the_mirror_is_never_a_success(home, uri, monkeypatch, error):
    folder = make_run(home)
    mirror = Mirror(folder, uri)

    def dying(**_):
        raise error

    if isinstance(error, KeyError):
        monkeypatch.setattr(mirror.sender, "save", dying)
    else:
        monkeypatch.setattr(mirror.sender, "catch_up", dying)
    mirror.start()
    assert mirror.finish(0.5) is False
    assert mirror.refused or mirror._thread.is_alive()


# ---- L13: a slow server, a slow link ----


def test_an_evaluation_is_one_request_and_an_improved_one_six_at_most(home, proxy):
    folder = make_run(home, steps=(0, 10), improved=(10,), reason=None)
    sender = Sender(folder, proxy.uri)
    sender.catch_up()
    with Journal(folder.journal) as journal:
        for step, improved, most in ((20, False, 1), (30, True, 6), (40, False, 1), (50, True, 6)):
            proxy.seen.clear()
            add_evaluation(folder, journal, step, improved)
            assert sender.catch_up() == 1
            assert 1 <= len(proxy.seen) <= most, proxy.seen


def test_pictures_go_in_one_call(home, uri, client, monkeypatch):
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository as Repository
    from PIL import Image

    calls, real = [], Repository.log_artifacts
    monkeypatch.setattr(Repository, "log_artifacts", lambda *a: (calls.append(a), real(*a))[1])
    folder = make_run(home, reason=None)
    folder.pictures.mkdir()
    with Journal(folder.journal) as journal:
        for key in ("confusion matrix", "example errors", "filters a"):
            path = f"pictures/{key.replace(' ', '_')}-10.png"
            Image.new("RGB", (8, 8)).save(folder.path / path)
            journal.append("picture", path=path, key=key, step=10)
    sender = Sender(folder, uri)
    sender.catch_up()
    assert len(calls) == 1 and len(client.list_artifacts(sender.run_id, "images")) == 6


def test_each_answer_is_acknowledged_and_mirror_json_written_once_a_second(home, uri, monkeypatch):
    folder = make_run(home, reason=None)
    with Journal(folder.journal) as journal:
        for step in range(40, 240, 10):
            add_evaluation(folder, journal, step, False)
            journal.append("diverges", step=step, figures={})
    sender = Sender(folder, uri)
    sender.save_every = 1.0
    writes, real = [], sender.save
    monkeypatch.setattr(sender, "save", lambda: (writes.append(time.monotonic()), real())[1])
    seen, send = [], sender._send

    def noted(history, events):
        if len(seen) == 25:
            raise ConnectionError("the server died")
        send(history, events)
        seen.append(sender.acknowledged)

    monkeypatch.setattr(sender, "_send", noted)
    with pytest.raises(ConnectionError):
        sender.catch_up()
    assert sender.acknowledged > seen[-1] > seen[0], "what was answered is acknowledged"
    assert all(later - earlier > 0.99 for earlier, later in zip(writes[1:], writes[2:], strict=False))
    monkeypatch.setattr(sender, "_send", send)
    left = sum(line.end > sender.acknowledged for line in sender._lines())
    assert sender.catch_up() == left


def test_a_server_that_answers_questions_and_takes_nothing_does_not_advance(home, uri, monkeypatch):
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = make_run(home)
    sender = Sender(folder, uri)
    monkeypatch.setattr(SqlAlchemyStore, "update_run_info", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sender.catch_up()
    stumbled = sender.advanced
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            sender.catch_up()
    assert sender.advanced == stumbled


@pytest.fixture
def fake_mirror():
    class Slow:
        """Takes something every 0.1 s, and has everything after so many seconds."""

        refused = None

        def __init__(self, seconds, advancing):
            self.began = self.last = time.monotonic()
            self.seconds, self.advancing = seconds, advancing

        def finish(self, seconds):
            time.sleep(min(seconds, 0.1))
            if self.advancing:
                self.last = time.monotonic()
            return time.monotonic() - self.began > self.seconds

        def advanced(self):
            return self.last

        def give_up(self):
            pass

    return Slow


@pytest.mark.parametrize(
    ("advancing", "received", "has_all"), [(True, None, True), (False, None, False), (True, 2, False)]
)
def test_a_finished_run_waits_as_long_as_mlflow_advances(monkeypatch, fake_mirror, advancing, received, has_all):
    from bestrun.run import carry

    monkeypatch.setattr(carry, "MIRROR_SECONDS", 0.3)
    monkeypatch.setattr(carry, "MIRROR_SECONDS_INTERRUPTED", 0.3)
    signals = Signals()
    signals.received = received
    assert carry.wait_for_mirror(fake_mirror(0.9, advancing), signals) is has_all


def test_an_upload_has_time_for_its_size(home, proxy):
    folder = make_run(home, steps=(0,), improved=(), reason=None)
    with Journal(folder.journal) as journal:
        add_evaluation(folder, journal, 10, True)
    best = History.read(folder.journal).best
    import hashlib

    content = os.urandom(300_000)
    (folder.path / best["checkpoint"]).write_bytes(content)
    text = folder.journal.read_text().replace(best["sha256"], hashlib.sha256(content).hexdigest())
    folder.journal.write_text(text)
    sender = Sender(folder, proxy.uri)
    proxy.bytes_a_second = 150_000  # 2 s for the file, the client's own limit is 1 s
    before = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT")
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "1"
    try:
        assert sender.catch_up() == 3
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"
    finally:
        os.environ.pop("MLFLOW_HTTP_REQUEST_TIMEOUT")
        if before:
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = before
    assert sender.best_there and not sender.behind()


@pytest.mark.slow
def test_a_run_on_a_slow_but_healthy_server_ends_well(bestrun, home, settings, proxy):
    proxy.delay = 0.7
    result = bestrun("train", *settings, "name=slow", f"tracking.uri={proxy.uri}", timeout=280)
    assert result.code == 0, result.out + result.err


def test_the_mirror_says_nothing_twice(home, uri, caplog):
    """A run that is complete is asked about by nobody: no request, no write."""
    folder = make_run(home)
    sender = Sender(folder, uri)
    sender.catch_up()
    stamp = folder.mirror.stat().st_mtime_ns
    with caplog.at_level(logging.WARNING, "bestrun"), contextlib.suppress(ConnectionError):
        assert Sender(folder, uri).catch_up() == 0
    assert folder.mirror.stat().st_mtime_ns == stamp and not caplog.records
