"""What a newcomer waits for: from `git clone` until the first evaluation is printed, with no package in a cache.

`make bench ARGS=clone`: `make train` against the same lock file installed by pip, in turn, BENCH_TURNS (2) times.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .speed import ratios
from .table import in_turn, row, section

ROOT = Path(__file__).parents[2]
FIRST = re.compile(r"\s+0(\s+-){2}\s+\d")  # the line of the evaluation at step 0; nothing was trained before
BY_PIP = """
{python} -m venv .venv
.venv/bin/python -m pip install --quiet --compile --require-hashes -r requirements.lock
.venv/bin/python -m pip install --quiet --compile --no-deps --no-build-isolation --editable .
.venv/bin/bestrun train
"""


def until_first_evaluation(command: list[str]) -> float:
    """Seconds from the clone on, in a folder of its own, with caches of its own, which are empty."""
    with tempfile.TemporaryDirectory() as place:
        caches = {name: f"{place}/{name}" for name in ("PIP_CACHE_DIR", "UV_CACHE_DIR")}
        without = {"PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "BESTRUN_MLRUNS"}
        environment = {key: value for key, value in os.environ.items() if key not in without} | caches
        began = time.perf_counter()
        subprocess.run(["git", "clone", "--quiet", ROOT, f"{place}/clone"], check=True)
        with subprocess.Popen(
            command,
            cwd=f"{place}/clone",
            env=environment | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stdout
            for line in process.stdout:
                if FIRST.match(line):
                    seconds = time.perf_counter() - began
                    os.killpg(process.pid, signal.SIGKILL)
                    return seconds
    raise RuntimeError(f"{command} printed no evaluation")


def clone() -> list[dict[str, Any]]:
    section("from git clone to the first evaluation printed, packages not cached")
    by_pip = ["bash", "-ec", BY_PIP.format(python=sys.executable)]
    found = in_turn(
        {
            "make train": lambda: until_first_evaluation(["make", "train"]),
            "pip": lambda: until_first_evaluation(by_pip),
        },
        int(os.environ.get("BENCH_TURNS", "2")),
    )
    return [
        row("git clone and make train, to the first evaluation", found["make train"], "s"),
        row("the same with pip", found["pip"], "s"),
        row("of pip's time", ratios(found["make train"], found["pip"]), "x", 0.5),
    ]
