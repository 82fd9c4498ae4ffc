"""Runs in another home: every verb there, by the same name and ID; here nothing is left of them."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from bestrun.storage.files import read_json
from bestrun.storage.folder import RunFolder
from bestrun.storage.home import DATABASE, create_home, identity
from bestrun.storage.journal import read_journal
from bestrun.tracking.store import connect
from bestrun.tracking.sync import sync
from support.lines import SMALL
from support.made_runs import make_run
from support.processes import Command, Starter
from support.stores import make_home

FURTHER = ["training.max_steps=100", "training.patience_steps=100"]


def seals(folder: Path) -> dict[str, str]:
    """Every file by its hash, without those that a verb may write at any time."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("lock", "mirror.json", DATABASE, f"{DATABASE}.lock")
    }


def records(mlruns: Path) -> dict[str, str]:
    """Run ID -> name, of the runs in a home's own store."""
    with contextlib.closing(sqlite3.connect(mlruns / DATABASE)) as database:
        return dict(database.execute("SELECT run_uuid, name FROM runs"))


def run_id(mlruns: Path, name: str) -> str:
    return str(read_json(mlruns / "runs" / name / "mirror.json")["run_id"])


def evaluations(mlruns: Path, name: str) -> list[tuple]:
    events, _ = read_journal(RunFolder(mlruns / "runs" / name).journal)
    keys = ("step", "train/loss", "val/loss", "improved", "state_sha256")
    return [tuple(event.get(key) for key in keys) for event in events if event["event"] == "evaluation"]


class Home:
    """A home with a finished run, a killed one and one that started from the first: anew for each test, at one path."""

    def __init__(self, place: Path, bestrun: Command, store: Path, settings: list[str]) -> None:
        self.mlruns, self.saved, self.settings = place / "first" / "mlruns", place / "saved", settings
        self.second = place / "second" / "mlruns"
        self.bestrun, self.store = bestrun, store
        create_home(self.mlruns)
        shutil.copyfile(store, self.mlruns / DATABASE)
        self("train", *settings, "name=whole")
        settings = self.settings = [*settings, "tracking.log_model=none"]  # one model is enough
        self("train", *settings, "name=half", env={"BESTRUN_FAULT": "F9:3"}, code=-signal.SIGKILL)
        self("train", *settings, "name=child", "from_run=whole")
        shutil.move(self.mlruns, self.saved)

    def fresh(self) -> None:
        for folder in (self.mlruns.parent, self.second.parent):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        shutil.copytree(self.saved, self.mlruns)
        create_home(self.second)
        shutil.copyfile(self.store, self.second / DATABASE)

    def __call__(self, *words: object, at: Path | None = None, code: int = 0, env: dict | None = None):
        environment = {"BESTRUN_MLRUNS": str(at or self.mlruns), "MLFLOW_TRACKING_URI": None, **(env or {})}
        result = self.bestrun(*words, cwd=(at or self.mlruns).parent, env=environment)
        assert result.code == code, (words, result)
        assert "Traceback" not in result.out + result.err
        return result

    def moves(self, *words: object, code: int = 0):
        return self("move", *words, "--to", self.second, "--yes", code=code)


@pytest.fixture(scope="module")
def one(_forkserver, tmp_path_factory, ready_made_store, small_mnist_npz):
    place = tmp_path_factory.mktemp("one").resolve()
    (place / "cwd").mkdir()
    settings = ["data=npz", f"data.path={small_mnist_npz}", *SMALL, "pictures=false"]
    return Home(place, Command(Starter(place / "cwd"), place), ready_made_store, settings)


@pytest.fixture
def home(one):
    one.fresh()
    return one


def test_a_moved_run_is_whole_there_and_gone_here(home):
    before, whole = seals(home.mlruns / "runs/whole"), run_id(home.mlruns, "whole")
    artifacts = seals(home.mlruns / "artifacts/npz" / whole)
    times = (home.mlruns / "runs/whole/config.yaml").stat().st_mtime_ns
    with contextlib.closing(sqlite3.connect(home.mlruns / DATABASE)) as database, database:
        database.execute("INSERT INTO tags (run_uuid, key, value) VALUES (?, 'by hand', 'mine')", (whole,))
    told = home("move", "whole", "--to", home.second, code=2)  # nobody is there to answer
    assert "--yes" in told.err and "MB" in told.out and "started from it: child" in told.out
    assert not (home.second / "runs/whole").exists() and seals(home.mlruns / "runs/whole") == before

    found = json.loads(home.moves("whole", "--json").out)
    assert found["runs"][0] == {
        "run_name": "whole", "run_id": whole, "files": found["runs"][0]["files"], "bytes": found["bytes"],
        "store": "home", "was_there": False, "stays": ["started from it: child"], "error": None,
    }  # fmt: skip
    assert seals(home.second / "runs/whole") == before and seals(home.second / "artifacts/npz" / whole) == artifacts
    assert (home.second / "runs/whole/config.yaml").stat().st_mtime_ns == times
    assert not (home.mlruns / "runs/whole").exists() and not (home.mlruns / "artifacts/npz" / whole).exists()
    assert records(home.second) == {whole: "whole"} and whole not in records(home.mlruns)
    with contextlib.closing(sqlite3.connect(home.second / DATABASE)) as database:
        tags = dict(database.execute("SELECT key, value FROM tags"))
    assert tags["by hand"] == "mine" and tags["bestrun.folder"] == str(home.second / "runs/whole")
    assert json.loads(tags["bestrun.writer"])["home"] == identity(home.second)
    assert [name for name in os.listdir(home.second) if name.startswith(".bestrun-")] == []
    assert [name for name in os.listdir(home.mlruns) if name.startswith(".bestrun-")] == []
    again = home.moves("whole")
    assert "is there, and nothing of it is left here" in again.out

    shutil.rmtree(home.mlruns)  # every verb needs nothing of the old home
    at = home.second
    assert "whole" in home("runs", at=at).out
    assert home("show", whole, at=at).out and home("fetch", whole[:9], "--out", at.parent / "out", at=at)
    assert json.loads(home("restore", "best", "--json", at=at).out)["validation"]["agrees"]
    assert json.loads(home("verify", "whole", "--json", at=at).out)["verdict"] == "equal"
    assert json.loads(home("sync", "--json", at=at).out)[0] | {"run_id": 0} == {
        "run_name": "whole", "sent": 0, "state": "complete", "error": None, "run_id": 0,
    }  # fmt: skip
    assert "version 1" in home("register", whole, "--name", "digits", "--alias", "a", at=at).out
    assert home("restore", "digits@a", at=at)
    further = json.loads(home("resume", "whole", *FURTHER, "--json", at=at).out)
    assert further["run_id"] == whole and further["steps"] == 100
    assert records(at) == {whole: "whole"} and len(evaluations(at, "whole")) == 6
    home("train", *home.settings, "from_run=whole", "name=next", at=at)
    home("compare", "whole", "next", at=at)


def test_a_killed_run_goes_on_there_to_the_very_same_end(home):
    half = run_id(home.mlruns, "half")
    home.moves("half", "child")
    at = home.second
    assert sorted(records(at).values()) == ["child", "half"] and list(records(home.mlruns).values()) == ["whole"]
    home("resume", at=at)  # the latest interrupted one
    home("resume", "half", at=home.saved, env={"BESTRUN_MLRUNS": str(copied(home))})
    assert evaluations(at, "half") == evaluations(home.mlruns.parent / "copy", "half")
    assert run_id(at, "half") == half and records(at)[half] == "half"
    with contextlib.closing(sqlite3.connect(at / DATABASE)) as database:
        ask = "SELECT step FROM metrics WHERE run_uuid = ? AND key = 'val/loss' ORDER BY step"
        assert [step for (step,) in database.execute(ask, (half,))] == [0, 20, 40, 60]


def copied(home: Home) -> Path:
    """The home as it was, elsewhere: what a run comes to that was not moved."""
    shutil.copytree(home.saved, home.mlruns.parent / "copy")
    return home.mlruns.parent / "copy"


def registered(home):
    home("register", "whole", "--name", "digits")


def another_of_this_name(home):
    make_run(home.second.parent, "whole")


def in_the_way(home):
    (home.second / "runs/whole").mkdir()
    (home.second / "runs/whole/a file").touch()


def gone_on_here(home):
    shutil.copytree(home.mlruns / "runs/whole", home.second / "runs/whole")
    home("resume", "whole", *FURTHER)


def other_byte_there(home):
    shutil.copytree(home.mlruns / "runs/whole", home.second / "runs/whole")
    (home.second / "runs/whole/overrides.yaml").write_text("overrides: []\n")


def a_link(home):
    (home.mlruns / "runs/whole/link").symlink_to("/etc/passwd")


def no_home(home):
    shutil.rmtree(home.second)
    (home.second / "mine").mkdir(parents=True)


REFUSALS = {
    registered: "whole: is registered as digits version 1",
    another_of_this_name: "has another run of this name",
    in_the_way: "is in the way of run whole",
    gone_on_here: "is an older copy of it",
    other_byte_there: "its overrides.yaml is another one there",
    a_link: "link: is a link",
    no_home: "is no home of runs",
}


@pytest.mark.parametrize("change", REFUSALS)
def test_what_cannot_move_is_said_and_nothing_is_changed(home, change):
    change(home)
    before = seals(home.mlruns), seals(home.second), records(home.mlruns)
    told = home.moves("half", "whole", code=2)
    assert REFUSALS[change] in told.err and told.err.count("\n") == 1
    assert (seals(home.mlruns), seals(home.second), records(home.mlruns)) == before


def test_a_running_run_stays(home):
    with open(home.mlruns / "runs/whole/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "whole is in use by process" in home.moves("whole", code=2).err
    assert (home.mlruns / "runs/whole/journal.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["whole"], "say what goes where"),
        (["--to", "x"], "say what goes where"),
        (["whole", "--to", "x", "--home", "y"], "leave RUN, --to and --sweep out"),
        (["whole", "--sweep", "s", "--to", "x"], "all its runs go"),
        (["nothing", "--to", "x"], "there is no folder of it"),
        (["whole", "--to", "."], "one home cannot lie in another"),
        (["whole", "--to", "mlruns"], "is the home that the runs are in"),
        (["--sweep", "s", "--to", "x"], "there is no such sweep"),
        (["--home", "mlruns/runs/x"], "a home cannot lie in itself"),
    ],
)
def test_what_is_typed_wrong_is_one_line(home, words, told):
    result = home("move", *words, code=2)
    assert told in result.err and result.err.count("\n") == 1
    assert os.listdir(home.mlruns.parent) == ["mlruns"]


def test_a_copy_that_has_gone_on_there_stays_and_the_old_one_goes(home):
    """As after a kill between the two: the run has its name in both homes."""
    shutil.copytree(home.mlruns, home.second, dirs_exist_ok=True)
    home("resume", "whole", *FURTHER, at=home.second)
    there, ids = seals(home.second / "artifacts"), run_id(home.mlruns, "whole")
    told = home.moves("whole")
    assert "has arrived before" in told.out
    assert len(evaluations(home.second, "whole")) == 6 and seals(home.second / "artifacts") == there
    assert not (home.mlruns / "runs/whole").exists() and ids not in records(home.mlruns)


def test_the_advice_about_an_older_copy_brings_all_that_is_here(home):
    """MLflow has a record of the older copy there, too: what arrives is the record as it is here."""
    shutil.copytree(home.mlruns, home.second, dirs_exist_ok=True)
    home("resume", "whole", *FURTHER)
    whole = run_id(home.mlruns, "whole")
    with contextlib.closing(sqlite3.connect(home.mlruns / DATABASE)) as database, database:
        database.execute("INSERT INTO tags (run_uuid, key, value) VALUES (?, 'by hand', 'mine')", (whole,))
    artifacts = seals(home.mlruns / "artifacts/npz" / whole)
    assert "set that aside, then the same again" in home.moves("whole", code=2).err
    (home.second / "runs/whole").rename(home.second.parent / "set-aside")
    home.moves("whole")
    assert len(evaluations(home.second, "whole")) == 6 and seals(home.second / "artifacts/npz" / whole) == artifacts
    with contextlib.closing(sqlite3.connect(home.second / DATABASE)) as database:
        assert dict(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (whole,)))["by hand"] == "mine"
        (steps,) = database.execute(
            "SELECT max(step) FROM metrics WHERE run_uuid = ? AND key = 'val/loss'", (whole,)
        ).fetchone()
    assert steps == 100
    assert json.loads(home("restore", "whole", "--json", at=home.second).out)["validation"]["agrees"]


def test_a_record_that_has_more_there_is_not_written_over(home):
    shutil.copytree(home.mlruns, home.second, dirs_exist_ok=True)
    home("resume", "whole", *FURTHER, at=home.second)
    shutil.rmtree(home.second / "runs/whole")
    before = records(home.mlruns), seals(home.mlruns / "runs")
    told = home.moves("whole", code=2)
    assert "MLflow has more of it in" in told.err and told.err.count("\n") == 1
    assert (records(home.mlruns), seals(home.mlruns / "runs")) == before


@pytest.fixture
def opened(start_process, tmp_path, ready_made_store, monkeypatch):
    """A home with a run, another one in which its archive was opened, and the first one's command."""
    first, second = (make_home(tmp_path / name, ready_made_store) for name in ("home", "second"))
    monkeypatch.setenv("BESTRUN_MLRUNS", str(first / "mlruns"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = make_run(first, "one")
    copy = RunFolder(Path(shutil.copytree(folder.path, second / "mlruns" / "runs" / "one")))
    for each in (folder, copy):
        (report,) = sync([each], home=each.path.parents[1], setting=None)
        assert report["error"] is None
    return first / "mlruns", second / "mlruns", Command(start_process, first)


def active(mlruns: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(mlruns / DATABASE)) as database:
        return [row[0] for row in database.execute("SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active'")]


def test_a_run_that_was_opened_there_from_an_archive_gets_no_second_record(opened):
    """The second would be deleted as the twin of the first by whoever sends the run next."""
    first, second, command = opened
    here, there = run_id(first, "one"), run_id(second, "one")
    before = records(first), records(second), seals(first), seals(second)
    words = ["move", "one", "--to", str(second), "--yes"]
    refused = command(*words)
    assert refused.code == 2 and refused.err.count("\n") == 1, refused.err
    assert here in refused.err and there in refused.err
    assert (records(first), records(second), seals(first), seals(second)) == before
    advice = re.search(
        r"set (\S+) aside, then: MLFLOW_TRACKING_URI=(\S+) mlflow runs delete --run-id (\w+)", refused.err
    )
    Path(advice[1]).rename(second.parent / "aside")
    connect(advice[2]).client.delete_run(advice[3])
    assert command(*words).code == 0 and active(second) == [here] and active(first) == []
    assert run_id(second, "one") == here and not (first / "runs/one").exists()


@pytest.mark.slow
def test_a_sweep_moves_whole_and_goes_on_there(home, settings):
    shared = [word for word in home.settings if "rate" not in word]
    line = ["train", "-m", *shared, "optimizer.learning_rate=2e-3,4e-3", "sweep.name=s"]
    home(*line, env={"BESTRUN_FAULT": "F9:6"}, code=-signal.SIGKILL)
    assert "belongs to sweep s, of which 1 of 2 trials are over" in home.moves("s-000", code=2).err
    shutil.copytree(home.mlruns, home.mlruns.parent / "copy")
    parent = read_json(home.mlruns / "sweeps/s/manifest.json")["parent_run_id"]
    home("move", "--sweep", "s", "--to", home.second, "--yes")
    at = home.second
    assert sorted(records(at).values()) == ["s", "s-000", "s-001"] and parent in records(at)
    assert not (home.mlruns / "sweeps/s").exists() and sorted(os.listdir(home.mlruns / "runs")) == [
        "child",
        "half",
        "whole",
    ]
    assert not {"s", "s-000", "s-001"} & set(records(home.mlruns).values())
    home(*line, at=at)
    home(*line, at=home.mlruns.parent / "copy")
    for name in ("s-000", "s-001"):
        assert evaluations(at, name) == evaluations(home.mlruns.parent / "copy", name)
    assert sorted(records(at).values()) == ["s", "s-000", "s-001"]
    assert home("restore", "best", "--sweep", "s", at=at) and home("sweep", "s", at=at)
    home("move", "s-000", "--to", home.mlruns, "--yes", at=at)  # its sweep needs it no longer
    assert home("sweep", "s", at=at).out.count("complete") >= 2


@pytest.mark.slow
def test_behind_a_server_the_folder_moves_and_mlflow_says_where_it_is(home, mlflow_server):
    from mlflow import MlflowClient

    mlflow_server.start()
    env = {"MLFLOW_TRACKING_URI": mlflow_server.uri}
    home("train", *home.settings, "name=served", env=env)
    served = run_id(home.mlruns, "served")
    home("move", "served", "--to", home.second, "--yes", env=env)
    run = MlflowClient(mlflow_server.uri).get_run(served)
    assert run.data.tags["bestrun.folder"] == str(home.second / "runs/served")
    assert json.loads(run.data.tags["bestrun.writer"])["home"] == identity(home.second)
    home("resume", "served", *FURTHER, at=home.second, env=env)
    assert MlflowClient(mlflow_server.uri).get_run(served).data.metrics["val/loss"]
    mlflow_server.stop()
    told = home("move", "served", "--to", home.mlruns, "--yes", at=home.second, env=env, code=6)
    assert "bestrun sync served" in told.out and (home.mlruns / "runs/served/journal.jsonl").exists()
    mlflow_server.start()
    home("sync", "served", env=env)
    tags = MlflowClient(mlflow_server.uri).get_run(served).data.tags
    assert tags["bestrun.folder"] == str(home.mlruns / "runs/served")
    moved = home.mlruns.parent / "moved"
    home("move", "--home", moved, env=env)
    assert MlflowClient(mlflow_server.uri).get_run(served).data.tags["bestrun.folder"] == str(moved / "runs/served")
