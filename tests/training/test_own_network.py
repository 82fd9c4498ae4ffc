"""Networks of one's own: with random layers, a softmax too many, layers inside layers, mistakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bestrun as package

COMMON = """
import keras


def _network(layers, num_classes, image_shape):
    images = keras.Input(image_shape, dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(images)
    for layer in layers:
        x = layer(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(images, keras.layers.Dense(num_classes, name="logits")(x))


"""
NETWORKS = {
    "varied": """
def build(image_shape, num_classes):
    varied = [keras.layers.RandomFlip(), keras.layers.RandomTranslation(0.2, 0.2), keras.layers.RandomCrop(28, 28)]
    return _network([*varied, keras.layers.GaussianNoise(0.5), keras.layers.Dropout(0.5)], num_classes, image_shape)
""",
    "sure": """
def build(image_shape, num_classes):
    network = _network([], num_classes, image_shape)
    return keras.Model(network.input, keras.layers.Softmax()(network.output))
""",
    "twice": """
class Pair(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.one, self.other = keras.layers.Dense(2, name="same"), keras.layers.Dense(2, name="same")

    def call(self, x):
        return self.one(x) + self.other(x)


def build(image_shape, num_classes):
    return _network([Pair(name="pair")], num_classes, image_shape)
""",
    "wrong": """
def build(image_shape, num_classes):
    return _network([keras.layers.Conv2D(2, 99, data_format="nonsense")], num_classes, image_shape)
""",
    "narrow": """
def build(image_shape, num_classes):
    return _network([], num_classes - 1, image_shape)
""",
    "none": """
def build(image_shape, num_classes):
    return None
""",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A copy of the package with these networks."""
    folder = tmp_path_factory.mktemp("lab")
    source = Path(package.__file__).parent
    shutil.copytree(source.parents[1] / "conf", folder / "conf")
    shutil.copytree(source, folder / "src" / "bestrun")
    for name, function in NETWORKS.items():
        (folder / "src" / "bestrun" / "training" / "networks" / f"{name}.py").write_text(COMMON + function)
        (folder / "conf" / "model" / f"{name}.yaml").write_text(f"name: {name}\n")
    return folder


@pytest.fixture
def command(lab, home, settings):
    """`command("train", "SETTINGS")` in a process of its own, as the forked ones have the package imported already."""
    steps = ["training.max_steps=2", "training.evaluate_every_steps=1", "training.patience_steps=2", "pictures=false"]
    STEPS = [*settings[:2], *steps]

    def run(*words):
        at = words.index("SETTINGS") if "SETTINGS" in words else len(words)
        words = [*words[:at], *(STEPS if at < len(words) else []), *words[at + 1 :]]
        env = os.environ | {"PYTHONPATH": str(lab / "src")}
        found = subprocess.run(
            [sys.executable, "-m", "bestrun", *map(str, words)],
            cwd=home,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "Traceback" not in found.stderr, found.stderr
        return found

    return run


@pytest.mark.slow
def test_random_layers_train_restore_and_are_exported_as_inference(command, home, tmp_path):
    found = command("train", "model=varied", "SETTINGS", "name=r", "tracking.log_model=true")
    assert found.returncode == 0 and "has no MLflow model" not in found.stdout + found.stderr, found.stderr
    register = ["register", "r", "--name", "d", "--alias", "a"]
    for words in (["restore", "r"], ["fetch", "r", "--out", tmp_path / "out"], register):
        found = command(*words)
        assert found.returncode == 0, (words, found.stderr)
    np.savez(tmp_path / "a.npz", images=np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8))
    answers = json.loads(command("predict", "r", tmp_path / "a.npz", "--json").stdout)["predictions"]
    program = """
import keras, numpy, sys
model = keras.saving.load_model(sys.argv[1])
images = numpy.load(sys.argv[2])["images"][..., None]
for answer in (model(images), model(images), model.predict(images, verbose=0)):
    print(numpy.asarray(answer).tolist())
"""
    words = [sys.executable, "-c", program, tmp_path / "out" / "model.keras", tmp_path / "a.npz"]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-3:]
    for line in printed:
        np.testing.assert_allclose(json.loads(line), [row["probabilities"] for row in answers], atol=1e-5)


@pytest.mark.slow
def test_a_softmax_at_the_end_is_noticed_at_the_first_evaluation(command):
    found = command("train", "model=sure", "SETTINGS", "name=r")
    said = found.stdout + found.stderr
    assert found.returncode == 0 and said.count("look like probabilities") == 1
    assert "remove its last softmax" in said
    usual = command("train", "SETTINGS", "name=usual")
    assert "look like probabilities" not in usual.stdout + usual.stderr


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("twice", "pair/same/kernel is the name of two variables; give the layers"),
        ("wrong", "ValueError: "),
        (
            "narrow",
            "gives (9,) for an image; takes (10,), a logit a class: end it with keras.layers.Dense(num_classes)",
        ),
        ("none", "is no Keras model: NoneType"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_before_a_folder_is_made(command, home, lab, name, words):
    found = command("train", f"model={name}", "SETTINGS")
    assert found.returncode == 2 and words in found.stderr and len(found.stderr.splitlines()) == 1, found.stderr
    assert not list((home / "mlruns").glob("runs/*")) and "different names" not in found.stderr
    if name == "wrong":
        lines = (lab / "src/bestrun/training/networks/wrong.py").read_text().splitlines()
        line = next(number for number, text in enumerate(lines, 1) if "99" in text)
        assert f"{lab}/src/bestrun/training/networks/wrong.py, line {line}: " in found.stderr


def test_a_run_of_a_network_whose_function_is_gone_is_refused_in_one_line():
    from bestrun.errors import VerificationError
    from bestrun.training.model import build_restored

    for name in ("gone", "__init__", "../model", "os.path", "cnn.py"):
        with pytest.raises(VerificationError, match="it: of a network that is not here: model=") as error:
            build_restored(name, (4, 4, 1), 2, tensors={}, source="it", seed=0)
        assert len(str(error.value).splitlines()) == 1
