"""Training on images that stay in a file: the very result of training on images in memory, whatever happens to it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from bestrun.data import rows
from bestrun.storage.checkpoint import load
from bestrun.storage.folder import RunFolder
from support.large import write_npz
from support.looks import assert_same_checkpoint, evaluations
from support.memory import Peak
from support.processes import Starter, bestrun_command

IN_THE_FILE = ["data.in_memory=false", "data.validation_size=200"]
SMALL = ["model=cnn_bn", "model.num_filters=[8,16,16]", "model.filter_sizes=[3,3,3]", "training.batch_size=32"]
STEPS = ["training.max_steps=60", "training.evaluate_every_steps=20", "training.patience_steps=60"]
STEPS += ["tracking.log_model=none", "pictures=false"]
PLAIN = ["model.num_filters=[4,8]", "model.fc_size=16", "optimizer.learning_rate=2e-3", *STEPS]
MIXED = ["training.mixup_share=0.3", "training.cutmix_share=0.3"]
WHOLE = ["model=cnn_bn", "model.num_filters=[4]", "model.filter_sizes=[3]", "augmentation=images", *MIXED, *STEPS]


@pytest.fixture(scope="session")
def packed_npz(small_mnist_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images, compressed, so that they must be decoded."""
    path = tmp_path_factory.mktemp("packed") / "small.npz"
    with np.load(small_mnist_npz) as arrays:
        np.savez_compressed(path, **arrays)
    return path


def in_pieces(argv: tuple[str, ...]) -> None:
    """The command, with seven steps read at once, so that pieces end where no chunk and no interval does."""
    rows.AHEAD_STEPS = 7
    bestrun_command(argv)


def start(start_process: Starter, home: Path, *argv: object, fault: str | None = None):
    return start_process(in_pieces, tuple(map(str, argv)), cwd=home, env={"BESTRUN_FAULT": fault})


@pytest.fixture(scope="module")
def held(own_home, small_mnist_npz: Path) -> RunFolder:
    """A run of PLAIN on images in memory."""
    home, bestrun = own_home()
    result = bestrun("train", "data=npz", f"data.path={small_mnist_npz}", *PLAIN, "data.in_memory=true", "name=held")
    assert result.code == 0, result.err
    return folder(home, "held")


def folder(home: Path, name: str) -> RunFolder:
    return RunFolder(home / "mlruns" / "runs" / name)


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    figures = ["step", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "improved"]
    mine, theirs = ([[line[key] for key in figures] for line in evaluations(run)] for run in (one, other))
    assert mine == theirs
    assert_same_checkpoint(load(one.last), load(other.last))
    started = [json.loads(run.journal.read_text().splitlines()[0]) for run in (one, other)]
    for key in ("config_digest", "data_digest"):
        assert started[0][key] == started[1][key]


def test_training_from_a_file_gives_the_very_tensors_of_training_in_memory(start_process, home, small_mnist_npz, held):
    words = ["data=npz", f"data.path={small_mnist_npz}", *PLAIN]
    stored = start(start_process, home, "train", *words, "data.in_memory=false", "name=stored").wait()
    assert stored.code == 0, stored.err
    assert_same_run(held, folder(home, "stored"))


@pytest.mark.slow
def test_training_from_a_file_with_batch_norm_augmented_and_mixed_is_the_same(
    bestrun, start_process, home, small_mnist_npz
):
    words = ["data=npz", f"data.path={small_mnist_npz}", *WHOLE]
    in_memory = bestrun.start("train", *words, "data.in_memory=true", "name=held")
    stored = start(start_process, home, "train", *words, "data.in_memory=false", "name=stored")
    assert [in_memory.wait().code, stored.wait().code] == [0, 0], stored.err
    assert_same_run(folder(home, "held"), folder(home, "stored"))


def test_a_run_killed_on_the_way_resumes_from_the_cache_to_the_very_result(start_process, home, packed_npz, held):
    words = ["data=npz", f"data.path={packed_npz}", *PLAIN]
    killed = start(start_process, home, "train", *words, "data.in_memory=false", "name=stored", fault="F9:2")
    assert killed.wait().code == -signal.SIGKILL
    (file,) = (home / "mlruns" / "cache").glob("*.rows")
    made = file.stat().st_ino
    resumed = start(start_process, home, "resume", "stored").wait()
    assert resumed.code == 0, resumed.err
    assert "decoded" not in resumed.err and file.stat().st_ino == made
    assert_same_run(held, folder(home, "stored"))


@pytest.mark.slow
def test_a_row_damaged_while_a_run_trains_ends_it_and_resume_goes_on_from_the_cache_made_anew(
    bestrun, start_process, home, packed_npz
):
    words = ["data=npz", f"data.path={packed_npz}", *PLAIN]
    held = bestrun.start("train", *words, "name=held")
    argv = ("train", *words, "data.in_memory=false", "name=stored")
    ended = start_process(damaging, argv, cwd=home).wait()
    assert ended.code == 3
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert "is not what it was when it was first read" in line and "the next command makes it anew" in line
    assert "Traceback" not in ended.err + ended.out
    assert not list((home / "mlruns" / "cache").glob("*.rows"))
    assert evaluations(folder(home, "stored"))[-1]["step"] in (20, 40) and folder(home, "stored").last.exists()
    resumed = start(start_process, home, "resume", "stored").wait()
    assert resumed.code == 0 and "decoded into the cache" in resumed.err, resumed.err
    assert held.wait().code == 0
    assert_same_run(folder(home, "held"), folder(home, "stored"))


def damaging(argv: tuple[str, ...]) -> None:
    """The command; before its steps from 28 on are read, a bit of every row is flipped in the cache."""
    read = rows.Ahead._read

    def reading(self: rows.Ahead, first_step: int) -> rows.Pixels:
        if first_step == 28:
            (file,) = Path("mlruns/cache").glob("*.rows")
            with open(file, "r+b") as out:
                for begin in range(100, 3000 * 784, 784):
                    out.seek(begin)
                    out.write(b"\x7b")
        return read(self, first_step)

    rows.Ahead._read = reading
    in_pieces(argv)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_gigabytes_train_with_little_memory(start_process, home, tmp_path):
    path = tmp_path / "large.npz"
    write_npz(path, 20_000, 224)
    steps = ["training.max_steps=40", "training.evaluate_every_steps=20", "training.patience_steps=40"]
    words = ("train", "data=npz", f"data.path={path}", *IN_THE_FILE, *SMALL, *steps)
    for _ in range(2):  # it is looked through, then found
        process = start_process(bestrun_command, words, cwd=home)
        with Peak(process.pid) as peak:
            result = process.wait(800)
        assert result.code == 0, result.err
        assert peak.bytes < 1.2e9
    path.unlink()
