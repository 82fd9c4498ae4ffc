"""Many runs in one process, as a sweep with one worker makes them, leave nothing behind in it (R26 of the plan)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

IMAGES = 12_000  # of 28 x 28: 9 MB, so that data which is kept is seen


def _run_many(home, path, count):
    """Prints megabytes in memory and open files after each run."""
    from bestrun.run.start import start
    from bestrun.settings.compose import compose
    from bestrun.views.screen import Screen

    steps = [f"training.{key}=4" for key in ("max_steps", "evaluate_every_steps", "patience_steps")]
    words = ["data=npz", f"data.path={path}", *steps, "model.num_filters=[2,2]", "model.fc_size=4"]
    seen = []
    for number in range(count):
        start(compose([*words, f"name=run{number}", f"seed={number}"]), home=home, screen=Screen(quiet=True))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        seen.append((pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd"))))
    print(json.dumps(seen))


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", IMAGES), ("test", 100)):
        arrays[f"x_{part}"] = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 10
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [pytest.param(7, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.slow)])
def test_memory_and_open_files_do_not_grow_from_run_to_run(start_process, home, data, count):
    result = start_process(_run_many, home / "mlruns", data, count, cwd=home).wait(1200)
    assert result.code == 0, result.err
    assert "retracing" not in result.err
    seen = json.loads(result.out)
    settled = seen[4 if count == 7 else 20]  # the first ones fill caches
    assert seen[-1][0] < 1.05 * settled[0], seen
    assert seen[-1][1] == settled[1], seen
