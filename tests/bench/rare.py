"""A class of 3 % of the training images: what weights of classes, and an objective that counts them alike, do."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .table import home_in, row, section

RARE, OTHERS, SHARE = 8, 1000, 0.03  # the class, training images of each other class, its share of all
STEPS = ["training.max_steps=1000", "training.patience_steps=1000", "pictures=false"]
WAYS = {
    "default": [],
    "training.class_weights=balanced": ["training.class_weights=balanced"],
    "objective.metric=val/f1": ["objective.metric=val/f1"],
    "both": ["training.class_weights=balanced", "objective.metric=val/f1"],
}


def thinned(path: Path) -> None:
    """MNIST with that class rare in training and validation; the test split stays what it is."""
    from bestrun.data.dataset import load_dataset

    mnist = load_dataset("mnist")
    arrays: dict[str, Any] = {"x_test": mnist.test.images[..., 0], "y_test": mnist.test.labels}
    for part, split, each in (("train", mnist.train, OTHERS), ("val", mnist.validation, OTHERS // 5)):
        few = round(9 * each * SHARE / (1 - SHARE))
        chosen = [np.flatnonzero(split.labels == label)[: few if label == RARE else each] for label in range(10)]
        which = np.sort(np.concatenate(chosen))
        arrays |= {f"x_{part}": split.images[which][..., 0], f"y_{part}": split.labels[which]}
    np.savez_compressed(path, **arrays)


def tested(*words: str) -> dict[str, float]:
    """In percent: recall of the rare class, balanced accuracy and macro F1 of the best on the test split."""

    def bestrun(*line: str) -> dict[str, Any]:
        done = subprocess.run([sys.executable, "-m", "bestrun", *line, "--json"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    report = bestrun("restore", bestrun("train", *words)["run_id"])
    of_class = np.array(report["confusion_matrix"])[RARE]
    figures = {name: 100 * report["test"][name] for name in ("balanced_accuracy", "f1")}
    return {"recall": 100 * of_class[RARE] / of_class.sum(), **figures}


def rare() -> list[dict[str, Any]]:
    """Three seeds of each way, in turn: five minutes."""
    section(f"MNIST with a class of {SHARE:.0%}: recall of that class on the test split")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as place, home_in(place):
        path = Path(place, "rare.npz")
        thinned(path)
        for seed in range(3):
            for way, words in WAYS.items():
                found[way].append(tested("data=npz", f"data.path={path}", f"seed={seed}", *STEPS, *words))
    return [
        row(f"{way}: {name}", [each[name] for each in runs], "%") for way, runs in found.items() for name in runs[0]
    ]
