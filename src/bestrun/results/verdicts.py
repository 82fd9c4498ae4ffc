"""Whether one run is better than another, or only luckier: their bests on the same validation images, one by one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import SettingsError
from ..judging import LEVEL, accuracy_interval, holm, mcnemar
from ..metrics import metric_of, objectives
from ..settings.compose import override
from ..settings.own import needed
from ..storage.events import metric_value
from ..storage.right import Bits, agreeing
from ..terminal import one_line
from ..tracking.store import Place
from .fetch import fetch_best
from .own_code import read_data
from .record import Record, labels

METRIC = "val/accuracy"  # a mean over images of which each one's share is kept: right or wrong


class UnknownError(Exception):
    """Which images a best has right is not known; its text says why."""


@dataclass(frozen=True)
class Verdict:
    """One run against the first.

    Attributes:
        names: the first's and the other's, as `labels` has them.
        better: the name of the better one; None where they are not told apart, or nothing can be said.
        why_none: why nothing can be said; empty where something is.
        images: of the validation split, the same for both.
        repaired, broken: images that the other has right and the first has not, and the other way round.
        p: McNemar's exact chance of so large a difference between equally good ones; of several, corrected by Holm.
    """

    names: tuple[str, str]
    better: str | None = None
    why_none: str = ""
    images: int = 0
    repaired: int = 0
    broken: int = 0
    p: float = 1.0

    def as_json(self) -> dict[str, Any]:
        """What `--json` says of it."""
        said = {"runs": list(self.names), "metric": METRIC, "better": self.better, "words": self.words()}
        if self.why_none:
            return said | {"told_apart": None}
        figures = {key: getattr(self, key) for key in ("images", "repaired", "broken", "p")}
        return said | {"told_apart": self.better is not None, **figures}

    def words(self) -> str:
        """The verdict as one reads it aloud."""
        if self.why_none:
            return f"none: {self.why_none}"
        told = f"{one_line(self.better)} is better" if self.better else "not told apart"
        chance = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.2g}"
        counts = f"{self.repaired:,} repaired, {self.broken:,} broken of the same {self.images:,} images"
        return f"{told} ({counts}, {chance})"


def verdicts(records: Sequence[Record], computed: Sequence[Bits] | None = None) -> list[Verdict]:
    """Each run against the first, by the accuracy of their bests; the chances of several are corrected together.

    Args:
        computed: which validation images the best of each has right, where that was computed anew.
    """
    first, called, found = records[0], labels(records), []
    for number, other in enumerate(records[1:], 1):
        names = called[0], called[number]
        if first.started["data_digest"] != other.started["data_digest"]:
            found.append(Verdict(names, why_none="their validation images are not the same"))
            continue
        try:
            one, two = (computed[0], computed[number]) if computed else (right_of(first), right_of(other))
        except UnknownError as reason:
            found.append(Verdict(names, why_none=str(reason)))
            continue
        repaired, broken = int((two & ~one).sum()), int((one & ~two).sum())
        chance = mcnemar(repaired, broken)
        found.append(Verdict(names, images=len(one), repaired=repaired, broken=broken, p=chance))
    return _corrected(found)


def _corrected(found: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts with chances that hold for all of them together, and who is better by these."""
    chances = iter(holm([each.p for each in found if not each.why_none]))
    told = []
    for each in found:
        if not each.why_none:
            p = next(chances)
            ahead = each.names[each.repaired > each.broken]
            each = replace(each, p=p, better=ahead if p < LEVEL else None)
        told.append(each)
    return told


def right_of(record: Record) -> Bits:
    """Which validation images a run's best has right (images,), as its journal says.

    Raises:
        UnknownError: it does not, or not what its accuracy says.
    """
    best, images = record.best, record.started["data"]["validation"]
    if not best:
        raise UnknownError(f"{record.name} has no best yet")
    if not (text := best.get("right")):
        raise UnknownError(f"which images {record.name} has right is not kept; --compute finds out")
    bits = agreeing(text, images, metric_value(best, METRIC))
    if bits is None:
        raise UnknownError(
            f"the journal of {record.name} contradicts itself at step {best['step']}; --compute finds out"
        )
    return bits


def compute(records: Sequence[Record], place: Place, overrides: Sequence[str] = ()) -> list[Bits]:
    """Which validation images each best has right, from its checkpoint and the data: no journal is asked.

    Args:
        overrides: where the data is on this machine.

    Returns:
        Bits (images,) of each.

    Raises:
        VerificationError: a checkpoint is damaged, or does not score as logged.
        DataError: the data is not the run's.
    """
    from ..training import device, evaluation
    from .restore import predictor, refuse_disagreement, refuse_other_data

    found: list[Bits] = []
    read: dict[str, Any] = {}
    for record in records:
        fetched = fetch_best(record, place)
        fetched.refuse_missing_code()
        digest = fetched.checkpoint.data_digest
        if digest not in read:
            config = override(fetched.config, overrides)[0] if overrides else fetched.config
            read[digest] = read_data(config, bool(needed(config, fetched.own_metrics)), config.threads)
            refuse_other_data(fetched, config, read[digest])
        device.prepare(fetched.config.threads)
        split = read[digest].validation
        logits = predictor(fetched)(split.images)
        refuse_disagreement(evaluation.figures(logits, split.labels), fetched)
        found.append(np.asarray(logits.argmax(axis=1) == split.labels))
    return found


def accuracies(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Each best's accuracy and where that of the network lies, by what a sample of so many images shows."""
    found: list[dict[str, Any]] = []
    for record in records:
        images, accuracy = record.started["data"]["validation"], metric_value(record.best, METRIC)
        if accuracy is None:
            found.append({"accuracy": None, "interval": None, "images": images})
            continue
        interval = accuracy_interval(round(accuracy * images), images)
        found.append({"accuracy": accuracy, "interval": [interval.low, interval.high], "images": images})
    return found


def refuse_metric(metric: str) -> None:
    """Raises SettingsError for a metric of which no verdict can be had from the two bests."""
    if metric == METRIC:
        return
    if metric not in objectives():
        raise SettingsError(f"--metric {metric}: there is no such metric; there are {', '.join(objectives())}")
    raise SettingsError(
        f"--metric {metric}: two bests alone do not tell, as it is not kept image by image; seeds do: add --seeds 5"
    )


def lines(records: Sequence[Record], found: Sequence[dict[str, Any]], said: Sequence[dict[str, Any]]) -> list[str]:
    """The last lines of `bestrun compare`.

    Args:
        found: `accuracies` of the records.
        said: the verdicts, as `--json` has them.
    """
    names, metric = [one_line(name) for name in labels(records)], metric_of(METRIC)
    width = max(map(len, names))
    told = ["", "accuracy of the best; by so many images, that of the network is within (95 %)"]
    for name, each in zip(names, found, strict=True):
        text = "-"
        if each["interval"]:
            lies = metric.write_interval(*each["interval"])
            text = f"{metric.write(each['accuracy'])}, {lies}; {each['images']:,} images"
        told.append(f"  {name:{width}}  {text}")
    if len(said) == 1:
        return [*told, "", f"verdict  {said[0]['words']}"]
    told += ["", f"verdict against {names[0]} (chances are Holm's, for {len(said)} comparisons)"]
    return [*told, *(f"  {name:{width}}  {each['words']}" for name, each in zip(names[1:], said, strict=True))]
