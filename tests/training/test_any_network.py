"""Networks with layers inside layers through everything that a run goes through; frozen layers; other runs' weights."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from bestrun.storage.checkpoint import load, tensors_sha256
from bestrun.storage.journal import read_journal
from support import networks
from support.looks import assert_same_checkpoint, evaluations, figures
from support.networks import make_lab
from support.stores import run_folder, sqlite_uri

SHORT = ["training.max_steps=4", "training.evaluate_every_steps=2", "training.patience_steps=4"]
SHORT += ["training.batch_size=8", "pictures=false", "optimizer.learning_rate=1e-2"]
QUICK = [*SHORT, "tracking.log_model=none"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """`data("three", 3)`: words for 60 images of 12 x 12, of so many classes."""
    folder = tmp_path_factory.mktemp("data")

    def make(name, classes, side=12):
        rng = np.random.default_rng(classes)
        path = folder / f"{name}.npz"
        labels = np.arange(60) % classes
        images = (rng.integers(0, 100, (60, side, side)) + 50 * labels[:, None, None]).clip(0, 255).astype("u1")
        np.savez(path, x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
        return ["data=npz", f"data.path={path}"]

    return make


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab") / "lab"
    return make_lab(folder, networks.vit, networks.nested, networks.mobile, networks.unsteady)


@pytest.fixture
def command(bestrun, lab):
    """`command("train", ..., env={...})`, with the networks of this file."""

    def run(*words, env=None, code=0):
        result = bestrun(*words, env={"BESTRUN_CONFIG_DIR": str(lab), **(env or {})}, timeout=300)
        assert result.code == code and "Traceback" not in result.err, result.out + result.err
        return result

    return run


def _killed_and_resumed(command, home, words):
    """A run that goes through in one go, and one that is killed between an evaluation's line and `last`."""
    command("train", *words, "name=whole")
    command("train", *words, "name=cut", env={"BESTRUN_FAULT": "F9:2"}, code=-signal.SIGKILL)
    assert load(run_folder(home, "cut").last).state.step == 0
    said = command("resume", "cut")
    whole, cut = run_folder(home, "whole"), run_folder(home, "cut")
    assert_same_checkpoint(load(whole.last), load(cut.last))
    assert figures(whole) == figures(cut)
    assert not [line for line in read_journal(cut.journal)[0] if line["event"] == "diverges"], said.err
    return whole


def test_a_vision_transformer_that_is_killed_goes_on_to_the_very_same_weights(command, home, data):
    """Killed at step 4 before that was saved; what stands in the journal is of a run in one go."""
    words, cut = [*data("three", 3), "model=vit", *QUICK, "name=cut"], run_folder(home, "cut")
    command("train", *words, env={"BESTRUN_FAULT": "F9:3"}, code=-signal.SIGKILL)
    *_, in_one_go = evaluations(cut)
    assert load(cut.last).state.step == 2 and in_one_go["step"] == 4
    command("resume", "cut")
    again = load(cut.last)
    assert again.state.step == 4 and tensors_sha256(again.tensors) == in_one_go["state_sha256"]
    assert evaluations(cut)[-1] == in_one_go and not [
        e for e in read_journal(cut.journal)[0] if e["event"] == "diverges"
    ]
    names = again.tensors
    assert "optimizer/momentum/multi_head_attention/query/kernel" in names and "model/position/embeddings" in names


@pytest.mark.slow
@pytest.mark.parametrize("words", [["model=nested"], ["model=mobile"], ["model=vit", "model.dropout=0"]])
def test_a_network_with_models_inside_goes_through_everything(command, home, data, tmp_path, without_bestrun, words):
    whole = _killed_and_resumed(command, home, [*data("three", 3), *words, *SHORT])
    report = json.loads(command("restore", "whole", "--json").out)
    assert report["validation"]["agrees"] is True and report["function"]["is_same"] is True
    command("fetch", "whole", "--out", tmp_path / "out")
    command("register", "whole", "--name", "digits", "--alias", "champion")
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 12), np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    answers = json.loads(command("predict", "digits@champion", tmp_path / "a.npz", "--json").out)["predictions"]
    program = """
import json, mlflow, numpy, sys
mlflow.set_tracking_uri(sys.argv[1])
images = numpy.load(sys.argv[2])["images"][..., None]
served = mlflow.pyfunc.load_model("models:/digits@champion").predict(images)
print(json.dumps(served["probabilities"].tolist()))
"""
    argv = [sys.executable, "-c", program, sqlite_uri(home), tmp_path / "a.npz"]
    served = subprocess.run(argv, env=without_bestrun, capture_output=True, text=True, check=True, timeout=300).stdout
    np.testing.assert_allclose(
        json.loads(served.splitlines()[-1]), [row["probabilities"] for row in answers], atol=1e-5, rtol=0
    )
    command("train", *data("three", 3), *words, *SHORT, "from_run=digits@champion", "name=child")
    child = read_journal(run_folder(home, "child").journal)[0]
    assert child[0]["parent"] == whole.name and child[1]["step"] == 0


@pytest.mark.slow
def test_frozen_layers_keep_their_weights_have_no_slots_and_a_killed_run_goes_on_to_the_same(command, home, data):
    words = [*data("three", 3), "model=nested", *SHORT, "training.freeze=[backbone/*norm, backbone/bl?ck]"]
    whole = _killed_and_resumed(command, home, words)
    first = load(whole.best(2)) if whole.best(2).exists() else load(whole.last)
    command("train", *words, "name=begun", env={"BESTRUN_FAULT": "F10:1"}, code=-signal.SIGKILL)
    begun = load(run_folder(home, "begun").last).tensors
    frozen = ["model/backbone/norm/moving_mean", "model/backbone/norm/gamma", "model/backbone/block/conv/kernel"]
    for name in begun:
        stays = np.array_equal(begun[name], first.tensors[name])
        assert stays == (name in frozen or "backbone/norm" in name or "backbone/block" in name), name
    assert not [name for name in first.tensors if name.startswith("optimizer/") and "norm" in name]
    assert "optimizer/momentum/backbone/conv/kernel" in first.tensors
    assert json.loads(command("restore", "whole", "--json", "--local").out)["validation"]["agrees"] is True


@pytest.mark.slow
def test_a_fresh_head_takes_everything_but_the_logits_from_a_run_of_other_classes(command, home, data):
    model = ["model=vit", "model.width=8"]
    command("train", *data("three", 3), *model, *SHORT, "name=parent")
    folder = run_folder(home, "parent")
    parent = load(folder.path / json.loads(folder.result.read_text())["best"]["checkpoint"])
    other = [*data("five", 5), *SHORT, "from_run=parent"]
    kept = command("train", *other, *model, "name=child", code=2)
    assert "from_run_head=fresh makes the layer that gives the logits anew" in kept.err
    narrow = command("train", *other, "model=vit", "model.width=4", "from_run_head=fresh", "name=child", code=2)
    assert "from_run=parent: model/patches/kernel is float32[3, 3, 1, 8], but this network has" in narrow.err
    assert "with from_run_head=fresh only the layer logits may differ" in narrow.err
    strange = command("train", *other, "model=nested", "from_run_head=fresh", "name=child", code=2)
    assert "has no model/backbone/conv/kernel, which this network needs" in strange.err
    assert not run_folder(home, "child").path.exists()
    words = [*other, *model, "from_run_head=fresh"]
    command("train", *words, "name=child", env={"BESTRUN_FAULT": "F9"}, code=-signal.SIGKILL)
    child = run_folder(home, "child")
    assert not child.last.exists() and read_journal(child.journal)[0][0]["parent_sha256"] == parent.sha256
    command("resume", "child", env={"BESTRUN_FAULT": "F10:1"}, code=-signal.SIGKILL)  # what it began with
    begun = load(child.last).tensors
    assert begun["model/logits/kernel"].shape == (8, 5) and begun["optimizer/iteration"] == 0
    for name, tensor in begun.items():
        if name.startswith("model/") and "logits" not in name:
            np.testing.assert_array_equal(tensor, parent.tensors[name], name)
    assert not any(tensor.any() for name, tensor in begun.items() if name.startswith("optimizer/"))
    resumed = command("resume", "child")
    assert "function is another one" not in resumed.out + resumed.err


def test_the_first_resume_names_a_layer_whose_numbers_no_checkpoint_holds(command, home, data):
    words = [*data("three", 3), "model=unsteady", *QUICK]
    command("train", *words, "name=r", env={"BESTRUN_FAULT": "F9:2"}, code=-signal.SIGKILL)
    said = command("resume", "r", env={"BESTRUN_FAULT": "F9:2"}, code=-signal.SIGKILL)
    told = said.out + said.err
    assert told.count("layer noise: gives other numbers each time") == 1 and "structure" not in told, told
    assert "step 2: differs from what was recorded: layer noise does" in told
    command("resume", "r")
    found = [line for line in read_journal(run_folder(home, "r").journal)[0] if line["event"] == "diverges"]
    assert [line.get("layer") for line in found][0] == "noise" and [bool(line["figures"]) for line in found][:2] == [
        False,
        True,
    ]
    assert [line.get("layer") for line in found].count("noise") == 1
