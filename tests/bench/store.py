"""A store as years of work leave it: thousands of runs made in a minute, with all that an ordering can stumble over."""

import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bestrun.tracking.store import connect
from bestrun.tracking.translate import rows_of_an_evaluation

REPEATS = 5
SETTINGS = 50
START_MS = 1_700_000_000_000
LARGEST = 1.7976931348623157e308  # how MLflow keeps infinity; NaN it keeps as 0, and says so beside it


def make_store(path: Path, runs: int = 5000, evaluations: int = 100, settings: int = SETTINGS) -> str:
    """Add runs to an SQLite store, which is made if there is none; returns its tracking URI.

    Of a hundred runs about ten minimize val/loss, twenty are not finished, three are deleted, and the best of ten is
    NaN, infinite or missing. The accuracies are those of 500 images and starts are drawn, so some are equal.

    Args:
        settings: of each run, which are most of what MLflow reads of it.
    """
    store = connect(f"sqlite:///{path}")
    experiments = [store.experiment_id(name) for name in ("digits", "clothes")]
    draw = random.Random(0)
    with sqlite3.connect(path) as database:
        database.execute("pragma synchronous = off")
        database.execute("pragma cache_size = -500000")  # kB; the keys of metrics do not come in order
        for number in range(runs):
            _add(database, draw, experiments[number % 10 == 0], f"run-{number:05d}", runs, evaluations, settings)
    database.close()
    return store.uri


def _add(
    database: sqlite3.Connection,
    draw: random.Random,
    experiment: str,
    name: str,
    runs: int,
    evaluations: int,
    settings: int,
) -> None:
    def insert(table: str, columns: str, rows: list[tuple[object, ...]]) -> None:
        marks = ", ".join("?" * len(rows[0]))
        database.executemany(f"insert into {table} ({columns}) values ({marks})", rows)

    run = f"{draw.getrandbits(128):032x}"
    start = START_MS + 1000 * draw.randrange(runs)
    status = draw.choices(["FINISHED", "RUNNING", "FAILED", "KILLED"], [80, 5, 5, 10])[0]
    stage = draw.choices(["active", "deleted"], [97, 3])[0]
    kind = draw.choices(["accuracy", "loss"], [90, 10])[0]
    insert(
        "runs",
        "run_uuid, name, source_type, user_id, status, start_time, lifecycle_stage, artifact_uri, experiment_id",
        [(run, name, "UNKNOWN", "ada", status, start, stage, f"artifacts/{run}", experiment)],
    )
    typed = {
        "objective.metric": f"val/{kind}",
        "optimizer.learning_rate": f"{10 ** draw.uniform(-5, -1):.2e}",
        "seed": str(draw.randrange(5)),
    }
    typed |= {f"setting.{number:02d}": f"value {number}" for number in range(settings - len(typed))}
    insert("params", "run_uuid, key, value", [(run, *setting) for setting in typed.items()])
    tags = {
        "bestrun.run": name,
        "bestrun.folder": f"/nowhere/{name}",
        "bestrun.data_digest": "0" * 64,
        "bestrun.config_digest": "0" * 64,
        "bestrun.versions": '{"bestrun": "0.1.0"}',
        "bestrun.sweep": f"night{draw.randrange(4)}",
        "mlflow.runName": name,
        "mlflow.user": "ada",
        "mlflow.source.git.commit": "0" * 40,
    }
    if draw.random() < 0.5:
        tags["author"] = draw.choice(["ada", "bob"])
    if status != "RUNNING":
        tags["bestrun.stop_reason"] = {"FINISHED": "patience", "FAILED": "diverged", "KILLED": "interrupted"}[status]
    insert("tags", "run_uuid, key, value", [(run, *tag) for tag in tags.items()])

    history = [
        (key, draw.random(), start + 1000 * number, run, 100 * number, False)
        for number in range(evaluations)
        for key in rows_of_an_evaluation([])
    ]
    last = history[-len(rows_of_an_evaluation([])) :]
    values = {"accuracy": draw.randrange(500) / 500, "loss": round(draw.expovariate(2), 2)}
    best = [(f"best/{key}", value, start, run, 100, False) for key, value in values.items()]
    best.append(("best/step", 100.0, start, run, 100, False))
    odd = draw.choices(["", "NaN", "infinite", "least", "missing"], [90, 3, 3, 1, 3])[0]
    if odd == "NaN":
        best = [(key, 0.0, *rest, True) for key, _, *rest, _ in best]
    elif odd in ("infinite", "least"):
        best = [(key, LARGEST if odd == "infinite" else -LARGEST, *rest) for key, _, *rest in best]
    elif odd == "missing":
        best = []
    if draw.random() < 0.3:
        best.append(("test/accuracy", draw.randrange(500) / 500, start, run, 100, False))
    columns = "key, value, timestamp, run_uuid, step, is_nan"
    insert("metrics", columns, history + best)
    insert("latest_metrics", columns, last + best)


LIST = ["-m", "bestrun", "runs"]
BEST = """
import os
from bestrun.tracking.lookup import Lookup, find_run
from bestrun.tracking.store import connect
best = Lookup("best", experiment="digits", objective="val/accuracy")
find_run(connect(os.environ["MLFLOW_TRACKING_URI"]), best)
"""


def runs_growth() -> dict[str, list[float]]:
    """What 5,000 runs cost more than 20, of a list of 20 and of the look-up of `best`: seconds, and MB at the most; and
    the seconds that a row a configuration of 5,000 runs takes more than the list.
    """
    found: dict[str, list[float]] = {key: [] for key in ("list s", "list MB", "best s", "best MB", "by settings s")}
    with tempfile.TemporaryDirectory() as place:
        few, many = (made_elsewhere(Path(place) / f"{runs}.db", runs) for runs in (20, 5000))
        for _ in range(REPEATS):
            for what, words in (("list", LIST), ("best", ["-c", BEST])):
                (seconds, memory), (seconds_many, memory_many) = process(words, few), process(words, many)
                found[f"{what} s"].append(seconds_many - seconds)
                found[f"{what} MB"].append(memory_many - memory)
                if what == "list":
                    found["by settings s"].append(process([*LIST, "--by", "settings"], many)[0] - seconds_many)
                print(".", end="", flush=True)
    print()
    return found


def made_elsewhere(path: Path, runs: int) -> str:
    """In a process of its own: a child's memory counts from what its parent had when it was started."""
    done = subprocess.run([sys.executable, "-m", __name__, path, str(runs)], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def process(words: list[str], uri: str) -> tuple[float, float]:
    """Seconds from start to end of a new process, and the most memory it had."""
    began = time.perf_counter()
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    process = subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {' '.join(words)}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


if __name__ == "__main__":  # a store to try things on: python -m tests.bench.store FILE RUNS
    print(make_store(Path(sys.argv[1]), int(sys.argv[2])))
