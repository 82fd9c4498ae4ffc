"""What a sweep's manifest takes for its own, and what it says of its runs; no training."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from bestrun.errors import SettingsError
from bestrun.storage.journal import Journal
from bestrun.sweep.backends.work import work
from bestrun.sweep.finalists import choose
from bestrun.sweep.kept import kept
from bestrun.sweep.manifest import Manifest, Run, Trial
from bestrun.sweep.scheduler import Scheduler, refuse_foreign_runs, refuse_other_data
from bestrun.sweep.space import plan
from bestrun.sweep.together import refuse_alone
from support.made_runs import SETTINGS, add_evaluation, add_stop, make_run

RUN = SETTINGS | {"training.max_steps": "30", "training.batch_size": "2"}


def made(home, *trials, name="s", folder="s", n_trials=3, **fields):
    """A manifest whose trials have these runs."""
    manifest = Manifest(
        home / "mlruns" / "sweeps" / folder / "manifest.json", name, 0, {"kind": "grid", "space": {}}, n_trials,
        {"metric": "val/accuracy", "direction": "maximize"}, "e", "u", **fields,
    )  # fmt: skip
    manifest.path.parent.mkdir(parents=True)
    manifest.trials += [Trial(number, {"seed": str(number)}, [Run(run)]) for number, run in enumerate(trials)]
    return manifest


# ---- at which point


@pytest.mark.parametrize(
    ("changed", "best"), [({"optimizer.learning_rate": ["1", "2"]}, 0.2), ({"training.max_hours": ["null", "1"]}, 0.9)]
)
def test_what_was_trained_with_other_settings_later_is_not_what_a_trial_came_to(tmp_path, changed, best):
    manifest, folder = made(tmp_path, "s-000"), make_run(tmp_path, "s-000", sweep="s", settings=RUN)
    with Journal(folder.journal) as journal:
        journal.append("resumed", from_step=30, at_step=30, changed=changed)
        add_evaluation(folder, journal, 90, True)
        add_stop(journal, "max_steps")
    run = manifest.trials[0].runs[0]
    steps = [step for step, _ in manifest.look(run)]
    assert (run.state, run.best, steps[-1]) == ("complete", best, 30 if best == 0.2 else 90)


# ---- whose data


def test_a_trial_learns_no_other_images_than_the_sweep_began_with(tmp_path, tiny_npz):
    path = tmp_path / "a.npz"
    shutil.copyfile(tiny_npz, path)
    manifest, planned = made(tmp_path, "s-000"), plan(["data=npz", f"data.path={path}", "seed=0,1"])
    refuse_other_data(manifest, planned, None)
    manifest.save()
    trial, scheduler = manifest.trials[0], quiet_scheduler(manifest, planned)
    task = Scheduler.task(scheduler, trial, trial.runs[0])
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"x_train": 255 - arrays["x_train"]})  # while the sweep is at work
    assert "other images now" in work(task).error and not manifest.folder(trial.runs[0]).path.exists()


# ---- whose runs


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["seed=0,1,2"], "s-002"),
        (["seed=0,1,2", "sweep.finalists=1"], "s-final-0-0"),
        (["model.fc_size=8,16,32", "sweep.replicates=2"], "s-001-1"),
    ],
)
def test_a_run_of_a_name_that_the_sweep_gives_next_is_refused_before_anything_begins(tmp_path, words, name):
    manifest, planned = made(tmp_path, "s-000"), plan(words)
    make_run(tmp_path, "s-000")  # its own
    make_run(tmp_path, "s-003")  # beyond its last trial
    refuse_foreign_runs(manifest, planned.settings)
    make_run(tmp_path, name)
    with pytest.raises(SettingsError, match=f"run {name}: .*/runs/{name} is no run of sweep s"):
        refuse_foreign_runs(manifest, planned.settings)
    (tmp_path / "mlruns" / "runs" / name).rename(tmp_path / "mlruns" / "runs" / "mine")
    refuse_foreign_runs(manifest, planned.settings)  # as the message says


def test_a_run_that_came_meanwhile_becomes_no_trial_and_no_finalist(tmp_path):
    manifest, planned = made(tmp_path, "s-000"), plan(["seed=0,1,2"])
    scheduler = SimpleNamespace(manifest=manifest, study=None, planned=planned, settings=planned.settings)
    make_run(tmp_path, "s-001")
    with pytest.raises(SettingsError, match="run s-001"):
        Scheduler.new_trial(scheduler)
    manifest.trials[0].runs[0].state, manifest.trials[0].runs[0].best = "complete", 0.9
    make_run(tmp_path, "s-final-0-0")
    with pytest.raises(SettingsError, match="run s-final-0-0"):
        choose(manifest, 1, 2, lambda point, number: planned.settle(point, number).config)
    assert len(manifest.trials) == 1 and not manifest.finals


def quiet_scheduler(manifest, planned):
    board = SimpleNamespace(show=lambda manifest: None)
    return SimpleNamespace(manifest=manifest, planned=planned, active={}, threads=None, board=board)


def test_a_trial_of_a_sweep_whose_folder_was_renamed_finds_it(tmp_path):
    manifest = made(tmp_path, "o-000", name="o", folder="n", config_dir="/gone")
    trial, scheduler = manifest.trials[0], quiet_scheduler(manifest, plan(["seed=0,1,2"]))
    task = Scheduler.task(scheduler, trial, trial.runs[0])
    assert work(task).error.startswith("--config-dir /gone: there is no such folder"), "which comes next"
    manifest.path.unlink()
    assert work(task).error.endswith("mlruns is gone: it was moved or deleted")


def test_a_run_of_a_sweep_whose_folder_was_renamed_stays_with_it(tmp_path):
    made(tmp_path, "o-000", name="o", folder="n").save()
    folder = make_run(tmp_path, "o-000", sweep="o", settings=RUN)
    with pytest.raises(SettingsError, match="belongs to sweep n, .*move --sweep n"):
        refuse_alone(tmp_path / "mlruns", [folder])
    assert kept(tmp_path / "mlruns")[1] == {"o": "of a sweep that is not complete"}, "the name that its runs know"
