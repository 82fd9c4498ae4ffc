"""What sweeps cost and save: planning, a trial's overhead, two workers against one, pruning against none."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SEEDS = range(5)
SPACE = ["model.num_filters=[4,8],[8,16],[16,36]", "model.fc_size=32,64,128"]


def small_mnist(place: Path) -> str:
    """2,000 training images of MNIST, as a setting."""
    return f"data.path={part_of_mnist(place, 2000)}"


def part_of_mnist(place: Path, images: int) -> Path:
    """A file with so many training images; validated on MNIST's own 5,000, since 500 would measure in steps of 0.2
    points.
    """
    from bestrun.data.dataset import load_dataset

    mnist, arrays = load_dataset("mnist"), {}
    for part, split, count in (
        ("train", mnist.train, images),
        ("val", mnist.validation, 5000),
        ("test", mnist.test, 1000),
    ):
        arrays |= {f"x_{part}": split.images[:count, ..., 0], f"y_{part}": split.labels[:count].astype("uint8")}
    path = place / f"mnist-{images}.npz"
    np.savez(path, **arrays)
    return path


def sweep(place: Path, name: str, *words: str) -> dict:
    """Run a sweep to its end; returns what `bestrun sweep --json` says."""
    command = [sys.executable, "-m", "bestrun", "train", "--json", "-m", *words, f"sweep.name={name}"]
    done = subprocess.run(
        command, env={**os.environ, "BESTRUN_MLRUNS": str(place / "mlruns")}, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def planning() -> list[float]:
    """Seconds to compose and check a grid of 500 points with two group options, in a process that has the imports."""
    from bestrun.settings.compose import parse
    from bestrun.sweep.space import plan

    words = ["optimizer=adam,sgd", "seed=range(0,25)", "training.batch_size=16,32,64,128,256", "model.fc_size=32,64"]
    times = []
    for _ in range(5):
        parse.cache_clear()
        began = time.perf_counter()
        assert len(plan(words).points) == 500
        times.append(time.perf_counter() - began)
    return times


def overhead() -> list[float]:
    """Seconds a trial of local workers takes beside its training and its end in MLflow.

    20 trials of one step, one worker: from the start of a run to the start of the next, less what the run's own journal
    accounts for, from `started` to `stopped`, and less its wait for MLflow after that.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        words = ["data=npz", small_mnist(place), "training.max_steps=1", "training.evaluate_every_steps=1"]
        words += ["training.patience_steps=1", "seed=range(0,20)", "sweep.backend=local", "sweep.threads=2"]
        sweep(place, "overhead", *words)
        runs = sorted((place / "mlruns/runs").iterdir())
        journals = [[json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()] for run in runs]
        ends = [(run / "result.json").stat().st_mtime for run in runs]  # written last, after MLflow has everything
        starts = [journal[0]["time_ms"] / 1000 for journal in journals]
    return [start - end for start, end in zip(starts[1:], ends, strict=False)]


def workers() -> dict[int, float]:
    """Seconds from the first run's start to the last one's end, of 6 trials of 300 steps: by two workers of one thread,
    and by one of two. The start of the fork server, 10 s once a sweep, is not in it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        words = ["data=npz", small_mnist(place), "training.max_steps=300", "training.patience_steps=300"]
        words += ["seed=range(0,6)", "sweep.backend=local"]
        found = {}
        for count in (1, 2):
            sweep(place, f"w{count}", *words, f"sweep.workers={count}", f"sweep.threads={3 - count}")
            times = [
                json.loads(line)["time_ms"]
                for run in (place / "mlruns/runs").glob(f"w{count}-*")
                for line in (run / "journal.jsonl").read_text().splitlines()
            ]
            found[count] = (max(times) - min(times)) / 1000
    return found


def memory(place: Path, trials: int, *words: str, early: int = 50) -> dict[str, float]:
    """The most memory, in MB, of the process that schedules a sweep, and of any that it started (the workers and the
    server they are forks of), when `early` of its trials had begun and when all were over; and the sweep's seconds.
    """
    from psutil import NoSuchProcess, Process

    command = [sys.executable, "-m", "bestrun", "train", "-m", *words, f"seed=range(0,{trials})", "sweep.backend=local"]
    began, found = time.perf_counter(), {}
    most = {"scheduler": 0.0, "worker": 0.0}
    environment = {**os.environ, "BESTRUN_MLRUNS": str(place / "mlruns")}
    sweep = subprocess.Popen(
        [*command, f"sweep.name=m{trials}"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    scheduler = Process(sweep.pid)
    while sweep.poll() is None:
        with contextlib.suppress(NoSuchProcess):
            most["scheduler"] = max(most["scheduler"], scheduler.memory_info().rss / 2**20)
            started = scheduler.children(recursive=True)
            most["worker"] = max([most["worker"], *(each.memory_info().rss / 2**20 for each in started)])
        if not found and len(list((place / "mlruns/runs").glob(f"m{trials}-*"))) > early:
            found = {f"{name}, early": value for name, value in most.items()}
        time.sleep(0.2)
    if sweep.returncode:
        raise RuntimeError(f"exit code {sweep.returncode}: {' '.join(command)}")
    return found | most | {"seconds": time.perf_counter() - began}


def pruning(seeds: range = SEEDS) -> list[dict]:
    """30 trials of 600 steps on 2,000 images, pruned as conf/sweep/study.yaml has it, and not at all."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        words = ["sweep=study", "data=npz", small_mnist(place), *SPACE, "sweep.n_trials=30", "training.max_steps=600"]
        words += ["training.patience_steps=600", "training.evaluate_every_steps=50"]
        for seed in seeds:
            row = {"seed": seed}
            for kind, more in (("unpruned", ["sweep.pruner=NopPruner"]), ("pruned", [])):
                report = sweep(place, f"{kind}-{seed}", *words, *more, f"sweep.seed={seed}")
                row[kind] = {"best": report["best"]["value"], "steps": report["cost"]["steps_run"]}
            row["points"] = 100 * (row["pruned"]["best"] - row["unpruned"]["best"])
            row["steps"] = 100 * row["pruned"]["steps"] / row["unpruned"]["steps"]
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows
