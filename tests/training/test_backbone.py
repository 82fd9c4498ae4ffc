"""`model=backbone`: networks of keras.applications, their scaling of pixels, weights from a file."""

import hashlib
import inspect
import json
import signal

import h5py
import keras
import numpy as np
import pytest

from bestrun.errors import SettingsError, VerificationError
from bestrun.settings.applications import FAMILIES, FAMILY_OF, smallest_side
from bestrun.settings.compose import compose
from bestrun.storage.checkpoint import load
from bestrun.storage.journal import read_journal
from bestrun.training import pretrained
from bestrun.training.model import refuse_unfit
from bestrun.training.networks import backbone
from support.stores import run_folder

SIDE = 32
SMALL = "MobileNet"  # has the fewest layers of those with batch norm
APPLICATIONS = {
    name for name, kind in vars(keras.applications).items() if inspect.isfunction(kind) and name[0].isupper()
}


def _build(application=SMALL, shape=(SIDE, SIDE, 3), **settings):
    settings = {"weights": None, "pooling": "avg", "dropout": 0.0, **settings}
    return backbone.build(shape, 4, application=application, **settings)


def test_the_list_of_applications_is_that_of_keras():
    assert set(FAMILY_OF) == APPLICATIONS
    for name, family in FAMILY_OF.items():
        assert getattr(keras.applications, name).__module__.endswith(f".{family}")
        assert callable(getattr(keras.applications, family).preprocess_input)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("nasnet", "densenet")])
def test_the_smallest_image_is_the_one_that_keras_takes(family):
    name = FAMILIES[family][0]
    side = smallest_side(name)
    network = getattr(keras.applications, name)
    with keras.StatelessScope(initialize_variables=False):
        network(include_top=False, weights=None, input_shape=(side, side, 3))
        with pytest.raises(ValueError, match="at least"):
            network(include_top=False, weights=None, input_shape=(side - 1, side, 3))


NAMES = [pytest.param(name, marks=() if name == "EfficientNetV2B0" else pytest.mark.slow) for name in APPLICATIONS]


@pytest.mark.parametrize("name", sorted(NAMES, key=lambda each: each.values))
def test_every_application_can_be_trained_as_far_as_a_sketch_tells(name):
    side = smallest_side(name)
    network = refuse_unfit("backbone", (side, side, 1), 4, application=name, weights=None, pooling="avg", dropout=0.1)
    assert network.output.shape == (None, 4) and network.get_layer("backbone").trainable_variables


@pytest.mark.parametrize(("application", "family"), [(SMALL, "mobilenet"), ("VGG16", "vgg16")])
def test_pixels_are_scaled_as_the_family_wants_them(application, family):
    network = _build(application)
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    scaled = getattr(keras.applications, family).preprocess_input(images.astype("float32"))
    features = network.get_layer("backbone")(scaled).numpy().mean(axis=(1, 2))
    logits = network.get_layer("logits")
    expected = features @ logits.kernel.numpy() + logits.bias.numpy()
    np.testing.assert_allclose(network(images).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_one_channel_is_repeated_to_three():
    grey = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 1), np.uint8)
    network, coloured = _build(shape=(SIDE, SIDE, 1)), _build()
    coloured.set_weights(network.get_weights())
    np.testing.assert_allclose(network(grey), coloured(grey.repeat(3, axis=-1)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("application", "shape", "words"),
    [
        ("MobileNetV2", (31, 40, 3), "at least 32 x 32 pixels and 1 or 3 channels; these are 40 wide and 31 high"),
        ("Xception", (70, 71, 3), "at least 71 x 71 pixels"),
        ("InceptionV3", (74, 75, 1), "at least 75 x 75 pixels"),
        ("MobileNetV2", (40, 40, 4), "with 4"),
    ],
)
def test_images_that_it_does_not_take_are_refused_by_name(application, shape, words):
    with pytest.raises(SettingsError, match=f"model.application={application}: takes images of .*{words}"):
        refuse_unfit("backbone", shape, 4, application=application, weights=None, pooling="avg", dropout=0.0)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("model.application=mobilenetv3smal", "type model.application=MobileNetV3Small"),
        ("model.application=resnet-50", "type model.application=ResNet50"),
        ('model.application="ü"', "takes a network of keras.applications"),
        ("model.application=3", "takes a network of keras.applications"),
        ("model.weights=a.keras", "takes a file of weights, .weights.h5 or .h5"),
        ("model.pooling=mean", "takes avg or max"),
    ],
)
def test_a_wrong_setting_is_answered_before_tensorflow_is_imported(typed, words):
    with pytest.raises(SettingsError, match=words):
        compose(["model=backbone", typed])


# ---- weights from a file ----


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Weights of a network without its top, in both ways in which Keras writes them, and files that do not fit it."""
    keras.utils.clear_session()
    network = getattr(keras.applications, SMALL)((SIDE, SIDE, 3), include_top=False, weights=None)
    folder = tmp_path_factory.mktemp("weights")
    network.save_weights(folder / "net.weights.h5")
    network.save(folder / "net_whole.h5")
    (folder / "half.weights.h5").write_bytes((folder / "net.weights.h5").read_bytes()[:50_000])
    (folder / "thin.weights.h5").write_bytes((folder / "net.weights.h5").read_bytes())
    with h5py.File(folder / "thin.weights.h5", "a") as file:
        del file["layers/batch_normalization"]
    (folder / "nan.weights.h5").write_bytes((folder / "net.weights.h5").read_bytes())
    with h5py.File(folder / "nan.weights.h5", "a") as file:
        file["layers/batch_normalization/vars/0"][3] = np.nan
    (folder / "text.weights.h5").write_text("no weights\n")
    (folder / "folder.weights.h5").mkdir()
    return folder, network.get_weights()


@pytest.fixture(scope="module")
def of_another_network(saved):
    """Beside them a file of another network's weights."""
    network = keras.applications.VGG16(input_shape=(SIDE, SIDE, 3), include_top=False, weights=None)
    path = saved[0] / "other.weights.h5"
    network.save_weights(path)
    return path


def _config(path, *words):
    return compose(["model=backbone", f"model.application={SMALL}", f"model.weights={path}", *words]).config


@pytest.mark.parametrize("name", ["net.weights.h5", "net_whole.h5"])
def test_weights_are_those_of_the_file_and_its_hash_is_kept(saved, name):
    folder, weights = saved
    found = pretrained.from_file(_config(folder / name), (SIDE, SIDE, 1), 4)
    assert found.sha256 == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert all(key.startswith("model/backbone/") for key in found.tensors) and len(found.tensors) == len(weights)
    ours = sorted(tensor.tobytes() for tensor in found.tensors.values())
    assert ours == sorted(tensor.tobytes() for tensor in weights)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.weights.h5", "there is no such file; nothing is downloaded"),
        ("folder.weights.h5", "there is no such file"),
        ("half.weights.h5", f"not weights of {SMALL} without its top"),
        ("thin.weights.h5", f"not weights of {SMALL} without its top"),
        ("nan.weights.h5", "has no numbers for .*, or some that are not finite"),
        ("text.weights.h5", f"not weights of {SMALL} without its top"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(saved, name, words):
    with pytest.raises(SettingsError, match=words) as error:
        pretrained.from_file(_config(saved[0] / name), (SIDE, SIDE, 1), 4)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.slow  # its quick sibling is a file that lacks a layer
def test_weights_of_another_network_are_refused(of_another_network):
    with pytest.raises(SettingsError, match=f"not weights of {SMALL} without its top"):
        pretrained.from_file(_config(of_another_network), (SIDE, SIDE, 1), 4)


@pytest.mark.slow  # the weights read from a file, and frozen layers, have quick siblings
def test_a_frozen_backbone_from_a_file_trains_its_logits_and_the_file_is_read_for_a_fresh_start_only(
    bestrun, home, saved, of_another_network, tmp_path
):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4
    images = rng.integers(0, 256, (40, SIDE, SIDE), np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8])
    path = tmp_path / "my net.weights.h5"
    path.write_bytes((saved[0] / "net.weights.h5").read_bytes())
    words = ["data=npz", f"data.path={tmp_path / 'd.npz'}", "model=backbone", f"model.application={SMALL}"]
    words += [f"model.weights='{path}'", "training.freeze=[backbone]", "training.max_steps=2", "training.batch_size=4"]
    words += ["training.evaluate_every_steps=1", "training.patience_steps=2", "pictures=false", "name=r"]
    killed = bestrun("train", *words, env={"BESTRUN_FAULT": "F9"})
    folder = run_folder(home, "r")
    assert killed.code == -signal.SIGKILL and not folder.last.exists(), killed.err
    started = read_journal(folder.journal)[0][0]
    assert started["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and started["parent"] is None

    moved = path.rename(tmp_path / "moved.weights.h5")  # nothing is saved yet, so it is needed once more
    assert "there is no such file" in bestrun("resume", "r").err
    path.write_bytes(of_another_network.read_bytes())
    other = bestrun("resume", "r")
    assert other.code == VerificationError.exit_code and "started from" in other.err and "Traceback" not in other.err
    cut = bestrun("resume", "r", f"model.weights={moved}", env={"BESTRUN_FAULT": "F9:2"})
    assert cut.code == -signal.SIGKILL, cut.err
    path.unlink()
    moved.unlink()
    result = bestrun("resume", "r")
    assert result.code == 0, result.err
    tensors = load(folder.last).tensors
    kept = sorted(tensor.tobytes() for name, tensor in tensors.items() if name.startswith("model/backbone/"))
    assert kept == sorted(tensor.tobytes() for tensor in saved[1])
    slots = {name.split("/", 2)[2] for name in tensors if name.startswith("optimizer/") and name.count("/") > 1}
    assert slots == {"logits/kernel", "logits/bias"}
    restored = bestrun("restore", "r", "--local", "--json")
    assert restored.code == 0 and json.loads(restored.out)["function"]["is_same"] is True, restored.err
