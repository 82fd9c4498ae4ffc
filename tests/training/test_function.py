"""What decides a network's function is fixed, recorded, told and proved: Keras' settings, code, processor, answers."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bestrun as package
from bestrun.storage import machine, provenance
from bestrun.storage.checkpoint import encode, load, save
from bestrun.storage.folder import RunFolder
from bestrun.storage.journal import read_journal
from bestrun.training import proof

QUICK = ["training.max_steps=20", "training.evaluate_every_steps=10", "training.patience_steps=20", "pictures=false"]
LONGER = ["training.max_steps=80", "training.patience_steps=80"]  # than the run `k`


def folder_of(home, name):
    return RunFolder(home / "mlruns" / "runs" / name)


def best_of(home, name):
    (best,) = folder_of(home, name).bests()
    return load(best)


@pytest.fixture
def changed_code(tmp_path):
    """`changed_code(file, old, new)`: an environment in which the package has that change."""

    def change(*changes):
        copy = tmp_path / "changed"
        shutil.copytree(Path(package.__file__).parents[2] / "conf", copy / "conf", dirs_exist_ok=True)
        shutil.copytree(Path(package.__file__).parent, copy / "src" / "bestrun", dirs_exist_ok=True)
        for file, old, new in changes:
            path = copy / "src" / "bestrun" / file
            assert old in path.read_text()
            path.write_text(path.read_text().replace(old, new))
        return {"PYTHONPATH": str(copy / "src")}

    return change


def command(*words, cwd, env):
    """The command in a process of its own, as the forked ones have the package imported already."""
    found = subprocess.run(
        [sys.executable, "-m", "bestrun", *map(str, words)],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in found.stderr, found.stderr
    return found


# ---- fixed by us


def _with_keras_of_another_mind(settings, floatx):
    import keras

    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy("mixed_float16")
    keras.config.set_epsilon(0.1)
    keras.config.set_image_data_format("channels_first")
    package.train(*settings, "name=other", quiet=True)


def test_keras_settings_of_another_mind_change_nothing(start_process, home, finished, settings):
    other = start_process(_with_keras_of_another_mind, settings, "float16", cwd=home).wait()
    assert other.code == 0, other.err
    usual, other = best_of(finished, "k"), best_of(home, "other")
    assert usual.tensors.keys() == other.tensors.keys()
    for name, tensor in usual.tensors.items():
        assert np.array_equal(tensor, other.tensors[name]), name


@pytest.mark.slow
def test_a_keras_json_of_another_mind_changes_nothing(bestrun, home, settings, tmp_path):
    (tmp_path / "keras").mkdir()
    written = {"floatx": "float16", "epsilon": 0.1, "backend": "jax", "image_data_format": "channels_first"}
    (tmp_path / "keras/keras.json").write_text(json.dumps(written))
    assert bestrun("train", *settings, *QUICK, "name=usual").code == 0
    env = {"KERAS_HOME": str(tmp_path / "keras"), "KERAS_BACKEND": ""}
    found = command("train", *settings, *QUICK, "name=other", cwd=home, env=env)
    assert found.returncode == 0, found.stderr
    for name, tensor in best_of(home, "usual").tensors.items():
        assert np.array_equal(tensor, best_of(home, "other").tensors[name]), name


@pytest.mark.sampled(1)
@pytest.mark.parametrize("backend", ["torch", "jax", "nonsense"])
def test_another_backend_is_refused_in_one_line_before_anything_is_made(home, settings, backend):
    found = command("train", *settings, cwd=home, env={"KERAS_BACKEND": backend})
    assert found.returncode == 2 and found.stdout == ""
    assert re.fullmatch(rf"error: KERAS_BACKEND={backend}: .*; type KERAS_BACKEND=tensorflow .*\n", found.stderr)
    assert not list((home / "mlruns").glob("runs/*"))


# ---- recorded and told


def test_what_computes_is_recorded_at_the_start_and_in_each_checkpoint(bestrun, copied):
    started = read_journal(folder_of(copied, "k").journal)[0][0]
    assert started["machine"] == machine.machine() and started["machine"]["processor"]
    assert started["machine"]["flags"]["TF_ENABLE_ONEDNN_OPTS"] == "1"
    assert started["code_sha256"] == machine.code_sha256()
    best = best_of(copied, "k")
    assert best.made_on["machine"] == started["machine"] and best.answers.shape == (8, 10)
    shown = bestrun("show", "k").out
    assert f"computed on  {started['machine']['processor']}" in shown
    assert json.loads(bestrun("show", "k", "--json").out)["machine"] == started["machine"]


def _flag(then, **flag):
    return then | {"machine": then["machine"] | {"flags": then["machine"]["flags"] | flag}}


CHANGES = {
    "code": lambda then: then | {"code_sha256": "0" * 64},
    "oneDNN": lambda then: _flag(then, TF_ENABLE_ONEDNN_OPTS="0"),
    "XLA": lambda then: _flag(then, XLA_FLAGS="--xla_x"),
    "processor": lambda then: then | {"machine": then["machine"] | {"processor": "abacus"}},
    "vector unit": lambda then: then | {"machine": then["machine"] | {"extensions": ["avx", "avx999"]}},
    "graphics card": lambda then: then | {"machine": then["machine"] | {"gpus": ["NVIDIA X"]}},
    "python": lambda then: then | {"versions": then["versions"] | {"python": "3.1"}},
    "tensorflow": lambda then: then | {"versions": then["versions"] | {"tensorflow": "1.0"}},
    "threads": lambda then: then | {"threads": 99},
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_thing_that_computes_otherwise_is_one_difference(what):
    now = provenance.computed_by(None)
    assert provenance.environment_differences(now, now) == []
    (line,) = provenance.environment_differences(CHANGES[what](now), now)
    assert "now" in line or "a vector unit without avx999" in line


def test_an_older_record_differs_in_what_it_has_only():
    now = provenance.computed_by(None)
    assert provenance.environment_differences({key: now[key] for key in ("versions", "threads")}, now) == []


@pytest.mark.slow
def test_a_resume_with_other_code_and_flags_says_so_first_and_keeps_it(home, settings, changed_code):
    assert command("train", *settings, *QUICK, "name=r", cwd=home, env={}).returncode == 0
    env = changed_code((NETWORK, "Rescaling(1 / 255", "Rescaling(1 / 200"))
    found = command("resume", "r", "training.max_steps=40", cwd=home, env={**env, "TF_ENABLE_ONEDNN_OPTS": "0"})
    assert found.returncode == 0, found.stderr
    said = found.stdout + found.stderr
    assert said.index("it was trained with") < said.index("goes on") and "function is another one now" in said
    for words in ("other code (SHA-256 of this package", "TF_ENABLE_ONEDNN_OPTS 1, now 0"):
        assert words in said
    (resumed,) = [event for event in read_journal(folder_of(home, "r").journal)[0] if event["event"] == "resumed"]
    assert len(resumed["differs"]) == 2 and resumed["machine"]["flags"]["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert "trained before with TF_ENABLE_ONEDNN_OPTS 1, now 0" in command("show", "r", cwd=home, env={}).stdout
    again = command("resume", "r", "training.max_steps=60", cwd=home, env=env)
    assert "TF_ENABLE_ONEDNN_OPTS 0, now 1" in again.stdout + again.stderr  # held against the last, not the first
    assert "other code" not in again.stdout + again.stderr


def test_a_resume_on_the_same_machine_says_nothing(bestrun, copied):
    found = bestrun("resume", "k", *LONGER)
    assert found.code == 0 and "it was trained with" not in found.out + found.err
    assert "another one now" not in found.out + found.err


# ---- proved


def test_the_eight_images_are_drawn_by_a_hash_and_never_change():
    drawn = proof.images((28, 28, 1))
    assert drawn.shape == (8, 28, 28, 1) and drawn.dtype == np.uint8
    assert hashlib.sha256(drawn.tobytes()).hexdigest()[:16] == "dab260efc495ac24"
    assert proof.images((4000, 4000, 3)).shape == (1, 4000, 4000, 3)


def made(answers, **changes):
    from bestrun.storage.checkpoint import Checkpoint, LoopState

    now = provenance.computed_by(None)
    on = None if answers is None else now | changes
    return Checkpoint({}, LoopState(), "r", "", "", "", Path("p"), answers, on)


def test_answers_are_equal_here_and_near_elsewhere():
    then = np.array([[4.0, -10.0]] * 8, "f4")
    near, far = then + np.float32(0.009), then + np.float32(0.011)
    elsewhere = {"threads": 99}
    assert proof.same_function(made(then), then.copy(), None).words.endswith("bit by bit")
    found = proof.same_function(made(then), near, None)
    assert found.is_same is False and "were to be equal" in found.words
    found = proof.same_function(made(then, **elsewhere), near, None)
    assert found.is_same is True and "but for the last digits (99 threads" in found.words
    assert proof.same_function(made(then, **elsewhere), far, None).is_same is False
    assert (
        proof.same_function(made(then, code_sha256="0" * 64), near, None).is_same is False
    )  # other code excuses nothing
    assert proof.same_function(made(then, **elsewhere), then * np.nan, None).is_same is False
    assert proof.same_function(made(then), then[:, :1], None).is_same is False
    found = proof.same_function(made(None), then, None)
    assert found.is_same is None and "older than such a proof" in found.words


@pytest.fixture
def run(bestrun, home, settings):
    assert bestrun("train", *settings, *QUICK, "name=r").code == 0
    return home


NETWORK = "training/networks/cnn.py"
ANOTHER_ACTIVATION = (NETWORK, "keras.layers.ReLU(", "keras.layers.LeakyReLU(")
OTHER_FUNCTIONS = [
    pytest.param((NETWORK, "Rescaling(1 / 255", "Rescaling(1 / 200"), id="another scale", marks=pytest.mark.slow),
    pytest.param((NETWORK, "Rescaling(1 / 255", "Rescaling(1 / 254.9"), id="hardly another scale"),
    pytest.param((NETWORK, "MaxPooling2D(", "AveragePooling2D("), id="another pooling", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("change", OTHER_FUNCTIONS)
def test_another_function_of_the_same_shapes_is_refused_by_fetch_and_restore(run, changed_code, tmp_path, change):
    env = changed_code(change)
    for words in (["restore", "r"], ["fetch", "r", "--out", tmp_path / "out"]):
        found = command(*words, cwd=run, env=env)
        assert found.returncode == 5 and "verified" not in found.stdout
        assert "the network's function is another one now" in found.stderr and "--allow-other-code" in found.stderr
        assert not list((tmp_path / "out").glob("*"))


@pytest.mark.slow
def test_every_verb_that_computes_refuses_another_function_and_goes_on_if_told(run, changed_code, tmp_path):
    env = changed_code(ANOTHER_ACTIVATION)
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 28, 28), np.uint8))
    verbs = (
        ["restore", "r"],
        ["restore", "r", "--local"],
        ["fetch", "r", "--out", tmp_path / "out"],
        ["predict", "r", tmp_path / "a.npz"],
        ["register", "r", "--name", "digits", "--alias", "champion"],
    )
    for words in verbs:
        found = command(*words, cwd=run, env=env)
        assert found.returncode == 5, (words, found.stdout, found.stderr)
        found = command(*words, "--allow-other-code", cwd=run, env=env)
        assert found.returncode == 0, (words, found.stderr)
        assert "function is another one now" in found.stdout + found.stderr
    tested = [event for event in read_journal(folder_of(run, "r").journal)[0] if event["event"] == "tested"]
    assert not tested, "what other code gives is not the run's"


def test_the_same_function_is_told_bit_by_bit(bestrun, copied, tmp_path):
    assert "it answers eight test images as it did then, bit by bit" in bestrun("restore", "k").out
    step = best_of(copied, "k").state.step
    assert f"step {step}, verified; in" in bestrun("fetch", "k", "--out", tmp_path / "out").out
    assert json.loads(bestrun("restore", "k", "--json").out)["function"]["is_same"] is True


@pytest.mark.slow
def test_another_number_of_threads_or_flag_is_near_and_said(run, tmp_path):
    found = command("restore", "r", cwd=run, env={"TF_ENABLE_ONEDNN_OPTS": "0"})
    assert found.returncode == 0, found.stderr
    assert "but for the last digits (TF_ENABLE_ONEDNN_OPTS 1, now 0)" in found.stdout or "bit by bit" in found.stdout


def test_a_run_without_answers_is_restored_and_that_is_said(bestrun, copied):
    folder, best = folder_of(copied, "k"), best_of(copied, "k")
    names = {"run_name": best.run_name, "config_digest": best.config_digest, "data_digest": best.data_digest}
    path = folder.path / best.path.name
    sha256 = save(path, encode(best.tensors, best.state, **names))
    folder.journal.write_text(folder.journal.read_text().replace(best.sha256, sha256))
    found = bestrun("restore", "k", "--local")
    assert found.code == 0 and "network     its function could not be verified: the run is older" in found.out, (
        found.err
    )
