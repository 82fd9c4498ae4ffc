"""Stores and homes that are not as ours are: addresses in the environment, others' folders, databases without files."""

import importlib.util
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from bestrun.errors import SettingsError
from bestrun.tracking import store
from bestrun.tracking.direct import refuse_unusable
from bestrun.tracking.store import connect, own_store, resolve_uri
from support.pages import free_port

QUICK = ["training.max_steps=4", "training.evaluate_every_steps=2", "training.patience_steps=4", "pictures=false"]


def tree(folder):
    return sorted((str(path), path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*"))


# ---- the address


def test_a_relative_address_in_the_environment_is_the_file_in_the_current_folder(home, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert resolve_uri(None, home / "mlruns") == f"sqlite:///{tmp_path}/other.db"


@pytest.mark.parametrize("uri", ["file:./mlruns", "./mlruns", "sqlite:///:memory:", "nonsense://x", "sqlite:////tmp"])
def test_what_mlflow_cannot_open_is_refused_by_every_verb_as_the_setting_is(bestrun, home, settings, uri):
    for words in (["train", *settings, *QUICK], ["runs"], ["restore", "best"], ["sync"]):
        result = bestrun(*words, env={"MLFLOW_TRACKING_URI": uri})
        if words != ["sync"]:  # there is no run to send
            assert result.code == 2 and "MLFLOW_TRACKING_URI=" in result.err, result.err
        assert result.err.count("\n") <= 1
    assert not list((home / "mlruns").glob("runs/*")) and not list(home.glob("*.db"))


# ---- the artifacts of experiments


@pytest.mark.slow
def test_mlflows_own_experiment_keeps_its_artifacts_in_the_home(bestrun, home, settings):
    (home / "mlruns" / "mlflow.db").unlink()  # the tests' own was made by MLflow alone
    (home / "here").mkdir()
    result = bestrun("train", *settings, *QUICK, "experiment=Default", "name=r", cwd=home / "here")
    assert result.code == 0, result.err
    assert (home / "mlruns" / "artifacts" / "Default").is_dir() and not list((home / "here").iterdir())


@pytest.mark.sampled(1)
@pytest.mark.parametrize("location", ["./mlruns/0", "file:///nowhere/1", "/nowhere/else/1", "file:///tmp/mlruns/0"])
def test_an_experiment_of_another_place_is_refused_before_a_folder_is_made(bestrun, home, settings, tmp_path, location):
    uri = own_store(home / "mlruns")
    name = "Default" if "mlruns/0" in location else "theirs"
    connect(uri).experiment_id(name)
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:
        database.execute("UPDATE experiments SET artifact_location = ? WHERE name = ?", (location, name))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.rename(home / "mlruns" / "mlflow.db", elsewhere / "shared.db")
    before = tree(elsewhere)
    setting = f"tracking.uri=sqlite:///{elsewhere}/shared.db"
    result = bestrun("train", *settings, *QUICK, f"experiment={name}", setting)
    (line,) = result.err.splitlines()
    assert result.code == 2 and f"experiment={name}: keeps its artifacts in {location}" in line
    assert "experiment=NAME" in line and "--artifacts-destination" in line
    assert not list((home / "mlruns").glob("runs/*")) and tree(elsewhere) == before
    result = bestrun("train", *settings, *QUICK, "experiment=other", setting)  # what it says
    assert result.code == 0, result.err
    assert (elsewhere / "artifacts" / "other").is_dir()


# ---- direct stores


@pytest.mark.parametrize(
    ("uri", "package"),
    [("postgresql+asyncpg://u:secret@127.0.0.1:1/x", "asyncpg"), ("mysql+pymysql://u:secret@127.0.0.1:1/x", "pymysql")],
)
def test_a_missing_driver_is_one_line_before_the_first_step(bestrun, home, settings, uri, package):
    result = bestrun("train", *settings, *QUICK, f"tracking.uri='{uri}'")
    assert result.code == 2 and result.err.count("\n") == 1 and "secret" not in result.err
    assert f"pip install {package}" in result.err
    assert not list((home / "mlruns").glob("runs/*"))


def test_a_missing_library_of_the_artifact_store_is_one_line_before_the_first_step(bestrun, home, settings):
    if importlib.util.find_spec("boto3"):
        pytest.skip("boto3 is here")
    connect(own_store(home / "mlruns")).client.create_experiment("there", artifact_location="s3://bucket/there")
    shutil.copy(home / "mlruns" / "mlflow.db", home / "shared.db")
    result = bestrun("train", *settings, *QUICK, "experiment=there", f"tracking.uri=sqlite:///{home}/shared.db")
    assert result.code == 2 and result.err.count("\n") == 1 and "pip install boto3" in result.err, result.err
    assert not list((home / "mlruns").glob("runs/*"))


class Refusing:
    """What SQLAlchemy raises where the database says no."""

    def __init__(self, words):
        self.words = words

    def __call__(self, uri):
        raise RuntimeError(self.words)


@pytest.mark.parametrize(
    ("words", "is_refused"),
    [
        ('connection to server at "127.0.0.1": FATAL:  password authentication failed for user "u"', True),
        ('FATAL:  database "x" does not exist', True),
        ('FATAL:  no pg_hba.conf entry for host "1.2.3.4"', True),
        ("(1045, \"Access denied for user 'u'@'localhost'\")", True),
        ('connection to server at "127.0.0.1", port 1 failed: Connection refused', False),
        ("timeout expired", False),
    ],
)
def test_a_refused_account_is_told_from_an_outage(home, monkeypatch, words, is_refused):
    monkeypatch.setattr("bestrun.tracking.direct._open_once", Refusing(words))
    uri = "postgresql://u:secret@127.0.0.1:1/x"
    if not is_refused:
        refuse_unusable(uri, "e", home / "mlruns")
        return
    with pytest.raises(SettingsError, match="give a user and a password that may open it|make the database") as refused:
        refuse_unusable(uri, "e", home / "mlruns")
    assert "secret" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_silent_store_is_waited_for_no_longer_than_that(home, monkeypatch):
    from bestrun.tracking import direct

    store.import_mlflow()
    monkeypatch.setattr(direct, "SECONDS", 0.5)
    monkeypatch.setattr(direct, "_open_once", lambda uri: time.sleep(5))
    began = time.monotonic()
    refuse_unusable("postgresql://u@127.0.0.1:1/x", "e", home / "mlruns")
    assert time.monotonic() - began < 3


# ---- a colleague's home, that can only be read


@pytest.fixture
def colleagues(bestrun, home, settings, tmp_path):
    """A home with two runs, seen through a mount that cannot be written."""
    for seed in (0, 1):
        assert bestrun("train", *settings, *QUICK, f"seed={seed}", f"name=r{seed}").code == 0
    view = tmp_path / "view"
    view.mkdir()
    for words in (["--bind", home, view], ["-o", "remount,ro,bind", view]):
        if subprocess.run(["mount", *map(str, words)], capture_output=True).returncode:
            pytest.skip("no right to mount")
    yield view / "mlruns"
    subprocess.run(["umount", str(view)], check=True)


@pytest.mark.slow
def test_reading_verbs_work_in_a_home_that_can_only_be_read_and_say_what_they_did_not_record(
    bestrun, colleagues, tmp_path, home
):
    before = tree(home)
    (tmp_path / "me").mkdir()
    here = {"cwd": tmp_path / "me", "env": {"BESTRUN_MLRUNS": str(colleagues)}}
    verbs = (["runs"], ["show", "r0"], ["show", "latest"], ["compare", "r0", "r1"], ["report", "r0"], ["sweep"])
    for words in (*verbs, ["fetch", "best", "--out", "out"]):
        result = bestrun(*words, **here)
        assert result.code == 0 and "warning" not in result.err + result.out, (words, result.err)
    for words in (["restore", "r0"], ["restore", "best"], ["restore", "r0", "--local"]):
        result = bestrun(*words, **here)
        assert result.code == 0, result.err
        said = result.out + result.err
        assert "MLflow has not got the test figures" in said and "are in the run's MLflow artifacts" not in said
        assert json.loads(bestrun(*words, "--json", **here).out)["recorded"] is False
    refused = bestrun("train", "data=npz", "data.path=x", *QUICK, **here)
    assert refused.code in (2, 3) and refused.err.count("\n") == 1
    assert tree(home) == before


# ---- odd surroundings

UNSET = {"no HOME": ("HOME",), "no USER": ("USER", "LOGNAME", "LNAME", "USERNAME")}
SET = {
    "C locale": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0"},
    "HYDRA variables": {"HYDRA_FULL_ERROR": "1", "HYDRA_MAIN_MODULE": "nonsense"},
    "MLFLOW variables": {
        "MLFLOW_EXPERIMENT_NAME": "nonsense",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7",
        "MLFLOW_TRACKING_USERNAME": "u",
        "MLFLOW_TRACKING_PASSWORD": "p",
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": "/x",
    },
}
SHELL = {"umask": 'umask 077; exec "$@"', "stdout closed": 'exec "$@" >&-'}
CASES = [*UNSET, *SET, *SHELL, "keras.json", "read-only folder", "uid of no name"]
NOBODYS = 4321


def make_pictures(folder):
    for split, name in itertools.product(("train", "test"), "ab"):
        (folder / split / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (8, 8), 60 * number).save(folder / split / name / f"{number}.png")
    return folder


def give_away(home, settings):
    """Folder, home, settings and prefix for a user that no file names, out of the folders that only root may enter."""
    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    shutil.copytree(home, folder / "home")
    data = shutil.copy(settings[1].partition("=")[2], folder)
    for path in [folder / "home", *(folder / "home").rglob("*")]:
        os.chown(path, NOBODYS, NOBODYS)
    prefix = ["setpriv", f"--reuid={NOBODYS}", f"--regid={NOBODYS}", "--clear-groups"]
    return folder, folder / "home", [settings[0], f"data.path={data}", *settings[2:]], prefix


def look_at_the_page(command, place, env):
    port = free_port()
    words = [*command, "--port", str(port)]
    with subprocess.Popen(words, cwd=place, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        said, deadline = b"", time.monotonic() + 120
        while b"Uvicorn running" not in said:
            assert process.poll() is None and time.monotonic() < deadline, said
            said += process.stderr.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(30) == 0 and b"Traceback" not in said + rest, said + rest


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_every_verb_works_in_odd_surroundings(home, settings, tmp_path, case):
    place, prefix = tmp_path / "place", []
    if case == "uid of no name":
        tmp_path, home, settings, prefix = give_away(home, settings)
        place = tmp_path / "place"
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    env = os.environ | {"BESTRUN_MLRUNS": str(home / "mlruns")}
    if case in UNSET:
        env = {name: value for name, value in env.items() if name not in UNSET[case]}
    if case == "uid of no name":
        env = {name: value for name, value in env.items() if name not in (*UNSET["no HOME"], *UNSET["no USER"])}
    env |= SET.get(case, {})
    if case == "keras.json":
        written = {"floatx": "float16", "epsilon": 0.1, "backend": "jax", "image_data_format": "channels_first"}
        (tmp_path / "keras.json").write_text(json.dumps(written))
        env |= {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": ""}
    if case in SHELL:
        prefix = ["sh", "-c", SHELL[case], "sh"]
    if case == "read-only folder" and subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", place]).returncode:
        pytest.skip("no right to mount")
    np_file = settings[1].partition("=")[2]
    verbs = (
        ["train", *settings, *QUICK, "name=r"],
        ["resume", "r", "training.max_steps=6"],
        ["runs"],
        ["show", "r"],
        ["restore", "r"],
        ["predict", "best", np_file],
        ["fetch", "r", "--out", str(tmp_path / "out")],
        ["register", "r", "--name", "d"],
        ["rerun", "r", "name=again"],
        ["compare", "r", "again"],
        ["report", "r", "--out", str(tmp_path / "r.html")],
        ["train", "-m", *settings, *QUICK, "seed=1,2", "sweep.name=s"],
        ["sweep", "s"],
        ["sync"],
        ["pack", str(make_pictures(tmp_path / "pictures")), str(tmp_path / "pictures.npz")],
    )
    try:
        for words in verbs:
            command = [*prefix, sys.executable, "-m", "bestrun", *words]
            found = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=250)
            assert found.returncode == 0, (words, found.stdout, found.stderr)
            assert "Traceback" not in found.stderr
        # A Python in root's own folder can be started for another user, and start nothing itself: the page needs that
        if not subprocess.run([*prefix, "sh", "-c", '"$0" -c ""', sys.executable]).returncode:
            look_at_the_page([*prefix, sys.executable, "-m", "bestrun", "ui"], place, env)
    finally:
        if case == "read-only folder":
            subprocess.run(["umount", str(place)], check=True)
        if case == "uid of no name":
            shutil.rmtree(tmp_path)
