"""From files to verified arrays, splits, a digest, and the order in which training sees the images.

What was read is what is used: the arrays stay in memory, so a file replaced while a run trains changes nothing.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..class_names import cleaned, labels, usable
from ..errors import SettingsError
from . import known
from .arrays import IDX_FILES, Found, find_idx, name_of, read_idx, read_npz, refusal
from .labels import class_numbers, renumbering
from .own import read_own
from .pixels import Notes, as_uint8, channels_last
from .splits import divide

if TYPE_CHECKING:
    from .pictures import Look, Progress

KNOWN = {"mnist": known.load_mnist, "fashion_mnist": known.load_fashion_mnist}
CLASS_NAMES = {"fashion_mnist": known.FASHION_MNIST_CLASSES}
FROM_PICTURES = ("folder", "parquet")
FROM_FILES = ("idx", "npz", *FROM_PICTURES)  # data.dir= and data.path= say where

OVERLAP_WORTH_A_WARNING = 0.01  # of a split; MNIST itself repeats a few images


@dataclass(frozen=True, eq=False)
class Split:
    """images: uint8 (n, height, width, channels), C-contiguous; labels: int64 (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """`digest` changes with any pixel, label, shape, order or split; the same content from another file keeps it.

    `mended` says in which ways earlier versions read these files otherwise: their runs have another digest.
    `class_names` are those of class 0, 1, ..., fit for use, None where numbers are all there is. `remarks` are what is
    told and needs no mending.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    digest: str
    warnings: tuple[str, ...]
    mended: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


@dataclass
class _Read:
    """What files hold: train, and test and validation where they have them; `where`: what messages call x_train, ...

    `class_names` are not looked at yet; `names_problem` says why those that a file has cannot be read.
    """

    splits: dict[str, Split]
    where: dict[str, str]
    class_names: Sequence[str] | None = None
    names_problem: str = ""


def load_dataset(
    name: str,
    *,
    dir: str | None = None,
    path: str | None = None,
    layout: str | None = None,
    size: str | None = None,
    fit: str = "stretch",
    channels: int | None = None,
    damaged: str = "refuse",
    image: str | None = None,
    label: str | None = None,
    validation_size: int | float | None = 5000,
    validation_seed: int | None = None,
    test_size: float = 0.2,
    split_seed: int = 0,
    class_names: Sequence[str] | None = None,
    progress: "Progress" = iter,
    own: Mapping[str, Any] | None = None,
) -> Dataset:
    """Read, check and split the data set `name`: a key of KNOWN, "npz" (with `path`), another of FROM_FILES (`dir`).

    Args:
        layout: of colour images in a file, see `channels_last`.
        size, fit, channels, damaged: of pictures, see `pictures.Look`.
        image, label: columns of parquet files; None: where they are unmistakable.
        validation_size: of files, a count or a share; of pictures, a share of each class.
        test_size, split_seed: of a set without a test split, see `splits.divide`.
        class_names: what the classes are called, whatever the files say.
        progress: told of each picture that is read.
        own: the settings of a data set of one's own, which the lab's function takes; see own.py.

    Raises SettingsError for arguments that cannot be, DataError for files that are not what they should be.
    """
    notes = Notes()
    given = None if own is None else read_own(name, own)
    if name in FROM_PICTURES or isinstance(given, Path):
        from .pictures import Look  # Pillow takes a tenth of a second

        columns = {"image": image, "label": label} if name == "parquet" else {}
        shares = {"test_size": test_size, "validation_size": validation_size}
        look = Look(size, fit, channels, damaged)
        kind, place = ("folder", str(given)) if isinstance(given, Path) else (name, dir)
        read = _read_pictures(kind, place, look, columns, shares, split_seed, notes, progress)
    else:
        read = _read_arrays(_read(name, dir, path) if given is None else given, layout, notes)
    splits, where = read.splits, read.where
    _refuse_unequal_images(where, splits)
    if "test" not in splits:
        if validation_seed is not None:
            remedy = f"the file has one set, which data.split_seed divides; type data.split_seed={validation_seed}"
            raise SettingsError(f"data.validation_seed={validation_seed}: {remedy}")
        _divide(splits, where, test_size, validation_size, split_seed, notes)
    all_labels = splits["train"].labels
    if "validation" not in splits:
        splits["validation"], splits["train"] = _cut_validation(splits["train"], validation_size, validation_seed)
        where["y_validation"] = where["y_train"]
    train, validation, test = splits["train"], splits["validation"], splits["test"]
    num_classes = _count_classes(where, train.labels, all_labels, validation_seed)
    names = _names(name, class_names, read, num_classes, notes)
    # hash() of bytes has 64 bits: a false match among millions of images is less likely than a broken memory cell.
    train_hashes = {hash(image.tobytes()) for image in train.images}
    for part in ("validation", "test"):
        place, split = where[f"y_{part}"], splits[part]
        notes.warnings += _compare_labels(place, part, split.labels, labels(names, num_classes))
        repeated = sum(hash(image.tobytes()) in train_hashes for image in split.images)
        if repeated > OVERLAP_WORTH_A_WARNING * len(split):
            notes.warnings.append(f"{place}: {repeated:,} of {len(split):,} {part} images are also training images")
    return Dataset(
        name,
        train,
        validation,
        test,
        num_classes,
        _digest(train, validation, test),
        tuple(notes.warnings),
        tuple(notes.mended),
        names,
        tuple(notes.remarks),
    )


# ---- splits


def _divide(
    splits: dict[str, Split],
    where: dict[str, str],
    test_size: float,
    validation_size: int | float | None,
    seed: int,
    notes: Notes,
) -> None:
    """Draw a test split, and a validation split where there is none, from the training images."""
    train, total, place = splits["train"], len(splits["train"]), where["y_train"]
    share: float | None = None
    if "validation" not in splits:
        share = validation_size if isinstance(validation_size, float) and 0 < validation_size < 1 else None
        share = share or min(1.0, _count_of(validation_size, total) / (total * (1 - test_size)))
    numbers = divide(train.labels, seed, test_size=test_size, validation_size=share)
    if not all(map(len, numbers.values())):
        raise refusal(place, f"{total:,} images", "some for each split, and two or more of a class", "add images")
    for part, those in numbers.items():
        splits[part] = Split(train.images[those], train.labels[those])
        where |= {f"x_{part}": where["x_train"], f"y_{part}": place}
    cut = " and ".join(f"{len(numbers[part]):,} {part}" for part in ("test", "validation") if part in numbers)
    settings = f"data.test_size={test_size} data.validation_size={validation_size} data.split_seed={seed}"
    notes.remarks.append(f"{place}: {cut} images were drawn from it, each class by its share: {settings}")


def _count_of(size: int | float | None, total: int) -> int:
    """How many of so many training images a data.validation_size means."""
    count = size
    if isinstance(size, float):
        count = round(size * total) if 0 < size < 1 else None
    if count is None or not 0 < count < total:
        raise SettingsError(
            f"data.validation_size: {size} of {total:,} training images; allowed: a count from 1 to {total - 1:,}, "
            "or a share strictly between 0 and 1, that leaves at least one image on each side"
        )
    return int(count)


def _cut_validation(split: Split, size: int | float | None, seed: int | None) -> tuple[Split, Split]:
    """The first images validate, in the files' order or in one drawn from `seed`; the others train."""
    total = len(split)
    count = _count_of(size, total)
    if seed is not None and seed < 0:
        raise SettingsError(f"data.validation_seed: {seed}; allowed: null or a whole number from 0")
    images, labels = split.images, split.labels
    if seed is not None:
        order = np.random.default_rng(seed).permutation(total)
        images, labels = images[order], labels[order]
    return Split(images[:count], labels[:count]), Split(images[count:], labels[count:])


def _count_classes(
    where: Mapping[str, str], labels: NDArray[np.int64], all_labels: NDArray[np.int64], validation_seed: int | None
) -> int:
    """Of the labels that train; `all_labels` are those of before the cut."""
    present = np.unique(labels)  # not bincount: one label of 2**40 would take terabytes
    missing = next((label for label, found in enumerate(present) if label != found), len(present))
    if missing >= max(2, int(present[-1]) + 1):
        return len(present)
    found = f"labels up to {present[-1]}, but no training image of class {missing}"
    before = np.unique(all_labels)
    if missing in before:
        found += ", as validation took all of them"
        remedy = f"type data.validation_seed={0 if validation_seed is None else validation_seed + 1}"
        if (all_labels == missing).sum() < 2:
            remedy = "add images of it, as one is too few to train and to validate"
    elif len(before) < 2:
        remedy = "add images of another class"
    else:
        names = list(dict.fromkeys(name_of(place) for key, place in where.items() if key.startswith("y_")))
        remedy = f"add some, or {renumbering(names)}"
    raise refusal(where["y_train"], found, "training images of every class, two classes or more", remedy)


def _compare_labels(where: str, part: str, labels: NDArray[np.int64], classes: Sequence[str]) -> list[str]:
    """Refuse labels that training never sees; warn of those of the `classes`, by their names, that `part` lacks."""
    num_classes = len(classes)
    if labels.max() >= num_classes:
        item = int(np.argmax(labels >= num_classes))
        found, expected = f"label {labels[item]} at {part} image {item}", f"0 to {num_classes - 1}, as in training"
        raise refusal(where, found, expected, "correct it, or add training images of that class")
    missing = sorted(set(range(num_classes)) - set(labels.tolist()))
    named = ", ".join(classes[label] for label in missing[:10]) + ", ..." * (len(missing) > 10)
    return [f"{where}: no {part} image of class {named}"] if missing else []


def _names(name: str, given: Sequence[str] | None, read: _Read, count: int, notes: Notes) -> tuple[str, ...] | None:
    """What the classes are called: as given, else as the files say, else as the known data set's authors do.

    Raises SettingsError where the given ones do not fit; names of files that do not are told and left out.
    """
    if given is not None:
        try:
            return usable(given, count)
        except ValueError as error:
            hint = f"type {count:,} names in the order of the labels, or data.class_names=null"
            raise SettingsError(f"data.class_names: {error} of {name}; {hint}") from None
    if read.class_names is None:
        return CLASS_NAMES.get(name)
    reason = read.names_problem
    if not reason:
        try:
            return usable(list(read.class_names), count)
        except ValueError as error:
            reason = f"{read.where['class_names']}: {error}"
    notes.warnings.append(f"{reason}; the classes are told by their numbers, or data.class_names=[...] names them")
    return None


def _digest(*splits: Split) -> str:
    """SHA-256 over shape, pixels and labels of train, validation and test, in their order.

    An image is hashed where its split has it, so another split or another order is another digest.
    """
    digest = hashlib.sha256()
    for split in splits:
        digest.update(f"{split.images.shape}\n".encode())
        digest.update(split.images.data)
        digest.update(split.labels.astype("<i8").data)
    return digest.hexdigest()


# ---- checks and conversion


def _note_order(found: dict[str, Found], notes: Notes) -> None:
    """Earlier versions of `bestrun pack` gave 1, 10, 2 the labels 0, 1, 2."""
    names = found["class_names"].values.tolist() if "class_names" in found else []
    if names != sorted(names):
        order = ", ".join(map(cleaned, names[:12]))
        notes.mended.append(f"its classes are in the order {order}, before in that of letters")


def _checked_splits(
    found: dict[str, Found], layout: str | None, notes: Notes
) -> tuple[dict[str, Split], tuple[str, ...] | None]:
    """The splits that there are, by name, one scale for all of them; and names of classes, if the labels have some."""
    parts = [part for part in ("train", "validation", "test") if f"x_{part}" in found]
    for part in parts:
        x, y = found[f"x_{part}"], found[f"y_{part}"]
        if len(x.values) != len(y.values):
            count = f"{len(y.values):,} labels, but {x.where} has {len(x.values):,} images"
            raise refusal(y.where, count, "as many labels as images", "take both from the same source")
    labels, class_names = class_numbers({part: found[f"y_{part}"] for part in parts}, notes)
    turned = {part: channels_last(found[f"x_{part}"], layout, notes) for part in parts}
    names = {part: name_of(x.where) for part, x in turned.items()}
    if len(set(names.values())) < len(parts):  # of files in which arrays have no names
        names = {part: f"x_{part}" for part in parts}
    pixels = as_uint8({names[part]: x for part, x in turned.items()}, notes)
    splits = {}
    for part in parts:
        where, images = turned[part].where, pixels[names[part]]
        if len(images) > 1 and all(np.array_equal(image, images[0]) for image in images[1:]):
            black = "" if images[0].any() else ", all zero"
            notes.warnings.append(f"{where}: all {len(images):,} images are identical{black}")
        splits[part] = Split(images if images.ndim == 4 else images[..., np.newaxis], labels[part])
    return splits, class_names


def _refuse_unequal_images(where: Mapping[str, str], splits: dict[str, Split]) -> None:
    shape = splits["train"].images.shape[1:]
    for part, split in splits.items():
        if split.images.shape[1:] != shape:
            size, other = ("x".join(map(str, s)) for s in (split.images.shape[1:], shape))
            expected = f"{other} as in {where['x_train']}"
            raise refusal(where[f"x_{part}"], f"{size} images", expected, "bring all images to one size")


# ---- where from


def _read_pictures(
    name: str,
    dir: str | None,
    look: "Look",
    columns: Mapping[str, Any],
    shares: Mapping[str, Any],
    split_seed: int,
    notes: Notes,
    progress: "Progress",
) -> _Read:
    """Pictures in folders or in parquet files, all in memory."""
    from .folders import find, folder_pictures
    from .parquet import parquet_pictures
    from .pictures import in_memory

    if not dir:
        raise SettingsError(f"data.dir: not given; data={name} needs the folder of the pictures: data.dir=FOLDER")
    place = Path(os.path.expanduser(dir))
    if not os.path.lexists(place):
        remedy = "say where it is now: data.dir=FOLDER"
        raise refusal(place, "no such folder", "the pictures", remedy)
    for setting, share in shares.items():
        if not isinstance(share, float) or not 0 < share < 1:
            raise SettingsError(f"data.{setting}: {share}; allowed: a share of each class, strictly between 0 and 1")
    how: dict[str, Any] = {**shares, "split_seed": split_seed, "notes": notes, "progress": progress}
    if name == "folder":
        found = find(place)
        pictures = folder_pictures(found, look, **how)
        notes.remarks += [f"{place}: left out {line}" for line in found.lines()]
    else:
        pictures = parquet_pictures(place, look, **columns, **how)
    arrays = in_memory(pictures, progress)
    return _Read(
        {part: Split(images, labels) for part, (images, labels) in arrays.items()},
        {f"{kind}_{part}": split.where for part, split in pictures.splits.items() for kind in "xy"}
        | {"class_names": str(dir)},
        pictures.class_names,
    )


def _read_arrays(found: dict[str, Found], layout: str | None, notes: Notes) -> _Read:
    splits, class_names = _checked_splits(found, layout, notes)
    _note_order(found, notes)
    arrays = {role: array for role, array in found.items() if role != "class_names"}
    where = {role: array.where for role, array in found.items()}
    file = where["x_train"].rpartition("[")[0]
    ours = [role.replace("validation", "val") for role in arrays]
    theirs = [name_of(array.where) for array in arrays.values()]
    if where["x_train"].endswith("]") and ours != theirs:
        notes.remarks.append(f"{file}: its {', '.join(theirs)} were taken as {', '.join(ours)}")
    if named := found.get("class_names"):
        return _Read(splits, where, named.values.tolist(), named.problem)
    return _Read(splits, where | {"class_names": where["y_train"]}, class_names)


def _read(name: str, dir: str | None, path: str | None) -> dict[str, Found]:
    if name in KNOWN:
        return {key: Found(f"{name} {key}", values) for key, values in KNOWN[name]().items()}
    if name == "idx":
        if not dir:
            raise SettingsError("data.dir: not given; data=idx needs the folder of the four IDX files: data.dir=FOLDER")
        folder = Path(os.path.expanduser(dir))
        return {key: read_idx(find_idx(folder, usual), key[0]) for key, usual in IDX_FILES.items()}
    if name == "npz":
        if not path:
            raise SettingsError("data.path: not given; data=npz needs the .npz file: data.path=FILE")
        return read_npz(Path(os.path.expanduser(path)))
    raise SettingsError(f"data: {name!r} is not known; allowed: {', '.join([*KNOWN, *FROM_FILES])}")
