"""What it costs to keep what verdicts and `verify` need: hashes of tensors and lines, and a bit an image.

`python -m tests.bench.evidence` trains the default network for 700 steps and prints one line of JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from .table import REPEATS, home_in, row, section


def main() -> dict[str, float]:
    """The share of a run's training, evaluations included, that these take, in percent."""
    from bestrun.run.start import start
    from bestrun.settings.compose import compose
    from bestrun.storage import journal
    from bestrun.storage.home import find_home
    from bestrun.training import loop
    from bestrun.views.screen import Screen

    spent = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal spent
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent += time.perf_counter() - began

        return call

    loop.tensors_sha256, loop.encoded_bits = timed(loop.tensors_sha256), timed(loop.encoded_bits)
    journal.line_sha256 = timed(journal.line_sha256)
    composed = compose(["training.max_steps=700", "pictures=false"])
    result = start(composed, home=find_home(writes=True), screen=Screen(quiet=True))
    lines = journal.read_journal(find_home() / "runs" / result.run_name / "journal.jsonl")[0]
    seconds = [line["seconds"] for line in lines if line["event"] == "evaluation"]
    return {"share": 100 * spent / (seconds[-1] - seconds[0])}


def kept() -> list[dict[str, Any]]:
    section("what it costs to keep evidence")
    shares = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as place, home_in(place):
            done = subprocess.run(
                [sys.executable, "-m", "tests.bench.evidence"], capture_output=True, text=True, env=os.environ
            )
            assert done.returncode == 0, done.stderr
            shares.append(json.loads(done.stdout.splitlines()[-1])["share"])
    return [row("hashes and bits, of a default run's training and evaluations", shares, "%", 1)]


if __name__ == "__main__":
    print(json.dumps(main()))
