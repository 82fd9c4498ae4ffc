"""Restoring: what was fetched is proved, and scores exactly what was logged. The tutorial's lessons as tests."""

import json
from pathlib import Path

import numpy as np
import pytest

from bestrun.storage.checkpoint import load
from bestrun.storage.folder import RunFolder
from support.lines import SHORT, SMALL_NETWORK, with_pictures
from support.processes import Command, Starter
from support.stores import make_home, mlflow_record, sqlite_uri


@pytest.fixture(scope="module")
def home(tmp_path_factory, ready_made_store):
    """One home for all tests here: they read what two runs left, and put back what they damage."""
    return make_home(tmp_path_factory.mktemp("home"), ready_made_store)


@pytest.fixture(scope="module")
def bestrun(_forkserver, home, tmp_path_factory):
    starter = Starter(tmp_path_factory.mktemp("processes"))

    def run(*argv, cwd=home):
        return Command(starter, home)(*argv, cwd=cwd, env={"BESTRUN_MLRUNS": str(home / "mlruns")})

    return run


@pytest.fixture(scope="module")
def settings(small_mnist_npz):
    return ["data=npz", f"data.path={small_mnist_npz}", *SMALL_NETWORK, *SHORT]


@pytest.fixture(scope="module")
def trained(bestrun, home, settings):
    assert bestrun("train", *with_pictures(settings), "name=trained").code == 0
    return RunFolder(home / "mlruns" / "runs" / "trained")


@pytest.fixture(scope="module")
def further(bestrun, trained, settings):
    """A run that began with the best of the other, and learned a little more."""
    words = ["name=further", "from_run=trained", "optimizer.learning_rate=1e-3"]
    assert bestrun("train", *settings, *words).code == 0


def test_restored_best_scores_what_was_logged_in_another_folder(bestrun, home, trained, tmp_path):
    outcome = json.loads(trained.result.read_text())
    result = bestrun("restore", outcome["run_id"], "--json", cwd=tmp_path)
    report = json.loads(result.out)
    assert report["validation"]["agrees"] is True
    assert report["validation"]["accuracy"] == report["validation"]["logged_accuracy"] == outcome["best"]["value"]
    assert report["checkpoint"]["step"] == outcome["best"]["step"]
    assert report["checkpoint"]["sha256"] == outcome["best"]["sha256"]
    assert Path(report["checkpoint"]["path"]).is_file()
    test = report["test"]
    assert test["total"] == 500 and test["accuracy"] == test["correct"] / 500
    matrix = np.array(report["confusion_matrix"])
    assert matrix.sum() == 500 and matrix.trace() == test["correct"]


def test_test_figures_and_pictures_are_logged_once_however_often_restored(bestrun, home, trained):
    reports = [json.loads(bestrun("restore", "trained", "--json").out) for _ in range(2)]
    assert reports[0] == reports[1]
    _, rows, artifacts = mlflow_record(sqlite_uri(home), "trained")
    step = reports[0]["checkpoint"]["step"]
    assert rows["test/accuracy"] == [(step, reports[0]["test"]["accuracy"])]
    assert rows["test/loss"] == [(step, reports[0]["test"]["loss"])]
    assert sorted(artifacts["pictures"]) == [
        f"pictures/{n}.png" for n in ("confusion_matrix", "curves", "example_errors")
    ]


def test_people_read_accuracy_counts_and_the_matrix(bestrun, home, trained, tmp_path):
    result = bestrun("restore", "trained", "--out", tmp_path / "kept")
    assert result.code == 0, result.err
    report = json.loads(bestrun("restore", "trained", "--json").out)
    correct = report["test"]["correct"]
    assert f"{100 * correct / 500:.1f}% ({correct} / 500)" in result.out
    assert "as logged" in result.out and "predicted" in result.out
    names = {path.name for path in (tmp_path / "kept").rglob("*")}
    assert {
        "confusion_matrix.png",
        "example_errors.png",
        "config.yaml",
        Path(report["checkpoint"]["path"]).name,
    } <= names


def test_a_folder_that_cannot_be_made_is_one_line(bestrun, home, trained, tmp_path):
    (tmp_path / "file").touch()
    result = bestrun("restore", "trained", "--out", tmp_path / "file" / "kept")
    assert (result.code, result.out) == (1, "")
    assert result.err == f"error: {tmp_path / 'file' / 'kept'}: Not a directory\n"


def test_best_and_last_can_both_be_tested(bestrun, home, trained):
    last = json.loads(bestrun("restore", "trained", "--local", "--checkpoint", "last", "--json").out)
    best = json.loads(bestrun("restore", "trained", "--local", "--json").out)
    assert last["checkpoint"]["step"] == 60 and last["validation"]["agrees"] is True
    assert best["checkpoint"]["step"] == json.loads(trained.result.read_text())["best"]["step"]
    assert best["run_id"] == last["run_id"] == json.loads(trained.result.read_text())["run_id"]
    assert bestrun("restore", "trained", "--checkpoint", "last").code == 2
    _, rows, _ = mlflow_record(sqlite_uri(home), "trained")
    assert [step for step, _ in rows["test/accuracy"]] == [best["checkpoint"]["step"]]


def _lessons(folder_path):
    """A fresh model scores chance; by layer name its weights differ from the checkpoint's; restored they equal."""
    from bestrun.data.dataset import load_dataset
    from bestrun.settings.compose import read_config
    from bestrun.training import device, evaluation
    from bestrun.training.model import build_model
    from bestrun.training.variables import assign_variables, named_variables

    folder = RunFolder(Path(folder_path))
    config = read_config(folder.config)
    data = load_dataset(**dict(config.data))
    device.prepare(None)
    checkpoint = load(folder.bests()[0])
    model = build_model(image_shape=data.image_shape, num_classes=10, seed=5, **dict(config.model))
    predict = evaluation.compile_predict(model, 100)
    fresh = evaluation.figures(predict(data.test.images), data.test.labels)
    before = model.get_layer("layer_conv1").get_weights()
    saved = checkpoint.tensors["model/layer_conv1/kernel"]
    differed = bool((before[0] != saved).any())
    assign_variables(named_variables(model), checkpoint.tensors, "checkpoint")
    same = bool((model.get_layer("layer_conv1").get_weights()[0] == saved).all())
    restored = evaluation.figures(predict(data.test.images), data.test.labels)
    print(json.dumps([fresh.accuracy, restored.accuracy, differed, same, sorted(checkpoint.tensors)]))


def test_a_fresh_model_scores_chance_and_the_restored_one_what_it_learned(bestrun, start_process, home, trained):
    result = start_process(_lessons, str(trained.path), cwd=home).wait()
    assert result.code == 0, result.err
    fresh, restored, differed, same, names = json.loads(result.out)
    assert fresh < 0.25 and restored > 0.6
    assert differed and same
    assert "optimizer/momentum/layer_fc2/bias" in names and "optimizer/iteration" in names


def test_training_continues_from_the_best_of_another_run(home, trained, further):
    _, rows, _ = mlflow_record(sqlite_uri(home), "further")
    assert rows["val/accuracy"][0] == (0, json.loads(trained.result.read_text())["best"]["value"])
    assert mlflow_record(sqlite_uri(home), "further")[0].data.tags["bestrun.parent_run"] == "trained"


def test_other_data_is_refused_unless_allowed(bestrun, home, trained, tmp_path, small_mnist_npz):
    arrays = dict(np.load(small_mnist_npz))
    arrays["x_train"] = arrays["x_train"][:, ::-1]
    np.savez(tmp_path / "other.npz", **arrays)
    words = ["restore", "trained", f"data.path={tmp_path / 'other.npz'}", "--json"]
    refused = bestrun(*words)
    assert refused.code == 3 and "--allow-other-data" in refused.err and refused.out == ""
    allowed = bestrun(*words, "--allow-other-data")
    assert allowed.code == 0 and json.loads(allowed.out)["test"]["total"] == 500


def test_the_same_data_elsewhere_is_accepted(bestrun, home, trained, tmp_path, small_mnist_npz):
    moved = tmp_path / "moved.npz"
    moved.write_bytes(Path(small_mnist_npz).read_bytes())
    result = bestrun("restore", "trained", f"data.path={moved}", "--json")
    assert json.loads(result.out)["validation"]["agrees"] is True, result.err


@pytest.mark.parametrize("damage", ["flipped bit", "cut off", "gone"])
def test_a_damaged_artifact_is_refused_with_exit_code_5(bestrun, home, trained, damage):
    run_id = json.loads(trained.result.read_text())["run_id"]
    (path,) = (home / "mlruns" / "artifacts").rglob(f"{run_id}/artifacts/checkpoints/best-*.safetensors")
    whole = path.read_bytes()
    if damage == "flipped bit":
        content = bytearray(whole)
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif damage == "cut off":
        path.write_bytes(whole[:-1])
    else:
        path.unlink()
    result = bestrun("restore", "trained", "--json")
    path.write_bytes(whole)
    assert result.code == 5 and result.err.count("\n") == 1 and result.out == ""


@pytest.mark.parametrize(
    "reference", ["../trained", "/etc/passwd", "a b", "runs:/x/../y", "x%2e%2e", "a\nb", "", "ü" * 8, "x" * 5000]
)
def test_what_is_no_run_reference_is_refused(bestrun, home, trained, reference):
    result = bestrun("restore", reference)
    assert result.code == 2 and "not a run reference" in result.err and result.err.count("\n") == 1


def test_runs_lists_best_first_and_a_prefix_finds_a_run(bestrun, trained, further):
    rows = json.loads(bestrun("runs", "--json").out)
    values = [row["best"] for row in rows]
    assert values == sorted(values, reverse=True) and values[0] > values[1]
    assert [(row["run_name"], row["state"]) for row in rows] == [("further", "finished"), ("trained", "finished")]
    table = bestrun("runs").out.splitlines()
    assert table[1].startswith(rows[0]["run_name"]) and rows[0]["run_id"][:8] in table[1]
    best = json.loads(bestrun("restore", "best", "--json").out)
    assert best["run_id"] == rows[0]["run_id"]
    prefix = json.loads(bestrun("restore", rows[-1]["run_id"][:8], "--json").out)
    assert prefix["run_name"] == "trained"


def test_without_the_setting_no_model_is_made(home, trained):
    from mlflow import MlflowClient

    experiment = mlflow_record(sqlite_uri(home), "trained")[0].info.experiment_id
    assert not (trained.path / "model").exists()
    assert list(MlflowClient(sqlite_uri(home)).search_logged_models([experiment])) == []
