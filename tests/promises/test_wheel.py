"""The installed command works outside the clone, from the wheel's own conf/."""

import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support.labs import make_lab
from support.stores import make_home

CLONE = Path(__file__).parents[2]
TINY = [
    "training.max_steps=20",
    "training.evaluate_every_steps=10",
    "training.patience_steps=10",
    "model.num_filters=[2]",
    "model.filter_sizes=[3]",
    "pictures=false",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(CLONE)], check=True, capture_output=True)
    (path,) = folder.glob("bestrun-*.whl")
    return path


def run(command, cwd, **env):
    environment = {**os.environ, "BESTRUN_MLRUNS": str(cwd / "mlruns"), **env}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250)


def test_wheel_carries_conf_and_nothing_of_the_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"bestrun/conf/config.yaml", "bestrun/conf/data/mnist.yaml", "bestrun/py.typed"} <= set(names)
    assert not [name for name in names if not name.startswith(("bestrun/", "bestrun-"))]


def _as_installed(target, words):
    """`python -m bestrun`, where `target` stands first on the path and of bestrun nothing is imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "bestrun"]:
        del sys.modules[name]
    sys.path.insert(0, str(target))
    sys.argv = ["bestrun", *map(str, words)]
    runpy.run_module("bestrun", run_name="__main__", alter_sys=True)


def test_wheel_trains_from_its_own_conf_outside_the_clone(wheel, tmp_path, colour_npz, start_process, ready_made_store):
    mlruns = make_home(tmp_path, ready_made_store) / "mlruns"
    target = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(target)  # a wheel unpacked is a wheel installed, less its dependencies
    (target / "bestrun/conf/config.yaml").write_text(
        (target / "bestrun/conf/config.yaml").read_text().replace("seed: 0", "seed: 12")
    )
    folder = make_lab(tmp_path / "my lab")
    words = ["train", "data=npz", f"data.path={colour_npz}", *TINY, "name=w", "tracking.log_model=none"]
    words += ["--config-dir", "my lab", "augmentation=flip"]
    result = start_process(_as_installed, target, words, cwd=tmp_path, env={"BESTRUN_MLRUNS": str(mlruns)}).wait()
    assert result.code == 0, result.err
    assert "seed: 12" in (mlruns / "runs/w/config.yaml").read_text()
    assert (mlruns / "runs/w/code/code.py").read_text() == (folder / "code.py").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wheel_in_an_empty_environment_trains(wheel, tmp_path, colour_npz):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet"]
    lock = str(CLONE / "requirements.lock")
    subprocess.run([*install, "--require-hashes", "-r", lock], check=True, env=environment)
    subprocess.run([*install, "--no-deps", str(wheel)], check=True, env=environment)
    command = [str(python.with_name("bestrun")), "train", "data=npz", f"data.path={colour_npz}", *TINY, "name=w"]
    result = run(command, tmp_path, PYTHONPATH="")
    assert result.returncode == 0, result.stderr
    assert "restore   bestrun restore" in result.stdout
    make_lab(tmp_path / "my lab")
    ours = [command[0], "train", "recipe=night", "name=mine"]
    for words in (ours, [command[0], "restore", "mine"], [command[0], "rerun", "mine"]):
        result = run([*words, "--config-dir", "my lab"], tmp_path, PYTHONPATH="")
        assert result.returncode == 0, result.stderr
