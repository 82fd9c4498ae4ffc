"""Promises about reading, checking and splitting data, and about the order of batches."""

import gzip
import io
import os
import re
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bestrun.data import dataset as data
from bestrun.data.arrays import IDX_FILES, read_idx, read_npz
from bestrun.data.dataset import load_dataset
from bestrun.data.order import batch_indices
from bestrun.data.pixels import Notes
from bestrun.errors import DataError, SettingsError

TRAIN_IMAGES, TRAIN_LABELS = IDX_FILES["x_train"], IDX_FILES["y_train"]


def some_arrays(train=60, test=20, size=(6, 5), classes=3, seed=0):
    random = np.random.default_rng(seed)
    return {
        "x_train": random.integers(0, 256, (train, *size), np.uint8),
        "y_train": np.arange(train, dtype=np.uint8) % classes,
        "x_test": random.integers(0, 256, (test, *size), np.uint8),
        "y_test": np.arange(test, dtype=np.uint8) % classes,
    }


def idx_bytes(array, shape=None, kind=8):
    shape = array.shape if shape is None else shape
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


def write_idx(folder: Path, arrays, suffix=""):
    folder.mkdir(exist_ok=True)
    for name, usual in IDX_FILES.items():
        raw = idx_bytes(arrays[name])
        (folder / (usual + suffix)).write_bytes(gzip.compress(raw) if suffix else raw)
    return folder


def write_npz(path: Path, arrays):
    np.savez(path, **arrays)
    return path


def load_npz(tmp_path, validation_size=10, **changes):
    path = write_npz(tmp_path / "data.npz", {**some_arrays(), **changes})
    return load_dataset("npz", path=str(path), validation_size=validation_size)


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 1500
    assert "Error" not in message and "Traceback" not in message
    return message


# ---- what good data becomes


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_and_npz_of_the_same_images_are_the_same_data(tmp_path, suffix):
    arrays = some_arrays()
    idx = load_dataset("idx", dir=str(write_idx(tmp_path / "idx", arrays, suffix)), validation_size=10)
    npz = load_npz(tmp_path)
    assert idx.digest == npz.digest and idx.name == "idx"
    assert idx.image_shape == (6, 5, 1) and idx.num_classes == 3 and idx.warnings == ()
    assert (len(idx.train), len(idx.validation), len(idx.test)) == (50, 10, 20)
    assert np.array_equal(idx.validation.images[..., 0], arrays["x_train"][:10])
    assert np.array_equal(idx.train.labels, arrays["y_train"][10:])
    for split in (idx.train, idx.validation, idx.test, npz.train):
        assert split.images.dtype == np.uint8 and split.images.flags.c_contiguous and split.labels.dtype == np.int64


@pytest.mark.parametrize(
    "spelling", ["train-images.idx3-ubyte", "train-images-idx4-ubyte.gz", "train-images.idx4-ubyte"]
)
def test_other_spellings_of_idx_names_are_found_and_colour_is_read(tmp_path, spelling):
    folder = write_idx(tmp_path / "idx", some_arrays(size=(6, 5, 3)))
    raw = (folder / TRAIN_IMAGES).read_bytes()
    (folder / TRAIN_IMAGES).unlink()
    (folder / spelling).write_bytes(gzip.compress(raw) if spelling.endswith("gz") else raw)
    assert load_dataset("idx", dir=str(folder), validation_size=10).image_shape == (6, 5, 3)


def test_validation_arrays_of_the_file_are_used_as_they_are(tmp_path):
    given = some_arrays(seed=1)
    dataset = load_npz(tmp_path, x_val=given["x_test"], y_val=given["y_test"])
    assert len(dataset.train) == 60
    assert np.array_equal(dataset.validation.images[..., 0], given["x_test"])


def test_float_big_endian_and_fortran_arrays_hold_the_same_pixels(tmp_path):
    plain = load_npz(tmp_path)
    x, y = some_arrays()["x_train"], some_arrays()["y_train"]
    for same in (
        (x / 255),
        (x / 255).astype(np.float32),
        (x / 255).astype(">f8"),
        x.astype(">i4"),
        np.asfortranarray(x),
    ):
        assert load_npz(tmp_path, x_train=same, y_train=y.astype(">i8")).digest == plain.digest


def test_digest_changes_with_any_pixel_label_split_or_order(tmp_path):
    arrays = some_arrays()
    digests = {load_npz(tmp_path).digest, load_npz(tmp_path, validation_size=11).digest}
    for name in arrays:
        changed = arrays[name].copy()
        changed.flat[-1] ^= 1
        digests.add(load_npz(tmp_path, **{name: changed}).digest)
    reshaped = {name: arrays[name].reshape(-1, 5, 6) for name in ("x_train", "x_test")}
    digests.add(load_npz(tmp_path, **reshaped).digest)
    path = str(write_npz(tmp_path / "data.npz", arrays))
    digests |= {load_dataset("npz", path=path, validation_size=10, validation_seed=seed).digest for seed in (0, 1, 0)}
    assert len(digests) == 9


def test_a_validation_seed_shuffles_and_loses_no_image(tmp_path):
    arrays = some_arrays()
    arrays["x_train"][:, 0, 0] = np.arange(60)
    path = str(write_npz(tmp_path / "data.npz", arrays))
    dataset = load_dataset("npz", path=path, validation_size=0.25, validation_seed=7)
    validation, train = dataset.validation.images[:, 0, 0, 0], dataset.train.images[:, 0, 0, 0]
    assert len(validation) == 15 and not np.array_equal(validation, np.arange(15))
    assert sorted([*validation, *train]) == list(range(60))
    assert np.array_equal(arrays["y_train"][train], dataset.train.labels)


@pytest.mark.parametrize("size", [0, -1, 60, 61, 0.0, 1.0, -0.5, 1.5, 0.001, 0.999, float("nan"), None])
def test_a_validation_size_that_leaves_nothing_is_refused_by_name(tmp_path, size):
    with pytest.raises(SettingsError) as error:
        load_npz(tmp_path, validation_size=size)
    message = one_line(error)
    assert "data.validation_size" in message and str(size) in message and "60" in message and "1 to 59" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "cifar"}, "mnist, fashion_mnist, idx, npz"),
        ({"name": "idx"}, "data.dir=FOLDER"),
        ({"name": "npz"}, "data.path=FILE"),
    ],
)
def test_settings_that_name_no_data_are_refused(arguments, words):
    with pytest.raises(SettingsError, match=words):
        load_dataset(**arguments)


def test_replacing_the_file_afterwards_changes_nothing(tmp_path):
    dataset = load_npz(tmp_path)
    before = dataset.train.images.copy()
    (tmp_path / "data.npz").write_bytes(b"something else")
    assert np.array_equal(dataset.train.images, before)


# ---- MNIST


@pytest.fixture(scope="module")
def mnist():
    return load_dataset("mnist")


def test_mnist_has_its_known_sizes_and_first_images(mnist):
    assert (len(mnist.train), len(mnist.validation), len(mnist.test)) == (55_000, 5_000, 10_000)
    assert mnist.image_shape == (28, 28, 1) and mnist.num_classes == 10 and mnist.warnings == ()
    assert list(mnist.validation.labels[:10]) == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert list(mnist.test.labels[:10]) == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert mnist.digest == "97d890b88567f8bc9004a5c9c9dfe8ad4e6086cfcde4ef6f6a17c364e59f4d2a"


# ---- bad data: one row, one test


def altered(file, change):
    """A row of the table: the IDX file `file`, its bytes changed."""

    def apply(folder: Path):
        path = folder / file
        path.write_bytes(change(path.read_bytes()))

    return apply


def gzipped(change):
    """The training images under their .gz name, with the bytes that `change` makes of the plain ones."""

    def apply(folder: Path):
        raw = (folder / TRAIN_IMAGES).read_bytes()
        (folder / TRAIN_IMAGES).unlink()
        (folder / f"{TRAIN_IMAGES}.gz").write_bytes(change(raw))

    return apply


def replaced(make):
    def apply(folder: Path):
        (folder / TRAIN_IMAGES).unlink()
        make(folder / TRAIN_IMAGES)

    return apply


def sparse(path: Path):
    with open(path, "wb") as file:
        file.write(bytes([0, 0, 8, 3]) + struct.pack(">3I", 60, 6, 5))
        file.truncate(1 << 40)


def sizes(*shape):
    return lambda raw: bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + raw[16:]


def sparse_gzip(path: Path):
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(idx_bytes(some_arrays()["x_train"])))
    os.truncate(packed, 1 << 40)


HTML = b"<!DOCTYPE html><html>503 Service Unavailable</html>"

BAD_IDX = {
    "wrong magic": (altered(TRAIN_IMAGES, lambda raw: b"\1\2\3\4" + raw[4:]), "starts 01 02 03 04"),
    "wrong dtype byte": (altered(TRAIN_IMAGES, lambda raw: b"\0\0\x0d\3" + raw[4:]), "00 00 0d 03"),
    "labels where images belong": (altered(TRAIN_IMAGES, lambda raw: b"\0\0\x08\1" + raw[4:]), "00 00 08 01"),
    "header count larger": (altered(TRAIN_IMAGES, sizes(61, 6, 5)), "1,816 bytes; expected 1,846"),
    "header count smaller": (altered(TRAIN_IMAGES, sizes(59, 6, 5)), "1,816 bytes; expected 1,786"),
    "zero items": (altered(TRAIN_IMAGES, sizes(0, 6, 5)), r"\(0, 6, 5\)"),
    "zero height": (altered(TRAIN_IMAGES, sizes(60, 0, 5)), r"\(60, 0, 5\)"),
    "negative dimension": (altered(TRAIN_IMAGES, sizes(60, 0xFFFFFFFA, 5)), "MAX_STORED_BYTES"),
    "dimensions of 2^40 in product": (altered(TRAIN_IMAGES, sizes(1 << 20, 1 << 10, 1 << 10)), "1,099,511,627,792"),
    "cut off in the header": (altered(TRAIN_IMAGES, lambda raw: raw[:9]), "5 bytes"),
    "cut off": (altered(TRAIN_IMAGES, lambda raw: raw[:-1]), "1,815 bytes; expected 1,816"),
    "trailing bytes": (altered(TRAIN_IMAGES, lambda raw: raw + b"\0"), "1,817 bytes; expected 1,816"),
    "gzip cut off": (gzipped(lambda raw: gzip.compress(raw)[:-100]), "ended before"),
    "gzip of a cut-off file": (gzipped(lambda raw: gzip.compress(raw[:-1])), "only 1,799 bytes"),
    "gzip with bad CRC": (gzipped(lambda raw: gzip.compress(raw)[:-8] + b"\0" * 8), "CRC"),
    "gzip with trailing bytes inside": (gzipped(lambda raw: gzip.compress(raw + b"\0")), "bytes after the last"),
    "gzip with trailing bytes outside": (gzipped(lambda raw: gzip.compress(raw) + b"junk"), "gzip"),
    "gzip bomb": (gzipped(lambda raw: gzip.compress(raw + bytes(64 << 20), 1)), "bytes after the last"),
    "not gzip": (gzipped(lambda raw: raw), "gzip"),
    "double gzip": (gzipped(lambda raw: gzip.compress(gzip.compress(raw))), "packed twice"),
    "gzip under a plain name": (altered(TRAIN_IMAGES, gzip.compress), "gzip data"),
    "HTML page": (altered(TRAIN_IMAGES, lambda raw: HTML), "web page"),
    "HTML page named .gz": (gzipped(lambda raw: HTML), "gzip"),
    "empty file": (altered(TRAIN_IMAGES, lambda raw: b""), "empty file"),
    "empty file named .gz": (gzipped(lambda raw: b""), "empty file"),
    "missing file": (replaced(lambda path: None), "no such file"),
    "directory": (replaced(Path.mkdir), "Is a directory"),
    "FIFO": (replaced(os.mkfifo), "not a regular file"),
    "symlink loop": (replaced(lambda path: path.symlink_to(path)), "symbolic links"),
    "broken symlink": (replaced(lambda path: path.symlink_to("nowhere")), "No such file"),
    "sparse 1 TB file": (replaced(sparse), "1,099,511,627,776 bytes; expected 1,816"),
    "sparse 1 TB behind a gzip file": (replaced(sparse_gzip), "1,099,511,627,776 bytes; expected 1,816"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("spoil", "words"), BAD_IDX.values(), ids=BAD_IDX.keys())
def test_bad_idx_file_is_refused_by_name(tmp_path, spoil, words):
    folder = write_idx(tmp_path / "idx", some_arrays())
    spoil(folder)
    with pytest.raises(DataError, match=words) as error:
        load_dataset("idx", dir=str(folder), validation_size=10)
    message = one_line(error)
    assert message.startswith(str(folder / TRAIN_IMAGES)) and "expected" in message


def test_unreadable_file_is_refused_by_name(tmp_path, monkeypatch):
    folder = write_idx(tmp_path / "idx", some_arrays())

    def refuse(*arguments, **options):  # file modes do not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(data.known, "open_regular", refuse)
    with pytest.raises(DataError, match="Permission denied") as error:
        load_dataset("idx", dir=str(folder))
    assert str(folder / TRAIN_IMAGES) in one_line(error)


def test_missing_folder_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match="no such folder.*data.dir"):
        load_dataset("idx", dir=str(tmp_path / "nowhere"))


ARRAYS = some_arrays()


def labels(name, item, label):
    changed = ARRAYS[name].astype(np.int64)
    changed[item] = label
    return changed


NAN = np.where(np.arange(60).reshape(60, 1, 1) == 7, np.nan, ARRAYS["x_train"] / 255)

BAD_ARRAYS = {
    "float images up to 1.275": ({"x_train": ARRAYS["x_train"] / 200}, "most pixels from 0 to 1, but some up to 1.275"),
    "NaN in float images": ({"x_train": NAN}, "NaN"),
    "infinite float images": ({"x_train": NAN - np.inf}, "pixels from|NaN"),
    "float images above 255": ({"x_train": ARRAYS["x_train"] * 300.0}, "pixels from"),
    "negative float images": ({"x_train": ARRAYS["x_train"] / 255 - 0.5}, "pixels from -0.5"),
    "integer images above 255": ({"x_train": ARRAYS["x_train"] * np.int64(2)}, "pixels from 0 to 5"),
    "negative integer images": ({"x_train": ARRAYS["x_train"].astype(np.int16) - 1}, "pixels from -1"),
    "bool images": ({"x_train": ARRAYS["x_train"] > 9}, "type bool"),
    "complex images": ({"x_train": ARRAYS["x_train"] * 1j}, "type complex128"),
    "text images": ({"x_train": np.array(["a"] * 60)}, "type <U1"),
    "object images": ({"x_train": np.array([{}] * 60, dtype=object)}, "never unpickled"),
    "structured images": ({"x_train": np.zeros(60, [("a", "u1")])}, "type"),
    "flat images": ({"x_train": ARRAYS["x_train"].reshape(60, 30)}, r"shape \(60, 30\)"),
    "a single number": ({"x_train": np.uint8(3)}, r"shape \(\)"),
    "no images": ({"x_train": ARRAYS["x_train"][:0], "y_train": ARRAYS["y_train"][:0]}, r"shape \(0, 6, 5\)"),
    "empty images": ({"x_train": ARRAYS["x_train"][:, :0]}, r"shape \(60, 0, 5\)"),
    "27x28 test images": ({"x_test": np.zeros((20, 27, 28), np.uint8)}, "27x28x1 images; expected 6x5x1"),
    "colour test images": ({"x_test": np.zeros((20, 6, 5, 3), np.uint8)}, "6x5x3 images; expected 6x5x1"),
    "fewer labels than images": ({"y_train": ARRAYS["y_train"][1:]}, "59 labels, but .*x_train.* has 60 images"),
    "object labels": ({"y_train": ARRAYS["y_train"].astype(object)}, "type object"),
    "negative labels": ({"y_train": ARRAYS["y_train"].astype(int) - 1}, "labels from -1"),
    "labels beyond 63 bits": ({"y_train": ARRAYS["y_train"].astype(np.uint64) + np.uint64(1 << 63)}, "labels from"),
    "one label of 2^40": ({"y_train": labels("y_train", -1, 1 << 40)}, "no training image of class 3"),
    "label 255 in training": ({"y_train": labels("y_train", -1, 255)}, "no training image of class 3"),
    "label 10 in the test": ({"y_test": labels("y_test", -1, 10)}, "label 10 at test image 19; expected 0 to 2"),
    "label 255 in the test": ({"y_test": labels("y_test", 0, 255)}, "label 255 at test image 0"),
    "one class absent": ({"y_train": ARRAYS["y_train"] * 2}, "no training image of class 1"),
    "a single class": ({"y_train": ARRAYS["y_train"] * 0}, "class 1; expected .*two classes"),
    "a class that validation took whole": ({"y_train": np.repeat([0, 1], [10, 50])}, "class 0.*data.validation_seed"),
    "x_val without y_val": ({"x_val": ARRAYS["x_test"]}, "no y_val"),
    "y_val without x_val": ({"y_val": ARRAYS["y_test"]}, "no x_val"),
}


@pytest.mark.parametrize(("changes", "words"), BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_bad_arrays_are_refused_by_file_and_array(tmp_path, changes, words):
    with pytest.raises(DataError, match=words) as error:
        load_npz(tmp_path, **changes)
    assert one_line(error).startswith(str(tmp_path / "data.npz"))


def npz_bytes(arrays=ARRAYS, save=np.savez):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def npz_with(member: bytes, compression=zipfile.ZIP_DEFLATED):
    """An .npz file whose x_train is `member`."""
    buffer = io.BytesIO(npz_bytes({name: ARRAYS[name] for name in ("y_train", "x_test", "y_test")}))
    with zipfile.ZipFile(buffer, "a", compression) as archive:
        archive.writestr("x_train.npy", member)
    return buffer.getvalue()


def npy_header(shape, descr="|u1", order=False):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": order, "shape": shape})
    return buffer.getvalue()


def npy_with_long_header():
    return b"\x93NUMPY\x02\0" + struct.pack("<I", 64 << 20) + b" " * (64 << 20)


BAD_NPZ = {
    "missing key": (lambda: npz_bytes({name: ARRAYS[name] for name in ARRAYS if name != "y_test"}), "no y_test, only"),
    "no arrays": (lambda: npz_bytes({}), "only nothing"),
    "empty file": (lambda: b"", "not a zip file"),
    "HTML page": (lambda: HTML, "not a zip file"),
    "a plain .npy": (lambda: npy_header((3,)) + b"abc", "not a zip file"),
    "cut off": (lambda: npz_bytes()[:-50], "not a zip file"),
    "a flipped pixel (CRC)": (lambda: npz_bytes().replace(ARRAYS["x_train"].tobytes()[:8], b"00000000"), "CRC"),
    "object header": (lambda: npz_with(npy_header((60,), "|O") + bytes(480)), "type object"),
    "header promises more": (lambda: npz_with(npy_header((61, 6, 5)) + bytes(1800)), "1,928 bytes; expected 1,958"),
    "header promises less": (lambda: npz_with(npy_header((59, 6, 5)) + bytes(1800)), "1,928 bytes; expected 1,898"),
    "negative dimension": (lambda: npz_with(npy_header((-60, -6, 5)) + bytes(1800)), r"\(-60, -6, 5\)"),
    "dimensions of 2^40 in product": (lambda: npz_with(npy_header((1 << 20, 1 << 20, 2))), "MAX_STORED_BYTES"),
    "header of 64 MB": (lambda: npz_with(npy_with_long_header()), "nothing readable"),
    "header that is no header": (
        lambda: npz_with(b"\x93NUMPY\x01\0\x10\0" + b"((((((((((((((((" + bytes(99)),
        "nothing",
    ),
    "member that is no array": (lambda: npz_with(HTML), "nothing readable"),
    "zip bomb": (lambda: npz_with(npy_header((60, 6, 5)) + bytes(64 << 20)), "67,108,992 bytes; expected 1,928"),
    "bzip2 bomb": (lambda: npz_with(npy_header((60, 6, 5)) + bytes(1800), zipfile.ZIP_BZIP2), "compression 12"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("make", "words"), BAD_NPZ.values(), ids=BAD_NPZ.keys())
def test_bad_npz_file_is_refused_by_name_in_little_memory(tmp_path, make, words):
    path = tmp_path / "data.npz"
    path.write_bytes(make())
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=words) as error:
            load_dataset("npz", path=str(path))
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    message = one_line(error)
    assert message.startswith(str(path)) and "expected" in message


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file; .*; set data.path to the file that has it"),
        (Path.mkdir, "Is a directory"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: (path.touch(), os.truncate(path, 1 << 40)), "not a zip file"),
    ],
    ids=["missing", "directory", "FIFO", "symlink loop", "sparse 1 TB file"],
)
def test_npz_path_without_a_proper_file_is_refused_by_name(tmp_path, make, words):
    make(tmp_path / "data.npz")
    with pytest.raises(DataError, match=words) as error:
        load_dataset("npz", path=str(tmp_path / "data.npz"))
    assert one_line(error).startswith(str(tmp_path / "data.npz"))


def test_sparse_npz_with_a_table_of_contents_of_gigabytes_is_refused_in_little_memory(tmp_path):
    path, table = tmp_path / "data.npz", 3 << 30
    with open(path, "wb") as file:
        file.truncate(table)
        file.seek(table)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, table, 0, 0))
    started = time.monotonic()
    with pytest.raises(DataError, match="table of contents"):
        read_npz(path, Notes())
    assert time.monotonic() - started < 2


# ---- odd data: a warning


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_train": ARRAYS["x_train"] * 1.0}, r"x_train\]: float pixels up to 255.0 are rounded"),
        ({"x_train": ARRAYS["x_train"] * 0}, "all 60 images are identical, all zero"),
        ({"x_test": ARRAYS["x_train"][:20]}, "10 of 20 test images are also training images"),
        ({"y_test": ARRAYS["y_test"] * 0}, "no test image of class 1, 2"),
        ({"y_train": np.repeat([0, 1, 2], [30, 15, 15])}, "no validation image of class 1, 2"),
    ],
    ids=[
        "floats up to 255",
        "all zero",
        "test = train",
        "no test class",
        "no validation class",
    ],
)
def test_odd_data_is_used_with_a_warning(tmp_path, changes, words):
    warnings = load_npz(tmp_path, **changes).warnings
    assert re.search(words, warnings[0])
    assert all(warning.startswith(str(tmp_path / "data.npz")) for warning in warnings)


# ---- readers on arbitrary bytes

IDX_GZ = gzip.compress(idx_bytes(ARRAYS["x_train"][:2]))
NPZ, NPZ_DEFLATED = npz_bytes(), npz_bytes(save=np.savez_compressed)


@st.composite
def damaged(draw, originals):
    """Arbitrary bytes, or a good file with a few bytes changed, cut or repeated."""
    raw = bytearray(draw(st.one_of(st.binary(max_size=200), st.sampled_from(originals))))
    for _ in range(draw(st.integers(0, 4))):
        if raw:
            place = draw(st.integers(0, len(raw) - 1))
            raw[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(raw[: draw(st.integers(0, len(raw)))] if draw(st.booleans()) else raw)


FUZZ = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(raw=damaged([idx_bytes(ARRAYS["x_train"][:2]), idx_bytes(ARRAYS["y_train"]), IDX_GZ]))
@example(raw=b"\0\0\x08\3")
def test_idx_reader_raises_nothing_but_data_errors(tmp_path, raw):
    for name, kind in (("images", "x"), ("labels", "y"), ("images.gz", "x")):
        path = tmp_path / name
        path.write_bytes(raw)
        try:
            found = read_idx(path, kind)
            values = found.values.load() if kind == "x" else found.values
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert values.dtype == np.uint8 and values.size


@FUZZ
@given(raw=damaged([NPZ, NPZ_DEFLATED]))
def test_npz_reader_raises_nothing_but_data_errors(tmp_path, raw):
    path = tmp_path / "data.npz"
    path.write_bytes(raw)
    try:
        found = read_npz(path, Notes())
        for name in [name for name in found if name[0] == "x"]:
            pieces = np.concatenate(list(found[name].values.pieces()))
            assert np.array_equal(pieces, found[name].values.load(), equal_nan=pieces.dtype.kind == "f")
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert len(found) in (2, 4, 6)


@FUZZ
@given(header=damaged([npy_header((60, 6, 5)), npy_header((60, 6, 5), "<f4", True)]), size=st.sampled_from([0, 1800]))
def test_npz_reader_survives_any_array_header(tmp_path, header, size):
    path = tmp_path / "data.npz"
    path.write_bytes(npz_with(header + bytes(size)))
    try:
        load_dataset("npz", path=str(path), validation_size=10)
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)


# ---- batch order


def test_every_epoch_shows_every_image_once_and_in_its_own_order():
    stream = batch_indices(seed=3, first_step=0, steps=30, batch_size=7, num_images=21).ravel()
    epochs = stream.reshape(10, 21)
    assert all(sorted(epoch) == list(range(21)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 10


@given(
    seed=st.integers(0, 2**32),
    num_images=st.integers(1, 40),
    batch_size=st.integers(1, 90),
    cuts=st.lists(st.integers(0, 12), max_size=5),
)
@settings(max_examples=100, deadline=None)
def test_batch_order_does_not_depend_on_how_steps_are_cut_into_calls(seed, num_images, batch_size, cuts):
    whole = batch_indices(seed, 0, sum(cuts), batch_size, num_images)
    starts = np.cumsum([0, *cuts])
    parts = [
        batch_indices(seed, int(start), steps, batch_size, num_images)
        for start, steps in zip(starts[:-1], cuts, strict=True)
    ]
    assert whole.dtype == np.int32 and whole.shape == (sum(cuts), batch_size)
    assert np.array_equal(whole, np.concatenate([whole[:0], *parts]))


def test_batch_order_depends_on_the_seed_and_cannot_be_spoilt_by_a_caller():
    first = batch_indices(1, 0, 5, 10, 50)
    expected = first.copy()
    assert not np.array_equal(first, batch_indices(2, 0, 5, 10, 50))
    first[:] = 0
    assert np.array_equal(batch_indices(1, 0, 5, 10, 50), expected)
