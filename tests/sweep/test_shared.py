"""Sweeps that are shared: one data set, the right one of two with one name, samplers that can work."""

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import optuna
import pytest

from bestrun.errors import SettingsError
from bestrun.sweep.study import try_sampler
from bestrun.tracking.listing import list_runs
from bestrun.tracking.lookup import of_sweep
from bestrun.tracking.store import connect, own_store
from support.processes import Command, Starter

QUICK = ["training.max_steps=4", "training.evaluate_every_steps=2", "training.patience_steps=4", "pictures=false"]
QUICK += ["training.batch_size=8", "model.filter_sizes=[3]", "model.num_filters=[4]", "model.fc_size=8"]


def images(path, seed):
    rng = np.random.default_rng(seed)
    arrays = {name: rng.integers(0, 256, (count, 6, 6), np.uint8) for name, count in (("x_train", 40), ("x_test", 20))}
    np.savez(path, **arrays, y_train=np.arange(40) % 2, y_test=np.arange(20) % 2)


# ---- one sweep, one data set


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["inline", pytest.param("local", marks=pytest.mark.slow)])
def test_a_longer_study_with_other_images_at_the_same_relative_path_is_refused(bestrun, home, tmp_path, backend):
    for number, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        images(tmp_path / name / "a.npz", number)
    words = ["train", "-m", "sweep=study", "sweep.name=s", "optimizer.learning_rate=interval(1e-4,1e-2)"]
    words += ["data=npz", "data.path=a.npz", *QUICK, f"sweep.backend={backend}"]
    assert bestrun(*words, "sweep.n_trials=2", cwd=tmp_path / "first").code == 0
    manifest = json.loads((home / "mlruns/sweeps/s/manifest.json").read_text())
    refused = bestrun(*words, "sweep.n_trials=3", cwd=tmp_path / "second")
    assert refused.code == 2 and refused.err.count("\n") == 1, refused.err
    digest = manifest["data_digests"]["data"]
    assert digest[:12] in refused.err and str(tmp_path / "second" / "a.npz") in refused.err
    assert json.loads((home / "mlruns/sweeps/s/manifest.json").read_text())["trials"] == manifest["trials"]
    images(tmp_path / "first" / "a.npz", 7)  # made anew
    assert bestrun(*words, "sweep.n_trials=3", cwd=tmp_path / "first").code == 2
    images(tmp_path / "first" / "a.npz", 0)
    assert bestrun(*words, "sweep.n_trials=3", cwd=tmp_path / "first").code == 0


def test_a_sweep_of_before_is_held_against_its_first_trial(bestrun, home, tmp_path):
    images(tmp_path / "a.npz", 0)
    words = ["train", "-m", "sweep.name=s", "seed=1,2", "data=npz", f"data.path={tmp_path}/a.npz", *QUICK]
    assert bestrun(*words).code == 0
    path = home / "mlruns/sweeps/s/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["data_digests"]
    path.write_text(json.dumps(manifest))
    assert bestrun(*words).code == 0
    del manifest["trials"][1]
    path.write_text(json.dumps(manifest))
    images(tmp_path / "a.npz", 1)
    assert bestrun(*words).code == 2


@pytest.mark.slow
def test_data_that_is_tried_may_differ_between_trials(bestrun, home, tmp_path):
    images(tmp_path / "a.npz", 0)
    words = [
        "train",
        "-m",
        "sweep.name=s",
        "data=npz",
        f"data.path={tmp_path}/a.npz",
        "data.validation_seed=0,1",
        *QUICK,
    ]
    assert bestrun(*words).code == 0
    digests = json.loads((home / "mlruns/sweeps/s/manifest.json").read_text())["data_digests"]
    assert digests.keys() == {"data.validation_seed=0", "data.validation_seed=1"} and len(set(digests.values())) == 2
    assert bestrun(*words).code == 0
    images(tmp_path / "a.npz", 5)
    assert bestrun(*words).code == 2


# ---- two people, one name


@pytest.fixture(scope="module")
def two(_forkserver, tmp_path_factory, ready_made_store):
    """Two homes on one store, each with a sweep called night: the store, and each one's environment."""
    folder = tmp_path_factory.mktemp("two")
    images(folder / "a.npz", 0)
    store = f"sqlite:///{shutil.copy(ready_made_store, folder / 'shared.db')}"
    words = ["train", "-m", "data=npz", f"data.path={folder}/a.npz"]
    words += [*QUICK, "seed=1,2", "sweep.name=night", f"tracking.uri={store}"]
    people = {}
    for name in ("eve", "ada"):
        (folder / name).mkdir()
        people[name] = {"BESTRUN_MLRUNS": str(folder / name / "mlruns"), "LOGNAME": name, "USER": name}
        result = Command(Starter(tmp_path_factory.mktemp("processes")), folder / name)(*words, env=people[name])
        assert result.code == 0, result.err
    return store, people


@pytest.mark.slow
def test_a_sweep_is_its_parent_run_and_ones_own_comes_first(bestrun, two):
    store, people = two
    where = ["--tracking-uri", store, "--sweep", "night"]
    for env in people.values():
        rows = json.loads(bestrun("runs", *where, "--json", env=env).out)
        assert sorted(row["run_name"] for row in rows) == ["night-000", "night-001"]
        mine = {
            json.loads(path.read_text())["run_id"] for path in Path(env["BESTRUN_MLRUNS"]).glob("runs/*/mirror.json")
        }
        assert {row["run_id"] for row in rows} == mine
        assert json.loads(bestrun("restore", "best", *where, "--json", env=env).out)["run_id"] in mine


def test_elsewhere_a_name_that_means_two_is_refused_with_both_and_what_to_type(bestrun, two, tmp_path):
    store, _ = two
    (tmp_path / "third").mkdir()
    env = {"BESTRUN_MLRUNS": str(tmp_path / "third" / "mlruns")}
    refused = bestrun("restore", "best", "--tracking-uri", store, "--sweep", "night", env=env)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert "means 2 sweeps" in refused.err and "eve's" in refused.err and "ada's" in refused.err
    ids = [word.rstrip(";\n") for word in refused.err.split() if len(word.rstrip(";\n")) == 32]
    assert len(ids) == 2
    for run_id in ids:
        rows = json.loads(bestrun("runs", "--tracking-uri", store, "--sweep", run_id, "--json", env=env).out)
        assert len(rows) == 2


def test_runs_say_whose_they_are_and_mine_are_mine(bestrun, two):
    store, _ = two
    table = bestrun("runs", "--tracking-uri", store).out
    assert table.splitlines()[0].endswith("user") and "eve" in table and "ada" in table
    rows = json.loads(bestrun("runs", "--tracking-uri", store, "--mine", "--json", env={"LOGNAME": "eve"}).out)
    assert {row["user"] for row in rows} == {"eve"} and len(rows) == 2
    alone = bestrun("runs", "--tracking-uri", store, "--mine", env={"LOGNAME": "eve"}).out
    assert not alone.splitlines()[0].endswith("user")


def test_a_sweep_whose_parent_was_deleted_is_still_found_by_name(two, tmp_path):
    store, _ = two
    opened = connect(f"sqlite:///{shutil.copy(store.removeprefix('sqlite:///'), tmp_path)}")
    for run in opened.client.search_runs(list(opened.experiments(None)), "tags.\"bestrun.role\" = 'sweep'"):
        opened.client.delete_run(run.info.run_id)
    assert len(list_runs(opened, sweep="night")) == 4
    assert "parentRunId" not in of_sweep(opened, "night")


# ---- samplers


SAMPLERS = [name for name in optuna.samplers.__all__ if name.endswith("Sampler") and name != "BaseSampler"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_proposes_or_says_what_it_needs_before_the_first_trial(name):
    space = {
        "a": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
        "b": optuna.distributions.IntDistribution(1, 9),
    }
    try:
        try_sampler({"name": name}, space, 0)
    except SettingsError as error:
        (line,) = str(error).splitlines()
        assert line.startswith("sweep.sampler")
        assert any(words in line for words in ("pip install", "takes", "argument", "must be given")), line
    else:
        assert name not in ("CmaEsSampler",) or __import__("cmaes")


def test_a_sampler_whose_package_is_missing_starts_nothing(bestrun, home, settings):
    words = ["train", "-m", "sweep=study", "sweep.sampler=CmaEsSampler", "sweep.n_trials=2", *settings, *QUICK]
    result = bestrun(*words, "optimizer.learning_rate=interval(1e-4,1e-2)", "training.label_smoothing=interval(0,0.5)")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "sweep.sampler=CmaEsSampler: needs the package cmaes: pip install cmaes" in result.err
    assert not list((home / "mlruns").glob("sweeps/*"))


def _failing_sweep(words):
    from bestrun.cli import main as cli
    from bestrun.sweep import scheduler

    def fail(*_):
        raise RuntimeError("in the middle")

    scheduler.Scheduler.next_task = fail
    import sys

    sys.argv = ["bestrun", *words]
    cli.main()


def test_whatever_ends_a_sweep_its_parent_is_not_left_running(start_process, home, settings):
    words = ["train", "-m", *settings, *QUICK, "seed=1,2", "sweep.name=s"]
    assert start_process(_failing_sweep, words, cwd=home).wait().code != 0
    store = connect(own_store(home / "mlruns"))
    (parent,) = store.client.search_runs(list(store.experiments(None)), "tags.\"bestrun.role\" = 'sweep'")
    assert parent.info.status == "FAILED"
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:
        assert database.execute("SELECT count(*) FROM runs WHERE status = 'RUNNING'").fetchone() == (0,)
