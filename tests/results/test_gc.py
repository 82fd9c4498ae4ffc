"""bestrun gc: what goes is what it said, and nothing goes that anything or anybody needs."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from bestrun.cli.gc import collect
from bestrun.errors import SettingsError
from bestrun.results import gc
from bestrun.results.gc import Selection, carry_out, plan, seconds_of
from bestrun.storage import leftovers
from bestrun.storage.home import create_home
from bestrun.storage.journal import Journal
from bestrun.storage.locks import locked
from bestrun.sweep.kept import kept
from bestrun.tracking.sender import Sender
from bestrun.tracking.store import Place, TrackingError, connect
from support.made_runs import SETTINGS, make_run
from support.stores import make_home, sqlite_uri

WORST, GOOD, BETTER = ((0, step) for step in (10, 20, 30))
KINDS = [gc.FOLDERS, gc.ARTIFACTS, gc.MODELS]


def made(home, name, steps=WORST, uri=None, **how):
    """A run that is over and sent; gives its ID."""
    folder = make_run(home, name, steps, how.pop("improved", steps[1:]), **how)
    sender = Sender(folder, uri or sqlite_uri(home))
    sender.catch_up()
    return sender.run_id


def place_of(home, uri=None):
    return Place(home / "mlruns", uri or sqlite_uri(home))


def planned(home, uri=None, **selection):
    return plan(place_of(home, uri), Selection(**selection), kept(home / "mlruns"))


def names(pieces):
    return sorted(piece.name for piece in pieces)


def tree(folder):
    """Every file but the database, with its hash."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("mlflow.db")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def size(folder):
    """Bytes of all that gc counts: neither the database nor the locks, which whoever looks writes to."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("mlflow.db", "lock")]
    return sum(path.stat().st_size for path in files)


def artifacts(home, run_id):
    return home / "mlruns" / "artifacts" / "e" / run_id / "artifacts"


def is_deleted(home, run_id, uri=None):
    return connect(uri or sqlite_uri(home)).client.get_run(run_id).info.lifecycle_stage == "deleted"


def log_model(uri, run_id, directory):
    """A LoggedModel of a run, with a file; gives the model."""
    client = connect(uri).client
    experiment = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment, name="m", source_run_id=run_id)
    directory.mkdir(exist_ok=True)
    (directory / "weights").write_bytes(bytes(5000))
    client.log_model_artifacts(model.model_id, str(directory))
    return client.finalize_logged_model(model.model_id, "READY")


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory, ready_made_store):
    """A home with a run for each reason to stay, and two without one."""
    home = make_home(tmp_path_factory.mktemp("kinds"), ready_made_store)
    create_home(home / "mlruns")
    client = connect(sqlite_uri(home)).client
    made(home, "best", BETTER)
    made(home, "second", GOOD)
    made(home, "other-experiment", experiment="f")
    made(home, "parent")
    made(home, "child", parent="parent")
    made(home, "rerun", rerun_of="child")
    made(home, "interrupted", reason="interrupted")
    made(home, "dead", reason=None)
    made(home, "diverged", reason="diverged")
    make_run(home, "unsent", WORST, (10,))
    client.set_tag(made(home, "pinned"), "bestrun.keep", "")
    registered = made(home, "registered")
    client.create_registered_model("digits")
    client.create_model_version("digits", client.get_run(registered).info.artifact_uri + "/checkpoints", registered)
    by_address = made(home, "registered-by-address")
    client.create_model_version("digits", client.get_run(by_address).info.artifact_uri + "/checkpoints")
    as_model = made(home, "registered-as-model")
    model = log_model(sqlite_uri(home), as_model, tmp_path_factory.mktemp("model") / "files")
    with pytest.MonkeyPatch.context() as patch:  # MLflow looks for the model in its global store
        patch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(home))
        client.create_model_version("digits", f"models:/{model.model_id}")
    theirs = {"host": "lab7", "user": "ana", "home": "f" * 32}
    client.set_tag(made(home, "theirs"), "bestrun.writer", json.dumps(theirs))
    made(home, "without-folder")
    folder = home / "mlruns" / "runs" / "without-folder"
    folder.rename(home / "moved-by-hand")
    made(home, "damaged")
    (home / "mlruns" / "runs" / "damaged" / "journal.jsonl").write_bytes(b'{"event": "started", "time_ms": 1}\n{"x\n')
    steps_at_most = {"training.max_steps": "30", "training.batch_size": "64"}
    sweep = {"sweep": "s", "experiment": "g", "settings": SETTINGS | steps_at_most}
    for number, steps in enumerate((WORST, GOOD, WORST)):
        made(home, f"s-00{number}", steps, trial=number, **sweep)
    write_manifest(home, "s", ["s-000", "s-001", "s-002"])
    made(home, "t-000", trial=0, **sweep | {"sweep": "t"})
    made(home, "first-of-g", BETTER, experiment="g")
    experiment = client.get_experiment_by_name("g").experiment_id  # of a sweep whose manifest is elsewhere
    parent = client.create_run(experiment, tags={"bestrun.role": "sweep", "bestrun.sweep": "u"}).info.run_id
    client.set_terminated(parent, "KILLED")
    made(home, "u-000", sweep="u", trial=0, experiment="g", parent_run_id=parent)
    parent = client.create_run(experiment, tags={"bestrun.role": "sweep", "bestrun.sweep": "v"}).info.run_id
    client.set_terminated(parent, "FINISHED")
    for number, steps in enumerate((WORST, GOOD)):
        made(home, f"v-00{number}", steps, sweep="v", trial=number, experiment="g", parent_run_id=parent)
    write_manifest(home, "t", ["t-000"], n_trials=2)
    return home


def write_manifest(home, name, runs, n_trials=None):
    from bestrun.sweep.manifest import Manifest, Run, Trial

    path = home / "mlruns" / "sweeps" / name / "manifest.json"
    path.parent.mkdir(parents=True)
    trials = [Trial(number, {"seed": str(number)}, [Run(run)]) for number, run in enumerate(runs)]
    objective = {"metric": "val/accuracy", "direction": "maximize"}
    line = {"kind": "grid", "space": {}, "overrides": []}
    manifest = Manifest(path, name, 1, line, n_trials or len(runs), objective, "g", sqlite_uri(home), None, trials)
    for run in manifest.runs():
        manifest.look(run)
    manifest.save()


def test_every_reason_to_stay_is_said_and_only_the_rest_can_go(all_kinds):
    before = tree(all_kinds)
    lock = all_kinds / "mlruns" / "runs" / "second" / "lock"
    with locked(lock, "it"):
        assert planned(all_kinds, keep_best=1).stays["second"] == "running"
    found = planned(all_kinds, keep_best=1)
    assert found.stays == {
        "best": "best of their experiment",
        "other-experiment": "best of their experiment",
        "first-of-g": "best of their experiment",
        "parent": "others were started from them",
        "child": "others were started from them",
        "interrupted": "interrupted, and could go on",
        "dead": "interrupted, and could go on",
        "unsent": "not yet sent to MLflow, see bestrun sync",
        "pinned": "pinned by the tag bestrun.keep",
        "registered": "registered as models",
        "registered-by-address": "registered as models",
        "registered-as-model": "registered as models",
        "theirs": "written by ana on lab7",
        "v-001": "best, finalists or winner of a sweep",
        "s-001": "best, finalists or winner of a sweep",
        "t-000": "of a sweep that is not complete",
        "u-000": "of a sweep that is not complete",
        "damaged": "their folder cannot be read",
    }
    assert names(found.runs) == ["diverged", "rerun", "s-000", "s-002", "second", "v-000", "without-folder"]
    lock.unlink()
    assert tree(all_kinds) == before, "to look changes nothing"


def test_a_selection_spares_more_and_never_takes_more(all_kinds, monkeypatch):
    free = names(planned(all_kinds, keep_best=1).runs)
    assert names(planned(all_kinds, keep_best=2).runs) == [name for name in free if name != "second"]
    assert names(planned(all_kinds, keep_best=1, experiment="g").runs) == ["s-000", "s-002", "v-000"]
    assert planned(all_kinds, older_than="1h").runs == []
    now = time.time
    monkeypatch.setattr(gc.time, "time", lambda: now() + 3700)
    assert names(planned(all_kinds, older_than="1h").runs) == free
    assert planned(all_kinds, older_than="2h").runs == []
    assert names(planned(all_kinds, references=["rerun", "second"]).runs) == ["rerun", "second"]
    with pytest.raises(SettingsError, match="run other-experiment: stays: best of their experiment"):
        planned(all_kinds, references=["rerun", "other-experiment"])
    with pytest.raises(SettingsError, match="run damaged: stays: its folder cannot be read"):
        planned(all_kinds, references=["damaged"])
    with pytest.raises(SettingsError, match="run theirs: stays: written by ana on lab7"):
        planned(all_kinds, references=["theirs"])
    with (
        pytest.raises(SettingsError, match="run rerun: stays: running"),
        locked(all_kinds / "mlruns" / "runs" / "rerun" / "lock", "it"),
    ):
        planned(all_kinds, references=["rerun"])
    with pytest.raises(SettingsError, match="no run of it here; there are: e, f, g"):
        planned(all_kinds, keep_best=1, experiment="x")


def test_a_sweep_whose_table_is_not_written_keeps_all_its_runs(all_kinds):
    """Once they are gone, the manifest is all that is known of them."""
    path = all_kinds / "mlruns" / "sweeps" / "s" / "manifest.json"
    content = path.read_text()
    values = json.loads(content)
    values["trials"][0]["runs"][0]["best"] = None
    path.write_text(json.dumps(values))
    try:
        assert planned(all_kinds, keep_best=1).stays["s-002"] == "of a sweep that is not complete"
        path.write_text("{}")
        assert planned(all_kinds, keep_best=1).stays["s-000"] == "of a sweep whose manifest cannot be read"
    finally:
        path.write_text(content)


def test_it_frees_what_it_said_and_what_stays_is_whole(home, tmp_path):
    create_home(home / "mlruns")
    best, worst = made(home, "best", BETTER), made(home, "worst")
    model = log_model(sqlite_uri(home), worst, tmp_path / "model")
    kept_model = log_model(sqlite_uri(home), best, tmp_path / "model")
    stays = tree(home / "mlruns" / "runs" / "best") | tree(artifacts(home, best))
    before, found = size(home), planned(home, keep_best=1)
    assert [kind for kind, _, _ in found.kinds] == KINDS and found.bytes > 5000
    outcome = carry_out(found)
    assert outcome.problems == []
    assert found.bytes == outcome.freed == before - size(home)
    assert tree(home / "mlruns" / "runs" / "best") | tree(artifacts(home, best)) == stays
    assert os.listdir(home / "mlruns" / "runs") == ["best"] and not artifacts(home, worst).parent.exists()
    assert is_deleted(home, worst) and not is_deleted(home, best)
    client = connect(sqlite_uri(home)).client
    models = client.search_logged_models([client.get_run(best).info.experiment_id])
    assert [each.model_id for each in models] == [kept_model.model_id] != [model.model_id]
    again = planned(home, keep_best=1)
    assert again.kinds == [] and again.bytes == 0, "a second call has nothing to do"


def leave_of_each_kind(home, tmp_path):
    """A leftover of each kind; gives what stays."""
    mlruns, uri = home / "mlruns", sqlite_uri(home)
    client = connect(uri).client
    run_id = made(home, "over", BETTER)
    folder = mlruns / "runs" / "over"
    stays = tree(home)
    (folder / "best-7.safetensors").write_bytes(bytes(700))
    (folder / ".config.yaml.0123abcd.tmp").write_bytes(bytes(70))
    (folder / "upload").mkdir()
    (folder / "upload" / "best-7.safetensors").write_bytes(bytes(71))
    (mlruns / "sweeps" / "s").mkdir(parents=True)
    (mlruns / "sweeps" / "s" / ".manifest.json.0123abcd.tmp").write_bytes(bytes(72))
    (mlruns / "cache").mkdir()
    (mlruns / "cache" / ".a-b.rows.0123abcd.tmp").write_bytes(bytes(800))
    (mlruns / "cache" / "a-b.json").write_bytes(b"{}")
    aside = mlruns / "aside" / "over-20261130-101010"
    aside.mkdir(parents=True)
    (aside / "last.safetensors").write_bytes(bytes(900))
    shutil.copyfile(folder / "journal.jsonl", aside / "journal.jsonl")
    another = mlruns / "aside" / "over-20261130-101011"  # of another run that had this name: it is nowhere else
    another.mkdir()
    (another / "journal.jsonl").write_bytes((folder / "journal.jsonl").read_bytes().replace(b"_ms", b"_ns", 1))
    stays |= {f"mlruns/aside/{another.name}/{name}": value for name, value in tree(another).items()}
    (mlruns / "mlflow.db.half-made-20261130-101010-abcd").write_bytes(bytes(1000))
    (artifacts(home, run_id) / "checkpoints" / ".artifact.uploading.xyz").write_bytes(bytes(1100))
    never = mlruns / "runs" / "20261130-101010-abcd"
    never.mkdir()
    (never / "config.yaml").write_bytes(bytes(30))
    os.utime(never, (1, 1))
    deleted = make_run(home, "deleted", WORST, (10,))
    sender = Sender(deleted, uri)
    sender.catch_up()
    log_model(uri, sender.run_id, tmp_path / "model")
    client.delete_run(sender.run_id)
    stays |= {f"mlruns/runs/deleted/{name}": value for name, value in tree(deleted.path).items()}
    nobody = mlruns / "artifacts" / "e" / ("0" * 32) / "artifacts"
    nobody.mkdir(parents=True)
    (nobody / "file").write_bytes(bytes(1200))
    gone = log_model(uri, run_id, tmp_path / "model")
    client.delete_logged_model(gone.model_id)
    kept_model = log_model(uri, run_id, tmp_path / "model")
    place = f"mlruns/artifacts/e/models/{kept_model.model_id}/artifacts"
    return stays | {f"{place}/{name}": value for name, value in tree(home / place).items()}


def test_leftovers_of_every_kind_go_without_a_selection_and_nothing_else(home, tmp_path, monkeypatch):
    create_home(home / "mlruns")
    stays = leave_of_each_kind(home, tmp_path)
    young = {kind for kind, _, _ in planned(home).kinds}
    assert not young & {"uploads cut off", "half made databases", "cache: notes on nothing"}, "somebody may be at it"
    monkeypatch.setattr(leftovers, "QUIET_SECONDS", -1.0)
    monkeypatch.setattr(leftovers.tempfile, "gettempdir", lambda: str(tmp_path))
    place = tmp_path / "bestrun-0123456789abcdef"
    (place / "files").mkdir(parents=True)
    (place / "files" / "half").write_bytes(bytes(60))
    before, found = size(home), planned(home)
    assert {kind for kind, _, _ in found.kinds} == {
        "checkpoints that better ones followed",
        "half written files",
        "cache: notes on nothing",
        "runs and sweeps that never began",
        "folders set aside",
        "half made databases",
        "uploads cut off",
        "work folders",
        "artifacts of deleted runs",
        "models of deleted runs",
        "models that were deleted",
        "artifacts of no run",
    }
    assert found.runs == [] and found.stays == {}
    outcome = carry_out(found)
    assert outcome.problems == [] and not place.exists()
    assert found.bytes == outcome.freed == before - size(home) + 60
    left = {name: value for name, value in tree(home).items() if not name.endswith("/lock")}
    assert left == {name: value for name, value in stays.items() if not name.endswith("/lock")}
    assert planned(home).kinds == []


def test_what_a_living_process_is_at_is_no_leftover(home, monkeypatch):
    create_home(home / "mlruns")
    made(home, "over")
    folder = home / "mlruns" / "runs" / "over"
    (folder / "best-7.safetensors").write_bytes(bytes(700))
    aside = home / "mlruns" / "aside" / "gone-20261130-101010"  # no run has taken its place
    aside.mkdir(parents=True)
    (aside / "last.safetensors").write_bytes(bytes(900))
    made(home, "half", reason="interrupted")
    (home / "mlruns" / "runs" / "half" / "best-7.safetensors").write_bytes(bytes(700))
    found = planned(home)
    assert names(found.leftovers) == [str(folder)]
    with locked(folder / "lock", "it"):
        assert planned(home).leftovers == []
        (problem,) = carry_out(found).problems
    assert "is in use by process" in problem and (folder / "best-7.safetensors").exists()


# ---- what changes between looking and removing ----


def register(home, client, run_id):
    client.create_registered_model("digits")
    client.create_model_version("digits", client.get_run(run_id).info.artifact_uri + "/checkpoints", run_id)


def pin(home, client, run_id):
    client.set_tag(run_id, "bestrun.keep", "yes")


def start_from_it(home, client, run_id):
    made(home, "new", parent="worst")


def go_on(home, client, run_id):
    with Journal(home / "mlruns" / "runs" / "worst" / "journal.jsonl") as journal:
        journal.append("resumed", from_step=10)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (register, "was registered meanwhile"),
        (pin, "has the tag bestrun.keep by now"),
        (start_from_it, "another run was started from it"),
        (go_on, "has gone on"),
    ],
)
def test_a_run_that_is_needed_by_now_stays(home, change, words):
    create_home(home / "mlruns")
    made(home, "best", BETTER)
    run_id = made(home, "worst")
    found = planned(home, keep_best=1)
    change(home, connect(sqlite_uri(home)).client, run_id)
    before = tree(home)
    outcome = carry_out(found)
    (problem,) = outcome.problems
    assert words in problem and outcome.freed == 0 and not is_deleted(home, run_id)
    assert {name for name in tree(home) if not name.endswith("lock")} == set(before)


def test_a_refusal_of_mlflow_leaves_the_run_as_it_was(home, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    create_home(home / "mlruns")
    made(home, "best", BETTER)
    run_id = made(home, "worst")
    found = planned(home, keep_best=1)

    def refuse(self, run_id):
        raise MlflowException("PERMISSION_DENIED: may not", error_code=7)

    before = tree(home)
    monkeypatch.setattr(MlflowClient, "delete_run", refuse)
    outcome = carry_out(found)
    assert "may not" in outcome.problems[0] and outcome.freed == 0
    assert {name: each for name, each in tree(home).items() if not name.endswith("lock")} == before
    assert not is_deleted(home, run_id)


def test_files_that_only_an_address_says_are_a_runs_are_left_alone(home, tmp_path):
    """A store is not to be trusted with what is removed here."""
    import sqlite3

    create_home(home / "mlruns")
    made(home, "best", BETTER)
    run_id = made(home, "worst")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "work").write_text("years of it")
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:
        database.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (precious.as_uri(), run_id))
    assert planned(home, keep_best=1).stays["worst"] == "their artifacts are not where MLflow puts a run's"
    connect(sqlite_uri(home)).client.delete_run(run_id)
    carry_out(planned(home, keep_best=1))
    assert (precious / "work").exists()


# ---- killed in between ----


def gc_command(*words):
    import sys

    from bestrun.cli.main import main

    sys.argv = ["bestrun", "gc", *words]
    main()


@pytest.mark.parametrize("selects", [(True, False), pytest.param((False, True), marks=pytest.mark.slow)])
def test_a_removal_killed_anywhere_is_completed_by_the_next(bestrun, home, tmp_path, selects):
    """With the same selection, and without one: what was begun is a leftover."""
    create_home(home / "mlruns")
    best = made(home, "best", BETTER)
    stays = tree(home / "mlruns" / "runs" / "best") | tree(artifacts(home, best))
    points = ["G1", "G2", "G3", "G4", "G5", "G6"]
    for point, is_selected in zip(points, 3 * selects, strict=True):
        run_id = made(home, point)
        log_model(sqlite_uri(home), run_id, tmp_path / "model")
        killed = bestrun("gc", point, "--yes", env={"BESTRUN_FAULT": point})
        assert killed.code == -signal.SIGKILL, killed.err
        assert (home / "mlruns" / "runs" / point).exists() == (point == "G1")
        said = planned(home, **({"references": [point]} if point == "G1" else {"keep_best": 1} if is_selected else {}))
        before, outcome = size(home), carry_out(said)
        assert outcome.problems == [] and said.bytes == outcome.freed == before - size(home), point
        assert is_deleted(home, run_id) and not artifacts(home, run_id).parent.exists()
        assert os.listdir(home / "mlruns" / "runs") == ["best"]
    assert tree(home / "mlruns" / "runs" / "best") | tree(artifacts(home, best)) == stays
    assert planned(home).kinds == [] and names(planned(home, keep_best=1).runs) == []


def test_a_half_removed_run_is_no_run(home, monkeypatch):
    from bestrun.storage.reference import run_folders

    create_home(home / "mlruns")
    folder = make_run(home, "it", WORST, (10,))
    leftovers.throw_away(folder)
    assert run_folders(home / "mlruns") == []
    assert names(planned(home).leftovers) == ["it"]


# ---- the command ----


def run(*words):
    return CliRunner().invoke(collect, words)


def test_without_yes_and_a_terminal_it_only_says_what_it_would_do(home):
    create_home(home / "mlruns")
    made(home, "best", BETTER)
    made(home, "worst")
    before = tree(home)
    for words in (["--keep-best", "1"], ["--keep-best", "1", "--dry-run"], ["worst"], ["--keep-best", "1", "--json"]):
        result = run(*words)
        assert result.exit_code == 0, result.output
        assert tree(home) == before
    report = json.loads(result.stdout)
    assert report["removed"] is False and report["freed"] == 0 and report["bytes"] > 0
    assert report["stays"] == {"best of their experiment": 1} and report["kept"] == {"best": "best of their experiment"}
    text = run("--keep-best", "1").output
    assert "run folders" in text and "in all" in text and "--yes" in text
    assert "runs      worst" in text and "stays     1 best of their experiment" in text
    done = run("--keep-best", "1", "--json", "--yes")
    report = json.loads(done.stdout)
    assert done.exit_code == 0 and report["freed"] == report["bytes"] and report["removed"]
    assert "nothing to remove" in run("--keep-best", "1").output


@pytest.fixture(scope="module")
def only(tmp_path_factory, ready_made_store):
    """A home with one run, of which nothing goes."""
    home = make_home(tmp_path_factory.mktemp("only"), ready_made_store)
    create_home(home / "mlruns")
    made(home, "only")
    return home


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--older-than", "30"], "as in --older-than 30d"),
        (["--older-than", "1m"], "as in --older-than 30d"),
        (["--experiment", "e"], "--older-than 30d or --keep-best 10"),
        (["r", "--keep-best", "3"], "a RUN that is named goes alone"),
        (["--yes", "--dry-run"], "type one of them"),
        (["../../etc"], "not a run reference"),
        (["nosuch"], "nosuch"),
        (["best"], "stays: best of their experiment"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(only, monkeypatch, words, said):
    monkeypatch.setenv("BESTRUN_MLRUNS", str(only / "mlruns"))
    home, before = only, tree(only)
    result = run(*words)
    assert isinstance(result.exception, SettingsError) and said in str(result.exception)
    assert "\n" not in str(result.exception) and tree(home) == before


def test_how_long_ago_is_read_in_hours_days_and_weeks():
    assert [seconds_of(text) for text in ("12h", "30d", "2w")] == [43200, 2592000, 1209600]


def test_a_home_without_a_store_has_leftovers_too(tmp_path, monkeypatch):
    monkeypatch.setenv("BESTRUN_MLRUNS", str(tmp_path / "mlruns"))
    create_home(tmp_path / "mlruns")
    (tmp_path / "mlruns" / ".x.tmp").write_bytes(bytes(10))
    assert "half written files" in run().output
    assert run("--yes").exit_code == 0 and not (tmp_path / "mlruns" / ".x.tmp").exists()


# ---- a server ----


@pytest.mark.slow
def test_a_server_is_asked_to_remove_and_does(home, mlflow_server, tmp_path):
    create_home(home / "mlruns")
    uri = mlflow_server.uri
    experiment = f"gc-{time.time_ns()}"
    best = made(home, "best", BETTER, uri=uri, experiment=experiment)
    worst = made(home, "worst", uri=uri, experiment=experiment)
    theirs = made(home, "theirs", uri=uri, experiment=experiment)
    client = connect(uri).client
    writer = {"host": "lab7", "user": "ana", "home": "f" * 32}
    client.set_tag(theirs, "bestrun.writer", json.dumps(writer))
    by_hand = made(home, "by-hand", uri=uri, experiment=experiment)
    client.delete_run(by_hand)
    log_model(uri, worst, tmp_path / "model")
    log_model(uri, best, tmp_path / "model")
    before = size(mlflow_server.folder / "artifacts") + size(home)
    found = planned(home, uri, keep_best=1)
    assert names(found.runs) == ["by-hand", "worst"] and found.stays["theirs"] == "written by ana on lab7"
    assert {"artifacts of deleted runs", *KINDS} == {kind for kind, _, _ in found.kinds}
    mlflow_server.stop()
    try:
        with pytest.raises(TrackingError):
            planned(home, uri, keep_best=1)
        outcome = carry_out(found)
        assert outcome.freed == 0 and "completes it" in outcome.problems[-1]
        assert (home / "mlruns" / "runs" / "worst").exists() or leftovers.thrown_away(home / "mlruns")
    finally:
        mlflow_server.start()
    found = planned(home, uri, keep_best=1)
    outcome = carry_out(found)
    assert outcome.problems == [], outcome.problems
    assert found.bytes == outcome.freed == before - size(mlflow_server.folder / "artifacts") - size(home)
    assert [is_deleted(home, run_id, uri) for run_id in (best, worst, theirs)] == [False, True, False]
    assert client.list_artifacts(best) and client.list_artifacts(theirs) and not client.list_artifacts(worst)
    models = client.search_logged_models([client.get_run(best).info.experiment_id])
    assert [model.source_run_id for model in models] == [best]
    assert planned(home, uri, keep_best=1).kinds == []


# ---- many ----


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_of_300_runs_what_stays_can_be_restored(bestrun, home, settings):
    """Real runs are among them; gc is killed at random moments until it has done all."""
    for seed in range(2):
        assert bestrun("train", *settings, f"seed={seed}", f"name=real-{seed}", "pictures=false").code == 0
    assert bestrun("train", *settings, "from_run=real-0", "name=child", "pictures=false").code == 0
    line = ["train", "-m", *settings, "seed=7,8", "sweep.name=s", "pictures=false"]
    assert bestrun(*line, timeout=300).code == 0
    for number in range(295):
        made(home, f"made-{number:03d}", GOOD if number % 5 == 0 else WORST, experiment=f"e{number % 3}")
    said = planned(home, keep_best=2)
    whole, before, choose = said.bytes, size(home), random.Random(0)
    assert len(said.runs) > 270
    left_by_kills = set()
    runs = home / "mlruns" / "runs"
    for _ in range(12):
        process, left = bestrun.start("gc", "--keep-best", "2", "--yes"), len(list(runs.iterdir()))
        due = time.monotonic() + 60
        while len(list(runs.iterdir())) > left - choose.randrange(1, 22) and time.monotonic() < due:
            time.sleep(0.01)
        process.kill()
        process.wait()
        left_by_kills.add(size(home))
    assert len(left_by_kills) > 3, "they came while it was at work"
    assert bestrun("gc", "--keep-best", "2", "--yes", timeout=300).code == 0
    assert before - size(home) == whole
    assert planned(home, keep_best=2).kinds == []
    left = sorted(path.name for path in (home / "mlruns" / "runs").iterdir())
    assert left == sorted(said.stays)
    client = connect(sqlite_uri(home)).client
    for name in left:
        if name.startswith("made"):
            (path,) = (home / "mlruns" / "runs" / name).glob("best-*")
            run_id = json.loads((home / "mlruns" / "runs" / name / "mirror.json").read_text())["run_id"]
            artifact = Path(client.download_artifacts(run_id, f"checkpoints/{path.name}"))
            assert artifact.read_bytes() == path.read_bytes()
        else:
            for where in ([], ["--local"]):
                result = bestrun("restore", name, *where)
                assert result.code == 0, result.err
    assert {"real-0", "child"} <= set(left) and len(left) < 20
    assert bestrun("restore", "best", "--sweep", "s").code == 0 and bestrun("sweep", "s").code == 0
    assert bestrun(*line).code == 0, "the same line finds nothing left to do"
