"""npz files as people write them: other names, other labels, one set only. Converted with a line that says so."""

import numpy as np
import pytest

from bestrun.data.dataset import load_dataset
from bestrun.errors import DataError, SettingsError

RANDOM = np.random.default_rng(0)
X, XV, XT = (RANDOM.integers(0, 256, (count, 6, 5), np.uint8) for count in (60, 12, 20))
Y, YV, YT = np.arange(60) % 3, np.arange(12) % 3, np.arange(20) % 3
RIGHT = {"x_train": X, "y_train": Y, "x_test": XT, "y_test": YT}


def load(tmp_path, arrays, **settings):
    np.savez(tmp_path / "a.npz", **arrays)
    return load_dataset("npz", path=str(tmp_path / "a.npz"), **{"validation_size": 15} | settings)


NAMES = {
    "train_images": ("train_images", "train_labels", "test_images", "test_labels"),
    "images_train": ("images_train", "labels_train", "images_test", "labels_test"),
    "X_train": ("X_train", "Y_train", "X_test", "Y_test"),
    "trainImages": ("trainImages", "trainLabels", "testImages", "testLabels"),
    "train_x": ("train_x", "train_y", "test_x", "test_y"),
    "data and targets": ("train_data", "train_targets", "test_data", "test_targets"),
    "training and testing": ("training.images", "training.labels", "testing.images", "testing.labels"),
    "some of them ours": ("x_train", "train_labels", "x_test", "test_labels"),
    "arr_0": ("arr_0", "arr_1", "arr_2", "arr_3"),
    "arr_0, images first": ("arr_0", "arr_2", "arr_1", "arr_3"),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_arrays_of_other_names_are_the_same_data_and_that_is_told(tmp_path, names):
    data = load(tmp_path, dict(zip(names, RIGHT.values(), strict=True)))
    right = load(tmp_path, RIGHT)
    assert data.digest == right.digest and not right.remarks
    (told,) = data.remarks
    assert told == f"{tmp_path}/a.npz: its {', '.join(names)} were taken as x_train, y_train, x_test, y_test"


def test_a_validation_split_of_other_names_is_used(tmp_path):
    names = ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels")
    data = load(tmp_path, dict(zip(names, (X, Y[:, None], XV, YV[:, None], XT, YT[:, None]), strict=True)))
    assert np.array_equal(data.validation.images[..., 0], XV) and np.array_equal(data.validation.labels, YV)
    assert len(data.train) == 60 and len(data.remarks) == 2


ONE_SET = {
    "images, labels": ("images", "labels"),
    "x, y": ("x", "y"),
    "X, Y": ("X", "Y"),
    "data, target": ("data", "target"),
    "arr_0, arr_1": ("arr_0", "arr_1"),
    "x_train, y_train": ("x_train", "y_train"),
}


@pytest.mark.parametrize("names", ONE_SET.values(), ids=ONE_SET)
def test_a_file_with_one_set_is_divided_by_a_seed_each_class_by_its_share(tmp_path, names):
    arrays = dict(zip(names, (X, np.sort(Y)), strict=True))  # sorted: the first ones would be one class
    data = load(tmp_path, arrays, validation_size=0.25)
    counts = [np.bincount(split.labels).tolist() for split in (data.train, data.validation, data.test)]
    assert counts == [[12, 12, 12], [4, 4, 4], [4, 4, 4]]
    images = np.concatenate([split.images for split in (data.train, data.validation, data.test)])
    assert {image.tobytes() for image in images} == {image.tobytes() for image in X}
    line = "data.test_size=0.2 data.validation_size=0.25 data.split_seed=0"
    assert "12 test and 12 validation images were drawn from it" in data.remarks[-1] and line in data.remarks[-1]
    assert load(tmp_path, arrays, validation_size=0.25).digest == data.digest
    assert load(tmp_path, arrays, validation_size=12).digest == data.digest
    assert load(tmp_path, arrays, validation_size=0.25, split_seed=1).digest != data.digest
    assert len(load(tmp_path, arrays, test_size=0.5).test) == 30


@pytest.mark.parametrize("names", [("x_valid", "y_valid"), ("x_validation", "y_validation"), ("X_valid", "labels_val")])
def test_a_validation_split_of_another_name_beside_our_names_is_used(tmp_path, names):
    ours = load(tmp_path, RIGHT | {"x_val": XV, "y_val": YV})
    data = load(tmp_path, RIGHT | dict(zip(names, (XV, YV), strict=True)))
    assert len(data.train) == 60 and np.array_equal(data.validation.images[..., 0], XV)
    assert data.digest == ours.digest and not ours.mended
    assert data.mended == (f"its {', '.join(names)} are the validation split, before they were not read",)
    (told,) = data.remarks
    assert told.endswith("were taken as x_train, y_train, x_test, y_test, x_val, y_val") and names[0] in told


def test_half_a_validation_split_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"found no y_val, only .*x_valid; .*both of x_val and y_val, or without"):
        load(tmp_path, RIGHT | {"x_valid": XV})


def test_a_count_for_validation_is_of_what_the_test_leaves(tmp_path):
    with pytest.raises(SettingsError, match="data.validation_size: 48 of 48 training images; .* from 1 to 47"):
        load(tmp_path, {"images": X, "labels": Y}, validation_size=48)
    assert len(load(tmp_path, {"images": X, "labels": Y}, validation_size=24).validation) == 24


def test_training_and_validation_without_a_test_have_one_cut_from_training(tmp_path):
    data = load(tmp_path, {"x_train": X, "y_train": Y, "x_val": XV, "y_val": YV})
    assert (len(data.train), len(data.validation), len(data.test)) == (48, 12, 12)


def test_a_seed_of_validation_alone_is_told_what_to_type(tmp_path):
    with pytest.raises(SettingsError, match=r"data.validation_seed=3: .*type data.split_seed=3"):
        load(tmp_path, {"images": X, "labels": Y}, validation_seed=3)


UNCLEAR = {
    "two arrays that may be it": {"images": X, "x": X, "labels": Y},
    "half a set": {"images": X},
    "images alone": {"arr_0": X},
    "three sets without names": {f"arr_{n}": array for n, array in enumerate((X, Y, XV, YV, XT, YT))},
    "other words": {"pictures": X, "kinds": Y},
    "a test alone": {"test_images": XT, "test_labels": YT},
    "a fold": {"x_train_1": X, "y_train_1": Y, "x_test_1": XT, "y_test_1": YT},
    "half a test": {"train_images": X, "train_labels": Y, "test_images": XT},
}


@pytest.mark.parametrize("arrays", UNCLEAR.values(), ids=UNCLEAR)
def test_names_that_do_not_say_it_are_refused_with_the_remedy(tmp_path, arrays):
    with pytest.raises(
        DataError, match=r"found no .*, only .*; expected x_train, .*write the arrays again under"
    ) as error:
        load(tmp_path, arrays)
    assert all(name in str(error.value) for name in arrays) and "\n" not in str(error.value)


def test_our_names_count_whatever_else_is_there(tmp_path):
    data = load(tmp_path, RIGHT | {"images": XT, "labels": YT, "train_images": XT})
    assert data.digest == load(tmp_path, RIGHT).digest and not data.mended
    assert data.remarks == (f"{tmp_path}/a.npz: its images, labels, train_images were not read",)
    two = load(tmp_path, RIGHT | {"x_val": XV, "y_val": YV, "x_valid": XT})
    assert np.array_equal(two.validation.labels, YV) and two.remarks == (
        f"{tmp_path}/a.npz: its x_valid were not read",
    )


WORDS = np.array(["b 2", "b 10", "ä"])
LABELS = {
    "(n, 1)": (lambda y: y[:, None], "labels (n, 1) became class numbers", None),
    "one-hot": (lambda y: np.eye(3)[y], "one-hot labels became class numbers", None),
    "one-hot, whole": (lambda y: np.eye(3, dtype=np.uint8)[y], "one-hot labels became", None),
    "one-hot, true and false": (lambda y: np.eye(3, dtype=bool)[y], "one-hot labels became", None),
    "floats": (lambda y: y * 1.0, "whole floats became class numbers", None),
    "floats (n, 1)": (lambda y: y[:, None].astype("f4"), "labels (n, 1) became", None),
    "from 1": (lambda y: y + 1, "labels from 1 to 3 became classes 0 to 2", ("1", "2", "3")),
    "from 7, (n, 1)": (lambda y: y[:, None] + 7, "labels from 7 to 9 became classes 0 to 2", ("7", "8", "9")),
    "words": (lambda y: WORDS[y], "labels in words became classes 0 to 2", ("b 2", "b 10", "ä")),
    "words in bytes": (lambda y: np.char.encode(WORDS, "utf-8")[y], "labels in words", ("b 2", "b 10", "ä")),
    "words (n, 1)": (lambda y: WORDS[y][:, None], "labels in words", ("b 2", "b 10", "ä")),
}


@pytest.mark.parametrize(("spelling", "words", "names"), LABELS.values(), ids=LABELS)
def test_labels_of_another_spelling_are_the_same_data_and_that_is_told(tmp_path, spelling, words, names):
    data = load(tmp_path, RIGHT | {"y_train": spelling(Y), "y_test": spelling(YT)})
    assert data.digest == load(tmp_path, RIGHT).digest
    assert data.class_names == names and any(words in line for line in data.remarks)
    assert all(line.startswith(f"{tmp_path}/a.npz: ") and "\n" not in line for line in data.remarks)


def test_true_and_false_are_classes_1_and_0(tmp_path):
    two = {"y_train": np.arange(60) % 2, "y_test": np.arange(20) % 2}
    data = load(tmp_path, RIGHT | {name: labels == 1 for name, labels in two.items()})
    assert data.digest == load(tmp_path, RIGHT | two).digest and "true and false became" in data.remarks[0]


def test_each_split_may_have_its_own_spelling(tmp_path):
    data = load(tmp_path, RIGHT | {"y_train": np.eye(3)[Y]})
    assert data.digest == load(tmp_path, RIGHT).digest and data.remarks[0].endswith(
        ": y_train: one-hot labels became class numbers"
    )


def test_names_in_the_file_are_those_of_the_classes(tmp_path):
    names = np.array(["ä", "b", "c"])
    assert load(tmp_path, RIGHT | {"class_names": names}).class_names == ("ä", "b", "c")
    assert load(tmp_path, RIGHT | {"class_names": names, "y_train": Y + 1, "y_test": YT + 1}).class_names == (
        "ä",
        "b",
        "c",
    )
    two = load(tmp_path, RIGHT | {"class_names": names[:2]})
    assert two.class_names is None and "there are 2 names for 3 classes" in two.warnings[-1]
    assert load(tmp_path, RIGHT).class_names is None


BAD = {
    "words that training lacks": (
        {"y_train": WORDS[Y], "y_test": np.array(["c"] * 20)},
        "label 'c'; expected the labels",
    ),
    "words for training alone": ({"y_train": WORDS[Y]}, "expected text, as in another split"),
    "from 1 for training alone": ({"y_train": Y + 1}, "no training image of class 0"),
    "with gaps": ({"y_train": Y * 5, "y_test": YT * 5}, "no training image of class 1.*numpy.searchsorted"),
    "bytes that are no text": ({"y_train": np.array([b"\xff", b"a", b"b"])[Y]}, "bytes that are not UTF-8"),
    "several labels an image": ({"y_train": np.ones((60, 3))}, "not one-hot"),
    "two-dimensional words": ({"y_train": np.stack([WORDS[Y]] * 2, 1)}, "not one-hot"),
}


@pytest.mark.parametrize(("changes", "words"), BAD.values(), ids=BAD)
def test_labels_that_cannot_be_classes_are_refused(tmp_path, changes, words):
    with pytest.raises(DataError, match=words) as error:
        load(tmp_path, RIGHT | changes)
    assert str(error.value).startswith(f"{tmp_path}/a.npz") and "\n" not in str(error.value)


def test_one_set_of_single_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="3 images; expected some for each split"):
        load(tmp_path, {"images": X[:3], "labels": Y[:3]}, validation_size=0.1)
