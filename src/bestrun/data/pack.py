"""Pictures in folders, a folder a class, become the .npz file that data=npz reads."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingsError
from ..formatting import shown, text_table
from ..storage.files import replacing, storage_error
from .folders import find, folder_pictures
from .pictures import Look, Progress, in_memory
from .pixels import Notes

SEED = 0  # the same folder gives the same file
TEST_SHARE = 0.2  # of each class, where the folder has no test split
SHORT = {"train": "train", "validation": "val", "test": "test"}  # split -> its name in the file
LOOK = Look(typed="--{} {}")  # pictures of one size as they are


@dataclass(frozen=True)
class Packed:
    """What was written.

    Attributes:
        counts: split (train, val where there is one, test) -> number of images of each class.
        left_out: a line for each kind of file that was not packed.
        warnings: a line each.
    """

    file: Path
    shape: tuple[int, ...]
    classes: list[str]
    counts: dict[str, list[int]]
    left_out: list[str]
    warnings: list[str]


def pack(
    folder: Path,
    file: Path,
    look: Look = LOOK,
    *,
    test_size: float = TEST_SHARE,
    validation_size: float | None = None,
    seed: int = SEED,
    progress: Progress = iter,
) -> Packed:
    """Write the pictures in `folder` to `file`: x_train, y_train, x_test, y_test, class_names; x_val, y_val if given.

    Args:
        folder: its train/CLASS/, val/CLASS/ and test/CLASS/ hold pictures, or CLASS/ alone.
        test_size: share of each class that becomes the test split where the folder has none.
        validation_size: the same for a validation split; None: none is made, and data=npz takes the first images.
        seed: what is cut, and the order of training images, is drawn by it: data.split_seed of data=folder.
        progress: told of each picture that is read.

    Raises:
        SettingsError: a setting or `file` cannot be.
        DataError: pictures, or whole classes, are missing or not what they should be.
        StorageError: the file could not be written; what was there before is untouched.
    """
    if look.size is not None and not re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}", look.size):
        raise SettingsError(
            f"--size {shown(look.size)}: takes width and height from 1 to 9999 pixels; type --size 64x48"
        )
    for name, share in (("--test-size", test_size), ("--validation-size", validation_size)):
        if share is not None and not 0 < share < 1:
            raise SettingsError(f"{name} {share}: takes a share between 0 and 1; type {name} 0.1")
    if file.suffix != ".npz" or not file.parent.is_dir():
        raise SettingsError(f"{file}: takes the name of a new .npz file in a folder that is there; type data.npz")
    found, notes = find(folder), Notes()
    pictures = folder_pictures(
        found,
        look,
        test_size=test_size,
        validation_size=validation_size,
        split_seed=seed,
        notes=notes,
        progress=progress,
    )
    splits, names = in_memory(pictures, progress), pictures.class_names
    arrays: dict[str, NDArray[np.generic]] = {}
    for part, (images, labels) in splits.items():
        arrays |= {f"x_{SHORT[part]}": images, f"y_{SHORT[part]}": labels}
    _save(file, arrays | {"class_names": np.array(names)})
    counts = {SHORT[part]: np.bincount(labels, minlength=len(names)).tolist() for part, (_, labels) in splits.items()}
    return Packed(file, pictures.image_shape, list(names), counts, found.lines(), notes.warnings)


def report_lines(packed: Packed) -> list[str]:
    """What a person reads of it: which label is which class, what was left out, and what to type next."""
    names = [shown(name) for name in packed.classes]
    titles = {"train": "training", "val": "validation", "test": "test"}
    table = [["label", "class", *(titles[part] for part in packed.counts)]]
    for label, name in enumerate(names):
        table.append([str(label), name, *(f"{counts[label]:,}" for counts in packed.counts.values())])
    lines = text_table(table, right={0, *range(2, len(table[0]))})
    if packed.left_out or packed.warnings:
        lines.append("")
    lines += [f"left out  {line}" for line in packed.left_out] + [f"warning   {line}" for line in packed.warnings]
    size = " x ".join(map(str, packed.shape))
    totals = [f"{sum(counts):,} {titles[part]}" for part, counts in packed.counts.items()]
    total = f"{', '.join(totals[:-1])} and {totals[-1]} images"
    command = f"bestrun train data=npz {shlex.quote(f'data.path={packed.file}')}"
    return [*lines, "", f"file      {packed.file}: {total} of {size}", f"train     {command}"]


def _save(file: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """As folder.write_atomically, without the whole file in memory once more."""
    try:
        with replacing(file) as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise storage_error(file, "write it", error) from error
