"""From files to verified arrays, splits, a digest, and the order in which training sees the images.

What was read is what is used: images stay in memory, so a file replaced while a run trains changes nothing. Those of
which there are many for the memory stay in a file, the user's own or one of the cache, whose rows are checked.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..class_names import cleaned, labels, usable
from ..errors import SettingsError
from . import cache, known
from .arrays import IDX_FILES, Found, Unread, find_idx, name_of, pieces_of, read_idx, read_npz, refusal
from .labels import class_numbers, renumbering
from .own import read_own
from .pixels import Conversion, Notes, as_uint8, channels_last, conversions
from .rows import Images, Pixels, Stored, pieces
from .splits import divide

if TYPE_CHECKING:
    from .pictures import Look, Progress

KNOWN = {"mnist": known.load_mnist, "fashion_mnist": known.load_fashion_mnist}
CLASS_NAMES = {"fashion_mnist": known.FASHION_MNIST_CLASSES}
FROM_PICTURES = ("folder", "parquet")
FROM_FILES = ("idx", "npz", *FROM_PICTURES)  # data.dir= and data.path= say where

LOOKED_AT, DARK = 256, 64  # so many pictures at either end; below that a pixel is one of few grey levels
OVERLAP_WORTH_A_WARNING = 0.01  # of a split; MNIST itself repeats a few images


@dataclass(frozen=True, eq=False)
class Split:
    """images: uint8 (n, height, width, channels), a C-contiguous array or rows of a file; labels: int64 (n,)."""

    images: Images
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """`digest` changes with any pixel, label, shape, order or split; the same content from another file keeps it.

    `mended` says in which ways earlier versions read these files otherwise: their runs have another digest.
    `class_names` are those of class 0, 1, ..., fit for use, None where numbers are all there is. `remarks` are what is
    told and needs no mending. `repeated` counts, of validation and test, the images that are training images, too.
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
    repeated: Mapping[str, int] = field(default_factory=dict)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


@dataclass
class _Read:
    """What files hold: train, and test and validation where they have them; `where`: what messages call x_train, ...

    `class_names` are not looked at yet; `names_problem` says why those that a file has cannot be read. `remember` keeps
    what was computed of all pixels of stored images.
    """

    splits: dict[str, Split]
    where: dict[str, str]
    remember: cache.Remember
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
    in_memory: bool | None = None,
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
        in_memory: whether images are held in memory, or are read from a file as they are needed; None: held, if they
            take at most an eighth of the memory. Either way the data set is the same.
        progress: told of each picture that is read.
        own: the settings of a data set of one's own, which the lab's function takes; see own.py.

    Raises SettingsError for arguments that cannot be, DataError for files that are not what they should be.
    """
    notes = Notes()
    given = None if own is None else read_own(name, own, notes)
    if name in FROM_PICTURES or isinstance(given, Path):
        from .pictures import Look  # Pillow takes a tenth of a second

        columns = {"image": image, "label": label} if name == "parquet" else {}
        shares = {"test_size": test_size, "validation_size": validation_size}
        look = Look(size, fit, channels, damaged)
        kind, place = ("folder", str(given)) if isinstance(given, Path) else (name, dir)
        read = _read_pictures(kind, place, look, columns, shares, split_seed, in_memory, notes, progress)
    else:
        read = _read_arrays(_read(name, dir, path, notes) if given is None else given, layout, in_memory, notes)
    splits, where = read.splits, read.where
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
    others = [(part, where[f"y_{part}"], splits[part]) for part in ("validation", "test")]
    classes = labels(names, num_classes)
    unseen = {part: _compare_labels(place, part, split.labels, classes) for part, place, split in others}
    looked = read.remember(_order_key(train, validation, test), lambda: _looked_through(train, validation, test))
    for part, place, split in others:
        notes.warnings += unseen[part]
        if (repeated := looked["repeated"][part]) > OVERLAP_WORTH_A_WARNING * len(split):
            notes.warnings.append(f"{place}: {repeated:,} of {len(split):,} {part} images are also training images")
    return Dataset(
        name,
        train,
        validation,
        test,
        num_classes,
        looked["digest"],
        tuple(notes.warnings),
        tuple(notes.mended),
        names,
        tuple(notes.remarks),
        looked["repeated"],
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
        if share is None:  # a count is of what the test leaves
            left = len(divide(train.labels, seed, test_size=test_size, validation_size=None)["train"])
            share = min(1.0, _count_of(validation_size, left) / (total * (1 - test_size)))
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


def _looked_through(train: Split, validation: Split, test: Split) -> dict[str, Any]:
    """What takes a look at every pixel: the digest, and how many images of the other splits are training images, too.

    The digest is a SHA-256 over shape, pixels and labels of train, validation and test, in their order. An image is
    hashed where its split has it, so another split or another order is another digest.
    """
    digest, repeated = hashlib.sha256(), {}
    # hash() of bytes has 64 bits: a false match among millions of images is less likely than a broken memory cell.
    train_hashes: set[int] = set()
    for part, split in {"train": train, "validation": validation, "test": test}.items():
        digest.update(f"{split.images.shape}\n".encode())
        repeated[part] = 0
        for piece in pieces(split.images):
            digest.update(piece.data)
            hashes = [hash(image.tobytes()) for image in piece]
            if split is train:
                train_hashes.update(hashes)
            else:
                repeated[part] += sum(each in train_hashes for each in hashes)
        digest.update(split.labels.astype("<i8").data)
    return {"digest": digest.hexdigest(), "repeated": repeated}


def _order_key(*splits: Split) -> str:
    """What decides, beside the pixels of stored rows, what `_looked_through` finds: which row is where, and labels."""
    key = hashlib.sha256()
    for split in splits:
        numbers = split.images.numbers if isinstance(split.images, Stored) else np.empty(0, np.int64)
        key.update(f"{len(split)}\n".encode() + numbers.astype("<i8").tobytes() + split.labels.astype("<i8").tobytes())
    return key.hexdigest()


# ---- checks and conversion


def _note_order(found: dict[str, Found], notes: Notes) -> None:
    """Earlier versions of `bestrun pack` gave 1, 10, 2 the labels 0, 1, 2."""
    names = found["class_names"].values.tolist() if "class_names" in found else []
    if names != sorted(names):
        order = ", ".join(map(cleaned, names[:12]))
        notes.mended.append(f"its classes are in the order {order}, before in that of letters")


def _checked_splits(
    found: dict[str, Found], layout: str | None, in_memory: bool | None, notes: Notes
) -> tuple[dict[str, Split], tuple[str, ...] | None, cache.Remember]:
    """The splits that there are, by name, one scale for all of them; names of classes, if the labels have some; and
    what remembers what was computed of all pixels.
    """
    parts = [part for part in ("train", "validation", "test") if f"x_{part}" in found]
    for part in parts:
        x, y = found[f"x_{part}"], found[f"y_{part}"]
        if len(x.values) != len(y.values):
            count = f"{len(y.values):,} labels, but {x.where} has {len(x.values):,} images"
            raise refusal(y.where, count, "as many labels as images", "take both from the same source")
    labels, class_names = class_numbers({part: found[f"y_{part}"] for part in parts}, notes)
    turned = {part: channels_last(found[f"x_{part}"], layout, notes) for part in parts}
    _refuse_unequal_images(turned)
    images, remember = _pixels(turned, in_memory, notes)
    splits = {}
    for part in parts:
        if len(images[part]) > 1 and (alike := _all_alike(images[part])):
            what = f"all {len(images[part]):,} images are identical{alike}"
            notes.warnings.append(f"{turned[part].where}: {what}")
        splits[part] = Split(images[part], labels[part])
    return splits, class_names, remember


def _all_alike(images: Images) -> str | None:
    """None where two images differ; what more there is to say of them where none do."""
    first = np.asarray(images[:1])
    if any((piece != first).any() for piece in pieces(images)):
        return None
    return "" if first.any() else ", all zero"


def _tell_dark(place: Path, images: Images, notes: Notes) -> None:
    """Tell of pictures that use little of the 8 bits that they are given, as those of a camera of 10 or 12 bits do."""
    some = [np.asarray(each).max() for each in (images[:LOOKED_AT], images[max(0, len(images) - LOOKED_AT) :])]
    if max(some) >= DARK:
        return
    highest = max(int(piece.max()) for piece in pieces(images))
    if highest < DARK:
        notes.warnings.append(
            f"{place}: the brightest pixel of all training images is {highest} of 255; of pictures of 16 bits the "
            "upper 8 are kept: if these use fewer, scale them to 16 bits, or put them into an .npz"
        )


def _refuse_unequal_images(turned: Mapping[str, Found]) -> None:
    shape = _image_shape(turned["train"])
    for x in turned.values():
        if _image_shape(x) != shape:
            size, other = ("x".join(map(str, each)) for each in (_image_shape(x), shape))
            expected = f"{other} as in {turned['train'].where}"
            raise refusal(x.where, f"{size} images", expected, "bring all images to one size")


def _image_shape(x: Found) -> tuple[int, int, int]:
    height, width, channels = (*x.values.shape[1:], 1)[:3]
    return height, width, channels


# ---- where images are held ----


def _pixels(
    turned: Mapping[str, Found], in_memory: bool | None, notes: Notes
) -> tuple[Mapping[str, Images], cache.Remember]:
    """The pixels of each split, in memory or stored, uint8 (n, height, width, channels)."""
    names = {part: name_of(x.where) for part, x in turned.items()}
    if len(set(names.values())) < len(turned):  # of files in which arrays have no names
        names = {part: f"x_{part}" for part in turned}
    if not cache.is_held(sum(x.values.nbytes for x in turned.values()), in_memory):
        entry = cache.entry(_source(turned), lambda: _recipe(turned, names))
        notes.warnings += entry.facts["warnings"]
        notes.mended += entry.facts["mended"]
        return {part: entry.images(part) for part in turned}, entry.remembered
    loaded = {names[part]: _loaded(x) for part, x in turned.items()}
    pixels = as_uint8(loaded, notes)
    held = {part: pixels[names[part]].reshape(len(x.values), *_image_shape(x)) for part, x in turned.items()}
    return held, lambda _, compute: compute()


def _loaded(x: Found) -> Found:
    return Found(x.where, x.values.load()) if isinstance(x.values, Unread) else x


def _source(turned: Mapping[str, Found]) -> cache.Source:
    """What decides the pixels: how the files are read, and which they are; of arrays at hand, their content."""
    settings: dict[str, list[Any]] = {}
    there: dict[str, list[Any]] = {}
    files: dict[Path, None] = {}
    for part, x in turned.items():
        there[part] = [str(x.values.dtype), list(x.values.shape)]
        if isinstance(x.values, Unread):
            files[x.values.path] = None
            settings[part] = [str(x.values.path.absolute()), x.where, x.values.is_turned]
        else:
            settings[part] = [x.where, hashlib.sha256(np.ascontiguousarray(x.values).data).hexdigest()]
    words = ", ".join(map(str, files)) or turned["train"].where.removesuffix(" x_train")
    return cache.Source(words, settings, there, list(files))


def _recipe(turned: Mapping[str, Found], names: Mapping[str, str]) -> cache.Recipe:
    notes = Notes()

    @lru_cache
    def convert() -> dict[str, Conversion]:  # not yet: whether there is room for them is known before
        return conversions({names[part]: x for part, x in turned.items()}, notes)

    def pieces_in(x: Found, name: str) -> Iterator[Pixels]:
        return map(convert()[name], pieces_of(x.values))

    parts = {}
    for part, x in turned.items():
        place = x.values.place if isinstance(x.values, Unread) else None
        parts[part] = cache.Part(len(x.values), partial(pieces_in, x, names[part]), place)
    facts = {"warnings": notes.warnings, "mended": notes.mended}
    return cache.Recipe(_image_shape(turned["train"]), parts, lambda: facts)


# ---- where from


def _read_pictures(
    name: str,
    dir: str | None,
    look: "Look",
    columns: Mapping[str, Any],
    shares: Mapping[str, Any],
    split_seed: int,
    in_memory: bool | None,
    notes: Notes,
    progress: "Progress",
) -> _Read:
    """Pictures in folders or in parquet files."""
    from .decoded import decoded, picture_settings
    from .folders import find, folder_pictures
    from .parquet import find_files, parquet_pictures

    if not dir:
        raise SettingsError(f"data.dir: not given; data={name} needs the folder of the pictures: data.dir=FOLDER")
    place = Path(os.path.expanduser(dir))
    if not os.path.lexists(place):
        remedy = "say where it is now: data.dir=FOLDER"
        raise refusal(place, "no such folder", "the pictures", remedy)
    for setting, share in shares.items():
        if not isinstance(share, float) or not 0 < share < 1:
            raise SettingsError(f"data.{setting}: {share}; allowed: a share of each class, strictly between 0 and 1")
    how: dict[str, Any] = {**shares, "split_seed": split_seed}
    if name == "folder":
        found = find(place)
        notes.remarks += [f"{place}: left out {line}" for line in found.lines()]
        classes = {part: list(split.items()) for part, split in found.splits.items()}
        look_through = partial(folder_pictures, found, look, **how, progress=progress)
    else:
        of_splits = find_files(place, notes)
        classes = {part: [("", paths)] for part, paths in of_splits.items()}
        look_through = partial(parquet_pictures, place, of_splits, look, **columns, **how, progress=progress)
    files = [path for split in classes.values() for _, paths in split for path in paths]
    counts = {part: [(each, len(paths)) for each, paths in split] for part, split in classes.items()}
    settings = {"data": name, "place": str(place.absolute()), "look": picture_settings(look), **columns, **how}
    source = cache.Source(str(place), settings, counts, files)
    got = decoded(source, lambda own: look_through(notes=own), in_memory, notes, progress)
    _tell_dark(place, got.splits["train"][0], notes)
    return _Read(
        {part: Split(images, labels) for part, (images, labels) in got.splits.items()},
        {f"{kind}_{part}": where for part, where in got.where.items() for kind in "xy"} | {"class_names": dir},
        got.remember,
        got.class_names,
    )


def _read_arrays(found: dict[str, Found], layout: str | None, in_memory: bool | None, notes: Notes) -> _Read:
    splits, class_names, remember = _checked_splits(found, layout, in_memory, notes)
    _note_order(found, notes)
    arrays = {role: array for role, array in found.items() if role != "class_names"}
    where = {role: array.where for role, array in found.items()}
    file = where["x_train"].rpartition("[")[0]
    ours = [role.replace("validation", "val") for role in arrays]
    theirs = [name_of(array.where) for array in arrays.values()]
    if where["x_train"].endswith("]") and ours != theirs:
        notes.remarks.append(f"{file}: its {', '.join(theirs)} were taken as {', '.join(ours)}")
    if named := found.get("class_names"):
        return _Read(splits, where, remember, named.values.tolist(), named.problem)
    return _Read(splits, where | {"class_names": where["y_train"]}, remember, class_names)


def _read(name: str, dir: str | None, path: str | None, notes: Notes) -> dict[str, Found]:
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
        return read_npz(Path(os.path.expanduser(path)), notes)
    raise SettingsError(f"data: {name!r} is not known; allowed: {', '.join([*KNOWN, *FROM_FILES])}")
