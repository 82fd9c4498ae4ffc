"""Promises about one's own network, and docs/your-own.md followed to the letter."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from safetensors.numpy import load_file

from bestrun import lab
from bestrun.errors import SettingsError, VerificationError
from bestrun.settings import compose as settings
from bestrun.settings import networks, own
from bestrun.settings.compose import compose, conf_dir, override, read_config
from bestrun.settings.config import FIELDS, OPTIONS, Cnn, digest, flatten, to_yaml
from bestrun.sweep.space import plan

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/your-own.md"
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


BAD_VALUES = [
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
]


def test_bad_values_are_each_refused_in_one_line_that_says_what_to_type(conf):
    """In lines in which no setting stands twice: composing takes 0.2 s."""
    left = list(BAD_VALUES)
    while left:
        line = {typed.partition("=")[0]: (typed, words) for typed, words in reversed(left)}
        left = [row for row in left if row not in line.values()]
        with pytest.raises(SettingsError) as caught:
            compose(["model=mine", *(f"model.{typed}" for typed, _ in line.values())])
        for typed, words in line.values():
            (said,) = [said for said in caught.value.args if said.startswith(f"model.{typed}: ")]
            assert words in said
        assert len(caught.value.args) == len(line)


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


def draw(kind: str, random: np.random.Generator, width: int, height: int) -> Image.Image:
    """A shape somewhere on noise."""
    image = Image.fromarray(random.integers(0, 90, (height, width, 3), np.uint8))
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
        case "empty square":
            pen.rectangle(box, outline=colour, width=2)
    return image


def make_pictures(home: Path) -> None:
    """Pictures as people have them: mixed formats, about one size, a folder a class."""
    random = np.random.default_rng(0)
    for folder, kinds in (
        ("photos", ("bar", "circle", "cross", "disc", "empty square")),
        ("letters", ("bar", "cross", "disc")),
    ):
        for kind in kinds:
            (home / folder / kind).mkdir(parents=True)
            for number in range(120):
                picture = draw(kind, random, 40 + number % 3, 30 + number % 2)
                picture.save(home / folder / kind / f"{number:03}.{('png', 'JPG', 'webp', 'bmp', 'tif')[number % 5]}")
            (home / folder / kind / ".DS_Store").write_bytes(b"Bud1")
    draw("circle", random, 64, 48).save(home / "new.webp")


@dataclass(frozen=True)
class Guide:
    """An empty folder in which every block of docs/your-own.md was run, by a wheel's command, and what each printed."""

    place: Path
    environment: dict[str, str]
    said: list[str] = field(default_factory=list)

    def run(self, script: str, code: int = 0) -> str:
        options = dict(cwd=self.place, env=self.environment, capture_output=True, text=True, timeout=400)
        done = subprocess.run(["bash", "-euc", script], **options)
        assert done.returncode == code and (code or not done.stderr), f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout


WEIGHTS = (
    "import keras; keras.utils.set_random_seed(0); "
    "keras.applications.MobileNetV3Small(include_top=False, weights=None).save_weights('mobilenet.weights.h5')"
)


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Guide:
    folder = tmp_path_factory.mktemp("guide")
    place, home, installed, command = (folder / name for name in ("place", "home", "installed", "bin/bestrun"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("bestrun-*.whl")
    zipfile.ZipFile(wheel).extractall(installed)  # a wheel unpacked is a wheel installed, less its dependencies
    make_pictures(home)
    for made in (place, command.parent):
        made.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{installed}" exec "{sys.executable}" -m bestrun "$@"\n')
    command.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BESTRUN_", "MLFLOW_"))}
    environment |= {"HOME": str(home), "PATH": f"{command.parent}:{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-c", WEIGHTS], cwd=place, check=True, capture_output=True)
    guide = Guide(place, environment)
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    guide.said.extend(guide.run(block) for block in blocks)
    return guide


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_guide_followed_literally_with_a_wheel_gives_a_proved_network(guide):
    first, *_, restored, predicted, _, _ = guide.said
    assert "430 training, 50 validation and 120 test images of 30 x 40 x 3, 5 classes" in first
    assert ": as logged" in restored
    assert re.search(r"new\.webp +circle +\d", predicted), "a class has its folder's name"
    report = json.loads(guide.run("bestrun restore best --sweep dropout --config-dir ~/lab --json"))
    assert report["validation"]["agrees"] and report["validation"]["accuracy"] > 0.8, "chance is 0.2"
    assert report["test"]["total"] == 120 and report["test"]["accuracy"] > 0.8
    runs = {run["run_name"]: run for run in json.loads(guide.run("bestrun runs --json"))}
    assert {"look", "first", "dropout-000", "dropout-001", "vit", "head", "whole", "letters"} <= runs.keys()


@pytest.mark.slow
def test_the_guides_network_with_its_dropout_resumes_to_the_same_tensors(guide):
    train = "bestrun train --config-dir ~/lab model=res data=folder data.dir=~/photos data.size=40x30"
    settings = "optimizer.learning_rate=3e-3 training.max_steps=300 training.patience_steps=300"
    guide.run(f"BESTRUN_FAULT=F9:2 {train} {settings} name=killed", code=-9)
    guide.run("bestrun resume killed --config-dir ~/lab")
    whole, killed = (load_file(guide.place / f"mlruns/runs/{name}/last.safetensors") for name in ("first", "killed"))
    assert whole.keys() == killed.keys() and "model/dropout/seed_generator_state" in whole
    assert all(np.array_equal(whole[name], killed[name]) for name in whole)


def test_a_network_of_ones_own_is_two_new_files_of_at_most_forty_lines() -> None:
    page = PAGE.read_text().partition("\n## 3.")[0]
    files = re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END$", page, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["~/lab/model/res.yaml", "~/lab/code.py"]
    count = sum(len(text.splitlines()) for _, text in files)
    assert count <= 40 and f"Two new files, {count} lines together" in page


def test_the_page_has_the_code_that_its_files_would_have(tmp_path) -> None:
    """What the page writes can be read: as settings, and as functions that are registered under the names it types."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    writing = [re.sub(r"^bestrun .*", "", block, flags=re.MULTILINE | re.DOTALL) for block in blocks if "END" in block]
    environment = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run(["bash", "-euc", "\n".join(writing)], env=environment, check=True)
    own.use(tmp_path / "lab")
    try:
        named = lab.current()
        assert named and named.names("network") == ["res", "vit"]
        for network in named.names("network"):
            assert flatten(compose([f"model={network}"]).config)["model"] == network
    finally:
        own.use(None)
