"""A run's folder copied beside the original: there are two folders and one record, which the original alone writes."""

import contextlib
import json
import shutil
import sqlite3

import pytest

from bestrun.errors import SettingsError
from bestrun.results.gc import Selection, plan
from bestrun.results.record import find_record
from bestrun.run.resume import choose
from bestrun.storage.files import names_in, read_json
from bestrun.storage.folder import RunFolder
from bestrun.storage.leftovers import destroy, throw_away
from bestrun.tracking.lookup import Lookup
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


def test_a_link_to_a_run_lets_nobody_remove_the_run(bestrun, copied):
    link = run_folder(copied, "nick").path
    link.symlink_to("k")
    before = record(copied)
    for words, code in (
        (["gc", "--keep-best", "1", "--yes"], 0),
        (["gc", "nick", "--yes"], 2),
        (["resume", "nick"], 2),
    ):
        result = bestrun(*words)
        assert (result.code, record(copied) == before, link.is_symlink()) == (code, True, True), result.out + result.err


def test_a_run_whose_folder_is_a_link_to_another_disk_goes_with_its_link(home, tmp_path):
    folder = make_run(home, "r")
    folder.path.rename(tmp_path / "disk")
    folder.path.symlink_to(tmp_path / "disk")
    assert folder.original() is None
    with folder.owned():
        destroy(throw_away(folder))
    assert list(folder.path.parent.iterdir()) == [] and list((tmp_path / "disk").iterdir()) == []


def test_resume_goes_on_with_the_run_that_was_typed_and_with_no_other_of_its_name(home, copied):
    place = Place(home / "mlruns", sqlite_uri(home))
    runs, run_id = home / "mlruns" / "runs", read_json(run_folder(home, "k").mirror)["run_id"]
    (runs / "k").rename(runs / "mine")
    (runs / "mine" / "mirror.json").rename(home / "mirror.json")  # its folder does not know its ID
    make_run(home, "k")  # another run
    for reference in (run_id, run_id[:9], "best"):
        assert choose(place, reference) == RunFolder(runs / "mine")
        assert find_record(Lookup(reference), place).folder == RunFolder(runs / "mine")
    shutil.rmtree(runs / "mine")
    with pytest.raises(SettingsError, match=r"runs/k holds another run of that name; to make room: mv .*/k .*/k-other"):
        choose(place, run_id)
    (runs / "k").rename(runs / "k-other")
    assert choose(place, run_id) == RunFolder(runs / "k"), "rebuilt from MLflow"


def test_a_folder_that_cannot_be_rebuilt_is_where_it_was(bestrun, copied, home):
    from mlflow import MlflowClient

    MlflowClient(sqlite_uri(home)).delete_run(read_json(run_folder(home, "k").mirror)["run_id"])
    before = record(home)
    result = bestrun("resume", "k", "--from-mlflow", *MORE)
    assert result.code in (2, 5) and "Traceback" not in result.err and result.err.count("\n") == 1, result.err
    assert record(home) == before and names_in(home / "mlruns" / "aside") == []


def test_a_renamed_run_keeps_what_speaks_for_it_and_its_archive_says_how_to_make_it(bestrun, copied, home):
    make_run(home, "child", (0, 90), (90,), parent="k", experiment="npz")  # and better
    run_folder(home, "k").path.rename(run_folder(home, "renamed").path)
    with pytest.raises(SettingsError, match="run renamed: stays: others were started from them"):
        plan(Place(home / "mlruns", sqlite_uri(home)), Selection(references=("renamed",)))
    refused = bestrun("archive", "renamed", "--out", "renamed.tar")
    assert refused.code == 5 and "is of run 'k'; give its folder that name" in refused.err


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
