"""A night's work: one space, one budget, two processors, by `bestrun train -m` and by what people would use instead.

`make bench ARGS=night`. The same points for all: learning rates x filters x hidden units of the default network, 600
steps of 64 of 20,000 images of MNIST each, evaluated every 100 steps on 5,000 others, given up after 300 without a
better one. Each side runs in a process tree of its own, in turn. The peers take the points as they are typed, ours in
an order drawn anew each turn: when a good one is reached is luck as well. BENCH_TRIALS (20, or another multiple of 4)
and BENCH_TURNS (3) make it shorter; BENCH_LOG_MODELS=false keeps Keras' models, eight seconds each, out of (a)'s store.
"""

import importlib.util
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .sweeps import part_of_mnist
from .table import row, section

RATES = ("0.001", "0.003", "0.0003", "0.01", "0.0001")  # the first of them where there are fewer trials
FILTERS = ("[8,16]", "[16,36]")
HIDDEN = ("64", "128")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Night:
    """One side's work.

    Attributes:
        seconds: from its command to its end.
        evaluations: seconds from its command, and validation images that were right.
    """

    seconds: float
    evaluations: list[tuple[float, int]]

    @property
    def best(self) -> int:
        return max(right for _, right in self.evaluations)

    def until(self, right: int) -> float:
        """Seconds until an evaluation had so many images right."""
        return min(seconds for seconds, found in self.evaluations if found >= right)


def carry_out(place: Path, *command: str) -> float:
    """Run a side's command in its folder; returns when it began, in seconds since 1970."""
    place.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"BENCH_NOTES": str(place / "notes"), "BESTRUN_MLRUNS": str(place / "mlruns")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    began = time.time()
    with open(place / "output", "w+") as output:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=place, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        if done.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{output.read()[-2000:]}")
    return began


def ours(place: Path, data: Path, rates: list[str], seed: int) -> Night:
    """A study of all combinations, in an order of its own, by two workers of one thread each."""
    space = [f"optimizer.learning_rate={','.join(rates)}", f"model.num_filters={','.join(FILTERS)}"]
    space.append(f"model.fc_size={','.join(HIDDEN)}")
    words = ["sweep=study", "sweep.sampler=BruteForceSampler", f"sweep.n_trials={4 * len(rates)}", f"sweep.seed={seed}"]
    words += ["sweep.workers=2", "data=npz", f"data.path={data}", "training.max_steps=600"]
    began = carry_out(place, "bestrun", "train", "-m", *space, *words, "training.patience_steps=300")
    seconds = time.time() - began
    journals = [path.read_text().splitlines() for path in place.glob("mlruns/runs/*/journal.jsonl")]
    events = [event for event in map(json.loads, sum(journals, [])) if event["event"] == "evaluation"]
    return Night(seconds, [(e["time_ms"] / 1000 - began, round(5000 * e["val/accuracy"])) for e in events])


def theirs(place: Path, *command: str) -> Night:
    began = carry_out(place, *command)
    seconds = time.time() - began
    notes = [line.split() for line in (place / "notes").read_text().splitlines()]
    return Night(seconds, [(float(when) - began, round(5000 * float(value))) for when, value in notes])


def with_hydra(place: Path, data: Path, rates: list[str]) -> Night:
    space = [f"learning_rate={','.join(rates)}", f"filters={','.join(FILTERS)}", f"fc_size={','.join(HIDDEN)}"]
    models = os.environ.get("BENCH_LOG_MODELS", "true")
    return theirs(place, "tests.bench.night_keras", "-m", f"data={data}", *space, f"log_models={models}")


def with_ray(place: Path, data: Path, rates: list[str]) -> Night:
    return theirs(place, "tests.bench.night_ray", str(data), ",".join(rates), str(place))


def lacks_ray_tune() -> bool:
    return any(importlib.util.find_spec(name) is None for name in ("ray", "fsspec", "tensorboardX", "pandas"))


def night() -> list[dict[str, Any]]:
    trials, turns = int(os.environ.get("BENCH_TRIALS", "20")), int(os.environ.get("BENCH_TURNS", "3"))
    rates = sorted(RATES[: trials // 4], key=float)
    trials = 4 * len(rates)
    section(f"a night's work: {trials} trials of 600 steps on 20,000 images, two processors")
    sides: dict[str, Any] = {"ours": ours, "Hydra and Keras": with_hydra, "Ray Tune and Keras": with_ray}
    if lacks_ray_tune():
        del sides["Ray Tune and Keras"]
        print("against Ray Tune: not installed here; make setup-ray, then pip install 'ray[tune]'")
    nights: dict[str, list[Night]] = {name: [] for name in sides}
    for turn in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            data = part_of_mnist(place, 20_000)
            for name, side in sides.items():
                more = [turn] if side is ours else []
                nights[name].append(side(place / name.split()[0], data, rates, *more))
                print(".", end="", flush=True)
    print()
    rows = []
    # The best value that all have reached, in each turn
    common = [min(each.best for each in together) for together in zip(*nights.values(), strict=True)]
    until = {name: [n.until(right) for n, right in zip(nights[name], common, strict=True)] for name in nights}
    for name, found in nights.items():
        rows += [
            row(f"{name}: all of it", [each.seconds for each in found], "s"),
            row(f"{name}: until {100 * np.median(common) / 5000:.2f} %, which all reach", until[name], "s"),
            row(f"{name}: best", [each.best / 50 for each in found], "%"),
        ]
    for name, limit in (("Hydra and Keras", 4), ("Ray Tune and Keras", 2)):
        if name in nights:
            whole = [b.seconds / a.seconds for a, b in zip(nights["ours"], nights[name], strict=True)]
            same = [b / a for a, b in zip(until["ours"], until[name], strict=True)]
            rows += [
                row(f"that many times sooner than {name}: all of it", whole, "x", limit, at_least=True),
                row(f"that many times sooner than {name}: the same value", same, "x", limit, at_least=True),
            ]
    return rows
