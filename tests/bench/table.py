"""One table on screen and in mlruns/bench.json: what was measured, its spread, what is to be reached."""

import datetime
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILE = Path("mlruns/bench.json")
REPEATS = 5
PACKAGES = ("bestrun", "tensorflow", "keras", "mlflow", "numpy")
DEVICES: dict[str, str] = {}  # of each program that was started: what it computed on, as it says itself


def in_turn(measures: dict[str, Callable[[], float]], times: int = REPEATS) -> dict[str, list[float]]:
    """Each measure so many times, A B A B ..., so that a busy minute of the machine hits all of them."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(times):
        for name, measure in measures.items():
            found[name].append(measure())
            print(".", end="", flush=True)
    print()
    return found


def computed_on() -> str:
    """What TensorFlow computes on in this process: its first graphics card, by its name, or the processor."""
    import tensorflow as tf

    cards = tf.config.get_visible_devices("GPU")
    return str(tf.config.experimental.get_device_details(cards[0]).get("device_name", "GPU")) if cards else "processor"


def tell_device(program: str, used: str) -> None:
    """Say it once of each program: what is compared on different devices is compared in vain."""
    if DEVICES.get(program) != used:
        DEVICES[program] = used
        print(f"{program} computes on: {used}", flush=True)


@contextmanager
def home_in(place: str) -> Iterator[None]:
    """What is started in here keeps its runs and its cache in a folder of `place`."""
    before = os.environ.get("BESTRUN_MLRUNS")
    os.environ["BESTRUN_MLRUNS"] = f"{place}/mlruns"
    try:
        yield
    finally:
        os.environ.pop("BESTRUN_MLRUNS")
        os.environ.update({"BESTRUN_MLRUNS": before} if before else {})


def section(title: str) -> None:
    print(f"\n{title}", flush=True)


def row(
    what: str, values: list[float], unit: str, limit: float | None = None, at_least: bool = False
) -> dict[str, Any]:
    middle = statistics.median(values)
    spread = f"({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    text = f"{what:<70} {middle:8.2f} {unit:<7} {spread:<20}"
    if limit is not None:
        mark = "" if middle == limit or (middle > limit) == at_least else "  <-- falls short"
        text += f" to reach: {'>=' if at_least else '<='} {limit:g}{mark}"
    print(text.rstrip(), flush=True)
    return {"what": what, "unit": unit, "median": middle, "values": values, "to_reach": limit, "at_least": at_least}


def keep(part: str, rows: list[dict[str, Any]]) -> None:
    """Put the rows of a part into the file, beside those of the others."""
    parts = json.loads(FILE.read_text()) if FILE.exists() else {}
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    parts = parts if isinstance(parts, dict) else {}  # a list in older versions
    parts[part] = {
        "date": datetime.date.today().isoformat(),
        "processor": processor,
        "devices": DEVICES,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "rows": rows,
    }
    FILE.write_text(json.dumps(parts, indent=2))
