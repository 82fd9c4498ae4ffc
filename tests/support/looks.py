"""Looking at runs: their checkpoints, their journals, folders, and waiting until something is there."""

import shutil
import signal
import time
from dataclasses import asdict

import numpy as np

from bestrun.storage.checkpoint import load
from bestrun.storage.folder import RunFolder
from bestrun.storage.journal import read_journal


def same_tensors(one, two):
    """Whether two checkpoint files hold bit-identical weights and optimizer variables."""
    one, two = load(one).tensors, load(two).tensors
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def evaluations(folder):
    return [event for event in read_journal(folder.journal)[0] if event["event"] == "evaluation"]


ELSEWHERE = shutil.ignore_patterns("mirror.json")  # it names the store of the home that a run is copied from


def own_until_killed(path):
    with RunFolder(path).owned():
        print("owned", flush=True)
        signal.pause()


def assert_same_tensors(one, two):
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor, two.tensors[name], err_msg=name)


def assert_same_checkpoint(one, two):
    assert_same_tensors(one, two)
    assert {**asdict(one.state), "seconds": None} == {**asdict(two.state), "seconds": None}


def figures(folder):
    """Every evaluation as the journal has it, times excepted; in order, as often as it stands there."""
    keys = ("step", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "improved", "checkpoint")
    return [tuple(line.get(key) for key in keys) for line in evaluations(folder)]


def wait_for(condition, process=None, seconds=60):
    """Wait until something can be seen in a file; ends early with the process."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            return False
        assert time.monotonic() < deadline, f"nothing within {seconds} s\n{process and process.err}"
        time.sleep(0.002)
    return True


def tree(folder):
    """Every path below a folder, with size and time of change; the store's lock is taken by whoever looks into it."""
    paths = [path for path in folder.rglob("*") if path.suffix != ".lock"]
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


def until(what, process=None, timeout=90):
    """Wait until `what()` is true; a process that ends before is an error, unlike in `wait_for`."""
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, process and process.out + process.err
        assert process is None or process.poll() is None or what(), process.out + process.err
        time.sleep(0.02)
