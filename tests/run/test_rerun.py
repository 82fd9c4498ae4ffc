"""Past runs told, compared and run again: from the folder, and the same from MLflow alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bestrun.results.record import from_mlflow
from bestrun.storage.checkpoint import load
from bestrun.storage.folder import RunFolder
from bestrun.tracking.store import connect
from support.lines import SHORT, SMALL_NETWORK
from support.looks import evaluations
from support.processes import Command, Starter
from support.stores import make_home, mlflow_record, sqlite_uri
from support.stubbed import Stubbed


@pytest.fixture(scope="module")
def home(tmp_path_factory, ready_made_store):
    return make_home(tmp_path_factory.mktemp("home"), ready_made_store)


@pytest.fixture(scope="module")
def bestrun(_forkserver, home, tmp_path_factory):
    return Command(Starter(tmp_path_factory.mktemp("processes")), home)


@pytest.fixture(scope="module")
def drawn_npz(tmp_path_factory, small_mnist_npz):
    """The images without validation images, which are drawn."""
    path = tmp_path_factory.mktemp("data") / "drawn.npz"
    with np.load(small_mnist_npz) as arrays:
        np.savez(path, **{name: array for name, array in arrays.items() if "val" not in name})
    return path


@pytest.fixture(scope="module")
def settings(drawn_npz):
    return ["data=npz", f"data.path={drawn_npz}", "data.validation_size=500", *SMALL_NETWORK, *SHORT]


@pytest.fixture(scope="module")
def first(bestrun, home, settings):
    result = bestrun("train", *settings, "name=first", "tags.author=ada", "note=a try")
    assert result.code == 0, result.err
    return RunFolder(home / "mlruns" / "runs" / "first")


@pytest.fixture(scope="module")
def second(bestrun, home, settings):
    assert bestrun("train", *settings, "name=second", "optimizer.learning_rate=1e-3", "seed=1").code == 0
    return RunFolder(home / "mlruns" / "runs" / "second")


@pytest.fixture
def elsewhere(tmp_path, home):
    """Another home with the same store: what there is of a run is what MLflow has."""
    (tmp_path / "mlruns").mkdir()
    return {"cwd": tmp_path, "env": {"MLFLOW_TRACKING_URI": sqlite_uri(home)}}


def test_show_says_what_how_why_and_where(bestrun, first):
    result = bestrun("show", "first")
    assert result.code == 0, result.err
    outcome = json.loads(first.result.read_text())
    best = outcome["best"]
    lines = {line.split()[0]: line for line in result.out.splitlines() if line.strip()}
    assert (
        outcome["run_id"] in lines["run"] and "training.max_steps=" in lines["state"] and " reached" in lines["state"]
    )
    assert f"{100 * best['value']:.2f} %" in lines["best"] and f"step {best['step']}" in lines["best"]
    assert str(first.path) in lines["folder"] and "author=ada" in lines["tag"] and "a try" in lines["note"]
    assert f"bestrun restore {outcome['run_id']}" in lines["restore"]
    assert "*" in result.out and max(map(len, result.out.split("val/accuracy (o)")[1].splitlines())) <= 80


def test_show_from_mlflow_tells_what_the_folder_tells(bestrun, first, elsewhere):
    here = json.loads(bestrun("show", "first", "--json").out)
    there = json.loads(bestrun("show", here["run_id"], "--json", **elsewhere).out)
    assert there["folder"] is None and there["artifacts"]
    for key in ("run_name", "state", "best", "test", "stop_reason", "steps", "settings", "overrides", "tags", "git"):
        assert there[key] == here[key], key
    assert np.array(there["confusion_matrix"]).sum() == 500
    assert there["confusion_matrix"] == here["confusion_matrix"]
    columns = ("step", "val/loss", "val/accuracy", "train/loss", "improved", "time_ms")
    for old, new in zip(here["evaluations"], there["evaluations"], strict=True):
        assert [new[key] for key in columns] == [old[key] for key in columns]


def test_the_kept_confusion_matrix_is_that_of_the_best_evaluation(bestrun, first):
    best = [line for line in evaluations(first) if line["improved"]][-1]
    matrix = np.array(json.loads(bestrun("show", "first", "--json").out)["confusion_matrix"])
    assert matrix.trace() / matrix.sum() == best["val/accuracy"]
    assert all("confusions" in line for line in evaluations(first) if line["improved"])


def test_compare_has_only_the_settings_that_differ(bestrun, first, second):
    found = json.loads(bestrun("compare", "first", "second", "--json").out)
    assert found["settings"] == {"seed": ["0", "1"], "optimizer.learning_rate": ["0.002", "0.001"]} | {
        key: value for key, value in found["settings"].items() if key.startswith("tags.")
    }
    assert (found["code"], found["data"], found["versions"]) == ([], {}, {})
    matrices = [np.array(json.loads(bestrun("show", n, "--json").out)["confusion_matrix"]) for n in ("first", "second")]
    assert np.array_equal(found["confusion_difference"][0], matrices[1] - matrices[0])
    table = bestrun("compare", "first", "second").out
    assert "optimizer.learning_rate" in table and "fc_size" not in table and "code: the same" in table


@pytest.mark.parametrize("runs", [["first"], ["first", "first"]])
def test_compare_takes_two_different_runs(bestrun, first, runs):
    result = bestrun("compare", *runs)
    assert (result.code, result.out, result.err.count("\n")) == (
        2,
        "",
        1,
    ) and "two or more different runs" in result.err


def test_rerun_gives_the_same_tensors_and_says_so(bestrun, home, first):
    result = bestrun("rerun", "first")
    assert result.code == 0, result.err
    report = [line.split() for line in result.out.splitlines()[:4]]
    assert [row[1:] for row in report[1:]] == [["as", "then"]] * 3, result.out
    assert "evaluations are equal to those of first, bit by bit" in result.out.splitlines()[-1]
    (again,) = [path for path in (home / "mlruns" / "runs").iterdir() if path.name.startswith("20")]
    old, new = load(first.last), load(RunFolder(again).last)
    assert old.tensors.keys() == new.tensors.keys()
    assert all(old.tensors[name].tobytes() == new.tensors[name].tobytes() for name in old.tensors)
    in_mlflow = from_mlflow(connect(sqlite_uri(home)), mlflow_record(sqlite_uri(home), again.name)[0])
    assert in_mlflow.started["rerun_of"] == "first"
    shutil.rmtree(again)


def test_rerun_from_mlflow_alone(bestrun, first, elsewhere):
    run_id = json.loads(first.result.read_text())["run_id"]
    result = bestrun("rerun", run_id[:12], "name=there", "--json", **elsewhere)
    assert result.code == 0, result.err
    assert (json.loads(result.out)["run_name"], json.loads(result.out)["steps"]) == ("there", 60)
    old, new = evaluations(first), evaluations(RunFolder(elsewhere["cwd"] / "mlruns" / "runs" / "there"))
    assert [line["val/loss"] for line in old] == [line["val/loss"] for line in new]


@pytest.mark.slow
def test_rerun_of_a_changed_run_has_its_first_settings(bestrun, home, settings):
    assert bestrun("train", *settings, "name=changed").code == 0
    more = ["training.max_steps=80", "training.patience_steps=80", "optimizer.learning_rate=1e-5"]
    assert bestrun("resume", "changed", *more).code == 0
    result = bestrun("rerun", "changed", "name=unchanged")
    assert result.code == 0 and "learning_rate 0.002 -> 1e-05" in result.out
    told = json.loads(bestrun("show", "unchanged", "--json").out)
    assert told["settings"]["optimizer.learning_rate"] == "0.002" and told["steps"] == 60


def test_rerun_refuses_other_data_and_names_a_changed_split(bestrun, first, tmp_path, drawn_npz):
    split = bestrun("rerun", "first", "data.validation_size=100", "name=other")
    assert (split.code, split.err.count("\n")) == (3, 1) and "another split" in split.err and "--allow" in split.err
    with np.load(drawn_npz) as arrays:
        np.savez(tmp_path / "other.npz", **{**arrays, "x_test": arrays["x_test"][::-1]})
    changed = bestrun("rerun", "first", f"data.path={tmp_path / 'other.npz'}")
    assert changed.code == 3 and "other images or labels" in changed.err


def test_rerun_takes_overrides_a_name_and_other_data_where_that_is_allowed(bestrun, first):
    steps = ["training.max_steps=20", "training.patience_steps=20", "name=shorter"]
    result = bestrun("rerun", "first", *steps, "data.validation_size=100", "--allow-other-data")
    assert result.code == 0 and "another split" in result.out, result.err
    told = json.loads(bestrun("show", "shorter", "--json").out)
    assert (told["rerun_of"], told["steps"]) == ("first", 20)
    assert told["settings"]["optimizer.learning_rate"] == "0.002"


def test_rerun_of_a_child_starts_from_the_same_parent_state(bestrun, home, settings, first):
    assert bestrun("train", *settings, "name=child", "from_run=first").code == 0
    result = bestrun("rerun", "child", "name=grandchild")
    assert result.code == 0 and "bit by bit" in result.out, result.out + result.err


@pytest.mark.slow
def test_rerun_with_an_edited_file_says_so_first(home, tmp_path, first, small_mnist_npz):
    """A clone of this repository: a run at its commit, then a file edited, then the rerun."""
    root, clone = Path(__file__).parents[2], tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", root, clone], check=True)
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(clone / "src"), "HOME": str(tmp_path)}
    words = [f"data.path={small_mnist_npz}", "data=npz", *SMALL_NETWORK, *SHORT]

    def run(*argv):
        command = [sys.executable, "-m", "bestrun", *argv]
        return subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, timeout=200)

    assert run("train", *words, "name=k").returncode == 0
    loop = clone / "src" / "bestrun" / "training" / "loop.py"
    loop.write_text(loop.read_text() + "\n# edited\n")
    again = run("rerun", "k")
    assert again.returncode == 0, again.stderr
    head = again.stdout[: again.stdout.index("run 20")]
    assert "uncommitted now: src/bestrun/training/loop.py +2 -0" in head and "uncommitted then: nothing" in head


@pytest.mark.parametrize("verb", [["show"], ["compare", "first"], ["rerun"]])
@pytest.mark.parametrize("reference", ["nobody", "../first", "0" * 32, "a b"])
def test_what_is_no_run_is_one_line(bestrun, first, verb, reference):
    result = bestrun(*verb, reference)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


def test_a_sweep_is_no_run_and_the_line_names_its_verb(bestrun, start_process, home, settings):
    stub = Stubbed(start_process, home)
    result = stub("train", "-m", *settings, "training.batch_size=8", "seed=0,1", "sweep.name=two")
    assert result.code == 0, result.err
    parent = json.loads((home / "mlruns" / "sweeps" / "two" / "manifest.json").read_text())["parent_run_id"]
    refused = bestrun("show", parent)
    assert refused.code == 2 and "bestrun sweep two" in refused.err
    best = json.loads(bestrun("show", "best", "--sweep", "two", "--json").out)
    assert best["sweep"] == "two" and best["trial"] in (0, 1)
