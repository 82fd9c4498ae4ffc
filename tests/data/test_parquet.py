"""Promises about data=parquet: image sets as the Hugging Face hub stores them."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bestrun.data import parquet
from bestrun.data.dataset import load_dataset
from bestrun.data.pack import LOOK, pack
from bestrun.errors import BestrunError, DataError, SettingsError
from support.drawings import draw, encoded, numbers

NAMES = ["bee", "ant", "cow"]
HUB = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}


def pictures(first: int, count: int) -> list[bytes]:
    """Each says which one it is."""
    return [encoded(np.full((4, 5), number, np.uint8)) for number in range(first, first + count)]


def table(raw, labels, image="image", label="label", features=HUB, **more) -> pa.Table:
    structs = [{"bytes": one, "path": f"/etc/{number}.png"} for number, one in enumerate(raw)]
    columns = {image: pa.array(structs), label: pa.array(labels)} | {key: pa.array(row) for key, row in more.items()}
    made = pa.table(columns)
    if features:
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return made


def write(path: Path, made: pa.Table, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, **{"row_group_size": 7} | options)
    return path


def some(first=0, count=30, **options) -> pa.Table:
    return table(pictures(first, count), [number % 3 for number in range(count)], **options)


def load(place: Path, **settings):
    return load_dataset("parquet", dir=str(place), **{"validation_size": 0.2} | settings)


LAYOUTS = {
    "data/": [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
    ],
    "beside each other": ["train-00000-of-00001-abc.parquet", "validation-00000-of-00001.parquet", "test.parquet"],
    "folders of splits": ["default/train/0000.parquet", "default/valid/0000.parquet", "default/test/0000.parquet"],
    "no splits": ["a.parquet", "b.parquet"],
    "one file": ["x.parquet"],
    "a train without a test": ["train-00000-of-00001.parquet"],
}


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_is_read_as_it_is_and_what_it_lacks_is_cut_by_class(tmp_path, files):
    for number, file in enumerate(files):
        write(tmp_path / "set" / file, some(first=30 * number))
    data = load(tmp_path / "set" / files[0] if len(files) == 1 and "train" not in files[0] else tmp_path / "set")
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    for split in splits.values():
        assert [number % 3 for number in numbers(split.images)] == split.labels.tolist()
        assert numbers(split.images) == sorted(numbers(split.images)), "in the order of the files"
        assert len(set(np.bincount(split.labels).tolist())) == 1, "each class by its share"
    everything = [number for split in splits.values() for number in numbers(split.images)]
    assert sorted(everything) == list(range(30 * len(files)))
    if "test" in files[-1]:
        assert numbers(data.test.images) == list(range(30 * len(files) - 30, 30 * len(files)))
    assert data.class_names == ("bee", "ant", "cow") and data.image_shape == (4, 5, 1)


def test_files_of_one_split_come_in_the_order_of_their_numbers_whatever_lies_beside_them(tmp_path):
    for number in range(12):
        write(tmp_path / f"data/train-{number}.parquet", some(first=6 * number, count=6))
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/train-99.parquet").write_bytes(b"x")
    everything = load(tmp_path)
    assert sorted(numbers(everything.train.images)) == numbers(everything.train.images)


LABELS = {
    "text": (["b 10", "b 2", "ä"], None, ("b 2", "b 10", "ä"), [1, 0, 2]),
    "numbers with names": ([0, 1, 2], HUB, ("bee", "ant", "cow"), [0, 1, 2]),
    "numbers": ([0, 1, 2], None, None, [0, 1, 2]),
    "numbers from 1": ([1, 2, 3], None, ("1", "2", "3"), [0, 1, 2]),
    "numbers with gaps": ([7, 90, 10], None, ("7", "10", "90"), [0, 2, 1]),
    "unused names": (
        [0, 3, 1],
        {"label": {"_type": "ClassLabel", "names": ["a", "b", "never", "d"]}},
        ("a", "b", "d"),
        [0, 2, 1],
    ),
    "a schema of somebody else": (
        [0, 1, 2],
        {"label": {"_type": "ClassLabel", "names": {"0": 1}}},
        None,
        [0, 1, 2],
    ),
}


@pytest.mark.parametrize(("labels", "features", "names", "classes"), LABELS.values(), ids=LABELS)
def test_labels_become_classes_with_names(tmp_path, labels, features, names, classes):
    made = table(pictures(0, 30), [labels[number % 3] for number in range(30)], features=features)
    data = load(write(tmp_path / "a.parquet", made))
    assert data.class_names == names
    assert data.train.labels.tolist() == [classes[number % 3] for number in numbers(data.train.images)]


def test_true_and_false_are_two_classes(tmp_path):
    made = table(pictures(0, 30), [number % 2 == 1 for number in range(30)], features=None)
    data = load(write(tmp_path / "a.parquet", made))
    assert data.train.labels.tolist() == [number % 2 for number in numbers(data.train.images)]


def test_a_column_of_bytes_is_one_of_pictures(tmp_path):
    made = pa.table({"picture": pictures(0, 30), "label": [number % 3 for number in range(30)]})
    assert load(write(tmp_path / "a.parquet", made)).digest == load(write(tmp_path / "b.parquet", some())).digest


def test_columns_that_are_not_unmistakable_are_asked_for(tmp_path):
    fine = {"fine": {"_type": "ClassLabel", "names": NAMES}, "coarse": {"_type": "ClassLabel", "names": ["x", "y"]}}
    made = some(label="fine", features=fine, coarse=[number % 2 for number in range(30)], mask=pictures(100, 30))
    path = write(tmp_path / "a.parquet", made)
    with pytest.raises(DataError, match="2 columns that may be the image .image, mask..*type data.image=image"):
        load(path)
    with pytest.raises(DataError, match="2 columns that may be the label .fine, coarse..*type data.label=fine"):
        load(path, image="image")
    assert load(path, image="image", label="fine").class_names == tuple(NAMES)
    assert load(path, image="mask", label="coarse").num_classes == 2
    with pytest.raises(DataError, match="no column nope of .* among image, fine, coarse, mask.*type data.label=fine"):
        load(path, image="image", label="nope")


def test_labels_that_nobody_told_are_left_out(tmp_path):
    write(tmp_path / "train-00000-of-00001.parquet", some())
    write(tmp_path / "test-00000-of-00001.parquet", table(pictures(100, 9), [-1] * 9))
    data = load(tmp_path)
    assert len(data.test) == 6 and "labels of test are all -1" in data.warnings[0]


# ---- refused


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def rewritten(**changes):
    return lambda path: write(path, some(**changes))


def with_null(path: Path) -> None:
    write(path, table(pictures(0, 3), [0, None, 2]))


def without_bytes(path: Path) -> None:
    write(path, table([*pictures(0, 8), None], [0, 1, 2] * 3))


BAD = {
    "missing": (lambda path: path.unlink(), "no such folder"),
    "cut off": (cut, "nothing readable"),
    "empty": (lambda path: path.write_bytes(b""), "nothing readable"),
    "a web page": (lambda path: path.write_bytes(b"<html>"), "nothing readable"),
    "a pointer of Git LFS": (lambda path: path.write_bytes(parquet.POINTER + b".github.com/spec/v1"), "git lfs pull"),
    "no pictures": (lambda path: write(path, pa.table({"label": [0, 1, 2]})), "0 columns that may be the image"),
    "no labels": (lambda path: write(path, pa.table({"image": pictures(0, 3)})), "0 columns that may be the label"),
    "a row without a label": (with_null, "no label in row 1"),
    "a row with a path alone": (without_bytes, "row 8: found no bytes, at most a path"),
    "one class": (lambda path: write(path, table(pictures(0, 4), [0] * 4)), "1 classes in column label"),
    "a number without a name": (lambda path: write(path, table(pictures(0, 4), [0, 1, 2, 3])), "labels from 0 to 3"),
    "a negative number": (lambda path: write(path, table(pictures(0, 4), [0, 1, -1, 1])), "labels from -1 to 1"),
}


@pytest.mark.parametrize(("spoil", "words"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_by_name_and_with_what_to_do(tmp_path, spoil, words):
    path = write(tmp_path / "a.parquet", some())
    spoil(path)
    with pytest.raises(DataError, match=words) as error:
        load(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


SETS = {
    "a file is missing": (
        ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"],
        "2 files of train.*its 3 files",
    ),
    "a file twice": (["data/train-00000-of-00001.parquet", "data/train-00000-of-00001-x.parquet"], "2 files of train"),
    "several sets": (["a/train-0.parquet", "b/train-0.parquet"], "several sets: a, b; .*type data.dir=.*/b$"),
    "no training": (["test-0.parquet"], "files of test, but none of train"),
    "no files": ([], "no .parquet file among 1 files"),
}


@pytest.mark.parametrize(("files", "words"), SETS.values(), ids=SETS)
def test_a_set_that_is_not_whole_or_not_one_is_refused(tmp_path, files, words):
    (tmp_path / "x.txt").write_text("x")
    for file in files:
        write(tmp_path / file, some())
    with pytest.raises(DataError, match=words) as error:
        load(tmp_path)
    assert str(error.value).startswith(str(tmp_path))


def test_splits_of_other_names_of_classes_are_refused(tmp_path):
    write(tmp_path / "train-0.parquet", some())
    other = {"label": {"_type": "ClassLabel", "names": ["ant", "bee", "cow"]}}
    write(tmp_path / "test-0.parquet", some(features=other))
    with pytest.raises(DataError, match="the same names of classes"):
        load(tmp_path)


def test_a_class_that_only_the_test_has_is_refused(tmp_path):
    write(tmp_path / "train-0.parquet", table(pictures(0, 20), [0, 1] * 10))
    write(tmp_path / "test-0.parquet", table(pictures(20, 3), [0, 1, 2]))
    with pytest.raises(DataError, match="label 2 only in test"):
        load(tmp_path)


def test_no_place_at_all_is_asked_for():
    with pytest.raises(SettingsError, match="data.dir=FOLDER"):
        load_dataset("parquet")


def test_a_damaged_picture_names_its_row_or_is_left_out(tmp_path):
    raw = pictures(0, 30)
    raw[11] = b"no picture"
    path = write(tmp_path / "a.parquet", table(raw, [number % 3 for number in range(30)]))
    with pytest.raises(DataError, match=r"a.parquet, row 11: found .*data.damaged=skip"):
        load(path)
    data = load(path, damaged="skip")
    assert 11 not in numbers(data.train.images) + numbers(data.validation.images) + numbers(data.test.images)
    assert any("1 pictures that cannot be read" in line for line in data.warnings)


def test_a_path_in_a_row_is_never_opened(tmp_path, monkeypatch):
    path, real, seen = write(tmp_path / "a.parquet", some()), os.open, []
    monkeypatch.setattr(os, "open", lambda name, *rest, **more: seen.append(str(name)) or real(name, *rest, **more))
    load(path)
    assert str(path) in seen and not [name for name in seen if name.startswith("/etc/")]


def test_only_row_groups_that_are_asked_for_are_read_and_no_more_of_them_than_a_few_rows_at_once(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", some(count=60), row_group_size=20)
    rows = parquet.Rows("image", {"train": [path]}, {"train": np.arange(60)})
    sizes = []

    class Spy(pq.ParquetFile):
        def iter_batches(self, size, groups, *rest, **more):
            sizes.append((size, groups))
            return super().iter_batches(size, groups, *rest, **more)

    monkeypatch.setattr(pq, "ParquetFile", Spy)
    found = [encoded.where for encoded in rows.encoded("train", [45, 46, 59])]
    assert found == [f"{path}, row {number}" for number in (45, 46, 59)] and sizes == [(parquet.ROWS_AT_ONCE, [2])]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_reading_raises_nothing_but_our_errors(tmp_path, data):
    path = write(tmp_path / "a.parquet", some(count=9))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path.write_bytes(raw)
    try:
        load(path)
    except BestrunError as error:
        assert "\n" not in str(error)


# ---- the same as folder and npz


def test_the_same_images_as_folder_npz_and_parquet_are_the_same_data(tmp_path):
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for number in range(count):
            kind = NAMES[number % 3]
            draw(tmp_path / "photos" / split / kind / f"{number}.png", 10 * len(split) + number, (5 + number % 2, 4))
    pack(tmp_path / "photos", tmp_path / "a.npz", LOOK._replace(size="6x6", channels=3))
    arrays = np.load(tmp_path / "a.npz")
    names = arrays["class_names"].tolist()
    features = {"label": {"_type": "ClassLabel", "names": names}}
    for part in ("train", "val", "test"):
        raw = [encoded(image) for image in arrays[f"x_{part}"]]
        write(tmp_path / f"hub/{part}-0.parquet", table(raw, arrays[f"y_{part}"].tolist(), features=features))
    folder = load_dataset("folder", dir=str(tmp_path / "photos"), size="6x6", channels=3, validation_size=0.1)
    assert folder.class_names == tuple(names)
    npz = load_dataset("npz", path=str(tmp_path / "a.npz"))
    hub = load(tmp_path / "hub", channels=3)
    assert folder.digest == npz.digest == hub.digest and hub.class_names == folder.class_names
