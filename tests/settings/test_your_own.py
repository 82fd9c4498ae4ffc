"""Promises about one's own network, and docs/your-own.md followed to the letter."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from safetensors.numpy import load_file

from bestrun.errors import SettingsError, VerificationError
from bestrun.settings import compose as settings
from bestrun.settings import networks
from bestrun.settings.compose import compose, conf_dir, override, read_config
from bestrun.settings.config import FIELDS, OPTIONS, Cnn, digest, flatten, to_yaml
from bestrun.sweep.space import plan

ROOT = Path(__file__).parents[2]
MINE = """# All kinds of settings.
name: mine
width: 32
rate: 1e-3
bias: true
activation: relu
sizes: [3, 5]
shares: [1, 0.5]
fc_size: 0.5
"""


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of conf/ with model/mine.yaml, whose function is there."""
    folder = shutil.copytree(conf_dir(), tmp_path / "conf")
    (folder / "model/mine.yaml").write_text(MINE)
    monkeypatch.setattr(settings, "conf_dir", lambda: folder)
    own = shutil.copytree(networks.NETWORKS, tmp_path / "networks")
    shutil.copy(own / "cnn.py", own / "mine.py")
    monkeypatch.setattr(networks, "NETWORKS", own)
    known_networks, fields = dict(OPTIONS["model"]), dict(FIELDS)
    yield folder
    for known, before in ((OPTIONS["model"], known_networks), (FIELDS, fields)):
        known.clear()
        known.update(before)


def refusal(*overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        compose(overrides)
    (line,) = caught.value.args
    return str(line)


def test_a_network_with_a_file_and_no_class_has_the_settings_of_its_file(conf):
    config = compose(["model=mine", "model.width=64", "model.rate=1", "model.sizes=[7]", "model.bias=false"]).config
    assert dict(config.model) == {
        **{"name": "mine", "width": 64, "rate": 1.0, "bias": False, "activation": "relu"},
        **{"sizes": (7,), "shares": (1.0, 0.5), "fc_size": 0.5},
    }
    assert flatten(config)["model"] == "mine" and flatten(config)["model.sizes"] == "[7]"
    assert digest(config) != digest(compose(["model=mine"]).config)
    assert isinstance(compose([]).config.model, Cnn)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("width=true", "takes a whole number from 0 to 1000000000; type model.width=32"),
        ("width=1.5", "takes a whole number"),
        ("width=-1", "takes a whole number"),
        ("width=1e10", "takes a whole number"),
        ("width=null", "takes a whole number"),
        ("width=[3]", "takes a whole number"),
        ("rate=fast", "takes a number; type model.rate=0.001"),
        ("rate=nan", "takes a number"),
        ("rate=inf", "takes a number"),
        ("rate=true", "takes a number"),
        ("bias=1", "takes true or false; type model.bias=true"),
        ("activation=3", "takes a text on one line; type model.activation=relu"),
        ("activation=''", "takes a text on one line"),
        ("sizes=3", "takes a list of 1 to 100, each a whole number from 0 to 1000000000; type model.sizes=[3,5]"),
        ("sizes=[]", "takes a list"),
        ("sizes=[3,true]", "takes a list"),
        ("sizes=[3,0.5]", "takes a list"),
        ("shares=[a]", "each a number; type model.shares=[1,0.5]"),
        ("fc_size=true", "takes a number; type model.fc_size=0.5"),  # another network's fc_size is a whole number
        ("widht=3", "there is no such setting; did you mean model.width?"),
        ("filter_sizes=[3]", "there is such a setting only with model=cnn"),
        ("name=cnn", "is chosen by its group; type model=cnn"),
        ("_target_=os.system", "there is no such setting"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_says_what_to_type(conf, typed, words):
    line = refusal("model=mine", f"model.{typed}")
    assert line.startswith(f"model.{typed}: ") and words in line


def test_the_settings_of_other_networks_keep_their_words(conf):
    assert "from 1 to 65536; type model.fc_size=128" in refusal("model.fc_size=0.5")
    assert "model.width=3: there is such a setting only with model=mine" in refusal("model.width=3")
    assert refusal("model=mien") == "model=mien: takes backbone or cnn or cnn_bn or mine; type model=mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the first of them: name: mine"),
        ("- 1", "the first of them: name: mine"),
        ("width: 3", "the first of them: name: mine"),
        ("name: yours", "the first of them: name: mine"),
        ("name: mine\nwidth: null", "width: null: takes a number, true, false, a text or a list of numbers"),
        ("name: mine\nwidth: {a: 1}", "width: {a:1}: takes"),
        ("name: mine\nwidth: []", "width: []: takes"),
        ("name: mine\nwidth: [a]", "width: [a]: takes"),
        ("name: mine\nwidth: [true]", "width: [true]: takes"),
        ("name: mine\nwidth: ${seed}", "width: ${seed}: takes a number, true, false"),
        ("name: mine\nwidth: ???", "width: ???: takes"),
        ("name: mine\nwidth: -1", "width: -1: takes a whole number from 0"),
        ("name: mine\nwidth: .nan", "width: nan: takes a number"),
        ("name: mine\nseed: 1", "seed: cannot be the name of a setting"),
        ("name: mine\n_target_: os.system", "_target_: cannot be the name"),
        ("name: mine\n__base__: 1", "__base__: cannot be the name"),
        ("name: mine\nmodel_dump: 1", "model_dump: cannot be the name"),
        ("name: mine\n3: 4", "3: cannot be the name"),
        ("name: mine\nwidth: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("name: mine\nwidth: [", "line 2"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused_by_name(conf, text, words):
    (conf / "model/mine.yaml").write_text(text)
    for overrides in ([], ["model=mine"]):
        line = refusal(*overrides)
        assert line.startswith(str(conf / "model/mine.yaml"))
        assert words in line


def test_a_file_may_give_a_known_network_other_defaults(conf):
    for network, key in (("cnn", "fc_size: 128"), ("mine", "width: 32")):
        text = (conf / f"model/{network}.yaml").read_text()
        (conf / "model/small.yaml").write_text(text.replace(key, key.split()[0] + " 8"))
        config = compose(["model=small"]).config
        assert flatten(config)["model"] == network and flatten(config)[f"model.{key.split(':')[0]}"] == "8"


def test_a_network_without_a_function_is_refused_before_tensorflow_is_imported(conf, tmp_path):
    path = tmp_path / "networks" / "mine.py"
    path.unlink()
    begin = "def build(image_shape, num_classes, *, ...)"
    assert refusal("model=mine") == f"model=mine: has no function; write it into {path}: {begin}"
    path.write_text("class Other:\n    def build(self):\n        return 'mine'\n")
    assert refusal("model=mine") == f"model=mine: {path} has no function build; add to it {begin}"
    for text in ("from .cnn import build\n", "build = print\n", "build: object = print\n", "def build():\n    pass\n"):
        path.write_text(text)
        assert compose(["model=mine"])
    path.write_text("def build(\n")
    assert refusal("model=mine").startswith(f"{path}, line 1: ")


def test_stored_settings_are_read_back_whatever_the_file_says_today(conf, tmp_path):
    config = compose(["model=mine", "model.width=64"]).config
    stored = tmp_path / "config.yaml"
    stored.write_text(to_yaml(config))
    assert read_config(stored) == config and pickle.loads(pickle.dumps(config)) == config
    (conf / "model/mine.yaml").write_text("name: mine\ndepth: 3\n")
    assert "model.width" in refusal("model=mine", "model.width=64")
    again = read_config(stored)
    assert again == config
    compose([])  # reads the files of today
    assert dict(override(again, ["model.width=8"])[0].model)["width"] == 8
    with pytest.raises(SettingsError, match="model.width=true: takes a whole number"):
        override(again, ["model.width=true"])
    (conf / "model/mine.yaml").unlink()
    OPTIONS["model"].pop("mine")
    assert read_config(stored) == config


def test_stored_settings_of_no_kind_are_refused(conf, tmp_path):
    stored = yaml.safe_load(to_yaml(compose(["model=mine"]).config))
    for change in ({"width": None}, {"_target_": "os.system"}, {"name": ["mine"]}, {"name": 3}):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored | {"model": stored["model"] | change}))
        with pytest.raises(VerificationError, match="not the settings of a run"):
            read_config(tmp_path / "config.yaml")


def test_a_sweep_tries_own_settings_and_own_networks(conf):
    assert len(plan(["model=mine", "model.width=8,16", "model.rate=1e-3,1e-4"]).points) == 4
    points = plan(["model=cnn,mine"])
    assert [flatten(points.settle(point).config)["model"] for point in points.points] == ["cnn", "mine"]
    with pytest.raises(SettingsError, match="model.width=a: takes a whole number"):
        plan(["model=mine", "model.width=8,a"])


def test_own_data_is_a_file_in_conf(conf, tmp_path, monkeypatch):
    (conf / "data/photos.yaml").write_text("name: npz\npath: a.npz\nvalidation_size: 0.2\nvalidation_seed: null\n")
    monkeypatch.chdir(tmp_path)
    assert dict(compose(["data=photos"]).config.data)["path"] == str(tmp_path / "a.npz")


# ---- the guide


def draw(kind: str, random: np.random.Generator) -> Image.Image:
    """A shape somewhere on noise, 40 wide and 30 high."""
    image = Image.fromarray(random.integers(0, 90, (30, 40, 3), np.uint8))
    pen, colour = ImageDraw.Draw(image), tuple(random.integers(140, 256, 3).tolist())
    x, y, size = (int(random.integers(low, high)) for low, high in ((10, 30), (10, 20), (5, 9)))
    box = (x - size, y - size, x + size, y + size)
    match kind:
        case "bar":
            pen.line((x, box[1], x, box[3]), colour, 3)
        case "circle":
            pen.ellipse(box, outline=colour, width=2)
        case "cross":
            pen.line(box, colour, 2)
            pen.line((box[0], box[3], box[2], box[1]), colour, 2)
        case "disc":
            pen.ellipse(box, colour)
        case "square":
            pen.rectangle(box, outline=colour, width=2)
    return image


def make_photos(folder: Path) -> None:
    random = np.random.default_rng(0)
    for kind in ("bar", "circle", "cross", "disc", "square"):
        (folder / kind).mkdir(parents=True)
        for number in range(120):
            draw(kind, random).save(folder / kind / f"{number:03}.png")


@dataclass(frozen=True)
class Guide:
    """A fresh clone in which every block of docs/your-own.md was run, and what each printed."""

    clone: Path
    environment: dict[str, str]
    said: list[str] = field(default_factory=list)

    def run(self, script: str, code: int = 0) -> str:
        options = dict(cwd=self.clone, env=self.environment, capture_output=True, text=True, timeout=200)
        done = subprocess.run(["bash", "-euc", script], **options)
        assert done.returncode == code and (code or not done.stderr), f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Guide:
    folder = tmp_path_factory.mktemp("guide")
    clone, home, command = folder / "clone", folder / "home", folder / "bin/bestrun"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True, timeout=60)
    make_photos(home / "photos")
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{clone}/src" exec "{sys.executable}" -m bestrun "$@"\n')
    command.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BESTRUN_", "MLFLOW_"))}
    environment |= {"HOME": str(home), "PATH": f"{command.parent}:{os.environ['PATH']}"}
    guide = Guide(clone, environment)
    # The clone's own page: what is not committed is not tested
    blocks = re.findall(r"^```sh\n(.*?)^```$", (clone / "docs/your-own.md").read_text(), re.MULTILINE | re.DOTALL)
    verbs = [block.split()[1] for block in blocks if block.startswith("bestrun")]
    assert verbs == ["pack", "train", "train", "restore"]
    guide.said.extend(guide.run(block) for block in blocks)
    return guide


@pytest.mark.slow
def test_the_guide_followed_literally_in_a_fresh_clone_gives_a_proved_network(guide):
    assert "480 training and 120 test images of 30 x 40 x 3" in guide.said[0]
    assert ": as logged" in guide.said[-1]
    report = json.loads(guide.run("bestrun restore best --sweep dropout --json"))
    assert report["validation"]["agrees"] and report["validation"]["accuracy"] > 0.8, "chance is 0.2"
    assert report["test"]["total"] == 120 and report["test"]["accuracy"] > 0.8


@pytest.mark.slow
def test_the_guide_takes_two_new_files_and_forty_lines(guide):
    assert len(guide.run("git ls-files --others --exclude-standard").split()) <= 2
    lines = guide.run("git add --intent-to-add . && git diff --numstat").splitlines()
    counts = [[int(number) for number in line.split()[:2]] for line in lines]
    assert sum(added for added, _ in counts) <= 40 and not any(removed for _, removed in counts)


@pytest.mark.slow
def test_the_guides_network_with_its_dropout_resumes_to_the_same_tensors(guide):
    train = "bestrun train data=photos model=gap optimizer.learning_rate=3e-3 training.max_steps=400"
    guide.run(f"BESTRUN_FAULT=F9:3 {train} training.patience_steps=400 name=killed", code=-9)
    guide.run("bestrun resume killed")
    whole, killed = (load_file(guide.clone / f"mlruns/runs/{name}/last.safetensors") for name in ("first", "killed"))
    assert whole.keys() == killed.keys() and "model/dropout/seed_generator_state" in whole
    assert all(np.array_equal(whole[name], killed[name]) for name in whole)
