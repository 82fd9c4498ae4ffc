"""A run's folder copied beside the original: there are two folders and one record, which the original alone writes."""

import contextlib
import json
import shutil
import sqlite3

import pytest

from bestrun.errors import SettingsError
from bestrun.run.resume import choose
from bestrun.storage.folder import RunFolder
from bestrun.tracking.store import Place
from support.made_runs import make_run
from support.stores import run_folder, sqlite_uri

MORE = ["training.max_steps=80", "training.patience_steps=80"]


def record(home):
    """All that the home's store has, and every file of the original and of MLflow's artifacts."""
    with contextlib.closing(sqlite3.connect(home / "mlruns" / "mlflow.db")) as connection:
        rows = list(connection.iterdump())
    folders = (run_folder(home, "k").path, home / "mlruns" / "artifacts")
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return rows, {path: path.read_bytes() for path in paths if path.name != "lock"}


@pytest.fixture
def copy(copied):
    """The folder of run k once more, as `cp -r` makes it: newer than the original."""
    folder = RunFolder(shutil.copytree(run_folder(copied, "k").path, run_folder(copied, "copy").path))
    folder.config.touch()
    return folder


@pytest.mark.parametrize("knows_of_mlflow", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["resume", "copy", *MORE], 2),
        (["resume", "copy", "--from-mlflow"], 2),
        (["sync", "copy"], 0),
        (["restore", "copy", "--local"], 0),
        (["move", "copy", "--to", "elsewhere/mlruns", "--yes"], 2),
        (["archive", "copy", "--out", "copy.tar"], 2),
        (["gc", "copy", "--yes"], 2),
    ],
    ids=lambda value: "-".join(value[:3]).replace("/", "") if isinstance(value, list) else None,
)
def test_no_verb_writes_the_record_of_a_run_from_a_copy(bestrun, copied, copy, words, code, knows_of_mlflow):
    if not knows_of_mlflow:
        copy.mirror.unlink()
    with open(copy.journal, "a") as file:  # as if somebody had tried something in it
        file.write(json.dumps({"event": "tested", "time_ms": 1, "step": 10, "accuracy": 1.0, "loss": 0.0}) + "\n")
    before = record(copied)
    result = bestrun(*words)
    assert (result.code, record(copied) == before) == (code, True), result.out + result.err
    assert "Traceback" not in result.err and copy.exists()
    if words[0] == "gc":
        assert (
            result.err
            == "error: run copy: stays: copies of a run's folder beside it, or links to it; see bestrun gc --help\n"
        )
    elif words[0] == "sync":
        assert "copy                     a copy of k" in result.out
    else:
        line = (result.err or result.out).splitlines()[0]
        assert f"run copy: {copy.path} is a copy of {run_folder(copied, 'k').path}" in line
        assert "bestrun resume k" in line and "bestrun rerun k" in line


def test_sync_of_a_whole_home_passes_over_a_copy(bestrun, copied):
    assert bestrun("sync").code == 0  # the home of this test is itself another than the run was made in
    before = record(copied)
    shutil.copytree(run_folder(copied, "k").path, run_folder(copied, "copy").path)
    reports = json.loads(bestrun("sync", "--json").out)
    assert {report["run_name"]: report["state"] for report in reports} == {"k": "complete", "copy": "a copy of k"}
    assert record(copied) == before


def test_the_words_that_the_refusal_names_go_on(copied, copy, bestrun):
    assert bestrun("resume", "k", *MORE).code == 0
    again = bestrun("resume", "copy", *MORE)
    assert again.code == 2 and "bestrun resume k" in again.err


def test_a_folder_that_was_only_renamed_is_the_run(bestrun, copied):
    run_folder(copied, "k").path.rename(run_folder(copied, "renamed").path)
    assert bestrun("resume", "renamed", *MORE).code == 0
    assert bestrun("sync", "renamed").out.split()[:2] == ["renamed", "complete"]
    verified = bestrun("verify", "renamed")
    assert verified.code == 0, verified.out + verified.err


def test_of_copies_without_the_original_one_alone_is_the_run(home):
    make_run(home, "r")
    runs = home / "mlruns" / "runs"
    for name in ("b", "a"):
        shutil.copytree(runs / "r", runs / name)
    (runs / "r").rename(runs / ".r")
    assert RunFolder(runs / "a").original() is None
    assert RunFolder(runs / "b").original() == RunFolder(runs / "a")
    (runs / "0").symlink_to(runs / "a")
    assert RunFolder(runs / "0").original() == RunFolder(runs / "a") and RunFolder(runs / "a").original() is None


def test_another_run_of_that_name_is_no_original(home):
    make_run(home, "r")
    runs = home / "mlruns" / "runs"
    (runs / "r").rename(runs / "earlier")
    make_run(home, "r", time_ms=1)
    assert RunFolder(runs / "earlier").original() is None


@pytest.mark.parametrize("line", [b"", b"{}\n", b"[1]\n", b"\xff\n", b"[" * 100_000 + b"\n", b'{"name": "r"}\n'])
def test_a_damaged_journal_is_nobodys_copy_and_nobodys_original(home, line):
    make_run(home, "r")
    runs = home / "mlruns" / "runs"
    shutil.copytree(runs / "r", runs / "copy")
    RunFolder(runs / "r").journal.write_bytes(line)
    assert RunFolder(runs / "copy").original() is None and RunFolder(runs / "r").original() is None
    shutil.copytree(runs / "r", runs / "damaged")
    assert RunFolder(runs / "damaged").original() is None


def test_resume_without_a_name_means_the_interrupted_run_not_its_newer_copy(home):
    make_run(home, "r", reason="interrupted")
    runs = home / "mlruns" / "runs"
    shutil.copytree(runs / "r", runs / "copy")
    for name in ("r", "copy"):
        RunFolder(runs / name).config.touch()
    assert choose(Place(home / "mlruns", sqlite_uri(home)), None) == RunFolder(runs / "r")
    with pytest.raises(SettingsError, match="is a copy of"), RunFolder(runs / "copy").owned():
        pass
