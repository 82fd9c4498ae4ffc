"""Image sets as the Hugging Face hub stores them: parquet files, a row an image, read piece by piece.

What stands in a row is data: a picture's bytes are decoded as those of a file, and a path in it is never opened.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..formatting import shown
from .arrays import refusal, refusing
from .folders import Found, below
from .pictures import Encoded, Look, Pictures, Progress, look_through
from .pixels import Notes
from .splits import PARTS, divide, natural

EXPECTED = "a parquet file"
ROWS_AT_ONCE = 16  # of pictures; one may be 100 MB
MAX_ROWS = 10_000_000
MAX_LABEL = 1000  # letters
MAX_METADATA = 16 << 20  # bytes, of what a schema says beside its columns
LABEL_NAMES = ("label", "labels", "class")  # of a column, where several could be the label
POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Columns:
    """Which columns hold pictures and labels, and the names of label 0, 1, ... if the schema has them."""

    image: str
    label: str
    names: tuple[str, ...] | None


@dataclass(frozen=True)
class Rows:
    """Pictures as rows of files.

    Attributes:
        column: the one that holds them.
        files: split -> those that hold its rows, in order.
        rows: split -> int64 (n,), ascending: which of the rows of these files, counted through.
    """

    column: str
    files: dict[str, list[Path]]
    rows: dict[str, NDArray[np.int64]]

    def encoded(self, part: str, numbers: Iterable[int]) -> Iterator[Encoded]:
        wanted = (int(self.rows[part][number]) for number in numbers)
        row, begin = next(wanted, None), 0
        for path in self.files[part]:
            before = begin
            with opened(path) as table:
                for group in range(table.num_row_groups):
                    end = begin + table.metadata.row_group(group).num_rows
                    if row is None:
                        return
                    if row < end:
                        for batch in table.iter_batches(ROWS_AT_ONCE, [group], [self.column], use_threads=False):
                            while row is not None and row < begin + len(batch):
                                yield _picture(batch.column(0)[row - begin], f"{path}, row {row - before:,}")
                                row = next(wanted, None)
                            begin += len(batch)
                    begin = end
        if row is not None:
            raise refusal(path, f"no row {row - before:,}", "as many rows as it says", "copy the original again")


def parquet_pictures(
    place: Path,
    files: dict[str, list[Path]],
    look: Look,
    *,
    image: str | None,
    label: str | None,
    test_size: float,
    validation_size: float,
    split_seed: int,
    notes: Notes,
    progress: Progress = iter,
) -> Pictures:
    """The pictures of a file, or of a folder of files, with the splits that their names say; what lacks is cut.

    Args:
        files: of `find_files`.
        image, label: the names of the columns; None: where that is unmistakable.

    Raises:
        DataError: files are damaged, no column is unmistakable, or as `look_through`.
    """
    files = dict(files)
    columns = {path: find_columns(path, image, label) for paths in files.values() for path in paths}
    usual = columns[files["train"][0]]
    for path, other in columns.items():
        if other != usual:
            found = f"columns {other.image} and {other.label}"
            expected = f"{usual.image} and {usual.label}, and the same names of classes, as in {files['train'][0]}"
            raise refusal(path, found, expected, "give the folder of one set")
    values = {part: [value for path in paths for value in read_labels(path, usual)] for part, paths in files.items()}
    for part in [part for part in ("validation", "test") if set(values.get(part, ())) == {-1}]:
        notes.warnings.append(f"{place}: the labels of {part} are all -1: nobody has told them; it is left out")
        del values[part], files[part]
    labels, names = number_labels(values, usual, place, notes)
    numbers = divide(
        labels["train"],
        split_seed,
        test_size=None if "test" in files else test_size,
        validation_size=None if "validation" in files else validation_size,
    )
    rows = {part: np.arange(len(those)) for part, those in labels.items()} | numbers
    parts: list[str] = [part for part in ("train", "validation", "test") if part in rows]
    of_train = labels["train"]
    labels |= {part: of_train[those] for part, those in numbers.items()}
    source = Rows(usual.image, {part: files.get(part, files["train"]) for part in parts}, rows)
    chosen, places = {part: labels[part] for part in parts}, dict.fromkeys(parts, str(place))
    return look_through(source, chosen, places, names, look, notes, progress)


# ---- files


def find_files(place: Path, notes: Notes) -> dict[str, list[Path]]:
    """Split -> its files, in the order of their names.

    Raises:
        DataError: there are none, or not all, or those of several sets.
    """
    if not place.is_dir():
        return {"train": [place]}
    found = Found()
    paths, others = below(place, found, (".parquet",))
    if not paths:
        kinds = f"no .parquet file among {len(others):,} files"
        raise refusal(place, kinds, "files as train-00000-of-00001.parquet", "set data.dir to the folder that has them")
    splits: dict[str | None, list[Path]] = {}
    for path in sorted(paths, key=lambda path: [natural(name) for name in path.relative_to(place).parts]):
        splits.setdefault(_part(path.relative_to(place)), []).append(path)
    if splits.keys() == {None}:
        return {"train": splits[None]}
    if left_out := splits.pop(None, []):
        notes.warnings.append(f"{place}: left out {len(left_out):,} files of no split, the first is {left_out[0]}")
    named = {part: files for part, files in splits.items() if part}
    if "train" not in named:
        raise refusal(place, f"files of {', '.join(named)}, but none of train", "train", "copy the whole set")
    sets = sorted({_set(path.relative_to(place)) for files in named.values() for path in files})
    if len(sets) > 1:
        first = ", ".join(shown(name or ".") for name in sets[:5])
        raise refusal(place, f"several sets: {first}", "one", f"type data.dir={place / sets[-1]}")
    for part, files in named.items():
        _refuse_missing_files(place, part, files)
    return named


def _part(path: Path) -> str | None:
    """The split that a file's name begins with, else one of its folders is called."""
    first = re.split(r"[-_.]", path.stem.lower())[0]
    return next((PARTS[name.lower()] for name in (first, *path.parts[:-1]) if name.lower() in PARTS), None)


def _set(path: Path) -> str:
    """The folder of a set, without the folder of its split."""
    return "/".join(name for name in path.parts[:-1] if name.lower() not in PARTS)


def _refuse_missing_files(place: Path, part: str, files: Sequence[Path]) -> None:
    """Of 00000-of-00003, 00001-of-00003, ...: a set that was not copied whole."""
    counted = [re.search(r"-(\d{1,9})-of-(\d{1,9})", path.stem) for path in files]
    numbers = [(int(one[1]), int(one[2])) for one in counted if one]
    if numbers and sorted(numbers) != [(number, len(files)) for number in range(len(files))]:
        have = ", ".join(path.name for path in files[:5])
        found = f"{len(files):,} files of {part}: {have}"
        raise refusal(place, found, f"each of its {numbers[0][1]:,} files, once", "copy the whole set again")


@contextmanager
def opened(path: Path, texts: Sequence[str] = ()) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile; whatever is wrong with it becomes a DataError.

    Args:
        texts: columns of which a value that comes often is held once.
    """
    from pyarrow.parquet import ParquetFile

    with refusing(path, EXPECTED) as file:
        if file.read(len(POINTER)) == POINTER:
            raise refusal(path, "a pointer of Git LFS, and not the file", EXPECTED, "type git lfs pull where it lies")
        file.seek(0)
        limits = {"thrift_string_size_limit": 100 << 20, "thrift_container_size_limit": 10_000_000}
        # Without pre_buffer a row group is read in pieces; checksums are looked at where pages have them
        how = {"buffer_size": 1 << 20, "pre_buffer": False, "page_checksum_verification": True}
        yield ParquetFile(file, read_dictionary=list(texts), **how, **limits)


# ---- columns


def find_columns(path: Path, image: str | None, label: str | None) -> Columns:
    """Which columns of a file hold pictures and labels.

    Raises:
        DataError: that is not unmistakable, or the columns named are none.
    """
    import pyarrow as pa

    with opened(path) as table:
        schema = table.schema_arrow
    kinds = {field.name: field.type for field in schema}
    images = [name for name, kind in kinds.items() if _holds_pictures(kind)]
    kinds_of_labels = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean)
    labels = [
        name
        for name, kind in kinds.items()
        if any(holds(kind.value_type if pa.types.is_dictionary(kind) else kind) for holds in kinds_of_labels)
    ]
    features = _features(schema.metadata or {})
    named = [name for name in labels if features.get(name)] or [name for name in LABEL_NAMES if name in labels]
    chosen_image = _choose(path, "image", image, images, images, list(kinds))
    chosen_label = _choose(path, "label", label, labels, named or labels, list(kinds))
    return Columns(chosen_image, chosen_label, features.get(chosen_label))


def _holds_pictures(kind: Any) -> bool:
    """Bytes, or as the hub has it a struct of bytes and a path."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_pictures(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _choose(path: Path, what: str, typed: str | None, can: list[str], likely: list[str], columns: list[str]) -> str:
    expected = {"image": "pictures, as bytes or as a struct of bytes and path", "label": "numbers or text"}[what]
    if typed is not None and typed not in can:
        found = f"no column {shown(typed)} of {expected} among {', '.join(columns)}"
        remedy = f"type data.{what}={can[0]}" if can else "give another file"
        raise refusal(path, found, f"one of {', '.join(can) or 'none'}", remedy)
    if typed is None and len(likely) != 1:
        found = f"{len(likely)} columns that may be the {what} ({', '.join(likely)}) among {', '.join(columns)}"
        raise refusal(path, found, f"one of {expected}", f"type data.{what}={likely[0] if likely else 'COLUMN'}")
    return typed or likely[0]


def _features(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Column -> the names of its classes, of those that the hub's metadata calls a ClassLabel; text from outside."""
    text = metadata.get(b"huggingface", b"")
    try:
        features = json.loads(text)["info"]["features"] if len(text) <= MAX_METADATA else {}
        return {
            column: tuple(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and _are_names(feature.get("names"))
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # another program's, or none


def _are_names(names: object) -> bool:
    return isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)


# ---- rows


def read_labels(path: Path, columns: Columns) -> list[int | str]:
    """The label of each row, a number or a text.

    Raises:
        DataError: a row has none, or there are too many.
    """
    import pyarrow as pa

    labels: list[int | str] = []
    with opened(path, [columns.label]) as table:
        if (count := table.metadata.num_rows) > MAX_ROWS:
            raise refusal(path, f"{count:,} rows", f"at most {MAX_ROWS:,} (MAX_ROWS)", "use fewer")
        for batch in table.iter_batches(1 << 12, columns=[columns.label], use_threads=False):
            values = batch.column(0)
            if values.null_count:
                row = len(labels) + values.is_null().to_pylist().index(True)
                raise refusal(path, f"no {columns.label} in row {row:,}", "one in each row", "leave such rows out")
            if pa.types.is_boolean(values.type):
                values = values.cast(pa.int8())
            if pa.types.is_dictionary(values.type):
                texts = values.dictionary.to_pylist()
                if (longest := max((len(str(text)) for text in texts), default=0)) > MAX_LABEL:
                    raise refusal(path, f"a label of {longest:,} letters", f"at most {MAX_LABEL:,}", "give its column")
                labels += [texts[index] for index in values.indices.to_pylist()]
            else:
                labels += values.to_pylist()
    return labels


def number_labels(
    values: dict[str, list[int | str]], columns: Columns, place: Path, notes: Notes
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """Split -> class numbers from 0, int64 (n,), and the names of these classes: those that training has.

    Raises:
        DataError: another split has others, or a number has no name.
    """
    classes = sorted(set(values["train"]), key=lambda label: natural(label) if isinstance(label, str) else label)
    for part, labels in values.items():
        if foreign := set(labels) - set(classes):
            found = f"{columns.label} {shown(min(foreign, key=str))} only in {part}"
            raise refusal(place, found, "the classes of train", "add rows of it to train, or take it out")
    if len(classes) < 2:
        raise refusal(place, f"{len(classes)} classes in column {columns.label}", "two or more", "add rows of another")
    names = tuple(map(str, classes))
    if columns.names and not isinstance(classes[0], str):
        if int(classes[0]) < 0 or int(classes[-1]) >= len(columns.names):
            found = f"labels from {classes[0]} to {classes[-1]}"
            raise refusal(place, found, f"0 to {len(columns.names) - 1}, as its schema names them", "correct it")
        names = tuple(columns.names[int(label)] for label in classes)
        if missing := [name for name in columns.names if name not in set(names)]:
            first = ", ".join(map(shown, missing[:5])) + ", ..." * (len(missing) > 5)
            notes.remarks.append(f"{place}: {len(missing):,} classes of its schema have no image: {first}")
    number = {label: index for index, label in enumerate(classes)}
    return {part: np.array([number[label] for label in labels], np.int64) for part, labels in values.items()}, names


def _picture(value: Any, where: str) -> Encoded:
    """The picture of one row."""
    inner = value["bytes"] if value.is_valid and hasattr(value, "keys") else value
    if not inner.is_valid:
        error = refusal(where, "no bytes, at most a path", "the picture itself", "store the set with its pictures")
        return Encoded(where, partial(_refuse, error))
    return Encoded(where, inner.as_buffer().to_pybytes)


def _refuse(error: DataError) -> NoReturn:
    raise error
