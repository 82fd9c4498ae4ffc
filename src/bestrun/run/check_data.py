"""What a data set looks like before it is trained on: labels of each class, images that stand in two splits."""

from collections.abc import Iterable

from ..data.census import images_per_class, labels_line, rare_classes, twice
from ..data.dataset import Dataset
from .findings import OK, WARN, Finding, failed

APART = "leave them out of one of the splits: a score on images that were trained on promises too much"


def data_found(data: Dataset, seconds: float) -> Iterable[Finding]:
    """How many images there are, and what was told when they were read: absent classes among it."""
    counts = [f"{len(split):,}" for split in (data.train, data.validation, data.test)]
    shape = " x ".join(map(str, data.image_shape))
    said = f"{data.name}: {' + '.join(counts)} images (training, validation, test) of {shape}"
    yield Finding("data", OK, f"{said}, digest {data.digest[:12]}, read in {seconds:.1f} s")
    for warning in data.warnings:
        yield failed("data", warning, WARN)


def labels(data: Dataset) -> Iterable[Finding]:
    """The training images of each class."""
    images = images_per_class(data)
    if rare := rare_classes(images, data):
        said, _, remedy = rare.partition("; ")
        yield Finding("labels", WARN, said, remedy)
    else:
        yield Finding("labels", OK, labels_line(images, data))


def duplicates(data: Dataset) -> Iterable[Finding]:
    """Images of one split that are images of another, pixel by pixel; and those that have two labels."""
    twofold = twice(data)
    if twofold is None:  # too many to read once more: what was counted when they were read
        counted = [f"training and {part} share {count:,}" for part, count in data.repeated.items() if count]
        if counted:
            yield Finding("duplicates", WARN, f"{', '.join(counted)} images", APART)
        else:
            yield Finding("duplicates", OK, "no validation or test image is a training image")
        return
    if twofold.across:
        counted = [f"{first} and {later} share {count:,}" for (first, later), count in twofold.across.items()]
        yield Finding("duplicates", WARN, f"{', '.join(counted)} images: {twofold.example}", APART)
    if twofold.contradicting:
        said = f"images that stand in the data with another label, too: {twofold.contradicting:,}"
        yield Finding("duplicates", WARN, said, "correct their labels")
    if not (twofold.across or twofold.contradicting):
        yield Finding("duplicates", OK, "no image stands in two splits, none has two labels")
