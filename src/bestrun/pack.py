"""Pictures in folders, a folder a class, become the .npz file that data=npz reads."""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from .errors import SettingsError
from .folder import replacing, storage_error
from .formats import MAX_ARRAY_BYTES, refusal
from .images import SUFFIXES, fit, open_picture
from .messages import shown

SEED = 0  # the same folder gives the same file
TEST_SHARE = 0.2  # of each class, where the folder has no test split

Split = dict[str, list[Path]]  # class -> its pictures


@dataclass(frozen=True)
class Packed:
    """What was written: `train` and `test` count the images of each class, `others` are files left out."""

    file: Path
    shape: tuple[int, ...]
    classes: list[str]
    train: list[int]
    test: list[int]
    others: list[Path]


def pack(folder: Path, file: Path, size: str | None = None) -> Packed:
    """Write x_train, y_train, x_test, y_test and class_names of the pictures in `folder` to `file`.

    Args:
        folder: its train/CLASS/ and test/CLASS/ hold pictures, or CLASS/ alone: a fifth becomes the test split.
        size: "WIDTHxHEIGHT" to stretch every picture to; None: all must be of one size.

    Raises:
        SettingsError: `size` or `file` cannot be.
        DataError: pictures, or whole classes, are missing or not what they should be.
        StorageError: the file could not be written; what was there before is untouched.
    """
    if size is not None and not re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}", size):
        raise SettingsError(f"--size {shown(size)}: takes width and height from 1 to 9999 pixels; type --size 64x48")
    if file.suffix != ".npz" or not file.parent.is_dir():
        raise SettingsError(f"{file}: takes the name of a new .npz file in a folder that is there; type data.npz")
    others: list[Path] = []
    train, test = _splits(folder, others)
    rows, test_rows = (
        [(path, label) for label, name in enumerate(train) for path in split[name]] for split in (train, test)
    )
    # Folders come sorted by class, and data=npz validates on the first images
    rows = [rows[number] for number in np.random.default_rng(SEED).permutation(len(rows))]
    images = _read([path for path, _ in rows + test_rows], size)
    labels = np.array([label for _, label in rows + test_rows])
    cut = len(rows)
    arrays = {"x_train": images[:cut], "y_train": labels[:cut], "x_test": images[cut:], "y_test": labels[cut:]}
    _save(file, arrays | {"class_names": np.array(list(train))})
    train_counts, test_counts = ([len(paths) for paths in split.values()] for split in (train, test))
    return Packed(file, images.shape[1:], list(train), train_counts, test_counts, others)


def report_lines(packed: Packed) -> list[str]:
    """What a person reads of it: which label is which class, and what to type next."""
    names = [shown(name) for name in packed.classes]
    width = max(5, *map(len, names))
    lines = [f"label  {'class':<{width}}  training   test"]
    for label, (name, train, test) in enumerate(zip(names, packed.train, packed.test, strict=True)):
        lines.append(f"{label:>5}  {name:<{width}}  {train:>8,}  {test:>5,}")
    if packed.others:
        lines.append(f"\nleft out  {len(packed.others):,} of other kinds, the first is {packed.others[0]}")
    size = " x ".join(map(str, packed.shape))
    total = f"{sum(packed.train):,} training and {sum(packed.test):,} test images"
    command = f"bestrun train data=npz {shlex.quote(f'data.path={packed.file}')}"
    return [*lines, "", f"file      {packed.file}: {total} of {size}", f"train     {command}"]


def _splits(folder: Path, others: list[Path]) -> tuple[Split, Split]:
    parts = {"train", "test"}
    given = {path.name for path in _inside(folder) if path.is_dir()} & parts
    train = _split(folder / "train" if given else folder, others)
    test = _split(folder / "test", others) if given else {}
    if len(train) < 2:
        found = f"{len(train)} folders in it"
        raise refusal(folder, found, "two or more, one for each class", "see: bestrun pack --help")
    if empty := [name for name in train if not train[name]]:
        raise refusal(folder, f"no PNG or JPEG of class {shown(empty[0])}", "one or more", "add some, or remove it")
    if foreign := [name for name in test if name not in train]:
        found = f"class {shown(foreign[0])} only in test"
        raise refusal(folder, found, "the classes of train", "rename it, or add training images")
    test = {name: test.get(name, []) for name in train}
    if not given:
        for name, paths in train.items():
            count = max(1, round(TEST_SHARE * len(paths))) if len(paths) > 1 else 0
            drawn = set(np.random.default_rng(SEED).permutation(len(paths))[:count])
            test[name] = [path for number, path in enumerate(paths) if number in drawn]
            train[name] = [path for number, path in enumerate(paths) if number not in drawn]
    if not any(test.values()):
        raise refusal(folder, "no test images", "one or more", "add pictures")
    return train, test


def _split(folder: Path, others: list[Path]) -> Split:
    split: Split = {}
    for kind in _inside(folder):
        if kind.is_dir():
            inside = _inside(kind)
            split[kind.name] = [path for path in inside if path.suffix.lower() in SUFFIXES]
            others += [path for path in inside if path.suffix.lower() not in SUFFIXES]
    return split


def _inside(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        found = f"nothing readable ({error.strerror})"
        raise refusal(folder, found, "a folder of pictures", "see: bestrun pack --help") from error


def _read(paths: list[Path], size: str | None) -> NDArray[np.uint8]:
    """All pictures as (n, height, width, channels): grey if all of them are."""
    pictures: list[NDArray[np.uint8]] = []
    console = Console(stderr=True)
    for path in track(paths, "reading", console=console, transient=True, disable=not sys.stderr.isatty()):
        picture = open_picture(path)
        width, height = map(int, size.split("x")) if size else picture.size
        pixels = fit(picture, (height, width, len(picture.getbands())), path)
        if pictures and pixels.shape[:2] != pictures[0].shape[:2]:
            usual = "{1}x{0}".format(*pictures[0].shape)
            expected = f"{usual} as in {paths[0]}"
            raise refusal(path, f"{width}x{height} pixels", expected, f"type --size {usual} to stretch all to one size")
        if len(paths) * pixels.size > MAX_ARRAY_BYTES:
            expected = f"at most {MAX_ARRAY_BYTES:,} bytes of pixels (MAX_ARRAY_BYTES)"
            raise refusal(path.parent, f"{len(paths):,} images like {path.name}", expected, "type --size 64x48")
        pictures.append(pixels)
    channels = max(pixels.shape[2] for pixels in pictures)
    return np.stack([np.broadcast_to(pixels, (*pixels.shape[:2], channels)) for pixels in pictures])


def _save(file: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """As folder.write_atomically, without the whole file in memory once more."""
    try:
        with replacing(file) as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise storage_error(file, "write it", error) from error
