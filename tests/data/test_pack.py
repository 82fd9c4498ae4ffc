"""Promises about packing pictures in folders."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bestrun.data import pack as module
from bestrun.data import pictures
from bestrun.data.dataset import load_dataset
from bestrun.data.pack import LOOK, pack, report_lines
from bestrun.errors import BestrunError, DataError, SettingsError
from support.drawings import draw, draw_classes, numbers

picture = partial(draw, mode="RGB")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_classes(tmp_path / "photos", "RGB")


def test_a_fifth_of_each_class_becomes_the_test_split_and_training_is_shuffled(folder, tmp_path):
    packed = pack(folder, tmp_path / "a.npz")
    assert (packed.classes, packed.counts) == (["cat", "dog", "emu"], {"train": [8, 8, 8], "test": [2, 2, 2]})
    arrays = np.load(tmp_path / "a.npz")
    assert arrays["x_train"].shape == (24, 4, 5, 3) and arrays["x_test"].dtype == np.uint8
    for part in ("train", "test"):
        assert [value // 10 for value in numbers(arrays[f"x_{part}"])] == arrays[f"y_{part}"].tolist()
    everything = numbers(arrays["x_train"]) + numbers(arrays["x_test"])
    assert sorted(everything) == list(range(30))
    assert set(arrays["y_train"][:8]) == {0, 1, 2}, "the first ones validate"
    assert arrays["class_names"].tolist() == ["cat", "dog", "emu"]


def test_what_was_packed_is_data(folder, tmp_path):
    pack(folder, tmp_path / "a.npz")
    data = load_dataset("npz", path=str(tmp_path / "a.npz"), validation_size=6)
    assert data.image_shape == (4, 5, 3) and data.num_classes == 3 and len(data.test) == 6


def test_the_same_folder_gives_the_same_file(folder, tmp_path):
    for name in ("a.npz", "b.npz"):
        pack(folder, tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


TESTED = [4, 6, 14, 16, 24, 26]
TRAINED = [22, 5, 27, 12, 13, 2, 28, 8, 29, 3, 25, 10, 0, 20, 15, 23, 17, 9, 7, 21, 18, 11, 1, 19]


def test_it_gives_the_arrays_that_it_has_always_given(folder, tmp_path):
    """What was cut to test, and the order of the training images, as of version 0.2.0: runs know their data by it."""
    pack(folder, tmp_path / "a.npz")
    arrays = np.load(tmp_path / "a.npz")
    assert numbers(arrays["x_test"]) == TESTED and numbers(arrays["x_train"]) == TRAINED


def test_given_splits_stay_as_they_are(folder, tmp_path):
    both = tmp_path / "both"
    (both / "test").mkdir(parents=True)
    folder.rename(both / "train")
    picture(both / "test/dog/x.jpeg", 77)
    packed = pack(both, tmp_path / "a.npz")
    assert packed.counts == {"train": [10, 10, 10], "test": [0, 1, 0]}
    assert np.load(tmp_path / "a.npz")["y_test"].tolist() == [1]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_images_are_grey_if_all_of_them_are(folder, tmp_path, mode, channels):
    for path in sorted(folder.rglob("*.png"))[:-1]:
        Image.open(path).convert("L").save(path)
    Image.open(path := folder / "emu/9.png").convert(mode).save(path)
    assert pack(folder, tmp_path / "a.npz").shape == (4, 5, channels)


def test_pictures_of_any_size_are_stretched_to_the_size_given(folder, tmp_path):
    picture(folder / "cat/large.png", 200, (50, 10))
    with pytest.raises(DataError, match=r"\d.png: found 5x4 pixels; expected 50x10 as in|type --size 5x4") as error:
        pack(folder, tmp_path / "a.npz")
    assert str(folder / "cat/large.png") in str(error.value) and not list(tmp_path.glob("*.npz"))
    assert pack(folder, tmp_path / "a.npz", LOOK._replace(size="8x6")).shape == (6, 8, 3)


def test_it_says_which_label_is_which_class_what_was_left_out_and_what_to_type(folder, tmp_path):
    (folder / "cat/notes.txt").write_text("x")
    (folder / "cat/.hidden.png").write_text("x")
    lines = report_lines(pack(folder, tmp_path / "my data.npz"))
    assert lines[:3] == [
        "label  class  training  test",
        "    0  cat           8     2",
        "    1  dog           8     2",
    ]
    text = "\n".join(lines)
    assert f"left out  1 .txt files, the first is {folder}/cat/notes.txt" in text
    assert "24 training and 6 test images of 4 x 5 x 3" in text
    assert f"bestrun train data=npz 'data.path={tmp_path}/my data.npz'" in text


def only(folder: Path, *names: str) -> None:
    for path in [path for path in folder.rglob("*.png") if path.parent.name not in names]:
        path.unlink()
        if not list(path.parent.iterdir()):
            path.parent.rmdir()


BAD = {
    "no folder": (lambda folder: folder.rename(folder.with_name("x")), "nothing readable .No such file"),
    "one class": (lambda folder: only(folder, "cat"), "found 1 folders in it; expected two or more"),
    "no class": (lambda folder: only(folder), "found 0 folders in it"),
    "an empty class": (lambda folder: (folder / "ape").mkdir(), "no picture .* of class ape"),
    "train without test": (lambda folder: (folder / "train").mkdir(), "train: found 0 folders in it"),
    "test without train": (lambda folder: picture(folder / "test/cat/a.png", 1), "found test, but no train"),
    "a damaged picture": (lambda folder: (folder / "cat/3.png").write_bytes(b"<html>"), "cat/3.png: found text"),
    "a FIFO": (lambda folder: os.mkfifo(folder / "cat/x.jpg"), "cat/x.jpg: found .*not a regular file"),
    "two folders for one split": (lambda folder: [(folder / n).mkdir() for n in ("val", "valid")], "val and valid"),
}


@pytest.mark.parametrize(("spoil", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_folder_is_refused_by_name_and_nothing_is_written(folder, tmp_path, spoil, words):
    spoil(folder)
    with pytest.raises(DataError, match=words) as error:
        pack(folder, tmp_path / "a.npz")
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)
    assert not [path for path in tmp_path.iterdir() if "npz" in path.name]


def test_splits_without_test_images_are_refused(folder, tmp_path):
    both = tmp_path / "both"
    (both / "test/cat").mkdir(parents=True)
    folder.rename(both / "train")
    with pytest.raises(DataError, match="found no test images"):
        pack(both, tmp_path / "a.npz")


def test_the_only_picture_of_a_class_trains(folder, tmp_path):
    picture(folder / "fox/a.png", 77)
    packed = pack(folder, tmp_path / "a.npz")
    assert packed.counts == {"train": [8, 8, 8, 1], "test": [2, 2, 2, 0]}


def test_a_class_that_only_the_test_has_is_refused(folder, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    folder.rename(both / "train")
    picture(both / "test/fox/x.png", 7)
    with pytest.raises(DataError, match="class fox only in test"):
        pack(both, tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("file", "size", "words"),
    [("a.png", None, "name of a new .npz"), ("no/a.npz", None, "in a folder that is there")]
    + [("a.npz", size, "--size 64x48") for size in ("", "0x4", "4", "4X4", "4x4x3", "99999x4", "-4x4", "4 x 4")],
)
def test_a_bad_argument_is_refused_by_what_to_type(folder, tmp_path, file, size, words):
    with pytest.raises(SettingsError, match=words):
        pack(folder, tmp_path / file, LOOK._replace(size=size))


def test_more_pixels_than_memory_should_hold_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_ARRAY_BYTES", 30 * 60 - 1)
    with pytest.raises(
        DataError, match="found 30 images of 4 x 5 x 3; expected at most 1,799 bytes.*type --size 64x48"
    ):
        pack(folder, tmp_path / "a.npz")


def test_a_file_that_cannot_be_written_leaves_the_old_one(folder, tmp_path, monkeypatch):
    (tmp_path / "a.npz").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BestrunError, match="a.npz: cannot write it: No space left on device; make room"):
        pack(folder, tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "photos"]


def test_ctrl_c_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    def interrupted(file, **_: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module.np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(folder, tmp_path / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
