"""Pictures decoded: into memory, or, where they are many, once into the cache."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from . import cache
from .arrays import PIECE_BYTES
from .pictures import Look, Pictures, Progress, in_memory, refuse_missing
from .pixels import Notes
from .rows import Images, Pixels


class Decoded(NamedTuple):
    """Images of every split.

    Attributes:
        splits: split -> images and labels, int64 (n,).
        where: split -> what messages call it.
        remember: as cache.Entry.remembered.
    """

    splits: Mapping[str, tuple[Images, NDArray[np.int64]]]
    where: Mapping[str, str]
    class_names: tuple[str, ...]
    remember: cache.Remember


def picture_settings(look: Look) -> list[Any]:
    """What decides, beside its file, the pixels of a picture: how it is brought to its shape, and by which Pillow."""
    return [look.size, look.fit, look.channels, look.damaged, PIL.__version__]


def decoded(
    source: cache.Source,
    look_through: Callable[[Notes], Pictures],
    held: bool | None,
    notes: Notes,
    progress: Progress = iter,
) -> Decoded:
    """All pictures of a source.

    Args:
        look_through: finds out their shape; not asked for where they stand in the cache.
        held: as `in_memory` of load_dataset.

    Raises:
        DataError: as `Pictures.images` and `cache.entry`.
    """
    if held is not True and (found := cache.find(source)):
        return _of(found, notes)
    own = Notes()
    pictures = look_through(own)
    count = sum(len(split.labels) for split in pictures.splits.values())
    if not cache.is_held(count * int(np.prod(pictures.image_shape)), held):
        return _of(cache.entry(source, lambda: _recipe(pictures, own, progress)), notes)
    arrays = in_memory(pictures, progress)
    notes.add(own)
    where = {part: split.where for part, split in pictures.splits.items()}
    return Decoded(arrays, where, pictures.class_names, lambda _, compute: compute())


def _of(entry: cache.Entry, notes: Notes) -> Decoded:
    facts = entry.facts
    notes.add(Notes(**facts["notes"]))
    splits = {part: (entry.images(part), np.array(labels, np.int64)) for part, labels in facts["labels"].items()}
    return Decoded(splits, facts["where"], tuple(facts["class_names"]), entry.remembered)


def _recipe(pictures: Pictures, notes: Notes, progress: Progress) -> cache.Recipe:
    kept: dict[str, list[int]] = {part: [] for part in pictures.splits}  # what is damaged may be passed over

    def pieces(part: str) -> Iterator[Pixels]:
        at_once, images = max(1, PIECE_BYTES // int(np.prod(pictures.image_shape))), []
        for number, image in pictures.images(part, progress=progress):
            kept[part].append(number)
            images.append(image)
            if len(images) == at_once:
                yield np.stack(images)
                images = []
        if images:
            yield np.stack(images)

    def facts() -> dict[str, Any]:
        where = {part: split.where for part, split in pictures.splits.items()}
        labels = {part: split.labels[kept[part]] for part, split in pictures.splits.items()}
        refuse_missing(labels, where, pictures.class_names)
        return {
            "labels": {part: of_part.tolist() for part, of_part in labels.items()},
            "where": where,
            "class_names": pictures.class_names,
            "notes": vars(notes),
        }

    parts = {part: cache.Part(len(split.labels), partial(pieces, part)) for part, split in pictures.splits.items()}
    return cache.Recipe(pictures.image_shape, parts, facts)
