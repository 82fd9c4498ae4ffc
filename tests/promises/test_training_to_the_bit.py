"""Whatever settings train a run: killed at random moments and resumed, it ends with the tensors, the evaluations and
the end of the run that nobody killed.

One row a setting; a new setting of training is a new row, and goes into one of the two that have many at once, which
are what the quick tests train. The seed of the moments is printed, and TO_THE_BIT_SEED=N before the command takes it
again.
"""

import os
import random
import signal
import time

import pytest

from bestrun.storage.checkpoint import load
from bestrun.storage.files import read_json
from bestrun.storage.folder import RunFolder
from bestrun.storage.journal import Journal, read_journal
from support.looks import assert_same_checkpoint, evaluations, figures, wait_for
from support.processes import scheduler_command

COMMON = [
    *("data=npz", "model.filter_sizes=[3]", "model.num_filters=[4]", "model.fc_size=8", "training.batch_size=16"),
    *("training.max_steps=300", "training.patience_steps=300", "training.evaluate_every_steps=20"),
    *("optimizer.learning_rate=2e-3", "pictures=false"),
]
MIXED = ["training.mixup_share=0.4", "training.cutmix_share=0.4"]
SETTINGS = {  # name -> what is typed for it
    "ema": ["optimizer.ema=0.97", "training.class_weights=balanced"],
    "micro_batches": ["training.micro_batches=4", "optimizer.clip_norm=0.5"],
    "bfloat16": ["precision=mixed_bfloat16"],
    "class_weights": ["training.class_weights=[1,2,0.5,1,3,1,1,0,1,1]", "training.label_smoothing=0.1"],
    "betas": ["optimizer=adamw", "optimizer.beta_1=0.8", "optimizer.beta_2=0.99", "training.label_smoothing=0.2"],
    "nesterov": ["optimizer=sgd", "optimizer.nesterov=true", "optimizer.weight_decay=0.01", "optimizer.ema=0.9"],
    "patience": ["optimizer.learning_rate=2e-2", "training.patience_steps=60", "optimizer.ema=0.9"],
    "plateau": ["schedule=plateau", "schedule.after_steps=40", "training.micro_batches=2"],
    "cosine": ["schedule=cosine", "optimizer.ema=0.97"],
    "images": ["augmentation=images", "augmentation.cutout_pixels=3", *MIXED, "training.label_smoothing=0.1"],
    "mixing": ["augmentation=affine", *MIXED, "training.micro_batches=2"],
    "batch_norm": ["model=cnn_bn", "optimizer.ema=0.97", "training.class_weights=balanced", "optimizer.clip_norm=1.0"],
}
TOGETHER = {
    "many": [
        *("optimizer=adamw", "optimizer.beta_1=0.8", "optimizer.ema=0.97", "optimizer.clip_norm=0.5"),
        *("training.micro_batches=2", "training.class_weights=balanced", "training.label_smoothing=0.1"),
        *("augmentation=affine", *MIXED, "precision=mixed_bfloat16", "schedule=cosine", "training.max_steps=160"),
    ],
    "others": [
        *("model=cnn_bn", "optimizer=sgd", "optimizer.nesterov=true", "optimizer.weight_decay=0.01"),
        *("schedule=plateau", "schedule.after_steps=40", "training.patience_steps=100", "training.max_steps=160"),
    ],
}


def _words(name, path):
    words = [*COMMON, f"data.path={path}", *(SETTINGS | TOGETHER)[name]]
    return [word for word in words if not (word.startswith("model.fc_size") and "model=cnn_bn" in words)]


class _Unseen:
    """A watcher that looks away."""

    def __getattr__(self, name):
        return lambda *_: None


def _train(path, words):
    """A run's training, begun or gone on with, in this process; its chunks are of one step each."""
    from bestrun.data.dataset import load_dataset
    from bestrun.settings.compose import compose
    from bestrun.settings.config import digest, flatten
    from bestrun.training import device, loop

    config = compose(words).config
    device.prepare(config.threads)
    data = load_dataset(**dict(config.data))
    loop.CHUNK_SECONDS = 0.0
    folder = RunFolder(path)
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.owned():
        journal = Journal(folder.journal)
        if journal.events:
            journal.append("resumed", from_step=0, changed={})
        else:
            journal.append(
                "started",
                name=folder.name,
                config_digest=digest(config),
                data_digest=data.digest,
                settings=flatten(config),
            )
        outcome = loop.train(config, data, folder, journal, watcher=_Unseen())
        journal.append("stopped", reason=outcome.reason, step=outcome.step, best=None)


@pytest.fixture(scope="session")
def uninterrupted(_forkserver, tmp_path_factory, tiny_npz):
    """By name: the folder of a run that nobody killed, made once."""
    from support.processes import Starter

    start, made = Starter(tmp_path_factory.mktemp("processes")), {}

    def get(name):
        if name not in made:
            made[name] = RunFolder(tmp_path_factory.mktemp("uninterrupted") / name)
            result = start(_train, made[name].path, _words(name, tiny_npz)).wait()
            assert result.code == 0, result.err
        return made[name]

    return get


def _dice(name):
    seed = int(os.environ.get("TO_THE_BIT_SEED", random.SystemRandom().randrange(10**6)))
    print(f"TO_THE_BIT_SEED={seed}")
    return random.Random(f"{seed} {name}")


def assert_same_end(folder, reference):
    (*_, end), (*_, expected) = read_journal(folder.journal)[0], read_journal(reference.journal)[0]
    assert (end["event"], end["reason"], end["step"]) == ("stopped", expected["reason"], expected["step"])
    assert figures(folder) == figures(reference)
    assert not any(event["event"] == "diverges" for event in read_journal(folder.journal)[0])
    assert_same_checkpoint(load(folder.last), load(reference.last))
    (best,), (expected_best,) = folder.bests(), reference.bests()
    assert best.name == expected_best.name
    assert_same_checkpoint(load(best), load(expected_best))


def _damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "number"),
    [("many", 0), *(pytest.param(name, number, marks=pytest.mark.slow) for name in SETTINGS for number in range(5))],
)
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(
    name, number, start_process, uninterrupted, tiny_npz, tmp_path
):
    reference, dice = uninterrupted(name), _dice(f"{name} {number}")
    folder, total = RunFolder(tmp_path / name), len(evaluations(reference))
    first = dice.randrange(1, total - 2)
    second = dice.randrange(first + 1, total - 1)
    for moment in (first, second):
        process = start_process(_train, folder.path, _words(name, tiny_npz))
        wait_for(lambda moment=moment: folder.exists() and len(evaluations(folder)) >= moment, process)
        time.sleep(dice.uniform(0, 0.03))
        process.kill()
        assert process.wait().code == -signal.SIGKILL, "it ended before it was killed"
    _damage(folder.last)
    result = start_process(_train, folder.path, _words(name, tiny_npz)).wait()
    assert result.code == 0, result.err
    assert "goes on from best-" in result.err
    assert_same_end(folder, reference)


@pytest.mark.parametrize("name", ["others", *(pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS)])
def test_a_sweep_s_killed_worker_ends_as_a_run_of_its_own(name, start_process, home, uninterrupted, tiny_npz):
    reference, dice = uninterrupted(name), _dice(f"sweep {name}")
    words = [*_words(name, tiny_npz), "sweep.backend=local", "sweep.name=killed", "seed=0,1"]
    process = start_process(scheduler_command, ("train", "-m", *words), cwd=home)
    runs = home / "mlruns" / "runs"

    def first():
        found = sorted(runs.glob("*")) if runs.exists() else []
        return RunFolder(found[0]) if found else None

    moment = dice.randrange(1, len(evaluations(reference)) - 3)
    wait_for(lambda: (run := first()) and run.exists() and len(evaluations(run)) >= moment, process)
    os.kill(read_json(first().lock)["pid"], signal.SIGKILL)
    result = process.wait()
    assert result.code == 0 and "killed by signal 9" in result.out + result.err
    assert_same_end(first(), reference)
