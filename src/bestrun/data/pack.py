"""Pictures in folders, a folder a class, become the .npz file that data=npz reads."""

import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingsError
from ..formatting import shown, text_table
from ..storage.files import replacing, storage_error
from .arrays import MAX_ARRAY_BYTES, refusal
from .images import SUFFIXES, fit, open_picture

SEED = 0  # the same folder gives the same file
TEST_SHARE = 0.2  # of each class, where the folder has no test split

SPLITS = {  # what people call a split's folder -> which one it is
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

Split = dict[str, list[Path]]  # class -> its pictures
Progress = Callable[[list[Path]], Iterable[Path]]  # gives the paths one by one, and may show how far it is


@dataclass(frozen=True)
class Packed:
    """What was written.

    Attributes:
        counts: split (train, val where there is one, test) -> number of images of each class.
        left_out: kind of file, in words -> those that were not packed.
    """

    file: Path
    shape: tuple[int, ...]
    classes: list[str]
    counts: dict[str, list[int]]
    left_out: dict[str, list[Path]]


def pack(folder: Path, file: Path, size: str | None = None, *, progress: Progress = iter) -> Packed:
    """Write the pictures in `folder` to `file`: x_train, y_train, x_test, y_test, class_names; x_val, y_val if given.

    Args:
        folder: its train/CLASS/, val/CLASS/ and test/CLASS/ hold pictures, or CLASS/ alone. Without a test split, a
            fifth of each class becomes one.
        size: "WIDTHxHEIGHT" to stretch every picture to; None: all must be of one size.
        progress: told of each picture that is read.

    Raises:
        SettingsError: `size` or `file` cannot be.
        DataError: pictures, or whole classes, are missing or not what they should be.
        StorageError: the file could not be written; what was there before is untouched.
    """
    if size is not None and not re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}", size):
        raise SettingsError(f"--size {shown(size)}: takes width and height from 1 to 9999 pixels; type --size 64x48")
    if file.suffix != ".npz" or not file.parent.is_dir():
        raise SettingsError(f"{file}: takes the name of a new .npz file in a folder that is there; type data.npz")
    left_out: dict[str, list[Path]] = {}
    splits = _splits(folder, left_out)
    names = list(splits["train"])
    rows = {
        part: [(path, label) for label, name in enumerate(names) for path in split[name]]
        for part, split in splits.items()
    }
    # Folders come sorted by class, and data=npz validates on the first images where there is no x_val
    order = np.random.default_rng(SEED).permutation(len(rows["train"]))
    rows["train"] = [rows["train"][number] for number in order]
    images = _read([path for part in rows.values() for path, _ in part], size, progress)
    arrays: dict[str, NDArray[np.generic]] = {}
    begin = 0
    for part, those in rows.items():
        arrays[f"x_{part}"] = images[begin : begin + len(those)]
        arrays[f"y_{part}"] = np.array([label for _, label in those])
        begin += len(those)
    _save(file, arrays | {"class_names": np.array(names)})
    counts = {part: [len(paths) for paths in split.values()] for part, split in splits.items()}
    return Packed(file, images.shape[1:], names, counts, left_out)


def report_lines(packed: Packed) -> list[str]:
    """What a person reads of it: which label is which class, what was left out, and what to type next."""
    names = [shown(name) for name in packed.classes]
    titles = {"train": "training", "val": "validation", "test": "test"}
    table = [["label", "class", *(titles[part] for part in packed.counts)]]
    for label, name in enumerate(names):
        table.append([str(label), name, *(f"{counts[label]:,}" for counts in packed.counts.values())])
    lines = text_table(table, right={0, *range(2, len(table[0]))})
    if packed.left_out:
        lines.append("")
    for kind, paths in sorted(packed.left_out.items()):
        first = str(paths[0]) if str(paths[0]).isprintable() else repr(str(paths[0]))
        lines.append(f"left out  {len(paths):,} {kind}, the first is {first}")
    size = " x ".join(map(str, packed.shape))
    totals = [f"{sum(counts):,} {titles[part]}" for part, counts in packed.counts.items()]
    total = f"{', '.join(totals[:-1])} and {totals[-1]} images"
    command = f"bestrun train data=npz {shlex.quote(f'data.path={packed.file}')}"
    return [*lines, "", f"file      {packed.file}: {total} of {size}", f"train     {command}"]


def natural(name: str) -> tuple[str, str]:
    """A key that sorts numbers in names by their value, 2 before 10; the rest as it stands."""
    return re.sub(r"[0-9]+", lambda number: number[0].zfill(20), name), name


def _splits(folder: Path, left_out: dict[str, list[Path]]) -> dict[str, Split]:
    """train, val where the folder has one, and test: each with the same classes in the same order."""
    places: dict[str, Path] = {}
    for path in _inside(folder):
        part = SPLITS.get(path.name.lower()) if path.is_dir() else None
        if part and part in places:
            found = f"{places[part].name} and {path.name}"
            raise refusal(folder, found, "one folder for each split", "rename or merge one of them")
        if part:
            places[part] = path
    if places and "train" not in places:
        found = f"{next(iter(places.values())).name}, but no train"
        raise refusal(folder, found, "train, and beside it val and test if you like", "name the training images so")
    classes = places.get("train", folder)
    train = _split(classes, left_out)
    if len(train) < 2:
        found = f"{len(train)} folders in it"
        raise refusal(classes, found, "two or more, one for each class", "see: bestrun pack --help")
    if empty := [name for name in train if not train[name]]:
        raise refusal(classes, f"no PNG or JPEG of class {shown(empty[0])}", "one or more", "add some, or remove it")
    splits = {"train": train}
    for part in ("val", "test"):
        if part in places:
            found_split = _split(places[part], left_out)
            if foreign := [name for name in found_split if name not in train]:
                found = f"class {shown(foreign[0])} only in {places[part].name}"
                raise refusal(folder, found, "the classes of train", "rename it, or add training images")
            splits[part] = {name: found_split.get(name, []) for name in train}
    if places:
        beside = [path for path in _inside(folder) if path not in places.values()]
        _leave_out(beside, left_out, "beside the splits")
    if "test" not in places:
        splits["test"] = _cut_test(train)
    for part, split in splits.items():
        if not any(split.values()):
            raise refusal(folder, f"no {part} images", "one or more", "add pictures")
    return splits


def _cut_test(train: Split) -> Split:
    """Take a fifth of each class out of `train`; the only picture of a class trains."""
    test: Split = {}
    for name, paths in train.items():
        count = max(1, round(TEST_SHARE * len(paths))) if len(paths) > 1 else 0
        drawn = set(np.random.default_rng(SEED).permutation(len(paths))[:count])
        test[name] = [path for number, path in enumerate(paths) if number in drawn]
        train[name] = [path for number, path in enumerate(paths) if number not in drawn]
    return test


def _split(folder: Path, left_out: dict[str, list[Path]]) -> Split:
    """The pictures of each class: those in a folder of its name."""
    split: Split = {}
    inside = _inside(folder)
    for kind in sorted((path for path in inside if path.is_dir()), key=lambda path: natural(path.name)):
        pictures = _inside(kind)
        split[kind.name] = [path for path in pictures if path.suffix.lower() in SUFFIXES and not path.is_dir()]
        _leave_out([path for path in pictures if path not in set(split[kind.name])], left_out)
    _leave_out([path for path in inside if not path.is_dir()], left_out, "beside the folders of classes")
    return split


def _leave_out(paths: list[Path], left_out: dict[str, list[Path]], kind: str = "") -> None:
    for path in paths:
        if path.is_dir():
            nested = sorted(inner for inner in path.rglob("*") if inner.is_file())
            if nested:
                left_out.setdefault(kind or "in folders inside a class", []).extend(nested)
        else:
            name = f"{path.suffix.lower()} files" if path.suffix else "files without an ending"
            left_out.setdefault(kind or name, []).append(path)


def _inside(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        found = f"nothing readable ({error.strerror})"
        raise refusal(folder, found, "a folder of pictures", "see: bestrun pack --help") from error


def _read(paths: list[Path], size: str | None, progress: Progress) -> NDArray[np.uint8]:
    """All pictures as (n, height, width, channels): grey if all of them are."""
    pictures: list[NDArray[np.uint8]] = []
    for path in progress(paths):
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
