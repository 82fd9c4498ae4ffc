"""Pictures in folders, a folder a class, as people have them: which there are, which split and class each belongs to.

The order of classes and pictures follows from their names below the folder, and never from the order in which a file
system lists them.
"""

import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..formatting import shown
from .arrays import refusal
from .images import SUFFIXES, read_bytes
from .pictures import Encoded, Look, Pictures, Progress, look_through
from .pixels import Notes
from .splits import PARTS, divide, natural

OF_SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir")  # what computers put beside pictures
MAX_ENTRIES = 5_000_000  # files and folders that are looked at: data.dir=/ would go on for hours
LAYOUT = "put the pictures of each class into a folder of its name: FOLDER/CLASS/, or FOLDER/train/CLASS/"

Classes = dict[str, list[Path]]  # class -> its pictures


@dataclass
class Found:
    """What is in a folder of pictures.

    Attributes:
        splits: train, and validation and test where it has them -> class -> pictures; each with the same classes.
        places: split -> its folder.
        left_out: kind of file, in words -> those that are no pictures, or of no class.
        passed_over: how many hidden files and files of systems there are.
    """

    splits: dict[str, Classes] = field(default_factory=dict)
    places: dict[str, Path] = field(default_factory=dict)
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    passed_over: int = 0
    seen: int = 0

    def leave_out(self, paths: Iterable[Path], kind: str = "") -> None:
        for path in paths:
            name = f"{path.suffix.lower()} files" if path.suffix else "files without an ending"
            self.left_out.setdefault(kind or name, []).append(path)

    def lines(self) -> list[str]:
        """What a person reads of what is no picture."""
        lines = []
        for kind, paths in sorted(self.left_out.items()):
            first = str(paths[0]) if str(paths[0]).isprintable() else repr(str(paths[0]))
            lines.append(f"{len(paths):,} {shown(kind)}, the first is {first}")
        if self.passed_over:
            lines.append(f"{self.passed_over:,} hidden files, Thumbs.db and the like")
        return lines


@dataclass(frozen=True)
class Files:
    """Pictures as files: split -> their paths, in its final order."""

    paths: dict[str, list[Path]]

    def encoded(self, part: str, numbers: Iterable[int]) -> Iterator[Encoded]:
        for number in numbers:
            path = self.paths[part][number]
            yield Encoded(path, partial(read_bytes, path))


def folder_pictures(
    found: Found,
    look: Look,
    *,
    test_size: float,
    validation_size: float | None,
    split_seed: int,
    notes: Notes,
    progress: Progress = iter,
) -> Pictures:
    """The pictures of a folder, divided and in order: training ones drawn into another order, the others by class.

    Args:
        test_size: share of each class that becomes the test split where there is no folder of one.
        validation_size: the same; None: nothing is cut for validation.

    Raises:
        DataError: a picture is damaged or of another size.
    """
    names = list(found.splits["train"])
    paths = {part: [path for of_class in split.values() for path in of_class] for part, split in found.splits.items()}
    labels = {
        part: np.repeat(np.arange(len(names)), [len(of_class) for of_class in split.values()])
        for part, split in found.splits.items()
    }
    numbers = divide(
        labels["train"],
        split_seed,
        test_size=None if "test" in paths else test_size,
        validation_size=None if "validation" in paths else validation_size,
        shuffle=True,  # files that `bestrun pack` makes of folders are in this order
    )
    paths |= {part: [paths["train"][number] for number in those] for part, those in numbers.items()}
    labels |= {part: labels["train"][those] for part, those in numbers.items()}
    order: list[str] = [part for part in ("train", "validation", "test") if part in paths]
    places = {part: str(found.places.get(part, found.places["train"])) for part in order}
    return look_through(
        Files({part: paths[part] for part in order}),
        {part: labels[part].astype(np.int64) for part in order},
        places,
        names,
        look,
        notes,
        progress,
    )


# ---- what is where


def find(folder: Path) -> Found:
    """The splits and classes of a folder.

    Raises:
        DataError: it is none, classes are missing or contradict each other.
    """
    found = Found()
    folders, files = _entries(folder, found)
    for path in folders:
        part = PARTS.get(path.name.lower())
        if part and part in found.places:
            names = f"{found.places[part].name} and {path.name}"
            raise refusal(folder, names, "one folder for each split", "rename or merge one of them")
        if part:
            found.places[part] = path
    if not found.places:
        found.places["train"] = folder
        found.splits["train"] = _classes(folder, folders, files, found)
    elif "train" not in found.places:
        names = f"{next(iter(found.places.values())).name}, but no train"
        raise refusal(folder, names, "train, and beside it val and test if you like", "name the training images so")
    else:
        beside = [path for path in folders if path not in found.places.values()]
        inside = [path for other in beside for paths in below(other, found) for path in paths]
        found.leave_out([*files, *inside], "beside the splits")
        for part, path in found.places.items():
            found.splits[part] = _classes(path, *_entries(path, found), found)
    _refuse_odd_classes(folder, found)
    train = found.splits["train"]
    found.splits = {part: {name: split.get(name, []) for name in train} for part, split in found.splits.items()}
    return found


def _refuse_odd_classes(folder: Path, found: Found) -> None:
    train, place = found.splits["train"], found.places["train"]
    if len(train) < 2:
        raise refusal(place, f"{len(train)} folders in it", "two or more, one for each class", _advice(place, found))
    if empty := [name for name in train if not train[name]]:
        kinds = f"no picture ({', '.join(suffix[1:] for suffix in SUFFIXES)}) of class {shown(empty[0])}"
        raise refusal(place, kinds, "one or more", "add some, or remove the folder")
    for part, split in found.splits.items():
        if foreign := [name for name in split if name not in train]:
            text = f"class {shown(foreign[0])} only in {found.places[part].name}"
            raise refusal(folder, text, "the classes of train", "rename it, or add training images")
        if not any(split.values()):
            raise refusal(found.places[part], f"no {part} images", "one or more", "add pictures, or remove the folder")


def _advice(place: Path, found: Found) -> str:
    """What to do about a folder without classes: often an archive was unpacked into a folder of its own name."""
    (inside, _) = _entries(place, Found())
    if len(inside) == 1 and len(_entries(inside[0], Found())[0]) > 1:
        return f"give the folder inside it: {inside[0]}"
    return LAYOUT


def _classes(folder: Path, folders: list[Path], files: list[Path], found: Found) -> Classes:
    """The pictures of each class: those in a folder of its name, and in folders inside that."""
    classes: Classes = {}
    for path in sorted(folders, key=lambda path: natural(path.name)):
        name = unicodedata.normalize("NFC", path.name)  # a Mac writes an ü as two characters, another computer as one
        if name in classes:
            raise refusal(folder, f"two folders called {shown(name)}", "one for each class", "merge them")
        if not name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in name):
            raise refusal(folder, f"a folder called {shown(name)}, which is not UTF-8", "a name in UTF-8", "rename it")
        classes[name], others = below(path, found)
        found.leave_out(others)
    found.leave_out(files, "beside the folders of classes")
    return classes


def below(folder: Path, found: Found, endings: tuple[str, ...] = SUFFIXES) -> tuple[list[Path], list[Path]]:
    """The files with these endings, and the others, in a folder and in those inside it, by name."""
    pictures: list[Path] = []
    others: list[Path] = []
    ways = [(folder, frozenset[tuple[int, int]]())]
    while ways:
        place, above = ways.pop()
        status = _status(place)
        if status in above:
            found.leave_out([place], "links that lead back")
            continue
        folders, files = _entries(place, found)
        ways += [(inner, above | {status}) for inner in folders]
        for path in files:
            (pictures if path.suffix.lower() in endings else others).append(path)
    return sorted(pictures, key=lambda path: path.parts), sorted(others, key=lambda path: path.parts)


def _status(folder: Path) -> tuple[int, int]:
    """Which folder it is, by whatever name."""
    try:
        status = os.stat(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return status.st_dev, status.st_ino


def _entries(folder: Path, found: Found) -> tuple[list[Path], list[Path]]:
    """The folders and the files in a folder, by name, without those that nobody put there; links are followed."""
    folders: list[Path] = []
    files: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found.seen += 1
                if found.seen > MAX_ENTRIES:
                    text = f"more than {MAX_ENTRIES:,} files and folders (MAX_ENTRIES)"
                    raise refusal(folder, text, "a folder of pictures", "give the folder that has them")
                if entry.name.startswith(".") or entry.name.lower() in OF_SYSTEMS:
                    found.passed_over += 1
                else:
                    (folders if _is_folder(entry) else files).append(Path(folder, entry.name))
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: a file that cannot be read
        return False


def _unreadable(folder: Path, error: OSError) -> DataError:
    remedy = (
        "unpack it, and give the folder" if isinstance(error, NotADirectoryError) else "give the folder that has them"
    )
    return refusal(folder, f"nothing readable ({error.strerror})", "a folder of pictures", remedy)
