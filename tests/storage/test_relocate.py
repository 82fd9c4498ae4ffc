"""A whole home at another place: renamed, or copied and proved; killed in between, and only moved by somebody."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from bestrun.errors import SettingsError, VerificationError
from bestrun.storage import relocate as moving
from bestrun.storage.files import StorageError
from bestrun.storage.home import DATABASE, create_home, identity, read_marker
from bestrun.storage.parcel import copy_files, files_in, prove, seal_of
from bestrun.storage.relocate import plan_relocation, relocate


def contents(folder: Path) -> dict[str, str]:
    """Every file by its hash, without what a home's place decides."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".bestrun", DATABASE, f"{DATABASE}.lock")
    }


def addresses(home: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(home / DATABASE)) as database:
        return [text for (text,) in database.execute("SELECT artifact_location FROM experiments WHERE name = 'e'")]


@pytest.fixture
def source(tmp_path: Path, ready_made_store: Path) -> Path:
    home = tmp_path / "first" / "mlruns"
    create_home(home)
    shutil.copyfile(ready_made_store, home / DATABASE)
    with contextlib.closing(sqlite3.connect(home / DATABASE)) as database, database:
        location = (home / "artifacts" / "e").as_uri()
        columns = "(experiment_id, name, artifact_location, lifecycle_stage)"
        database.execute(f"INSERT INTO experiments {columns} VALUES (7, 'e', ?, 'active')", (location,))
        database.execute("INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage) VALUES ('a', 7, 'active')")
    for name, text in (("runs/r/journal.jsonl", "{}\n"), ("runs/r/lock", "{}"), ("artifacts/e/a/best", "x" * 5000)):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    (home / "artifacts" / "an empty one").mkdir()
    return home


@pytest.fixture(params=["one disk", "two disks"])
def disks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two disks":
        monkeypatch.setattr(moving, "are_on_one_disk", lambda source, target: False)
    return str(request.param)


def test_a_home_is_whole_and_at_home_where_it_was_moved_to(source, tmp_path, disks):
    target = tmp_path / "a second" / "store"
    expected, who = contents(source), identity(source)
    plan = plan_relocation(source, target)
    assert plan.how == {"one disk": "rename", "two disks": "copy"}[disks] and plan.bytes > 5000
    assert not target.exists() and plan.deletes == (disks == "two disks")
    relocate(plan)
    assert contents(target) == expected and identity(target) == who and (target / "artifacts/an empty one").is_dir()
    assert read_marker(target).path == target and source in read_marker(target).former
    assert addresses(target) == [(target / "artifacts" / "e").as_uri()]
    assert os.listdir(source.parent) == [] and os.listdir(target.parent) == ["store"]
    assert plan_relocation(source, target).how == "nothing"
    relocate(plan_relocation(target, source))  # and back
    assert contents(source) == expected and addresses(source) == [(source / "artifacts" / "e").as_uri()]


@pytest.mark.skipif(
    not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat("/tmp").st_dev, reason="one disk"
)
def test_to_another_disk_it_is_copied(source, tmp_path):
    target = Path("/dev/shm") / tmp_path.name / "mlruns"
    try:
        expected = contents(source)
        assert plan_relocation(source, target).how == "copy"
        relocate(plan_relocation(source, target))
        assert contents(target) == expected and not source.exists()
    finally:
        shutil.rmtree(target.parent, ignore_errors=True)


@pytest.mark.parametrize("found_at", ["the new place", "the old place"])
def test_after_mv_it_is_put_right_and_that_is_said(source, tmp_path, found_at, caplog):
    target = tmp_path / "elsewhere"
    source.rename(target)
    plan = plan_relocation(target if found_at == "the new place" else source, target)
    assert (plan.how, plan.lay_at, plan.deletes) == ("repair", source, False)
    relocate(plan)
    assert addresses(target) == [(target / "artifacts" / "e").as_uri()] and "this mlruns was moved" in caplog.text
    assert plan_relocation(target, target).how == "nothing"


CALLS = ["copy_files", "is_at_work", "address_anew", "rename", "settle", "_delete", "rmtree"]


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_killed_while_it_is_copied_the_same_line_goes_on(source, tmp_path, monkeypatch, call, after):
    """At every call that changes something: the home is whole in one place, and then in the new one alone."""
    monkeypatch.setattr(moving, "are_on_one_disk", lambda source, target: False)
    target, expected, who = tmp_path / "second" / "mlruns", contents(source), identity(source)
    for number in range(1, 9):
        with monkeypatch.context() as patch:
            where = {"rename": os, "rmtree": shutil}.get(call, moving)
            passes, real = iter(range(1, 100)), getattr(where, call)

            def dies(*args, real=real, passes=passes, number=number, **named):
                if next(passes) != number:
                    return real(*args, **named)
                if after:
                    real(*args, **named)
                raise Killed

            patch.setattr(where, call, dies)
            try:
                relocate(plan_relocation(source, target))
            except Killed:
                pass
            else:
                break  # there is no such pass
        whole = [home for home in (source, target) if home.exists() and contents(home) == expected]
        assert whole and all(identity(home) == who for home in whole)
        relocate(plan_relocation(source, target))
        assert contents(target) == expected and identity(target) == who and not source.exists()
        assert addresses(target) == [(target / "artifacts" / "e").as_uri()]
        leftovers = [path.name for path in (*source.parent.iterdir(), *target.parent.iterdir()) if path != target]
        assert leftovers in ([], [".mlruns.arriving.lock"])
        relocate(plan_relocation(target, source))
        shutil.rmtree(target.parent)
    assert number > 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda home, target: (target / "x").mkdir(parents=True), "is there already; name a new folder"),
        (lambda home, target: create_home(target), "is another home"),
        (lambda home, target: shutil.copytree(home, target), "is another home"),
        (lambda home, target: target.symlink_to(home), "is a link"),
        (lambda home, target: home.joinpath(".bestrun").unlink() or shutil.rmtree(home), "no runs are there"),
    ],
)
def test_what_is_in_the_way_is_said_and_left(source, tmp_path, change, words):
    target = tmp_path / "second"
    change(source, target)
    before = {path: contents(path) for path in (source, target) if path.exists()}
    with pytest.raises(SettingsError, match=words):
        plan_relocation(source, target)
    assert {path: contents(path) for path in (source, target) if path.exists()} == before


@pytest.mark.parametrize("lock", ["runs/r/lock", "sweeps/s/lock"])
def test_while_something_is_at_work_it_stays(source, tmp_path, lock):
    (source / lock).parent.mkdir(parents=True, exist_ok=True)
    with open(source / lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match="is at work in it"):
            plan_relocation(source, tmp_path / "second")
    for inside in (source / "runs" / "x", source.parent):
        with pytest.raises(SettingsError, match="cannot lie in itself|is there already"):
            plan_relocation(source, inside)


def test_addresses_that_cannot_be_rewritten_yet_are_told_and_the_same_words_do_it(source, tmp_path, monkeypatch):
    target = tmp_path / "second"
    with monkeypatch.context() as patch:
        patch.setattr(moving, "settle", lambda home: None)
        with pytest.raises(StorageError, match=r"could not be rewritten yet; .* the same again"):
            relocate(plan_relocation(source, target))
    plan = plan_relocation(source, target)
    assert plan.how == "repair"
    relocate(plan)
    assert addresses(target) == [(target / "artifacts" / "e").as_uri()]


def test_what_is_written_to_while_it_is_copied_is_not_deleted(source, tmp_path, monkeypatch):
    monkeypatch.setattr(moving, "are_on_one_disk", lambda source, target: False)

    def copies(*args):
        copied = copy_files(*args)
        with open(source / "runs/r/journal.jsonl", "a") as journal:
            journal.write("{}\n")
        return copied

    monkeypatch.setattr(moving, "copy_files", copies)
    with pytest.raises(SettingsError, match="was written to while it was copied; nothing was deleted"):
        relocate(plan_relocation(source, tmp_path / "second" / "mlruns"))
    assert (source / "runs/r/journal.jsonl").read_text() == "{}\n{}\n" and not (tmp_path / "second" / "mlruns").exists()


def test_a_copy_that_has_another_byte_is_no_half_done_move(source, tmp_path, monkeypatch):
    monkeypatch.setattr(moving, "are_on_one_disk", lambda source, target: False)
    monkeypatch.setattr(moving, "_delete", lambda source, target: None)
    target = tmp_path / "second"
    relocate(plan_relocation(source, target))
    (target / "artifacts/e/a/best").write_text("y" * 5000)
    with pytest.raises(SettingsError, match=r"its artifacts/e/a/best is another one; nothing was deleted"):
        plan_relocation(source, target)


# ---- files on their way


def test_only_files_are_taken_and_each_is_proved(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "below").mkdir(parents=True)
    for name in ("a", "below/b", "lock", ".a.12345678.tmp"):
        (source / name).write_text(name)
    os.utime(source / "a", (1e9, 1e9))
    assert files_in(source) == ["a", "below/b"] and files_in(source, leave=()) == ["a", "below/b", "lock"]
    seals = copy_files(source, target, files_in(source))
    assert seals == {name: seal_of(source / name) for name in ("a", "below/b")}
    assert (target / "a").stat().st_mtime == 1e9
    (target / "below/b").write_text("BELOW/b")
    with pytest.raises(VerificationError, match=r"below/b: did not arrive as it was sent"):
        prove(target, seals)
    (source / "link").symlink_to(source / "a")
    with pytest.raises(SettingsError, match="link: is a link"):
        files_in(source)
    (source / "link").unlink()
    os.mkfifo(source / "pipe")
    with pytest.raises(SettingsError, match="pipe: is neither a file nor a folder"):
        files_in(source)


def fills_up(source, target):
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        copy_files(source, target, files_in(source))
    except StorageError as error:
        print(error)


def test_where_the_disk_takes_no_more_it_is_one_line(tmp_path, start_process):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "large").write_bytes(bytes(5000))
    ended = start_process(fills_up, tmp_path / "source", tmp_path / "target").wait()
    assert ended.code == 0 and ended.out.count("\n") == 1 and "target" in ended.out, ended
