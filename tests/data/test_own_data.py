"""Data as people bring it: one scale, channels where they are, hints that are right for the case at hand."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bestrun.data.dataset import load_dataset
from bestrun.data.images import read_images
from bestrun.data.pack import pack, report_lines
from bestrun.errors import DataError

RANDOM = np.random.default_rng(0)
PIXELS = {name: RANDOM.integers(0, 256, (count, 6, 6)) for name, count in (("x_train", 60), ("x_test", 20))}
PIXELS = {name: np.where(np.arange(6) == 3, 255, pixels) for name, pixels in PIXELS.items()}
LABELS = {"y_train": np.arange(60) % 3, "y_test": np.arange(20) % 3}
UNIT = {name: (pixels / 255).astype("f4") for name, pixels in PIXELS.items()}
WHOLE = {name: pixels.astype("u1") for name, pixels in PIXELS.items()} | LABELS


def load(folder: Path, arrays: dict, **settings):
    return load_dataset("npz", path=str(save(folder, arrays)), validation_size=15, **settings)


@pytest.fixture
def right(tmp_path):
    return load(tmp_path, WHOLE)


def save(folder: Path, arrays: dict) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


# ---- one scale for all splits


def with_pixel(value, arrays=UNIT, name="x_train", pixel=(0, 0, 0)):
    changed = {key: array.copy() for key, array in arrays.items()}
    changed[name][pixel] = value
    return changed


@pytest.mark.parametrize("name", ["x_train", "x_test"])
@pytest.mark.parametrize(("value", "pixel"), [(1.0000001, 255), (1.001, 255), (-1e-7, 0), (-0.001, 0)])
def test_a_hair_beyond_the_range_is_clipped_and_told(tmp_path, name, value, pixel):
    data = load(tmp_path, with_pixel(value, name=name) | LABELS)
    expected = with_pixel(pixel, {key: array for key, array in WHOLE.items() if key[0] == "x"}, name) | LABELS
    assert data.digest == load(tmp_path, expected).digest
    assert any(f"[{name}]" in text and "clipped" in text for text in data.warnings) and len(data.mended) == 1


@pytest.mark.parametrize(("value", "pixel"), [(255.2, 255), (-0.2, 0)])
def test_a_hair_beyond_0_and_255_too(tmp_path, value, pixel):
    arrays = {name: pixels.astype("f8") for name, pixels in PIXELS.items()}
    expected = with_pixel(pixel, {key: array for key, array in WHOLE.items() if key[0] == "x"})
    data = load(tmp_path, with_pixel(value, arrays) | LABELS)
    assert data.digest == load(tmp_path, expected | LABELS).digest and len(data.mended) == 1


SAME = {
    "floats from 0 to 1": UNIT,
    "half precision": {name: pixels.astype("f2") for name, pixels in UNIT.items()},
    "floats from 0 to 255": {name: pixels.astype("f4") for name, pixels in PIXELS.items()},
    "whole numbers": {name: pixels.astype("i8") for name, pixels in PIXELS.items()},
    "floats to 1 for training, bytes for the test": UNIT | {"x_test": WHOLE["x_test"]},
    "bytes for training, floats to 1 for the test": WHOLE | {"x_test": UNIT["x_test"]},
}


@pytest.mark.parametrize("images", SAME.values(), ids=SAME)
def test_every_unmistakable_scale_gives_the_same_pixels(tmp_path, right, images):
    data = load(tmp_path, images | LABELS)
    assert data.digest == right.digest and not data.mended


def test_a_black_split_has_no_scale_of_its_own(tmp_path):
    data = load(tmp_path, UNIT | LABELS | {"x_test": np.zeros((20, 6, 6), "f4")})
    assert data.train.images.max() == 255 and not data.test.images.any()


# ---- hints, followed


def spoiled(**changes):
    return WHOLE | changes


ONE_HOT = {name: np.eye(3)[labels] for name, labels in LABELS.items()}
NAMES = np.array(["bars", "columns", "spot"])
BAD = {
    "the test is not scaled": UNIT | LABELS | {"x_test": PIXELS["x_test"].astype("f4")},
    "training is not scaled": LABELS | {"x_train": PIXELS["x_train"].astype("f4"), "x_test": UNIT["x_test"]},
    "zero and one": {name: (pixels > 128).astype("u1") for name, pixels in PIXELS.items()} | LABELS,
    "only the test is zero and one": spoiled(x_test=(PIXELS["x_test"] > 128).astype("u1")),
    "one pixel of 1.5": with_pixel(1.5) | LABELS,
    "one pixel of 200": with_pixel(200.0) | LABELS,
    "up to 1.275": {name: pixels / 200 for name, pixels in PIXELS.items()} | LABELS,
    "up to 2.55": {name: pixels / 100 for name, pixels in PIXELS.items()} | LABELS,
    "minus one to one": {name: pixels * 2 - 1 for name, pixels in UNIT.items()} | LABELS,
    "standardised": {name: (pixels - 0.5) / 0.29 for name, pixels in UNIT.items()} | LABELS,
    "signed bytes": {name: (pixels - 128).astype("i1") for name, pixels in PIXELS.items()} | LABELS,
    "16 bits": {name: pixels.astype("u2") * 257 for name, pixels in PIXELS.items()} | LABELS,
    "12 bits": {name: pixels * 16 for name, pixels in PIXELS.items()} | LABELS,
    "NaN": with_pixel(np.nan) | LABELS,
    "infinity": with_pixel(np.inf) | LABELS,
    "bool images": {name: pixels > 128 for name, pixels in PIXELS.items()} | LABELS,
    "complex images": {name: pixels * 1j for name, pixels in UNIT.items()} | LABELS,
    "flat images": {name: pixels.reshape(len(pixels), 36) for name, pixels in WHOLE.items() if name[0] == "x"} | LABELS,
    "labels (n, 1)": spoiled(y_train=LABELS["y_train"][:, None], y_test=LABELS["y_test"][:, None]),
    "one-hot labels": WHOLE | ONE_HOT,
    "one-hot labels, bool": WHOLE | {name: labels.astype(bool) for name, labels in ONE_HOT.items()},
    "float labels": spoiled(**{name: labels * 1.0 for name, labels in LABELS.items()}),
    "float labels (n, 1)": spoiled(**{name: labels[:, None] * 1.0 for name, labels in LABELS.items()}),
    "labels from 1": spoiled(**{name: labels + 1 for name, labels in LABELS.items()}),
    "labels with gaps": spoiled(**{name: labels * 5 for name, labels in LABELS.items()}),
    "labels from -1": spoiled(**{name: labels - 1 for name, labels in LABELS.items()}),
    "labels beyond 63 bits": spoiled(**{n: labels.astype("u8") + np.uint64(1 << 63) for n, labels in LABELS.items()}),
    "labels in words": spoiled(**{name: NAMES[labels] for name, labels in LABELS.items()}),
    "labels as Python objects": spoiled(**{name: NAMES[labels].astype(object) for name, labels in LABELS.items()}),
    "images as Python objects": spoiled(x_train=np.array([*WHOLE["x_train"], None], dtype=object)[:-1]),
}
EXACT = ("scaled", "16 bits", "signed", "minus one", "12 bits", "label", "flat", "objects")


PYTHON = {"numpy": np, "list": list, "abs": abs, "int": int, "float": float, "str": str}


def follow(message: str, arrays: dict) -> None:
    """Do what a message says."""
    if classes := re.search(r"with classes = (.*?) write (.*)", message):
        found = eval(classes[1], PYTHON, arrays)
        for name, expression in re.findall(r"([xy]_\w+) as (numpy\.searchsorted\(.*?\))", classes[2]):
            arrays[name] = eval(expression, PYTHON, arrays | {"classes": found})
        return
    (hint,) = re.findall(r"write it as (.*?)(?:, or .*|, of .*|; .*|$)", message)
    name = re.findall(r"[xy]_(?:train|test)", hint)[-1]
    arrays[name] = eval(hint, PYTHON, arrays)


@pytest.mark.parametrize(("name", "arrays"), BAD.items(), ids=BAD)
def test_a_hint_is_right_for_its_case_followed_it_leads_to_the_data(tmp_path, right, name, arrays):
    arrays = dict(arrays)
    for _ in range(8):  # a hint an array, and some arrays need two
        try:
            data = load(tmp_path, arrays)
            break
        except DataError as error:
            follow(str(error), arrays)
    else:
        pytest.fail("followed eight times, and still refused")
    assert data.train.images.max() >= 254 and data.num_classes == 3
    assert data.train.labels.tolist() == right.train.labels.tolist()
    if name.startswith(EXACT) or "labels" in name:
        difference = data.train.images.astype(int) - right.train.images
        assert abs(difference).max() <= (1 if name == "12 bits" else 0)


def test_labels_that_no_conversion_makes_classes_say_so(tmp_path):
    for labels, words in ((LABELS["y_train"] / 2, "not for amounts"), (np.ones((60, 3)), "one class here")):
        with pytest.raises(DataError, match=words) as error:
            load(tmp_path, spoiled(y_train=labels))
        assert "write it as" not in str(error.value)


def test_sorted_labels_are_told_from_missing_ones(tmp_path):
    arrays = spoiled(y_train=np.repeat([0, 1, 2], [15, 20, 25]))
    with pytest.raises(DataError, match=r"validation took all of them.*type (data\.validation_seed=0)"):
        load(tmp_path, arrays)
    assert load(tmp_path, arrays, validation_seed=0).num_classes == 3


def test_half_a_validation_split_and_other_names_get_different_advice(tmp_path):
    with pytest.raises(DataError, match="both of x_val and y_val, or without"):
        load(tmp_path, spoiled(x_val=WHOLE["x_test"]))
    with pytest.raises(DataError, match="no x_train and .*write the arrays again under these names"):
        load(tmp_path, {f"{name}s": array for name, array in WHOLE.items()})


# ---- where the channels are


def planes(channels, size=(6, 6)):
    images = {"x_train": RANDOM.integers(0, 256, (60, channels, *size), np.uint8)}
    return images | {"x_test": RANDOM.integers(0, 256, (20, channels, *size), np.uint8)} | LABELS


def turned(arrays):
    return {name: np.moveaxis(array, 1, -1) if name[0] == "x" else array for name, array in arrays.items()}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(6, 6), (8, 6), (6, 8), (28, 2)])
def test_channels_that_come_first_unmistakably_are_turned_and_told(tmp_path, channels, size):
    arrays = planes(channels, size)
    data, right = load(tmp_path, arrays), load(tmp_path, turned(arrays))
    assert data.image_shape == (*size, channels) and data.digest == right.digest and not right.mended
    assert "data.layout=channels_first" in data.warnings[0] and "data.layout=channels_last" in data.mended[0]
    said = load(tmp_path, arrays, layout="channels_first")
    assert said.digest == data.digest and not said.warnings
    assert load(tmp_path, arrays, layout="channels_last").image_shape == (channels, *size)


@pytest.mark.parametrize("shape", [(6, 6, 1), (6, 6, 3), (6, 8, 4), (6, 8, 2), (6, 6, 10), (9, 9, 5)])
def test_channels_that_come_last_are_left_there(tmp_path, shape):
    arrays = {"x_train": RANDOM.integers(0, 256, (60, *shape), np.uint8)}
    arrays |= {"x_test": RANDOM.integers(0, 256, (20, *shape), np.uint8)} | LABELS
    data = load(tmp_path, arrays)
    assert data.image_shape == shape and not data.warnings and not data.mended


@pytest.mark.parametrize("shape", [(3, 6, 3), (1, 6, 1), (1, 6, 3), (4, 6, 6), (10, 8, 8), (8, 7, 6), (6, 6, 6)])
def test_a_shape_that_says_nothing_is_refused_and_either_setting_helps(tmp_path, shape):
    arrays = {"x_train": RANDOM.integers(0, 256, (60, *shape), np.uint8)}
    arrays |= {"x_test": RANDOM.integers(0, 256, (20, *shape), np.uint8)} | LABELS
    with pytest.raises(DataError, match=r"type data\.layout=channels_last or data\.layout=channels_first"):
        load(tmp_path, arrays)
    assert load(tmp_path, arrays, layout="channels_last").image_shape == shape
    assert load(tmp_path, arrays, layout="channels_first").image_shape == (*shape[1:], shape[0])


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_to_predict_are_turned_like_those_that_trained(tmp_path, channels):
    first = RANDOM.integers(0, 256, (4, channels, 6, 6), np.uint8)
    np.savez(tmp_path / "a.npz", images=first)
    _, images = read_images(tmp_path / "a.npz", (6, 6, channels))
    assert np.array_equal(images, np.moveaxis(first, 1, -1))


# ---- folders of pictures


def draw(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (5, 4), number).save(path)


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path):
    for number in range(1, 13):
        for copy in range(3):
            draw(tmp_path / "p" / str(number) / f"{copy}.png", number)
    packed = pack(tmp_path / "p", tmp_path / "a.npz")
    assert packed.classes == [str(number) for number in range(1, 13)]
    arrays = np.load(tmp_path / "a.npz")
    assert [int(image.flat[0]) - 1 for image in arrays["x_train"]] == arrays["y_train"].tolist()
    data = load_dataset("npz", path=str(tmp_path / "a.npz"), validation_size=4)
    assert "before in that of letters" in data.mended[0]


SPELLINGS = [("train", "val", "test"), ("Train", "Valid", "Test"), ("training", "validation", "testing")]


@pytest.mark.parametrize("names", SPELLINGS)
def test_a_validation_split_of_folders_is_used(tmp_path, names):
    for split, count, name in zip(("train", "val", "test"), (5, 2, 3), names, strict=True):
        for number in range(count):
            for label, kind in enumerate(["Äpfel", "stop sign"]):
                draw(tmp_path / "p" / name / kind / f"{number}.png", 100 * label + 10 * len(split) + number)
    packed = pack(tmp_path / "p", tmp_path / "a.npz")
    assert packed.counts == {"train": [5, 5], "val": [2, 2], "test": [3, 3]} and packed.classes == [
        "stop sign",
        "Äpfel",
    ]
    data = load_dataset("npz", path=str(tmp_path / "a.npz"))
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 4, 6)
    assert "10 training, 4 validation and 6 test images" in "\n".join(report_lines(packed))


def test_without_a_test_split_a_fifth_becomes_one_beside_a_validation_split(tmp_path):
    for split, count in (("train", 10), ("val", 3)):
        for number in range(count):
            for kind in ("a", "b"):
                draw(tmp_path / "p" / split / kind / f"{number}.png", number)
    assert pack(tmp_path / "p", tmp_path / "a.npz").counts == {"train": [8, 8], "val": [3, 3], "test": [2, 2]}


def test_what_is_left_out_is_listed_by_kind(tmp_path):
    for split in ("train", "test"):
        for kind in ("a", "b"):
            for number in range(3):
                draw(tmp_path / "p" / split / kind / f"{number}.png", number)
    for place in ("train/a/x.svg", "train/b/y.SVG", "test/a/z.heic", "train/a/more/q.txt", "train/a/more/deep/r.txt"):
        path = tmp_path / "p" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "p/train/README").write_text("x")
    (tmp_path / "p/train/a/LICENSE").write_text("x")
    (tmp_path / "p/train/a/.hidden").write_text("x")
    draw(tmp_path / "p/other/c.png", 1)
    packed = pack(tmp_path / "p", tmp_path / "a.npz")
    assert packed.left_out == [
        f"1 .heic files, the first is {tmp_path}/p/test/a/z.heic",
        f"2 .svg files, the first is {tmp_path}/p/train/a/x.svg",
        f"2 .txt files, the first is {tmp_path}/p/train/a/more/deep/r.txt",
        f"1 beside the folders of classes, the first is {tmp_path}/p/train/README",
        f"1 beside the splits, the first is {tmp_path}/p/other/c.png",
        f"1 files without an ending, the first is {tmp_path}/p/train/a/LICENSE",
        "1 hidden files, Thumbs.db and the like",
    ]
    text = "\n".join(report_lines(packed))
    assert f"left out  2 .svg files, the first is {tmp_path}/p/train/a/x.svg" in text


# ---- runs of before


def test_an_old_run_of_turned_images_says_how_it_was_read_and_that_reads_it(bestrun, home, tmp_path):
    data = f"data.path={save(tmp_path, planes(1, (8, 8)))}"
    words = ("data=npz", data, "training.max_steps=4", "training.evaluate_every_steps=2", "pictures=false")
    words = (*words, "tracking.log_model=none")
    as_then = "data.layout=channels_last"
    result = bestrun("train", *words, "training.patience_steps=4", as_then, "name=old", "training.batch_size=8")
    assert result.code == 0, result.err
    config = home / "mlruns" / "runs" / "old" / "config.yaml"
    config.write_text(config.read_text().replace("  layout: channels_last\n", ""))  # the setting was not known then
    for words in (("restore", "old", "--local"), ("resume", "old", "training.max_steps=6"), ("rerun", "old")):
        refused = bestrun(*words)
        assert refused.code == 3 and "an earlier version may have read such a file otherwise" in refused.err
        assert as_then in refused.err
        assert words[0] != "restore" or "--allow-other-data" in refused.err
    restored = bestrun("restore", "old", "--local", as_then)
    assert restored.code == 0 and "as logged" in restored.out, restored.err
    resumed = bestrun("resume", "old", as_then, "training.max_steps=6")
    assert resumed.code == 0, resumed.err
    assert "layout: channels_last" in config.read_text()


def test_an_old_run_of_clipped_pixels_is_told_so_and_may_be_restored(bestrun, home, tmp_path):
    np.savez(tmp_path / "then.npz", **with_pixel(1.0) | LABELS)
    np.savez(tmp_path / "now.npz", **with_pixel(1.0000001) | LABELS | {"x_test": UNIT["x_test"] * 0.5})
    words = ("data=npz", "training.max_steps=4", "training.evaluate_every_steps=2", "training.patience_steps=4")
    words = (*words, "pictures=false", "name=old", "training.batch_size=8", "tracking.log_model=none")
    assert bestrun("train", *words, f"data.path={tmp_path}/then.npz").code == 0
    refused = bestrun("restore", "old", f"data.path={tmp_path}/now.npz")
    assert refused.code == 3 and "were clipped" in refused.err and "--allow-other-data" in refused.err
    assert bestrun("restore", "old", f"data.path={tmp_path}/now.npz", "--allow-other-data").code == 0
