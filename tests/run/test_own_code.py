"""Promises about runs that take functions of one's own, from the code.py of a `--config-dir`."""

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from bestrun.storage.journal import read_journal
from support.labs import CODE, make_lab
from support.processes import Command
from support.stores import copy_home

NIGHT = ["recipe=night", "tracking.log_model=none"]


@dataclass(frozen=True)
class Lab:
    """A home with a run `r` of recipe=night of the folder `lab`; `kept` is a copy from before any test."""

    folder: Path
    home: Path
    kept: Path
    bestrun: Command
    printed: str

    def run(self, name: str) -> Path:
        return self.home / "mlruns/runs" / name

    def events(self, name: str, kind: str) -> list[dict[str, object]]:
        return [event for event in read_journal(self.run(name) / "journal.jsonl")[0] if event["event"] == kind]

    def __call__(self, *words, code=0, **more):
        result = self.bestrun(*words, **more)
        assert result.code == code and "Traceback" not in result.err, result.out + result.err
        return result

    def within(self, *words, **more):
        """With the folder named, as it was at the start."""
        verb, *others = words
        return self(verb, "--config-dir", self.folder, *others, **more)

    def refused(self, *words) -> str:
        """The one line of a command that ends with exit code 2 and leaves nothing on disk."""
        before = sorted(self.home.rglob("*"))
        (line,) = self(*words, code=2).err.splitlines()
        assert [path for path in sorted(self.home.rglob("*")) if path not in before and path.suffix != ".tmp"] == []
        return line


@pytest.fixture(scope="module")
def lab(own_home, tmp_path_factory):
    home, command = own_home()
    folder = make_lab(tmp_path_factory.mktemp("labs") / "my lab")
    result = command("train", "--config-dir", folder, *NIGHT, "name=r")
    assert result.code == 0, result.out + result.err
    kept = shutil.copytree(home, tmp_path_factory.mktemp("kept") / "home")
    return Lab(folder, home, kept, command, result.out)


@pytest.fixture
def copied(lab, start_process, home):
    """A copy of it, with what its MLflow has, for a test that goes on with the run."""
    copy_home(lab.kept, home)
    return replace(lab, home=home, bestrun=Command(start_process, home))


SHA256 = hashlib.sha256(CODE.encode()).hexdigest()
MISSING = (
    "run r: takes {} of {}/code.py; name a folder that has it: --config-dir DIR; its text is kept as {}/code/code.py"
)


def test_a_run_keeps_text_and_hash_of_its_code_and_measures_its_own_metric(lab):
    (started,) = lab.events("r", "started")
    assert started["own_code_sha256"] == SHA256 and started["config_dir"] == str(lab.folder)
    assert started["own_metrics"] == {"margin": {"unit": "", "direction": "minimize"}}
    assert (lab.run("r") / "code/code.py").read_text() == CODE
    evaluations = lab.events("r", "evaluation")
    assert [line["step"] for line in evaluations] == [0, 10, 20, 30]
    best = min(evaluations[1:], key=lambda line: line["val/margin"])
    assert f"best      val/margin {best['val/margin']:.4f} at step {best['step']}" in lab.printed
    (line,) = [line for line in lab.printed.splitlines() if line.startswith("restore ")]
    assert line.endswith(f" --config-dir '{lab.folder}'")
    (artifact,) = lab.home.glob("mlruns/artifacts/scans/*/artifacts/code/code.py")
    assert artifact.read_text() == CODE
    shown = json.loads(lab("show", "r", "--json").out)
    assert shown["objective"] == {"metric": "val/margin", "direction": "minimize"}
    assert not (lab.folder / "__pycache__").exists()


@pytest.mark.parametrize(
    ("words", "takes"),
    [
        (["resume", "r", "training.max_steps=40"], "network gap, dataset scans, augmentation flip, metric margin"),
        (["rerun", "r"], "network gap, dataset scans, augmentation flip, metric margin"),
        (["restore", "r", "--local"], "network gap, dataset scans, augmentation flip, metric margin"),
        (["predict", "r", "--local", "image.png"], "network gap"),
        (["fetch", "r", "--local", "--out", "out"], "network gap"),
    ],
)
def test_a_verb_without_the_folder_says_which_file_is_missing_and_where_its_text_is(lab, words, takes):
    line = lab.refused(*words)
    assert line == "error: " + MISSING.format(takes, lab.folder, lab.run("r")), line


def test_register_and_mlflow_name_the_artifact(lab, tmp_path):
    line = lab.refused("register", "r", "--name", "n")
    assert f"takes network gap of {lab.folder}/code.py; name a folder" in line and "/code/code.py" in line
    other = make_lab(tmp_path / "other", "import bestrun\n")
    line = lab.refused("restore", "r", "--local", "--config-dir", other)
    assert f"of {lab.folder}/code.py, which {other}/code.py does not register; its text is kept as" in line


def test_verbs_that_only_tell_need_no_folder(lab):
    for words in (["runs"], ["sync", "r"], ["report", "r", "--out", lab.home / "r.html"]):
        lab(*words)
    assert "margin" in lab.within("runs").out
    shown = lab("show", "r").out
    assert f"own code     {lab.folder}/code.py, SHA-256 {SHA256[:12]}, kept as {lab.run('r')}/code/code.py" in shown
    assert "bestrun rerun" in shown and shown.rstrip().endswith(" --config-dir DIR")


def test_with_the_folder_every_verb_does_what_it_does(lab, tmp_path):
    report = json.loads(lab.within("restore", "r", "--json").out)
    assert report["validation"]["agrees"] and report["recorded"] and report["test"]["margin"] >= 0
    assert report["function"]["is_same"]
    assert lab.events("r", "tested")[0]["test/margin"] == report["test"]["margin"]
    Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "image.png")
    predictions = json.loads(lab.within("predict", "r", tmp_path / "image.png", "--json").out)["predictions"]
    assert len(predictions[0]["probabilities"]) == 3
    lab.within("fetch", "r", "--out", tmp_path / "out")
    assert (tmp_path / "out/model.keras").exists()
    assert "is version 1" in lab.within("register", "r", "--name", "n", "--alias", "a").out
    again = lab.within("rerun", "r", "name=again").out
    assert "the same   all 4 evaluations are equal to those of r, bit by bit" in again
    best = json.loads(lab.within("restore", "best", "--objective", "val/margin", "--json").out)
    assert best["run_name"] in ("r", "again")


def test_a_killed_run_goes_on_to_the_same_tensors(lab):
    lab.within("train", *NIGHT, "name=killed", code=-9, env={"BESTRUN_FAULT": "F9:3"})
    line = lab.refused("resume", "killed")
    assert "takes network gap, dataset scans" in line
    lab("resume", "killed", env={"BESTRUN_CONFIG_DIR": str(lab.folder)})
    whole, killed = (load_file(lab.run(name) / "last.safetensors") for name in ("r", "killed"))
    assert whole.keys() == killed.keys() and all(np.array_equal(whole[name], killed[name]) for name in whole)
    assert not lab.events("killed", "diverges") and "differs" not in lab.events("killed", "resumed")[0].get(
        "differs", []
    )
    assert [line["step"] for line in lab.events("killed", "evaluation")] == [0, 10, 20, 30]


def test_another_code_py_is_told_recorded_and_kept(copied, tmp_path):
    other = make_lab(tmp_path / "other", CODE + "\n# another\n")
    said = copied("resume", "r", "training.max_steps=40", "--config-dir", other)
    assert "another code.py (SHA-256 " + SHA256[:12] in said.out + said.err
    (resumed,) = copied.events("r", "resumed")
    sha256 = hashlib.sha256((CODE + "\n# another\n").encode()).hexdigest()
    assert resumed["own_code_sha256"] == sha256 and any(SHA256[:12] in line for line in resumed["differs"])
    assert (copied.run("r") / f"code/code-{sha256[:12]}.py").read_text() == CODE + "\n# another\n"
    assert (copied.run("r") / "code/code.py").read_text() == CODE
    assert len(list(copied.home.glob(f"mlruns/artifacts/scans/*/artifacts/code/code-{sha256[:12]}.py"))) == 1


def test_a_network_that_is_another_function_now_is_not_restored(lab, tmp_path):
    other = make_lab(tmp_path / "other", CODE.replace("Rescaling(1 / 255)", "Rescaling(1 / 100)"))
    (line,) = lab("restore", "r", "--local", "--config-dir", other, code=5).err.splitlines()
    assert "is another one now" in line and f"the code.py it was trained with, {lab.run('r')}/code/code.py" in line
    report = json.loads(lab("restore", "r", "--local", "--config-dir", other, "--allow-other-code", "--json").out)
    assert not report["recorded"] and report["function"]["is_same"] is False


def test_a_run_that_names_a_folder_leads_to_no_code_in_it(lab, tmp_path):
    """Neither the folder that a run's journal names nor the text that it keeps is ever run."""
    evil = make_lab(tmp_path / "evil", CODE + f"\nopen({str(tmp_path / 'canary')!r}, 'w')\n")
    folder = shutil.copytree(lab.run("r"), lab.run("evil"))
    text = (folder / "journal.jsonl").read_text().replace(str(lab.folder), str(evil))
    first, *others = text.splitlines(keepends=True)
    first = json.dumps(json.loads(first) | {"name": "evil"}) + "\n"
    (folder / "journal.jsonl").write_text("".join([first, *others]))
    (folder / "mirror.json").unlink()
    (folder / "code/code.py").write_text((evil / "code.py").read_text())
    try:
        for words in (["resume", "evil"], ["rerun", "evil"], ["restore", "evil", "--local"]):
            assert "its text is kept as" in lab.refused(*words)
        lab("show", "evil")
        lab.within("restore", "evil", "--local")
    finally:
        shutil.rmtree(folder)
    assert not (tmp_path / "canary").exists()


def test_a_run_whose_network_stood_in_a_clone_is_told_apart(lab):
    folder = shutil.copytree(lab.run("r"), lab.run("clone"))
    first, *others = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    started = {key: value for key, value in json.loads(first).items() if key not in ("config_dir", "own_code_sha256")}
    (folder / "journal.jsonl").write_text("".join([json.dumps(started) + "\n", *others]))
    (folder / "mirror.json").unlink()
    try:
        line = lab.refused("predict", "clone", "--local", "image.png")
    finally:
        shutil.rmtree(folder)
    begin = "error: run clone: takes network gap, for which there is no function here; name a folder that has it"
    assert line == f"{begin}: --config-dir DIR"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "return keras.Model(",
            "1 / 0\n    return keras.Model(",
            "model=gap: {code}, line {line}: ZeroDivisionError: div",
        ),
        ("return float(", "return str(", "metric val/margin: gives str, takes one number"),
        ("right = logits", "1 / 0\n    right = logits", "metric val/margin: {code}, line {line}: ZeroDivisionError"),
        (
            "return tf.where(",
            "1 / 0\n    return tf.where(",
            "augmentation=flip: {code}, line {line}: ZeroDivisionError",
        ),
        ("return tf.where(draws", "return 0.5 * tf.cast(1, tf.float32) + tf.where(draws", "augmentation=flip: "),
        (
            "images[:, :, ::-1], images)",
            "images, images)[:, 1:]",
            "augmentation=flip: gives uint8[4, 7, 8, 3] for uint8[4, 8",
        ),
        ("random = np", "1 / 0\n    random = np", "data=scans: {code}, line {line}: ZeroDivisionError"),
        ("import bestrun", "import bestrun\n1 / 0", "{code}, line {line}: ZeroDivisionError: division by zero"),
    ],
)
def test_what_cannot_be_trained_with_is_refused_before_a_folder_is_made(lab, tmp_path, old, new, words):
    code = CODE.replace(old, new, 1)
    assert code != CODE
    other = make_lab(tmp_path / "other", code)
    line = lab.refused("train", "--config-dir", other, "recipe=night")
    lines = [number for number, text in enumerate(code.splitlines(), 1) if "1 / 0" in text]
    assert words.format(code=other / "code.py", line=lines[0] if lines else "") in line, line


def test_a_metric_that_is_no_number_now_and_then_is_null_and_never_the_best(lab, tmp_path):
    count = "CALLS.append(1)\n    return float('nan') if len(CALLS) % 2 else float("  # the first call is a try
    code = CODE.replace("return float(", count).replace("import bestrun\n", "import bestrun\n\nCALLS = []\n", 1)
    other = make_lab(tmp_path / "other", code)
    lab("train", "--config-dir", other, *NIGHT, "name=nan", "optimizer.learning_rate=0.1")
    lines = lab.events("nan", "evaluation")
    assert [line["val/margin"] is None for line in lines] == [False, True, False, True]
    assert [line["improved"] for line in lines] == [False, False, True, False]


def test_a_run_of_ours_records_no_code_of_ones_own(lab):
    words = ["data=scans", "training.max_steps=1", "training.batch_size=8", "pictures=false", *NIGHT[1:]]
    other = make_lab(lab.home.parent / "only data", CODE.partition("@bestrun.augmentation")[0])
    small = ["model.filter_sizes=[3]", "model.num_filters=[2]", "model.fc_size=4"]
    lab("train", "--config-dir", other, *words, *small, "name=ours")
    (started,) = lab.events("ours", "started")
    assert "own_metrics" not in started and started["own_code_sha256"]
    assert "takes dataset scans of" in lab.refused("restore", "ours", "--local")
    Image.new("RGB", (8, 8)).save(lab.home / "image.png")
    lab("predict", "ours", "--local", lab.home / "image.png")  # takes no data


def test_a_layer_of_ones_own_trains_and_is_not_exported_as_if_it_were_one_of_keras(lab, tmp_path):
    layer = """
import keras


@keras.saving.register_keras_serializable()
class Scale(keras.layers.Layer):
    def call(self, x):
        return x * 2


@bestrun.network("gap")
"""
    code = CODE.replace('\n@bestrun.network("gap")\n', layer, 1)
    code = code.replace(
        "    x = keras.layers.GlobalAv", "    x = Scale(name='own')(x)\n    x = keras.layers.GlobalAv", 1
    )
    other = make_lab(tmp_path / "other", code)
    lab("train", "--config-dir", other, "recipe=night", "name=layer", "training.max_steps=10")
    assert json.loads(lab("restore", "layer", "--config-dir", other, "--json").out)["validation"]["agrees"]
    said = lab("fetch", "layer", "--config-dir", other, "--out", tmp_path / "out", code=5)
    assert "layer own is a class of one's own" in said.err and not (tmp_path / "out").exists()


def test_a_folder_that_never_became_a_run_goes_with_the_code_that_was_kept(tmp_path):
    from bestrun.storage.folder import RunFolder, _has_not_begun

    folder = RunFolder(tmp_path / "r")
    folder.path.mkdir()
    with folder.owned():
        folder.keep_code("one")
        folder.keep_code("one")
        folder.keep_code("two")
        (folder.code / ".code.py.x.tmp").write_text("")
        assert [path.name for path in folder.codes] == ["code.py", "code-3fc4ccfe7458.py"]
        assert _has_not_begun(folder.path, "journal.jsonl")
        (folder.code / "mine.py").write_text("")
        assert not _has_not_begun(folder.path, "journal.jsonl")
        (folder.code / "mine.py").unlink()
    assert not folder.path.exists()


def _in_python(folder):
    import bestrun

    run = bestrun.train(*NIGHT, "name=p", config_dir=folder, quiet=True)
    report = run.restore()
    again = bestrun.load_run("p", config_dir=folder)
    print(json.dumps([report["test"]["margin"], again.restore()["test"]["margin"], again.model.output_shape[-1]]))
    try:
        bestrun.load_run("p").restore()
    except bestrun.errors.BestrunError as error:
        print(error)


def test_from_python_the_folder_is_an_argument(lab, start_process):
    env = {"BESTRUN_MLRUNS": str(lab.home / "mlruns")}
    result = start_process(_in_python, str(lab.folder), cwd=lab.home, env=env).wait()
    assert result.code == 0, result.err
    values, refused = result.out.splitlines()[-2:]
    one, other, classes = json.loads(values)
    assert one == other >= 0 and classes == 3 and refused.startswith("run p: takes network gap")


def sweep_states(lab, name):
    manifest = json.loads((lab.home / "mlruns/sweeps" / name / "manifest.json").read_text())
    return [run["state"] for trial in manifest["trials"] for run in trial["runs"]], manifest


def test_a_sweep_in_one_process_takes_the_folder_and_the_same_line_goes_on(lab):
    line = ["-m", "recipe=night", "model.width=2,4", "sweep.name=grid", "training.max_steps=10"]
    lab.within("train", *line)
    states, manifest = sweep_states(lab, "grid")
    assert states == ["complete"] * 2 and manifest["config_dir"] == str(lab.folder)
    assert manifest["objective"] == {"metric": "val/margin", "direction": "minimize"}
    lab.within("train", *line)
    assert "complete" in lab("sweep", "grid").out


def test_a_worker_on_a_machine_without_the_folder_says_so(lab):
    from bestrun.settings.compose import compose
    from bestrun.sweep.backends.work import Task, work

    manifest = lab.home / "mlruns" / "sweeps" / "grid" / "manifest.json"
    ended = work(Task("grid-000", compose([]), manifest, {"sweep": "grid"}, "/gone"))
    assert ended.error and ended.error.startswith("--config-dir /gone: there is no such folder")


def test_a_run_rebuilt_from_mlflow_keeps_the_text_and_goes_on(copied):
    shutil.rmtree(copied.run("r"))
    assert (
        f"takes network gap, dataset scans, augmentation flip, metric margin of {copied.folder}/code.py"
        in copied("resume", "r", "training.max_steps=40", code=2).err
    )
    copied.within("resume", "r", "training.max_steps=40")
    assert (copied.run("r") / "code/code.py").read_text() == CODE
    assert [line["step"] for line in copied.events("r", "evaluation")] == [0, 10, 20, 30, 40]
    assert all("val/margin" in line for line in copied.events("r", "evaluation"))


@pytest.mark.slow
def test_local_workers_take_the_folder_and_a_killed_sweep_goes_on(lab):
    line = ["-m", "recipe=night", "sweep=widths", "sweep.name=local", "sweep.workers=2", "training.max_steps=200"]
    process = lab.bestrun.start("train", "--config-dir", lab.folder, *line)
    wait_until(lambda: any(lab.home.glob("mlruns/runs/local-*/journal.jsonl")), process)
    process.kill()
    process.wait()
    ours = ["-m", "data=mnist", "seed=1,2", "sweep.name=local"]
    assert f"sweep local was begun with --config-dir {lab.folder}" in lab("train", *ours, code=2).err
    lab.within("train", *line, timeout=300)
    states, _ = sweep_states(lab, "local")
    assert states == ["complete"] * 2


def wait_until(is_so, process):
    import time

    deadline = time.monotonic() + 120
    while not is_so():
        assert process.poll() is None and time.monotonic() < deadline, process.out + process.err
        time.sleep(0.05)
