"""Run folders as the loop leaves them, made in no time: a journal, and small files for checkpoints."""

import hashlib
from functools import lru_cache

from bestrun.settings.compose import compose
from bestrun.settings.config import to_yaml
from bestrun.storage.folder import RunFolder
from bestrun.storage.journal import Journal

SETTINGS = {
    "seed": "0",
    "objective.metric": "val/accuracy",
    "model": "cnn",
    "optimizer": "adam",
    "optimizer.learning_rate": "1",
}


@lru_cache(1)
def _settings():
    return to_yaml(compose(["training.max_steps=30", "training.evaluate_every_steps=10"]).config)


def make_run(home, name="r", steps=(0, 10, 20, 30), improved=(10, 20), reason="max_steps", **started):
    """A run folder as the loop leaves it, with small files for checkpoints."""
    folder = RunFolder(home / "mlruns" / "runs" / name)
    folder.path.mkdir(parents=True)
    folder.config.write_text(_settings())
    folder.overrides.write_text("overrides: []\n")
    data = {"name": "d", "source": "d", "train": 3, "validation": 2, "test": 1, "image_shape": [2, 2, 1]}
    with Journal(folder.journal) as journal:
        fields = dict(
            name=name, experiment="e", config_digest="c", data_digest="f" * 64, settings=SETTINGS,
            data=data | {"num_classes": 2}, versions={}, threads=1, git={},
        )  # fmt: skip
        journal.append("started", **{**fields, **started})
        for step in steps:
            add_evaluation(folder, journal, step, step in improved)
        if reason:
            add_stop(journal, reason)
    return folder


def add_evaluation(folder, journal, step, improved, **values):
    entry = {"train/loss": None if step == 0 else 1 / step, "train/accuracy": None if step == 0 else step / 100}
    entry |= {"val/loss": 1 / (step + 1), "val/accuracy": step / 100, "images_per_second": None, **values}
    if improved:
        best = folder.best(step)
        best.write_bytes(b"checkpoint %d" % step)
        entry |= {"checkpoint": best.name, "sha256": hashlib.sha256(best.read_bytes()).hexdigest()}
        for older in folder.bests():
            if older != best:
                older.unlink()
    journal.append("evaluation", step=step, improved=improved, **entry)


def add_stop(journal, reason):
    best = journal.find("evaluation", improved=True)
    best = best and {key: best[key] for key in ("step", "checkpoint", "sha256")}
    journal.append("stopped", reason=reason, step=journal.events[-1].get("step", 0), best=best)
