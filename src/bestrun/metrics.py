"""How a classifier is measured: each metric's name, unit, which way is better, and how it is written.

A new metric is a row here and a function in training/evaluation.py; journal, MLflow, tables, curves and objectives
follow. A key is a metric of a split: `val/accuracy`, `train/loss`, `test/loss`, and `best/accuracy`, that of the best.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One way to measure.

    Attributes:
        name: as in its keys, behind the split.
        unit: share (from 0 to 1, written in percent) or nats.
        direction: maximize or minimize.
        is_trained: also measured on the training images, as they are trained with.
        least_classes: with fewer it tells nothing, and is not measured.
    """

    name: str
    unit: str
    direction: str
    is_trained: bool = False
    least_classes: int = 2

    @property
    def is_share(self) -> bool:
        return self.unit == "share"

    def write(self, value: float | None) -> str:
        """A share in percent, anything else in four decimals; `-` for None."""
        if value is None:
            return "-"
        return f"{100 * value:.2f} %" if self.is_share else f"{value:.4f}"

    def write_interval(self, low: float | None, high: float | None) -> str:
        """From one value to another; `-` where they are not known."""
        return "-" if low is None or high is None else f"{self.write(low)} to {self.write(high)}"

    def write_change(self, value: float) -> str:
        """A difference with its sign."""
        return f"{100 * value:+.2f} points" if self.is_share else f"{value:+.4f}"

    def write_difference(self, value: float) -> str:
        """Of two values, or their spread."""
        return f"{100 * value:.2f} points" if self.is_share else f"{value:.4f}"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("loss", "nats", "minimize", is_trained=True),
        Metric("accuracy", "share", "maximize", is_trained=True),
        Metric("balanced_accuracy", "share", "maximize"),
        Metric("f1", "share", "maximize"),
        Metric("top5", "share", "maximize", least_classes=6),
    )
}
OF_A_CLASS = {name: Metric(name, "share", "maximize") for name in ("recall", "precision")}  # class/<name>/recall


def metric_of(key: str) -> Metric:
    """The metric of a key: that of `val/accuracy`, `best/accuracy` and `accuracy` is accuracy.

    One that is not known here, of a run that another version made, is a plain number, and more of it is better.
    """
    name = key.rpartition("/")[2]
    if key.startswith("class/") and name in OF_A_CLASS:
        return OF_A_CLASS[name]
    return METRICS.get(name) or Metric(name, "", "maximize")


def keys(split: str) -> tuple[str, ...]:
    """The keys of a split: val, test and best have every metric, train those that are measured while it trains."""
    return tuple(f"{split}/{metric.name}" for metric in METRICS.values() if split != "train" or metric.is_trained)


def objectives() -> list[str]:
    """What a run may go by, the usual one first."""
    return [f"val/{metric.name}" for metric in panels()]


def objective_first(objective: str) -> list[str]:
    """The keys of the validation split, that of the objective in front."""
    return [objective, *(key for key in keys("val") if key != objective)]


def best_key(objective: str) -> str:
    """val/accuracy -> best/accuracy: where MLflow keeps the objective of the best evaluation."""
    return f"best/{metric_of(objective).name}"


def panels() -> list[Metric]:
    """The metrics in the order in which curves stand: shares above what may be of any size."""
    return sorted(METRICS.values(), key=lambda metric: not metric.is_share)


def is_better(direction: str, value: float, than: float) -> bool:
    """Whether a value is strictly better than another."""
    return value > than if direction == "maximize" else value < than


def goodness(direction: str, value: float) -> float:
    """A number that is larger the better the value is: a key to sort by, and for min and max."""
    return value if direction == "maximize" else -value


@dataclass(frozen=True)
class OfClass:
    """One class in an evaluation: its images, those that were taken for it, and those that were so rightly."""

    images: int
    predicted: int
    right: int

    @property
    def recall(self) -> float | None:
        """The share of its images that were taken for it; None where the split has none of it."""
        return self.right / self.images if self.images else None

    @property
    def precision(self) -> float:
        """The share of what was taken for it that was it; 0 where nothing was, as scikit-learn's zero_division=0."""
        return self.right / self.predicted if self.predicted else 0.0


def by_class(confusions: Iterable[Sequence[int]], num_classes: int) -> list[OfClass]:
    """Every class of an evaluation, from what the journal has of it: [true class, predicted class, images] a cell.

    Raises:
        TypeError, ValueError: a cell is of no such class, or none at all.
    """
    images, predicted, right = ([0] * num_classes for _ in range(3))
    for true, said, count in confusions:
        if not (0 <= true < num_classes and 0 <= said < num_classes):
            raise ValueError(f"{true}, {said}: not among {num_classes} classes")
        images[true] += count
        predicted[said] += count
        right[true] += count if true == said else 0
    return [OfClass(*numbers) for numbers in zip(images, predicted, right, strict=True)]
