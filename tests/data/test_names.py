"""What classes are called comes with the data: from its file, from a setting, or with data everybody knows."""

import numpy as np
import pytest
from PIL import Image

from bestrun.data import dataset, known
from bestrun.data.dataset import load_dataset
from bestrun.errors import SettingsError
from support.hostile_names import HOSTILE, assert_tame

RANDOM = np.random.default_rng(0)
ARRAYS = {f"x_{part}": RANDOM.integers(0, 256, (30, 5, 5)).astype(np.uint8) for part in ("train", "test")}
ARRAYS |= {f"y_{part}": np.arange(30) % 3 for part in ("train", "test")}
NAMES = ("cat", "dog", "emu")


@pytest.fixture
def load(tmp_path):
    """`load(class_names_of_the_file, **settings)`."""

    def load(of_the_file=None, **settings):
        more = {} if of_the_file is None else {"class_names": of_the_file}
        np.savez(tmp_path / "data.npz", **ARRAYS, **more, allow_pickle=True)
        return load_dataset("npz", path=str(tmp_path / "data.npz"), validation_size=6, **settings)

    return load


@pytest.mark.parametrize("values", [np.array(NAMES), np.array(NAMES).astype("S"), np.array(NAMES)[::1]])
def test_a_file_s_names_are_those_of_its_classes(load, values):
    data = load(values)
    assert data.class_names == NAMES and not data.warnings


def test_names_change_no_digest(load):
    digests = {load().digest, load(np.array(NAMES)).digest, load(class_names=["a", "b", "c"]).digest}
    assert len(digests) == 1 and load().class_names is None


def test_a_setting_wins_over_the_file(load):
    assert load(np.array(NAMES), class_names=("one", "two", "three")).class_names == ("one", "two", "three")
    assert load(np.array(NAMES), class_names=("0", "1", "2")).class_names is None


@pytest.mark.parametrize(
    "values",
    [
        np.array([1, 2, 3]), np.array(["a", "b"]), np.array(["a", "a", "b"]), np.array(["a", "b", ""]),
        np.array([["a"], ["b"], ["c"]]), np.array(["a", "b", None], dtype=object), np.array("abc"),
        np.array([b"\xff", b"a", b"b"]), np.array(["x" * 3_000_000, "a", "b"]),
        np.array([0x110000, 65, 66], dtype="<u4").view("U1"),
    ],
    ids=["numbers", "count", "double", "empty", "shape", "objects", "no list", "no UTF-8", "huge", "no characters"],
)  # fmt: skip
def test_names_of_a_file_that_cannot_be_are_told_in_one_line_and_left_out(load, values):
    data = load(values)
    (line,) = data.warnings
    assert data.class_names is None and "data.npz[class_names]" in line and line.isprintable(), line
    assert line.endswith("the classes are told by their numbers, or data.class_names=[...] names them")
    assert load(values, class_names=NAMES).class_names == NAMES


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_of_a_file_is_tame_in_the_data_and_in_what_is_said_of_it(load, name):
    values = np.array(["cat", name, "zebra"])
    data = load(values)
    assert data.class_names[0] == "cat" and len(data.class_names) == 3
    for text in (*data.class_names, *data.mended, *load(np.array([name, name, "a"])).warnings):
        assert_tame(text)


def test_a_wrong_number_of_names_is_refused_with_what_to_type(load):
    with pytest.raises(SettingsError) as caught:
        load(class_names=("a", "b"))
    assert str(caught.value) == (
        "data.class_names: there are 2 names for 3 classes of npz; type 3 names in the order of the labels, or "
        "data.class_names=null"
    )


def test_a_class_that_a_split_lacks_is_told_by_its_name(tmp_path):
    arrays = ARRAYS | {"y_test": np.arange(30) % 2, "class_names": np.array(NAMES)}
    np.savez(tmp_path / "data.npz", **arrays)
    data = load_dataset("npz", path=str(tmp_path / "data.npz"), validation_size=6)
    assert [line for line in data.warnings if line.endswith("no test image of class emu")]


def test_fashion_mnist_has_the_names_of_its_authors_and_mnist_none(monkeypatch):
    arrays = {name: np.zeros((40, *shape[1:]), np.uint8) for name, shape in known.SHAPES.items()}
    for part in ("train", "test"):
        arrays[f"x_{part}"][np.arange(40), 0, 0] = arrays[f"y_{part}"] = np.arange(40) % 10
    for name in ("mnist", "fashion_mnist"):
        monkeypatch.setitem(dataset.KNOWN, name, lambda: arrays)
    fashion, mnist = (load_dataset(name, validation_size=10) for name in ("fashion_mnist", "mnist"))
    assert fashion.class_names[0] == "T-shirt/top" and fashion.class_names[9] == "Ankle boot"
    assert mnist.class_names is None and mnist.digest == fashion.digest and not fashion.mended
    assert load_dataset("fashion_mnist", validation_size=10, class_names=list("abcdefghij")).class_names[9] == "j"


def test_folders_of_pictures_name_their_classes_and_a_setting_names_them_otherwise(tmp_path):
    for label, name in enumerate(("ring-tailed cat", "A\u0308pfel", "stop\nsign\x1b[31m")):
        (tmp_path / name).mkdir()
        for number in range(12):
            picture = RANDOM.integers(0, 256, (6, 6)).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"{label}{number}.png")
    settings = {"dir": str(tmp_path), "validation_size": 0.2}
    data = load_dataset("folder", **settings)
    assert data.class_names == ("\u00c4pfel", "ring-tailed cat", "stop sign\\x1b[31m")
    renamed = load_dataset("folder", **settings, class_names=("apple", "cat", "sign"))
    assert renamed.class_names == ("apple", "cat", "sign") and renamed.digest == data.digest
