"""A home that is copied, moved or mounted twice: every verb on the right one, nothing written into another."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
import urllib.request
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from bestrun.errors import SettingsError, VerificationError
from bestrun.storage import home as homes
from bestrun.storage.files import read_json
from bestrun.storage.folder import RunFolder
from bestrun.storage.home import DATABASE, MARKER, create_home, identity, rebased, settle, whereabouts
from bestrun.storage.journal import read_journal
from bestrun.tracking.store import connect, is_own_store, is_same_store, own_store, resolve_uri, store_of
from support.lines import SMALL
from support.processes import Command, Starter

# ---- what the tests see of a home ----


def bytes_of(folder):
    """Every file below a folder, by its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows(database, query):
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def addresses(mlruns):
    """All that MLflow holds of paths in this home's own store."""
    found = []
    for table, column, which in homes.ADDRESSES:
        found += [text for (text,) in rows(mlruns / DATABASE, f"SELECT {column} FROM {table} WHERE {which}") if text]
    return [text.removeprefix("file://") for text in found]


def evaluations(mlruns, name):
    keys = ("step", "train/loss", "val/loss", "val/accuracy", "improved")
    events, _ = read_journal(RunFolder(mlruns / "runs" / name).journal)
    return [[event.get(key) for key in keys] for event in events if event["event"] == "evaluation"]


def has_best(mlruns, name):
    """Whether the store in this home has the run's best checkpoint, and no other."""
    events, _ = read_journal(RunFolder(mlruns / "runs" / name).journal)
    run_id = read_json(mlruns / "runs" / name / "mirror.json")["run_id"]
    ((address,),) = rows(mlruns / DATABASE, f"SELECT artifact_uri FROM runs WHERE run_uuid = '{run_id}'")
    folder = Path(unquote(address.removeprefix("file://"))) / "checkpoints"
    best = [event["sha256"] for event in events if event.get("improved")][-1]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()] == [best]


# ---- addresses ----

REBASED = [
    ("file:///a/mlruns/artifacts/npz", "file:///b/m%20r/artifacts/npz"),
    ("/a/mlruns/runs/x", "/b/m r/runs/x"),
    ("/a/mlruns", "/b/m r"),
    ("file:/a/mlruns/x%20y", "file:///b/m%20r/x%20y"),
    ("file:///a/mlruns2/artifacts", "file:///a/mlruns2/artifacts"),
    ("/a/mlruns-old", "/a/mlruns-old"),
    ("/a", "/a"),
    ("file:///c/d%C3%A4/artifacts", "file:///b/m%20r/artifacts"),
    ("/c/dä/artifacts", "/b/m r/artifacts"),
    ("/c/d%C3%A4/artifacts", "/c/d%C3%A4/artifacts"),  # a path is not encoded
    ("file:///b/m%20r/artifacts", "file:///b/m%20r/artifacts"),
    ("s3://a/mlruns/x", "s3://a/mlruns/x"),
    ("mlflow-artifacts:/a/mlruns", "mlflow-artifacts:/a/mlruns"),
    ("models:/m-1", "models:/m-1"),
    ("a/mlruns/x", "a/mlruns/x"),
    ("", ""),
]


@pytest.mark.parametrize(("address", "expected"), REBASED)
def test_an_address_below_the_former_folder_is_one_below_the_new(address, expected):
    former, to = [Path("/a/mlruns"), Path("/c/dä")], Path("/b/m r")
    assert rebased(address, former, to) == expected
    assert rebased(expected, former, to) == expected  # a rewrite that is repeated is harmless


@pytest.mark.parametrize(("before", "after"), [("/a/mlruns", "/a/mlruns/old"), ("/a/mlruns/old", "/a/mlruns")])
def test_a_home_that_was_moved_into_itself_is_rebased_once(before, after):
    once = rebased(f"{before}/artifacts/x", [Path(before)], Path(after))
    assert once == f"{after}/artifacts/x" == rebased(once, [Path(before)], Path(after))


# ---- the marker ----


def make(place, store, *experiments, runs=()):
    """A settled home at `place` whose store has these experiments with an artifact each."""
    create_home(place)
    shutil.copyfile(store, place / DATABASE)
    opened = connect(own_store(place))
    for name in experiments:
        run = opened.client.create_run(opened.experiment_id(name), tags={"bestrun.folder": str(place / "runs" / name)})
        (place.parent / "note.txt").write_text(name)
        opened.artifacts(run).log_artifact(str(place.parent / "note.txt"))
    return place


def texts(mlruns):
    """What the store's artifacts are, read by way of its addresses."""
    store = connect(own_store(mlruns), create=False)
    found = []
    for run in store.client.search_runs(list(store.experiments(None))):
        (item,) = store.artifacts(run).list_artifacts()
        found.append(Path(store.artifacts(run).download_artifacts(item.path)).read_text())
    return sorted(found)


def test_a_new_home_has_an_identity_and_its_path(tmp_path):
    create_home(tmp_path / "mlruns")
    marker = read_json(tmp_path / "mlruns" / MARKER)
    assert marker == {"format": 1, "identity": marker["identity"], "path": str(tmp_path / "mlruns"), "former": []}
    assert identity(tmp_path / "mlruns") == marker["identity"] and len(marker["identity"]) == 32
    create_home(tmp_path / "mlruns")
    settle(tmp_path / "mlruns")
    assert read_json(tmp_path / "mlruns" / MARKER) == marker


def test_a_marker_of_before_gets_its_identity_at_the_first_verb_that_writes(home, caplog):
    mlruns = home / "mlruns"
    connect(own_store(mlruns), create=False)
    assert (mlruns / MARKER).read_bytes() == b"" and identity(mlruns) is None
    settle(mlruns)
    assert identity(mlruns) and whereabouts(mlruns).path == mlruns and not caplog.records


def test_a_folder_that_is_no_home_is_left_alone(tmp_path):
    settle(tmp_path)
    settle(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_marker_that_is_a_link_is_replaced_not_followed(tmp_path):
    target = tmp_path / "target"
    target.touch()
    (tmp_path / "mlruns" / "runs").mkdir(parents=True)
    (tmp_path / "mlruns" / MARKER).symlink_to(target)
    settle(tmp_path / "mlruns")
    assert target.read_bytes() == b"" and not (tmp_path / "mlruns" / MARKER).is_symlink()
    assert identity(tmp_path / "mlruns")


@pytest.mark.parametrize("text", ["hello", "[]", "{}", '{"format": 2, "identity": "x"}', "\0\0", "[" * 100_000])
def test_a_damaged_marker_is_refused_and_left(tmp_path, text):
    create_home(tmp_path / "mlruns")
    (tmp_path / "mlruns" / MARKER).write_text(text)
    for use in (settle, create_home, whereabouts, identity):
        with pytest.raises(VerificationError, match="not the marker of a home: .*truncate -s 0") as raised:
            use(tmp_path / "mlruns")
        assert len(str(raised.value).splitlines()) == 1
    assert (tmp_path / "mlruns" / MARKER).read_text() == text


# ---- copied, moved, mounted ----


def copied(first, second):
    shutil.copytree(first, second, symlinks=True)


def moved(first, second):
    first.rename(second)


def copied_and_deleted(first, second):
    copied(first, second)
    shutil.rmtree(first)


def copied_without_hidden_files(first, second):
    copied(first, second)
    (second / MARKER).unlink()


def mounted(first, second):
    second.mkdir(parents=True)
    result = subprocess.run(["mount", "--bind", str(first), str(second)], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"no right to mount: {result.stderr.strip()}")


def linked(first, second):
    second.symlink_to(first)


ELSEWHERE = [copied, moved, copied_and_deleted, copied_without_hidden_files]
ALIASES = [mounted, linked]


@pytest.fixture
def places(tmp_path):
    """Two paths for one home or two; what is mounted at the second is unmounted."""
    first, second = tmp_path / "first" / "mlruns", tmp_path / "the second" / "mlruns"
    first.parent.mkdir()
    second.parent.mkdir()
    yield first, second
    subprocess.run(["umount", "--lazy", str(second)], capture_output=True)


@pytest.mark.parametrize("way", ELSEWHERE, ids=lambda way: way.__name__)
def test_a_home_elsewhere_finds_its_own_files_before_and_after_it_is_settled(way, places, ready_made_store, caplog):
    first, second = places
    make(first, ready_made_store, "npz", "a b")
    (first.parent / "mlruns2").mkdir()
    before = identity(first)
    way(first, second)
    was = bytes_of(first) if first.exists() else None
    shutil.rmtree(first / "artifacts", ignore_errors=True)  # read from here, or not at all
    assert texts(second) == ["a b", "npz"] and not caplog.records
    if was:
        copied(second / "artifacts", first / "artifacts")

    settle(second)
    assert [len(record.message.splitlines()) for record in caplog.records] == [1]
    assert str(first) in caplog.records[0].message
    here = [unquote(text) for text in addresses(second)]
    assert here and not any(text.startswith(str(first)) for text in here)
    assert texts(second) == ["a b", "npz"]
    assert (identity(second) == before) == (way in (moved, copied_and_deleted))
    if was:
        assert bytes_of(first) == was
    else:
        assert not first.exists()
    settle(second)
    assert len(caplog.records) == 1  # said once


@pytest.mark.parametrize("way", ALIASES, ids=lambda way: way.__name__)
def test_a_home_by_another_path_stays_what_it_is(way, places, ready_made_store, caplog):
    first, second = places
    make(first, ready_made_store, "npz")
    was = bytes_of(first)
    way(first, second)
    settle(second)
    create_home(second)
    assert bytes_of(first) == was and not caplog.records
    assert texts(second) == ["npz"] and is_own_store(own_store(second), first)
    store = connect(own_store(second))
    store.experiment_id("new")
    assert store.client.get_experiment_by_name("new").artifact_location == (first / "artifacts" / "new").as_uri()


def test_a_home_whose_other_path_is_gone_is_moved_and_goes_back(places, ready_made_store):
    """A container sees it at one path, the machine at another."""
    first, second = places
    make(first, ready_made_store, "npz")
    before = identity(first)
    for here, there in ((second, first), (first, second), (second, first)):
        there.rename(here)
        settle(here)
        assert texts(here) == ["npz"] and identity(here) == before and not there.exists()


def test_a_copy_of_a_copy_and_a_home_in_the_old_place(places, ready_made_store):
    first, second = places
    make(first, ready_made_store, "npz")
    copied(first, second)
    third = second.with_name("third")
    copied(second, third)
    moved(first, first.with_name("away"))
    make(first.with_name("other"), ready_made_store, "other").rename(first)  # another home where it lay
    settle(first)
    was = bytes_of(first)
    for place in (second, third, first.with_name("away")):
        settle(place)
        assert texts(place) == ["npz"]
        assert not any(text.startswith(str(first) + "/") for text in addresses(place))
    assert bytes_of(first) == was


def test_an_old_home_without_identity_that_was_moved_twice(places, ready_made_store, caplog):
    first, second = places
    make(first, ready_made_store, "npz")
    for path in (first, second):
        (path if path.exists() else first).rename(second)
        (second / MARKER).write_bytes(b"")
        assert texts(second) == ["npz"]
        settle(second)
        second.rename(first)
    settle(first)
    assert texts(first) == ["npz"] and identity(first)


def test_an_experiment_that_was_placed_elsewhere_stays_there(places, ready_made_store):
    first, second = places
    make(first, ready_made_store, "npz")
    elsewhere = (first.parent / "mlruns2" / "artifacts" / "mine").as_uri()
    connect(own_store(first)).client.create_experiment("mine", artifact_location=elsewhere)
    for marked in (True, False):
        third = second.with_name(f"marked-{marked}")
        copied(first, third)
        if not marked:
            (third / MARKER).write_bytes(b"")
        settle(third)
        assert connect(own_store(third)).client.get_experiment_by_name("mine").artifact_location == elsewhere


@pytest.mark.parametrize("name", [DATABASE, "artifacts"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("marked", [True, False])
def test_a_copy_made_of_links_is_refused(places, ready_made_store, name, kind, marked):
    first, second = places
    make(first, ready_made_store, "npz")
    if not marked:
        (first / MARKER).write_bytes(b"")
    copied(first, second)
    if (second / name).is_dir():
        if kind == "hard":
            pytest.skip("there are no hard links to folders")
        shutil.rmtree(second / name)
    else:
        (second / name).unlink()
    (os.link if kind == "hard" else os.symlink)(first / name, second / name)
    was = bytes_of(first)
    with pytest.raises(SettingsError, match=f"shares {name} with it by a link; .* cp -rL") as raised:
        create_home(second)
    assert len(str(raised.value).splitlines()) == 1
    assert bytes_of(first) == was


# ---- what is at work ----


@contextlib.contextmanager
def held(lock):
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("lock", ["runs/x/lock", "sweeps/s/lock"])
@pytest.mark.parametrize("way", [copied, moved, copied_without_hidden_files], ids=lambda way: way.__name__)
def test_while_a_run_or_a_sweep_is_at_work_addresses_are_translated_only(way, lock, places, ready_made_store):
    first, second = places
    make(first, ready_made_store, "npz")
    before = identity(first)
    way(first, second)
    was = addresses(second)
    with held(second / lock):
        settle(second)
        assert addresses(second) == was and texts(second) == ["npz"]
        assert (identity(second) == before) == (way is moved)
        now = identity(second)
        store = connect(own_store(second))  # what is new has an address like the others, and lies here
        run = store.client.create_run(store.experiment_id("new"))
        (second.parent / "note.txt").write_text("new")
        store.artifacts(run).log_artifact(str(second.parent / "note.txt"))
        assert (second / "artifacts" / "new").is_dir() and not (first / "artifacts" / "new").exists()
        assert texts(second) == ["new", "npz"]
        settle(second)
        assert identity(second) == now
    settle(second)
    assert identity(second) == now and texts(second) == ["new", "npz"]
    assert not any(text.startswith(str(first)) for text in addresses(second))


def test_killed_between_the_store_and_the_marker_it_is_settled_by_the_next(places, ready_made_store, monkeypatch):
    first, second = places
    make(first, ready_made_store, "npz")
    was = bytes_of(first)
    copied(first, second)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(homes, "_write_marker", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        settle(second)
    assert not any(text.startswith(str(first)) for text in addresses(second)) and identity(second) == identity(first)
    assert texts(second) == ["npz"]
    settle(second)
    assert texts(second) == ["npz"] and identity(second) != identity(first) and bytes_of(first) == was


def test_killed_in_the_middle_of_the_store_nothing_has_changed(places, ready_made_store, monkeypatch):
    first, second = places
    make(first, ready_made_store, "npz")
    moved(first, second)
    was = addresses(second)
    monkeypatch.setattr(homes, "ADDRESSES", [*homes.ADDRESSES, ("runs", "name", "no_such_column = 1")])
    settle(second)  # an error in the last statement
    monkeypatch.undo()
    assert addresses(second) == was and texts(second) == ["npz"]
    settle(second)
    assert addresses(second) != was and texts(second) == ["npz"]


def _settle(mlruns):
    settle(mlruns)
    print(identity(mlruns))


def test_processes_that_settle_a_home_at_once_agree(places, ready_made_store, start_process):
    first, second = places
    make(first, ready_made_store, "npz")
    copied(first, second)
    results = [process.wait(30) for process in [start_process(_settle, second) for _ in range(6)]]
    assert {result.out.strip() for result in results} == {identity(second)} != {identity(first)}
    assert sum("is a copy of" in result.err for result in results) == 1
    assert texts(second) == ["npz"]


# ---- which store mirror.json means ----


def test_mirror_json_means_the_store_in_the_home_it_lies_in(places, ready_made_store, tmp_path):
    first, second = places
    make(first, ready_made_store, "npz")
    ((run_id,),) = rows(first / DATABASE, "SELECT run_uuid FROM runs")
    copied(first, second)
    elsewhere = f"sqlite:///{tmp_path}/central/mlflow.db"
    own = {"uri": own_store(first), "store": "home", "run_id": run_id}
    before = {"uri": own_store(first), "run_id": run_id}  # of an earlier version
    for _ in ("before it is settled", "after"):
        for recorded in (own, before, {**own, "run_id": None}, {**before, "run_id": None}):
            assert store_of(recorded, second) == own_store(second)
            assert store_of(recorded, first) == own_store(first)
            assert is_same_store(recorded, own_store(second), second)
        assert is_same_store(own, own_store(first), second)  # typed: --tracking-uri
        assert store_of({"uri": elsewhere, "run_id": "1"}, second) == elsewhere
        assert store_of({"uri": "http://host:5000", "run_id": run_id}, second) == "http://host:5000"
        assert store_of({}, second) is None and not is_same_store({}, own_store(second), second)
        assert not is_same_store({"uri": elsewhere}, own_store(second), second)
        assert resolve_uri(own_store(first), second) == own_store(first)  # named, and there
        settle(second)
    # a run's folder alone, in a home whose store has never heard of it
    assert not is_same_store({**own, "run_id": "0" * 32}, own_store(second), second)
    shutil.rmtree(first)
    assert resolve_uri(own_store(first), second) == own_store(second)
    assert resolve_uri(elsewhere, second) == elsewhere


# ---- every verb, from one home with a finished run, a killed one and a killed sweep ----

# A verb, its words, and whether it writes into the home or its store
READING = {
    "show": ["show", "whole"],
    "show by ID": ["show", "ID"],
    "runs": ["runs", "--json"],
    "compare": ["compare", "whole", "half"],
    "sweep": ["sweep", "s"],
    "fetch": ["fetch", "ID", "--out", "out"],
    "predict": ["predict", "ID", "IMAGES"],
    "predict an alias": ["predict", "digits@champion", "IMAGES"],
    "report": ["report", "ID", "--out", "out.html"],
}
WRITING = {
    "restore": ["restore", "ID"],
    "restore --local": ["restore", "whole", "--local"],
    "resume": ["resume", "half"],
    "resume by ID": ["resume", "HALF"],
    "train further": ["resume", "whole", "training.max_steps=100", "training.patience_steps=100"],
    "train": ["train", "SETTINGS", "name=new"],
    "from_run": ["train", "SETTINGS", "name=new", "from_run=whole"],
    "from_run by ID": ["train", "SETTINGS", "name=new", "PARENT"],
    "rerun": ["rerun", "ID", "name=new"],
    "sync": ["sync"],
    "gc": ["gc", "--keep-best", "1", "--yes"],
    "register": ["register", "ID", "--name", "digits", "--alias", "second"],
    "register anew": ["register", "ID", "--name", "other", "--alias", "first"],
    "the sweep goes on": ["train", "-m", "SWEEP"],
}
VERBS = READING | WRITING


class Home:
    """A home at one path, as often as it is asked for: killed runs can be killed once only."""

    def __init__(self, place, bestrun, store, settings, images, uri=None):
        self.mlruns, self.saved = place / "first" / "mlruns", place / "saved"
        self.words = {"IMAGES": [str(images)], "SETTINGS": settings}
        shared = [word for word in settings if "rate" not in word]
        self.words["SWEEP"] = [*shared, "optimizer.learning_rate=2e-3,4e-3", "sweep.name=s"]
        self.bestrun, self.uri, self._references, self._has_others = bestrun, uri, {}, False
        create_home(self.mlruns)
        if not uri:
            shutil.copyfile(store, self.mlruns / DATABASE)
        self("train", "SETTINGS", "name=whole")
        self.words["ID"] = [read_json(self.mlruns / "runs" / "whole" / "mirror.json")["run_id"]]
        self.words["PARENT"] = [f"from_run={self.words['ID'][0]}"]
        shutil.move(self.mlruns, self.saved)

    def reference(self, *words, names=()):
        """The evaluations of these runs after a verb in the home where it always was."""
        if words not in self._references:
            self.fresh(others=names != ["whole"])
            self(*words)
            self._references[words] = [evaluations(self.mlruns, name) for name in names]
        return self._references[words]

    def fresh(self, others=True):
        """The home with its finished run; the others beside it are made when they are first asked for."""
        shutil.rmtree(self.mlruns, ignore_errors=True)
        shutil.copytree(self.saved, self.mlruns)
        if others and not self._has_others:
            self._make_others()
        return self.mlruns

    def _make_others(self):
        """A model in the registry, a killed run and a killed sweep."""
        self("register", "whole", "--name", "digits", "--alias", "champion")
        self("train", "SETTINGS", "name=half", env={"BESTRUN_FAULT": "F9:3"}, code=-signal.SIGKILL)
        self("train", "-m", "SWEEP", env={"BESTRUN_FAULT": "F9:6"}, code=-signal.SIGKILL)
        self.words["HALF"] = [read_json(self.mlruns / "runs" / "half" / "mirror.json")["run_id"]]
        shutil.rmtree(self.saved)
        shutil.copytree(self.mlruns, self.saved)
        self._has_others = True

    def __call__(self, *words, at=None, code=0, env=None):
        typed = [word for text in words for word in self.words.get(text, [text])]
        cwd = (at or self.mlruns).parent
        result = self.bestrun(
            *typed, cwd=cwd, env={"BESTRUN_MLRUNS": None, "MLFLOW_TRACKING_URI": self.uri, **(env or {})}
        )
        assert result.code == code, (words, result)
        assert "Traceback" not in result.out + result.err
        return result


@pytest.fixture(scope="module")
def one(_forkserver, tmp_path_factory, ready_made_store, small_mnist_npz):
    place = tmp_path_factory.mktemp("one")
    settings = ["data=npz", f"data.path={small_mnist_npz}", *SMALL, "pictures=false"]
    (place / "cwd").mkdir()
    return Home(place, Command(Starter(place / "cwd"), place), ready_made_store, settings, small_mnist_npz)


def of_before(mlruns):
    """As an earlier version left it."""
    (mlruns / MARKER).write_bytes(b"")
    for path in mlruns.glob("runs/*/mirror.json"):
        path.write_text(json.dumps({key: value for key, value in read_json(path).items() if key != "store"}))


def old_copied(first, second):
    of_before(first)
    copied(first, second)


def old_moved(first, second):
    of_before(first)
    moved(first, second)


@pytest.fixture
def second(tmp_path):
    path = tmp_path / "a second" / "mlruns"
    path.parent.mkdir()
    yield path
    subprocess.run(["umount", "--lazy", str(path)], capture_output=True)


WAYS = [copied, moved, mounted, copied_and_deleted, linked, old_copied, old_moved, copied_without_hidden_files]
QUICK = {("train further", copied), ("restore", old_copied), ("fetch", moved), ("register", moved), ("runs", mounted)}
CASES = [
    pytest.param(way, verb, id=f"{way.__name__}-{verb}", marks=[] if (verb, way) in QUICK else pytest.mark.slow)
    for way in WAYS
    for verb in VERBS
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("way", "verb"), CASES)
def test_a_verb_is_at_home_in_the_home_it_is_typed_in(way, verb, one, second):
    names = {"resume": ["half"], "train further": ["whole"], "the sweep goes on": ["s-000", "s-001"]}.get(verb, [])
    expected = one.reference(*VERBS[verb], names=names) if names else []
    first = one.fresh(others=names != ["whole"])
    way(first, second)
    alias = way in ALIASES
    was = bytes_of(first) if first.exists() else None
    marker = (second / MARKER).read_bytes() if (second / MARKER).exists() else None
    result = one(*VERBS[verb], at=second)

    if was is None:
        assert not first.exists() and not first.is_symlink()
    elif not alias:
        assert bytes_of(first) == was
    now = (second / MARKER).read_bytes() if (second / MARKER).exists() else None
    if verb in READING:
        assert now == marker and "this mlruns" not in result.out + result.err
        return
    assert (now == marker) == alias
    assert (result.out + result.err).count("this mlruns") == (not alias)  # said once
    store = [unquote(text) for text in addresses(second)]
    assert store and all(Path(text).is_relative_to(first if alias else second) or alias for text in store)
    assert [evaluations(second, name) for name in names] == expected
    for name in names:
        assert has_best(second, name)
        mirror = read_json(second / "runs" / name / "mirror.json")
        assert store_of(mirror, second) == own_store(second)
        assert mirror["acknowledged"] == (second / "runs" / name / "journal.jsonl").stat().st_size
    if "name=new" in VERBS[verb]:
        assert (second / "runs" / "new" / "result.json").exists() and has_best(second, "new")
    if "register" in verb:
        for (source,) in rows(second / DATABASE, "SELECT source FROM model_versions"):
            assert Path(unquote(source.removeprefix("file://"))).is_dir()
    one("fetch", "ID", "--out", "after", at=second)
    if alias:
        one("fetch", "ID", "--out", second.parent / "by the other path", at=first)


# ---- in the middle of a run, of a sweep ----


def wait_for(mlruns, name, count):
    """Until the journal of a run has so many events; 0: until it has begun to be made."""
    folder, deadline = RunFolder(mlruns / "runs" / name), time.monotonic() + 60
    while not folder.path.exists() or len(read_journal(folder.journal)[0]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start(home, *words):
    typed = [word for text in words for word in home.words.get(text, [text])]
    env = {"BESTRUN_MLRUNS": None, "MLFLOW_TRACKING_URI": None}
    return home.bestrun.start(*typed, cwd=home.mlruns.parent, env=env)


LONG = ["train", "SETTINGS", "name=live", "training.max_steps=300", "training.patience_steps=300"]
MOMENTS = [5, *(pytest.param(count, marks=pytest.mark.slow) for count in (0, 1, 2, 3, 4, 7, 9, 12, 15))]


@pytest.mark.slow
@pytest.mark.parametrize("events", MOMENTS)
def test_a_live_run_whose_home_is_moved_ends_and_goes_on_where_it_lies_now(one, second, events):
    (expected,) = one.reference(*LONG, names=["live"])
    first = one.fresh()
    process = start(one, *LONG)
    wait_for(first, "live", events)
    first.rename(second)
    result = process.wait(60)
    assert not first.exists() and "Traceback" not in result.out + result.err, result.err
    assert result.code == 1 and len([line for line in result.err.splitlines() if line.startswith("error: ")]) == 1, (
        result
    )
    one(*(["resume", "live"] if RunFolder(second / "runs" / "live").exists() else LONG), at=second)
    assert evaluations(second, "live") == expected and has_best(second, "live")
    assert not first.exists()


@pytest.mark.slow
@pytest.mark.parametrize("events", MOMENTS)
def test_a_live_run_whose_home_is_copied_is_two_runs_from_there(one, second, events):
    (expected,) = one.reference(*LONG, names=["live"])
    first = one.fresh()
    process = start(one, *LONG)
    wait_for(first, "live", events)
    subprocess.run(["cp", "-a", str(first), str(second)], capture_output=True)  # files come and go meanwhile
    again = RunFolder(second / "runs" / "live").exists()
    one(*(["resume", "live"] if again else [*LONG, "name=other"]), at=second)
    assert process.wait(60).code == 0
    for mlruns in (first, second) if again else (first,):
        assert evaluations(mlruns, "live") == expected and has_best(mlruns, "live")
        run_id = read_json(mlruns / "runs" / "live" / "mirror.json")["run_id"]
        logged = rows(mlruns / DATABASE, f"SELECT step FROM metrics WHERE run_uuid = '{run_id}' AND key = 'val/loss'")
        assert sorted(step for (step,) in logged) == [line[0] for line in expected]
    assert not any(unquote(text).startswith(str(first)) for text in addresses(second))
    assert not any(unquote(text).startswith(str(second)) for text in addresses(first))


@pytest.mark.slow
@pytest.mark.parametrize("run", ["s-000", "s-001"])
@pytest.mark.parametrize("events", [0, 1, 3])
def test_a_live_sweep_whose_home_is_moved_ends_and_goes_on_where_it_lies_now(one, second, run, events):
    one.words["SWEEP 2"] = [word.replace("sweep.name=s", "sweep.name=t") for word in one.words["SWEEP"]]
    line = ["train", "-m", "SWEEP 2"]
    expected = one.reference(*line, names=["t-000", "t-001"])
    first = one.fresh()
    process = start(one, *line)
    wait_for(first, run.replace("s", "t"), events)
    first.rename(second)
    result = process.wait(60)
    assert not first.exists() and "Traceback" not in result.out + result.err, result.err
    assert result.code == 1 and len([line for line in result.err.splitlines() if line.startswith("error: ")]) == 1, (
        result
    )
    one(*line, at=second)
    assert [evaluations(second, name) for name in ("t-000", "t-001")] == expected
    assert all(has_best(second, name) for name in ("t-000", "t-001"))
    parents = rows(second / DATABASE, "SELECT run_uuid FROM tags WHERE key = 'bestrun.role'")
    assert len(parents) == 2 and not first.exists()  # that of the sweep s, and this


# ---- MLflow's page, a server, Python ----


@pytest.mark.slow
@pytest.mark.parametrize("way", [copied, moved], ids=lambda way: way.__name__)
def test_the_page_of_a_home_elsewhere_shows_its_artifacts(one, second, way):
    first = one.fresh()
    way(first, second)
    shutil.rmtree(first, ignore_errors=True)
    env = {"BESTRUN_MLRUNS": None, "MLFLOW_TRACKING_URI": None}
    process = one.bestrun.start("ui", "--port", "5731", cwd=second.parent, env=env)
    deadline = time.monotonic() + 90
    while "Uvicorn running" not in process.out + process.err:
        assert process.poll() is None and time.monotonic() < deadline, process.out + process.err
        time.sleep(0.2)
    try:
        port = process.out.partition("http://127.0.0.1:")[2].partition("/")[0]
        (run_id,) = one.words["ID"]
        address = f"http://127.0.0.1:{port}/get-artifact?path=config/config.yaml&run_uuid={run_id}"
        assert b"seed: 0" in urllib.request.urlopen(address, timeout=20).read()
    finally:
        process.kill(signal.SIGINT)
        process.wait(30)
    assert not first.exists()


@pytest.fixture(scope="module")
def served(_forkserver, tmp_path_factory, ready_made_store, small_mnist_npz, mlflow_server):
    place = tmp_path_factory.mktemp("served")
    settings = [
        "data=npz",
        f"data.path={small_mnist_npz}",
        *SMALL,
        "pictures=false",
        f"tracking.uri={mlflow_server.uri}",
    ]
    (place / "cwd").mkdir()
    command = Command(Starter(place / "cwd"), place)
    return Home(place, command, ready_made_store, settings, small_mnist_npz, mlflow_server.uri)


ON_A_SERVER = ["fetch", "restore", "sync", "register", "show by ID", "from_run by ID"]  # the server stays as it is left


@pytest.mark.slow
@pytest.mark.parametrize("verb", ON_A_SERVER)
@pytest.mark.parametrize("way", [copied, moved, mounted, copied_and_deleted, old_copied], ids=lambda way: way.__name__)
def test_behind_a_server_a_copy_stays_with_the_server(way, verb, served, second, mlflow_server):
    first = served.fresh()
    way(first, second)
    was = bytes_of(first) if first.exists() else None
    words = list(VERBS[verb])
    if "SETTINGS" in words:
        words[2] = f"name=new-{way.__name__}"
    served(*words, at=second)
    assert not (second / DATABASE).exists() and not (second / "artifacts").exists()
    if was is None:
        assert not first.exists()
    elif way is not mounted:
        assert bytes_of(first) == was
    for mirror in map(read_json, second.glob("runs/*/mirror.json")):
        assert mirror["uri"] == mlflow_server.uri and "store" not in mirror


@pytest.mark.slow
@pytest.mark.parametrize("way", [copied, moved, copied_and_deleted, old_moved], ids=lambda way: way.__name__)
def test_behind_a_server_a_run_and_a_sweep_go_on_where_they_lie_now(way, served, second):
    first, name = served.fresh(), way.__name__.replace("_", "-")
    sweep = ["train", "-m", *(word.replace("sweep.name=s", f"sweep.name={name}") for word in served.words["SWEEP"])]
    served("train", "SETTINGS", f"name=half-{name}", env={"BESTRUN_FAULT": "F9:3"}, code=-signal.SIGKILL)
    served(*sweep, env={"BESTRUN_FAULT": "F9:6"}, code=-signal.SIGKILL)
    run_id = read_json(first / "runs" / f"half-{name}" / "mirror.json")["run_id"]
    way(first, second)
    was = bytes_of(first) if first.exists() else None
    served("resume", f"half-{name}", at=second)
    served(*sweep, at=second)
    assert (bytes_of(first) == was) if was else not first.exists()
    assert read_json(second / "runs" / f"half-{name}" / "mirror.json")["run_id"] == run_id
    assert len(evaluations(second, f"half-{name}")) == len(evaluations(second, f"{name}-001")) == 4
    assert not (second / DATABASE).exists() and not (second / "artifacts").exists()


def _load_and_train():
    import bestrun

    found = bestrun.load_run("whole")
    assert bestrun.runs().shape[0] >= 2
    print(json.dumps(found.restore()["run_id"]), found.predict(np.zeros((1, 28, 28, 1), np.uint8)).shape)


@pytest.mark.slow
@pytest.mark.parametrize("way", [copied, moved, mounted], ids=lambda way: way.__name__)
def test_from_python_a_home_elsewhere_is_the_same(one, second, way, start_process):
    first = one.fresh()
    way(first, second)
    was = bytes_of(first) if first.exists() else None
    env = {"BESTRUN_MLRUNS": None, "MLFLOW_TRACKING_URI": None}
    result = start_process(_load_and_train, cwd=second.parent, env=env).wait()
    assert result.code == 0 and one.words["ID"][0] in result.out, result
    assert first.exists() == (way is not moved) and (way is not copied or bytes_of(first) == was)
