"""Data larger than memory: the same from a file, in whatever spelling, and never from one that is not whole."""

from __future__ import annotations

import errno
import gzip
import json
import os
import struct
import threading
import time
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestrun.data import arrays, cache, dataset, rows
from bestrun.data.dataset import load_dataset
from bestrun.environment import memory_bytes
from bestrun.errors import BestrunError, DataError
from bestrun.storage.files import StorageError
from bestrun.storage.home import create_home
from support.drawings import draw, draw_classes
from support.large import write_npz

RANDOM = np.random.default_rng(0)
COLOUR = {
    "x_train": RANDOM.integers(0, 256, (60, 6, 5, 3), np.uint8),
    "y_train": np.arange(60) % 3,
    "x_test": RANDOM.integers(0, 256, (20, 6, 5, 3), np.uint8),
    "y_test": np.arange(20) % 3,
}
GREY = {name: values[..., 0] if name[0] == "x" else values for name, values in COLOUR.items()}
OWN_VALIDATION = COLOUR | {"x_val": COLOUR["x_test"][:7], "y_val": COLOUR["y_test"][:7]}


@pytest.fixture(autouse=True)
def mlruns(home: Path) -> Path:
    return home / "mlruns"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small data is many pieces, of a number that leaves a remainder."""
    monkeypatch.setattr(arrays, "PIECE_BYTES", 700)
    monkeypatch.setattr(rows, "PIECE_BYTES", 700)


def changed(arrays: dict[str, Any], change: Any) -> dict[str, Any]:
    return {name: change(values) if name[0] == "x" else values for name, values in arrays.items()}


def idx(path: Path, arrays: dict[str, Any], *, packed: bool) -> dict[str, Any]:
    path.mkdir()
    names = {"x_train": "train-images-idx3", "y_train": "train-labels-idx1"}
    names |= {"x_test": "t10k-images-idx3", "y_test": "t10k-labels-idx1"}
    for key, name in names.items():
        values = arrays[key].astype(np.uint8)
        raw = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
        file = path / f"{name}-ubyte{'.gz' if packed else ''}"
        file.write_bytes(gzip.compress(raw) if packed else raw)
    return {"name": "idx", "dir": str(path), "validation_size": 10}


def npz(path: Path, arrays: dict[str, Any], save: Any = np.savez, **settings: Any) -> dict[str, Any]:
    path.mkdir()
    save(path / "data.npz", **arrays)
    return {"name": "npz", "path": str(path / "data.npz"), "validation_size": 10, **settings}


def folder(path: Path, *, damaged: int = 0) -> dict[str, Any]:
    """Pictures in folders: 80 of three classes, of which the first few are cut in the middle."""
    from PIL import Image

    for number, (image, label) in enumerate(zip(COLOUR["x_train"], COLOUR["y_train"], strict=True)):
        file = path / "photos" / "abc"[label] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
        if number < damaged:
            file.write_bytes(file.read_bytes()[:-40])
    skip = {"damaged": "skip"} if damaged else {}
    return {"name": "folder", "dir": str(path / "photos"), "validation_size": 0.2, **skip}


def parquet(path: Path) -> dict[str, Any]:
    """The same 60 pictures as rows of a file."""
    import io

    import pyarrow as pa
    from PIL import Image
    from pyarrow.parquet import write_table

    encoded = []
    for image in COLOUR["x_train"]:
        Image.fromarray(image).save(data := io.BytesIO(), "PNG")
        encoded.append({"bytes": data.getvalue(), "path": None})
    path.mkdir()
    write_table(pa.table({"image": encoded, "label": COLOUR["y_train"]}), path / "train.parquet")
    return {"name": "parquet", "dir": str(path), "validation_size": 0.2}


SPELLINGS = {
    "stored": (partial(npz, arrays=COLOUR), 0),
    "stored, grey": (partial(npz, arrays=GREY), 0),
    "stored, a seed": (partial(npz, arrays=COLOUR, validation_seed=3), 0),
    "stored, own validation": (partial(npz, arrays=OWN_VALIDATION), 0),
    "compressed": (partial(npz, arrays=COLOUR, save=np.savez_compressed, validation_seed=4), 80 * 90),
    "floats from 0 to 1": (partial(npz, arrays=changed(COLOUR, lambda x: (x / 255).astype("f4"))), 80 * 90),
    "floats, compressed": (partial(npz, arrays=changed(COLOUR, lambda x: x / 255), save=np.savez_compressed), 80 * 90),
    "overshooting floats": (partial(npz, arrays=changed(COLOUR, lambda x: x / 254.9)), 80 * 90),
    "whole numbers": (partial(npz, arrays=changed(COLOUR, lambda x: x.astype(">i8"))), 80 * 90),
    "channels first": (partial(npz, arrays=changed(COLOUR, lambda x: np.moveaxis(x, -1, 1))), 80 * 90),
    "Fortran's order": (partial(npz, arrays=changed(COLOUR, np.asfortranarray)), 80 * 90),
    "IDX": (partial(idx, arrays=GREY, packed=False), 0),
    "IDX in gzip": (partial(idx, arrays=GREY, packed=True), 80 * 30),
    "pictures in folders": (folder, 60 * 90),
    "pictures, some damaged": (partial(folder, damaged=2), 58 * 90),
    "parquet": (parquet, 60 * 90),
    "black": (partial(npz, arrays=changed(COLOUR, np.zeros_like)), 0),
    "test = train": (partial(npz, arrays=COLOUR | {"x_test": COLOUR["x_train"][20:40]}), 0),
}


def assert_equal(one: dataset.Dataset, other: dataset.Dataset) -> None:
    for part in ("train", "validation", "test"):
        mine, theirs = getattr(one, part), getattr(other, part)
        assert mine.images.shape == theirs.images.shape
        assert np.array_equal(np.asarray(mine.images), np.asarray(theirs.images))
        assert np.array_equal(mine.labels, theirs.labels)
    assert (one.digest, one.num_classes, one.image_shape) == (other.digest, other.num_classes, other.image_shape)
    assert (one.warnings, one.mended, one.remarks) == (other.warnings, other.mended, other.remarks)
    assert one.class_names == other.class_names


@pytest.mark.parametrize(("make", "taken"), SPELLINGS.values(), ids=SPELLINGS)
def test_data_in_memory_and_from_a_file_is_the_same(tmp_path, mlruns, capsys, make, taken):
    settings = make(tmp_path / "source")
    held, first = load_dataset(**settings, in_memory=True), load_dataset(**settings, in_memory=False)
    assert isinstance(held.train.images, np.ndarray) and isinstance(first.train.images, rows.Stored)
    assert_equal(held, first)
    (file,) = (mlruns / "cache").glob("*.rows")
    assert taken <= file.stat().st_size < taken + 80 * 4 + 2500
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and ("decoded into the cache" if taken else "looked through") in told
    assert_equal(held, load_dataset(**settings, in_memory=False))
    assert capsys.readouterr().err == ""  # it was found


def test_the_second_time_no_pixel_is_read(tmp_path, monkeypatch):
    settings = npz(tmp_path / "source", COLOUR, save=np.savez_compressed)
    first = load_dataset(**settings, in_memory=False)
    monkeypatch.setattr(dataset, "_looked_through", None)
    monkeypatch.setattr(dataset, "conversions", None)
    assert load_dataset(**settings, in_memory=False).digest == first.digest
    with pytest.raises(TypeError):  # another split is another digest, of the same rows
        load_dataset(**settings | {"validation_seed": 1}, in_memory=False)


def test_pictures_found_in_the_cache_are_not_opened_and_a_changed_one_is(tmp_path, monkeypatch, mlruns):
    from bestrun.data import decoded, pictures

    settings = folder(tmp_path)
    first = load_dataset(**settings, in_memory=False)
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "decode", None)
        patch.setattr(pictures, "header", None)
        assert_equal(first, load_dataset(**settings, in_memory=False))
        assert_equal(first, load_dataset(**settings))  # small as it is, it is there
    path = Path(settings["dir"]) / "a" / "0.png"
    path.write_bytes((path.parent / "3.png").read_bytes())
    assert load_dataset(**settings, in_memory=False).digest != first.digest
    assert len(list((mlruns / "cache").glob("*.rows"))) == 1
    monkeypatch.setattr(decoded.PIL, "__version__", "1.0")  # another one may decode a JPEG otherwise
    load_dataset(**settings, in_memory=False)
    assert len(list((mlruns / "cache").glob("*.rows"))) == 2


def test_what_is_small_is_held_and_what_is_large_is_not(monkeypatch):
    monkeypatch.setattr(cache, "memory_bytes", lambda: 8 << 20)
    assert cache.is_held(1 << 20, None) and not cache.is_held((1 << 20) + 1, None)
    assert cache.is_held(1 << 40, True) and not cache.is_held(1, False)
    monkeypatch.setattr(cache, "memory_bytes", lambda: 1 << 50)
    assert cache.is_held(4 << 30, None) and not cache.is_held((4 << 30) + 1, None)


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/user/job\n", {"user/job/memory.max": "max\n", "user/memory.max": "5000\n"}),
        ("0::/user/job\n", {"memory.max": "5000\n"}),
        ("0::/../elsewhere\n", {"memory.max": "5000\n"}),
        ("3:cpu:/x\n2:memory:/job\n", {"memory/job/memory.limit_in_bytes": "5000\n"}),
        ("2:memory:/docker/1\n", {"memory/memory.limit_in_bytes": "5000\n"}),
    ],
    ids=["above", "top", "outside", "version 1", "version 1 in a container"],
)
def test_limits_of_control_groups_count(tmp_path, groups, files):
    machine = memory_bytes(tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    assert memory_bytes(tmp_path) == machine
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert memory_bytes(tmp_path) == 5000


def test_more_than_four_gigabytes_are_refused_in_memory_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "MAX_ARRAY_BYTES", 60 * 90 - 1)
    settings = npz(tmp_path / "source", COLOUR)
    assert len(load_dataset(**settings, in_memory=False).train) == 50
    with pytest.raises(DataError, match=r"MAX_ARRAY_BYTES\); type data.in_memory=false"):
        load_dataset(**settings, in_memory=True)
    settings = npz(tmp_path / "fortran", changed(COLOUR, np.asfortranarray))
    with pytest.raises(DataError, match=r"write it as numpy.ascontiguousarray\(x_train\)"):
        load_dataset(**settings, in_memory=False)


# ---- what is not whole is never used


def cut(file: Path, source: Path) -> None:
    os.truncate(file, file.stat().st_size - 100)


def emptied(file: Path, source: Path) -> None:
    os.truncate(file, 0)


def longer(file: Path, source: Path) -> None:
    file.write_bytes(b"\0" + file.read_bytes())


def flipped(at: int, file: Path, source: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)


def of_another(file: Path, source: Path) -> None:
    """The cache of other images under this name: it is whole, and yet was made of something else."""
    os.replace(file, file.with_suffix(".json"))


DAMAGE = {
    "cut": cut,
    "emptied": emptied,
    "a byte more": longer,
    "bit flip in its magic": partial(flipped, -60),
    "bit flip in its seal": partial(flipped, -5),
    "bit flip in its header": partial(flipped, -200),
    "a folder": lambda file, source: (file.unlink(), file.mkdir()),
    "gone": lambda file, source: file.unlink(),
    "under the other name": of_another,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["in place", "decoded"])
def test_a_damaged_cache_is_made_again_or_refused_and_never_used(tmp_path, mlruns, damage, save):
    settings = npz(tmp_path / "source", COLOUR, save=save)
    held = load_dataset(**settings, in_memory=True)
    load_dataset(**settings, in_memory=False)
    (file,) = (mlruns / "cache").glob("*.rows")
    damage(file, Path(settings["path"]))
    try:
        assert_equal(held, load_dataset(**settings, in_memory=False))
    except BestrunError as error:
        assert file.is_dir() and "\n" not in str(error) and str(file) in str(error)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["in place", "decoded"])
def test_a_source_changed_afterwards_is_read_anew_though_its_time_is_set_back(tmp_path, mlruns, save):
    settings = npz(tmp_path / "source", COLOUR, save=save)
    path = Path(settings["path"])
    load_dataset(**settings, in_memory=False)
    before = path.stat()
    other = COLOUR | {"x_train": COLOUR["x_train"].copy()}
    other["x_train"][3, 0, 0, 0] ^= 1
    if save is np.savez:
        save(path, **other)
        assert path.stat().st_size == before.st_size
    else:
        flipped(200, path, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if save is np.savez:
        assert_equal(load_dataset(**settings, in_memory=True), load_dataset(**settings, in_memory=False))
        assert len(list((mlruns / "cache").glob("*.rows"))) == 1  # the old one went
    else:
        with pytest.raises(DataError, match="data.npz"):
            load_dataset(**settings, in_memory=False)


def test_what_was_decoded_of_fewer_images_goes_when_more_are_there(tmp_path, mlruns):
    """Else each picture that is added would leave all of them in the cache once more."""
    settings = {"name": "folder", "dir": str(draw_classes(tmp_path / "photos"))}
    settings |= {"validation_size": 0.2, "in_memory": False}
    first = load_dataset(**settings)
    (before,) = (mlruns / "cache").glob("*.rows")
    load_dataset(**settings | {"size": "6x6"})
    assert len(list((mlruns / "cache").glob("*.rows"))) == 2, "decoded in another way it is another source"
    draw(tmp_path / "photos/cat/new.png", 99)
    assert load_dataset(**settings).digest != first.digest
    assert not before.exists() and len(list((mlruns / "cache").glob("*.rows"))) == 2
    more = npz(tmp_path / "npz", COLOUR, np.savez_compressed, in_memory=False)
    load_dataset(**more)
    np.savez_compressed(more["path"], **{name: np.concatenate([each, each]) for name, each in COLOUR.items()})
    load_dataset(**more)
    assert len(list((mlruns / "cache").glob("*.rows"))) == 3


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["in place", "decoded"])
def test_a_row_that_changes_while_it_is_used_is_an_error_and_not_used(tmp_path, mlruns, save):
    settings = npz(tmp_path / "source", COLOUR, save=save)
    held, stored = load_dataset(**settings, in_memory=True), load_dataset(**settings, in_memory=False)
    (file,) = (mlruns / "cache").glob("*.rows")
    target = Path(settings["path"]) if save is np.savez else file
    with open(target, "r+b") as out:  # the file that is open, not another of its name
        at = target.read_bytes().index(held.train.images[7].tobytes())
        out.seek(at + 2)
        out.write(bytes([held.train.images[7].ravel()[2] ^ 4]))
    assert np.array_equal(stored.train.images[6], held.train.images[6])
    with pytest.raises(DataError, match=r"image 17 is not what it was when it was first read"):
        np.asarray(stored.train.images[np.array([3, 7])])
    assert not file.exists()  # so that the next command makes it anew
    if save is np.savez:  # the source itself is damaged
        with pytest.raises(DataError, match="Bad CRC-32"):
            load_dataset(**settings, in_memory=False)
    else:
        assert_equal(held, load_dataset(**settings, in_memory=False))


def test_what_is_remembered_counts_only_as_it_was_written(tmp_path, mlruns):
    settings = npz(tmp_path / "source", COLOUR)
    first = load_dataset(**settings, in_memory=False)
    (file,) = (mlruns / "cache").glob("*.json")
    kept = json.loads(file.read_text())
    (key,) = kept["kept"]
    kept["kept"][key]["digest"] = "0" * 64
    for text in (json.dumps(kept), "{", "[]", json.dumps({"of": kept["of"], "kept": 3, "check": ""})):
        file.write_text(text)
        assert load_dataset(**settings, in_memory=False).digest == first.digest


# ---- making it


def test_where_the_home_cannot_be_written_the_rows_have_no_name(tmp_path, mlruns):
    mlruns.mkdir(exist_ok=True)
    (mlruns / "cache").write_text("a file where the folder would be")
    settings = npz(tmp_path / "source", COLOUR, save=np.savez_compressed)
    assert_equal(load_dataset(**settings, in_memory=True), load_dataset(**settings, in_memory=False))
    assert (mlruns / "cache").is_file()


def test_where_the_folder_of_the_cache_cannot_be_written_the_rows_have_no_name(tmp_path, mlruns, monkeypatch):
    (mlruns / "cache").mkdir(parents=True)
    settings = npz(tmp_path / "source", COLOUR, save=np.savez_compressed)
    opened = os.open

    def refusing(path, flags, *more):
        if str(path).endswith(".lock") and flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied")  # root writes wherever it likes
        return opened(path, flags, *more)

    monkeypatch.setattr(cache.os, "open", refusing)
    assert_equal(load_dataset(**settings, in_memory=True), load_dataset(**settings, in_memory=False))
    assert not list((mlruns / "cache").iterdir())


def test_nothing_is_taken_from_a_strangers_home(tmp_path, mlruns, monkeypatch):
    settings = npz(tmp_path / "source", COLOUR, save=np.savez_compressed)
    load_dataset(**settings, in_memory=False)
    monkeypatch.setattr(cache, "foreign_owners", lambda home: ("eve", "ada"))
    monkeypatch.setattr(cache, "_found", None)
    assert_equal(load_dataset(**settings, in_memory=True), load_dataset(**settings, in_memory=False))


def test_a_disk_without_room_is_told_before_anything_is_decoded(tmp_path, mlruns, monkeypatch):
    settings = npz(tmp_path / "source", COLOUR, save=np.savez_compressed)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(dataset, "conversions", None)
    with pytest.raises(StorageError, match=r"take 1,056,096 bytes, and 1,000 are free there; make room"):
        load_dataset(**settings, in_memory=False)
    assert {path.suffix for path in (mlruns / "cache").iterdir()} == {".lock"}


@pytest.mark.parametrize("make", [partial(npz, arrays=COLOUR, save=np.savez_compressed), folder, parquet])
def test_a_source_that_changes_while_it_is_decoded_is_refused(tmp_path, mlruns, monkeypatch, make):
    settings = make(tmp_path / "source")
    files = [path for path in (tmp_path / "source").rglob("*") if path.is_file()]
    monkeypatch.setattr(cache, "fault", lambda point: os.utime(files[0]))
    with pytest.raises(DataError, match="wait until it is written"):
        load_dataset(**settings, in_memory=False)
    assert {path.suffix for path in (mlruns / "cache").iterdir()} == {".lock"}


def load_large(settings: dict[str, Any]) -> None:
    print(load_dataset(**settings, in_memory=False).digest)


@pytest.mark.parametrize("point", ["F1", "F2", "F2:3", "F3", "F4", "F5"])
def test_a_cache_killed_while_it_is_made_is_made_by_the_next(tmp_path, mlruns, start_process, point):
    settings = npz(tmp_path / "source", COLOUR, save=np.savez_compressed)
    held = load_dataset(**settings, in_memory=True)
    result = start_process(load_in_pieces, settings, cwd=tmp_path, env={"BESTRUN_FAULT": point}).wait()
    assert result.code == -9
    assert_equal(held, load_dataset(**settings, in_memory=False))
    names = [path.name for path in (mlruns / "cache").iterdir()]
    assert not [name for name in names if name.endswith(".tmp")] and len(names) == 3  # rows, what is remembered, lock


def load_in_pieces(settings: dict[str, Any]) -> None:
    arrays.PIECE_BYTES = 700
    load_large(settings)


def test_of_two_processes_at_once_one_decodes_and_the_other_waits(tmp_path, mlruns, start_process):
    create_home(mlruns)
    settings = npz(tmp_path / "source", COLOUR, save=np.savez_compressed)
    both = [start_process(load_slowly, settings, cwd=tmp_path) for _ in range(2)]
    results = [process.wait() for process in both]
    assert [result.code for result in results] == [0, 0]
    assert results[0].out == results[1].out == load_dataset(**settings, in_memory=True).digest + "\n"
    told = "".join(result.err for result in results)
    assert told.count("decoded into the cache") == 1 and told.count("waiting for it") == 1


def load_slowly(settings: dict[str, Any]) -> None:
    cache.fault = lambda point: time.sleep(1)
    load_large(settings)


# ---- batches


def test_batches_read_ahead_are_those_of_their_steps_however_they_are_cut(tmp_path, monkeypatch):
    from bestrun.data.order import batch_indices

    stored = load_dataset(**npz(tmp_path / "source", COLOUR), in_memory=False).train.images
    monkeypatch.setattr(rows, "AHEAD_BYTES", 3 * 16 * 90)
    whole = np.asarray(stored)[batch_indices(5, 0, 40, 16, 50)]
    for cuts in ([40], [1, 1, 5, 3, 30], [7] * 5 + [5]):
        ahead, step = rows.Ahead(stored, 5, 16), 0
        for steps in cuts:
            got = list(ahead.batches(step, steps))
            assert max(map(len, got)) <= 3
            assert np.array_equal(np.concatenate(got), whole[step : step + steps])
            step += steps
    assert np.array_equal(np.concatenate(list(rows.Ahead(stored, 5, 16).batches(31, 4))), whole[31:35])
    assert threading.active_count() < 20


@pytest.mark.parametrize("compressed", [False, True], ids=["in place", "decoded"])
def test_data_is_looked_through_and_read_in_bounded_memory(tmp_path, monkeypatch, compressed):
    monkeypatch.setattr(arrays, "PIECE_BYTES", 1 << 20)
    monkeypatch.setattr(rows, "PIECE_BYTES", 1 << 20)
    monkeypatch.setattr(rows, "AHEAD_BYTES", 1 << 20)
    write_npz(tmp_path / "large.npz", 400, 160, compressed=compressed)  # 31 MB
    for _ in range(2):
        tracemalloc.start()
        data = load_dataset("npz", path=str(tmp_path / "large.npz"), validation_size=0.1, in_memory=False)
        for batch in rows.Ahead(data.train.images, 0, 8).batches(0, 30):
            assert batch.nbytes <= 1 << 20
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20
