"""`make bench`: speed against what people would use instead, and what safety and sweeps cost, on this machine.

One table, on screen and in mlruns/bench.json, with what is to be reached. Times are noisy where others compute too, so
what is compared runs in turn (A B A B ...), and medians are shown with their range. Nothing here is asserted.

`make bench` runs peers, fast, start and safety: forty minutes; ARGS=PART runs one part: also sweeps (fifteen), accurate
(five seeds of recipe=accurate, forty), growth (longer and more) and pruning (studies pruned and not), an hour each.
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

from .growth import growth
from .speed import accurate, fast, peers, start
from .store import runs_growth
from .sweeps import overhead, planning, pruning, workers
from .table import in_turn, keep, row, section


def saving() -> list[float]:
    """Milliseconds an evaluation blocks training: best, journal line and last, each with fsync, at the default size."""
    import numpy as np

    from bestrun.checkpoint import LoopState, save
    from bestrun.folder import RunFolder
    from bestrun.journal import Journal

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
                sha256 = save(folder.best(step), tensors, LoopState(step=step), **stamp)
                journal.append("evaluation", step=step, sha256=sha256, improved=True)
                save(folder.last, tensors, LoopState(step=step), **stamp)
                times.append(1000 * (time.perf_counter() - began))
                folder.best(step).unlink()
    return times[10:]


TRAIN = """
import sys, time
from bestrun import mirror
from bestrun.cli import main
if sys.argv.pop(1) == "off":
    mirror.Mirror.start = lambda self: None
    mirror.Mirror.finish = lambda self, seconds: True
catch_up = mirror.Sender.catch_up
def timed(self):
    sent = catch_up(self)
    with open(self.folder.path / "processor.txt", "a") as file:
        print(time.time(), time.thread_time(), time.process_time(), file=file)
    return sent
mirror.Sender.catch_up = timed
main()
"""
shares: list[float] = []  # of the processor time of the run, that its mirror's thread took in those seconds


def default_run(tracking: str) -> float:
    """Seconds of 600 steps of the default run, from its evaluation at step 200 on: start-up is over by then."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(
            [sys.executable, "-c", TRAIN, tracking, "train", "training.max_steps=800", "name=bench"],
            env={**os.environ, "BESTRUN_MLRUNS": place},
            check=True,
            capture_output=True,
        )
        lines = (Path(place) / "runs/bench/journal.jsonl").read_text().splitlines()
        times = {event["step"]: event["time_ms"] for event in map(json.loads, lines) if event["event"] == "evaluation"}
        if tracking == "on":
            seen = (Path(place) / "runs/bench/processor.txt").read_text().splitlines()
            rows = [tuple(map(float, line.split())) for line in seen]
            rows = [row for row in rows if times[200] <= 1000 * row[0] <= times[800]]
            shares.append(100 * (rows[-1][1] - rows[0][1]) / (rows[-1][2] - rows[0][2]))
    return (times[800] - times[200]) / 1000


def safety() -> list[dict[str, Any]]:
    section("what safety and tracking cost")
    seconds = in_turn({name: lambda name=name: default_run(name) for name in ("off", "on")})  # type: ignore[misc]
    cost = [100 * (on / off - 1) for on, off in zip(seconds["on"], seconds["off"], strict=True)]
    blocked = saving()
    interval = statistics.median(seconds["on"]) / 6
    together = [ms / 10 / interval + statistics.median(shares) for ms in blocked]
    return [
        row("best + journal line + last, fsynced, an evaluation", blocked, "ms", 50),
        row("the same and tracking's processor time, of a run that always improves", together, "%", 2),
        row("tracking, of a default run after start-up", cost, "%", 2),
        row("tracking, its thread's share of the run's processor time", shares, "%", 2),
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
        row("the look-up of best, with 5,000 runs against 20", more["best s"], "s", 1),
        row("bestrun runs, with 5,000 runs against 20: memory", more["list MB"], "MB", 32),
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
}

for part in sys.argv[1:] or ("peers", "fast", "start", "safety"):
    if part not in PARTS:
        sys.exit(f"{part}: there is no such part; type one of {', '.join(PARTS)}")
    keep(part, PARTS[part]())
