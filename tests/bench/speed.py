"""How fast, against what people would use instead: each peer as its documentation has it, with its defaults and ours.

Each measurement is a process of its own; what is compared runs in turn. PyTorch is not in our lock: where there is one,
BENCH_TORCH_PYTHON names its Python.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from .table import home_in, in_turn, row, section, tell_device

DEFAULTS = {"TF_ENABLE_ONEDNN_OPTS": None, "BENCH_THREADS": None}
WITHOUT_ONEDNN = DEFAULTS | {"TF_ENABLE_ONEDNN_OPTS": "0"}  # as TensorFlow leaves it on a processor without AVX-512
OURS = {"TF_ENABLE_ONEDNN_OPTS": "1", "BENCH_THREADS": str(len(os.sched_getaffinity(0)))}
TARGET = 0.987


def program(name: str, *words: str, flags: dict[str, str | None] = OURS) -> dict[str, Any]:
    """Run a program of this folder; what it prints, and says of its device."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **flags}
    environment = {key: value for key, value in environment.items() if value is not None}
    command = [sys.executable, "-m", f"tests.bench.{name}", *words]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    found = json.loads(done.stdout.splitlines()[-1])
    tell_device(name, found["device"])
    return found  # type: ignore[no-any-return]


def rate(name: str, *words: str, flags: dict[str, str | None] = OURS) -> float:
    found = program(name, *words, flags=flags)
    return float(found["steps"] / found["seconds"])


class Run:
    """A run of our command, by what its journal says."""

    def __init__(self, *words: str, test: bool = False) -> None:
        command = [sys.executable, "-m", "bestrun"]
        with tempfile.TemporaryDirectory() as place:
            environment = {**os.environ, "BESTRUN_MLRUNS": place}
            self.began = time.time()
            self._process = subprocess.Popen(
                [*command, "train", *words, "name=bench"],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            _, status, usage = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            if self._process.returncode:
                raise RuntimeError(f"exit code {self._process.returncode}: {' '.join(words)}")
            self.seconds = time.time() - self.began
            self.megabytes = usage.ru_maxrss / 1024
            lines = (Path(place) / "runs/bench/journal.jsonl").read_text().splitlines()
            self.evaluations = [event for event in map(json.loads, lines) if event["event"] == "evaluation"]
            if test:
                restored = subprocess.run(
                    [*command, "restore", "bench", "--json"], env=environment, check=True, capture_output=True
                )
                self.test = float(json.loads(restored.stdout)["test"]["accuracy"])

    def at(self, step: int) -> float:
        """When the evaluation at a step was over, in seconds since 1970."""
        return next(float(event["time_ms"]) / 1000 for event in self.evaluations if event["step"] == step)

    def until(self, accuracy: float) -> float | None:
        """Seconds from the first training step, compilation included, until an evaluation was at least so good."""
        good = [event for event in self.evaluations if event["val/accuracy"] >= accuracy]
        return self.at(good[0]["step"]) - self.at(0) if good else None

    def training_share(self, first: int, last: int) -> float:
        """Of the seconds between two evaluations, the share that training steps took."""
        steps = [event for event in self.evaluations if first < event["step"] <= last]
        # images_per_second is the rate of the steps alone
        training = sum(64 * 100 / event["images_per_second"] for event in steps)
        return training / (self.at(last) - self.at(first))


def peers() -> list[dict[str, Any]]:
    section("against what people would use instead, steps a second, as ratios")
    shares: list[float] = []

    def ours() -> float:
        run = Run("training.max_steps=800", "training.patience_steps=800")
        shares.append(100 * (1 - run.training_share(200, 800)))
        return 600 / (run.at(800) - run.at(200))

    whole = in_turn(
        {
            "ours": ours,
            "tutorial": lambda: rate("tutorial", "whole", flags=DEFAULTS),
            "tutorial, our flags": lambda: rate("tutorial", "whole"),
            "keras": lambda: rate("keras_fit", "whole", flags=DEFAULTS),
            "keras, our flags": lambda: rate("keras_fit", "whole"),
            "tutorial, oneDNN off": lambda: rate("tutorial", "whole", flags=WITHOUT_ONEDNN),
            "keras, oneDNN off": lambda: rate("keras_fit", "whole", flags=WITHOUT_ONEDNN),
        }
    )
    limits = dict.fromkeys(list(whole)[1:]) | {"tutorial": 1.5, "keras": 2.5}
    rows = [
        row(f"a default run, all in, against {peer}", ratios(whole["ours"], whole[peer]), "x", limit, at_least=True)
        for peer, limit in limits.items()
    ]
    rows.append(row("a default run, all in", whole["ours"], "steps/s"))
    rows.append(row("all but training steps, of a default run", shares, "%", 21.5))

    measured: list[dict[str, Any]] = []
    alone = {
        "ours": lambda: measured.append(program("ours")) or measured[-1]["steps"] / measured[-1]["seconds"],
        "tutorial": lambda: rate("tutorial", "steps"),
        "keras": lambda: rate("keras_fit", "steps"),
    }
    with tempfile.TemporaryDirectory() as place:
        if torch := os.environ.get("BENCH_TORCH_PYTHON"):
            alone["PyTorch"] = lambda: pytorch(torch, Path(place))
        steps = in_turn(alone)  # type: ignore[arg-type]
    for peer in ("tutorial", "keras", "PyTorch"):
        if peer in steps:
            what = f"training steps alone, oneDNN on, against {peer}"
            rows.append(row(what, ratios(steps["ours"], steps[peer]), "x", 1.15, at_least=True))
        else:
            print(f"against {peer}: not installed here; BENCH_TORCH_PYTHON=PYTHON names one that has it")
    rows.append(row("training steps alone", steps["ours"], "steps/s"))
    rows.append(row("matrix multiplication, float32", [found["gflops"] for found in measured], "GFLOP/s"))
    share = [100 * found["share"] for found in measured]
    rows.append(row("training steps' share of that rate", share, "%", 45, at_least=True))
    return rows


def pytorch(python: str, place: Path) -> float:
    import numpy as np

    from bestrun.data.dataset import load_dataset

    file = place / "train.npz"
    if not file.exists():
        train = load_dataset("mnist").train
        np.savez(file, images=train.images[..., 0], labels=train.labels)
    script = Path(__file__).with_name("pytorch_loop.py")
    found = json.loads(subprocess.run([python, script, file], check=True, capture_output=True).stdout)
    tell_device("pytorch_loop", found["device"])
    return float(found["steps"] / found["seconds"])


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def fast() -> list[dict[str, Any]]:
    """Time to 98.7 %, seeds 0 to 4, ours and the tutorial's in turn; infinite for a run that ends before."""
    section(f"recipe=fast, until {100 * TARGET:g} % of the validation split are right")
    seconds: list[float] = []
    theirs: list[float] = []
    tests: list[float] = []
    for seed in range(5):
        run = Run("recipe=fast", f"seed={seed}", test=True)
        seconds.append(run.until(TARGET) or float("inf"))
        tests.append(100 * run.test)
        theirs.append(program("tutorial", "reach", str(seed), flags=DEFAULTS)["seconds"] or float("inf"))
        print(f"seed {seed}: {seconds[-1]:.1f} s, test {tests[-1]:.2f} %; the tutorial {theirs[-1]:.1f} s", flush=True)
    from statistics import mean, median

    return [
        row("recipe=fast, first step to 98.7 %", seconds, "s"),
        row("the tutorial's program, first step to 98.7 %", theirs, "s"),
        row("that many times sooner, by the medians", [median(theirs) / median(seconds)], "x", 15, at_least=True),
        row("recipe=fast, test accuracy, mean of 5 seeds", [mean(tests)], "%", 98.9, at_least=True),
    ]


def accurate() -> list[dict[str, Any]]:
    """Five seeds of recipe=accurate: half an hour or more."""
    from statistics import mean

    section("recipe=accurate")
    runs = [Run("recipe=accurate", f"seed={seed}", test=True) for seed in range(5)]
    tests = [100 * run.test for run in runs]
    print("test accuracy of each seed:", *(f"{accuracy:.2f}" for accuracy in tests))
    return [
        row("recipe=accurate, test accuracy, mean of 5 seeds", [mean(tests)], "%", 99.65, at_least=True),
        row("recipe=accurate, a run", [run.seconds / 60 for run in runs], "min", 15),
    ]


IMPORT = "import os; os.environ['TF_ENABLE_ONEDNN_OPTS'] = '1'; import tensorflow"


def start() -> list[dict[str, Any]]:
    """What a person waits for, and what a run takes of memory."""
    section("waiting, and memory")

    def seconds(*command: str, expect: int = 0) -> float:
        began = time.perf_counter()
        done = subprocess.run([sys.executable, *command], capture_output=True)
        assert done.returncode == expect, done.stderr
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory() as place, home_in(place):
        words = ["training.max_steps=1", "training.evaluate_every_steps=1", "training.patience_steps=1"]
        sweep = ["pictures=false", "seed=range(0,20)", "sweep.name=bench"]
        subprocess.run(
            [sys.executable, "-m", "bestrun", "train", "-m", *words, *sweep], check=True, capture_output=True
        )
        picture = Path(place) / "picture.png"
        Image.new("L", (28, 28)).save(picture)
        untested = (f"bench-{number:03d}" for number in range(20))  # the first test of a run is sent to MLflow
        waits = in_turn(
            {
                "help": lambda: seconds("-m", "bestrun", "--help"),
                "error": lambda: seconds("-m", "bestrun", "train", "optimizer.lerning_rate=1", expect=2),
                "runs": lambda: seconds("-m", "bestrun", "runs"),
                "show": lambda: seconds("-m", "bestrun", "show", "bench-000"),
                "compare": lambda: seconds("-m", "bestrun", "compare", "bench-000", "bench-001"),
                "predict": lambda: seconds("-m", "bestrun", "predict", "bench-000", str(picture)),
                "restore": lambda: seconds("-m", "bestrun", "restore", next(untested)),
                "import": lambda: seconds("-c", IMPORT),
            }
        )
    above = {
        verb: [whole - imported for whole, imported in zip(waits[verb], waits["import"], strict=True)]
        for verb in ("predict", "restore")
    }

    def first_step() -> float:
        run = Run(*words)
        return run.at(0) - run.began

    starts = in_turn({"import": lambda: seconds("-c", IMPORT), "run": first_step})
    more = [run - imported for run, imported in zip(starts["run"], starts["import"], strict=True)]
    short = Run("training.max_steps=1000").megabytes
    long = Run("training.max_steps=10000", "training.patience_steps=10000").megabytes
    return [
        row("bestrun --help", waits["help"], "s", 0.3),
        row("a settings error", waits["error"], "s", 1.2),
        row("bestrun runs, 20 runs", waits["runs"], "s", 2),
        row("bestrun show", waits["show"], "s", 0.5),
        row("bestrun compare, two runs", waits["compare"], "s", 0.5),
        row("bestrun predict, one picture", waits["predict"], "s", 5),
        row("bestrun predict, above import tensorflow", above["predict"], "s", 2),
        row("bestrun restore, a run not tested before", waits["restore"], "s", 8),
        row("bestrun restore, above import tensorflow", above["restore"], "s", 2),
        row("from the command to the first training step, above import tensorflow", more, "s", 4),
        row("most memory of 10,000 default steps", [long / 1024], "GB", 1.1),
        row("of 10,000 steps above 1,000", [100 * (long / short - 1)], "%", 2),
    ]
