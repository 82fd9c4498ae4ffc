"""`make bench`: speed against what people would use instead, and what safety and sweeps cost, on this machine.

One table, on screen and in mlruns/bench.json, with what is to be reached. Times are noisy where others compute too, so
what is compared runs in turn (A B A B ...), and medians are shown with their range. Nothing here is asserted.

`make bench` runs peers, fast, start and safety: forty minutes; ARGS=PART runs one part: also sweeps (fifteen), accurate
(five seeds of recipe=accurate, forty), growth (longer and more) and pruning (studies pruned and not), an hour each, and
images (larger than memory: BENCH_IMAGES of them, ten), augmentation (ten), rare (a class of few images, five), evidence
(what hashes cost, one), night (a sweep against Hydra's and Ray Tune's, an hour) and clone (a newcomer's first minutes,
ten). On a machine with a graphics card the rows are the same; each program says what it computed on.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .augmentation import varied
from .clone import clone
from .evidence import kept
from .growth import growth
from .images import compared
from .night import night
from .rare import rare
from .speed import accurate, fast, peers, start
from .store import runs_growth
from .sweeps import overhead, planning, pruning, workers
from .table import keep, row, section


def saving(improved: bool) -> list[float]:
    """Milliseconds an evaluation blocks training: best, journal line and last, each with fsync, at the default size."""
    import numpy as np

    from bestrun.storage.checkpoint import LoopState, encode, save
    from bestrun.storage.files import write_atomically
    from bestrun.storage.folder import RunFolder
    from bestrun.storage.journal import Journal

    shapes = [(5, 5, 1, 16), (16,), (5, 5, 16, 36), (36,), (1764, 128), (128,), (128, 10), (10,)]
    numbers = np.random.default_rng(0)
    tensors = {
        f"{part}/{index}": numbers.normal(size=shape).astype("float32")
        for part in ("model", "optimizer/momentum", "optimizer/velocity")
        for index, shape in enumerate(shapes)
    }
    stamp = dict(run_name="bench", config_digest="", data_digest="")
    times = []
    with tempfile.TemporaryDirectory(dir=".") as place:
        folder = RunFolder(Path(place))
        with Journal(folder.journal) as journal:
            for step in range(60):
                began = time.perf_counter()
                encoded = encode(tensors, LoopState(step=step), **stamp)
                sha256 = save(folder.best(step), encoded) if improved else ""
                journal.append("evaluation", step=step, sha256=sha256, improved=improved)
                write_atomically(folder.last, encoded)
                times.append(1000 * (time.perf_counter() - began))
                folder.best(step).unlink(missing_ok=True)
    return times[10:]


TRAIN = """
import sys, time
from bestrun.cli.main import main
from bestrun.tracking import sender
catch_up = sender.Sender.catch_up
def timed(self):
    sent = catch_up(self)
    with open(self.folder.path / "processor.txt", "a") as file:
        print(time.time(), time.thread_time(), time.process_time(), file=file)
    return sent
sender.Sender.catch_up = timed
main()
"""


def default_run() -> dict[str, float]:
    """A default run from its evaluation at step 200 on (start-up is over by then): its seconds, its evaluations, those
    that improved, and the share of the run's processor time, in %, that its mirror's thread took.
    """
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(
            [sys.executable, "-c", TRAIN, "train", "name=bench"],
            env={**os.environ, "BESTRUN_MLRUNS": place},
            check=True,
            capture_output=True,
        )
        print(".", end="", flush=True)
        lines = (Path(place) / "runs/bench/journal.jsonl").read_text().splitlines()
        events = [event for event in map(json.loads, lines) if event["event"] == "evaluation" and event["step"] >= 200]
        first, last = events[0]["time_ms"], events[-1]["time_ms"]
        seen = (Path(place) / "runs/bench/processor.txt").read_text().splitlines()
        rows = [tuple(map(float, line.split())) for line in seen]
        rows = [row for row in rows if first <= 1000 * row[0] <= last]
    return {
        "seconds": (last - first) / 1000,
        "evaluations": len(events) - 1,
        "improved": sum(event["improved"] for event in events[1:]),
        "share": 100 * (rows[-1][1] - rows[0][1]) / (rows[-1][2] - rows[0][2]),
    }


def safety() -> list[dict[str, Any]]:
    section("what safety and tracking cost")
    runs = [default_run() for _ in range(5)]
    print()
    better, other = saving(improved=True), saving(improved=False)
    blocked = [
        run["improved"] * statistics.median(better) + (run["evaluations"] - run["improved"]) * statistics.median(other)
        for run in runs
    ]
    together = [ms / 10 / run["seconds"] + run["share"] for ms, run in zip(blocked, runs, strict=True)]
    return [
        row("best + journal line + last, fsynced, an evaluation that improves", better, "ms", 50),
        row("journal line + last, of one that does not", other, "ms", 50),
        row("tracking's thread, of a default run's processor time", [run["share"] for run in runs], "%"),
        row("tracking, journal and checkpoints together, of a default run", together, "%", 2),
    ]


def sweeps() -> list[dict[str, Any]]:
    section("what sweeps and look-ups cost")
    rows = [
        row("a grid of 500 points, composed and checked", planning(), "s", 30),
        row("a trial of local workers, beside training and MLflow", overhead(), "s", 0.5),
    ]
    more = runs_growth()
    rows += [
        row("bestrun runs, with 5,000 runs against 20", more["list s"], "s", 1),
        row("bestrun runs --by settings, against bestrun runs, of 5,000", more["by settings s"], "s", 2),
        row("the look-up of best, with 5,000 runs against 20", more["best s"], "s", 1),
        row("bestrun runs, with 5,000 runs against 20: memory", more["list MB"], "MB", 20),
        row("the look-up of best, with 5,000 runs against 20: memory", more["best MB"], "MB", 32),
    ]
    both = [workers() for _ in range(3)]
    ratio = [pair[1] / pair[2] for pair in both]
    return [*rows, row("two workers of one thread against one of two", ratio, "x", 1.4, at_least=True)]


PARTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "peers": peers,
    "fast": fast,
    "start": start,
    "safety": safety,
    "sweeps": sweeps,
    "accurate": accurate,
    "growth": growth,
    "pruning": pruning,
    "images": compared,
    "augmentation": varied,
    "rare": rare,
    "evidence": kept,
    "clone": clone,
    "night": night,
}

for part in sys.argv[1:] or ("peers", "fast", "start", "safety"):
    if part not in PARTS:
        sys.exit(f"{part}: there is no such part; type one of {', '.join(PARTS)}")
    keep(part, PARTS[part]())
