"""Promises about a folder of one's own, `--config-dir DIR`: what it changes, and each mistake in it as one line."""

import subprocess
import sys

import numpy as np
import pytest
import yaml

from bestrun import lab
from bestrun.data.dataset import load_dataset
from bestrun.environment import CONFIG_DIR
from bestrun.errors import DataError, SettingsError, VerificationError
from bestrun.settings import own
from bestrun.settings.compose import compose, options, override, read_config, settings_help
from bestrun.settings.config import OPTIONS, Cnn, digest, flatten, to_yaml
from bestrun.sweep.space import plan
from support.labs import AUGMENTATION, CODE, METRIC, NETWORK, make_lab


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv(CONFIG_DIR, raising=False)
    yield tmp_path / "my lab, it's [mine] $HOME"
    own.use(None)


@pytest.fixture
def named(folder):
    """A lab with everything in it, named."""
    own.use(make_lab(folder))
    return folder


def refusal(call, *arguments) -> str:
    with pytest.raises(SettingsError) as caught:
        call(*arguments)
    (line,) = str(caught.value).splitlines()
    return line


# ---- settings


def test_the_groups_of_the_folder_come_before_ours_and_a_file_of_the_same_name_wins(folder):
    cnn = "name: cnn\nfilter_sizes: [3]\nnum_filters: [7]\nfc_size: 9\n"
    steps = "name: adam\nlearning_rate: 0.5\n"
    files = {"model/cnn.yaml": cnn, "optimizer/bold.yaml": steps, "data/few.yaml": "name: mnist\nvalidation_size: 9\n"}
    files["data/few.yaml"] += "validation_seed: null\n"
    before = compose([]).config
    own.use(make_lab(folder, **files))
    config = compose(["optimizer=bold", "data=few"]).config
    assert dict(config.model) == {"name": "cnn", "filter_sizes": (3,), "num_filters": (7,), "fc_size": 9}
    assert config.optimizer.learning_rate == 0.5 and config.data.validation_size == 9 and config.data.name == "mnist"
    assert isinstance(config.model, Cnn) and {"gap", "cnn", "cnn_bn"} <= set(options("model"))
    assert compose(["recipe=night"]).choices == {
        **{"data": "scans", "model": "gap", "optimizer": "adam", "schedule": "constant", "augmentation": "flip"},
        "recipe": "night",
    }
    text = settings_help()
    assert "recipe=night" in text and "model=gap" in text and "# One convolution." in text
    own.use(None)
    assert compose([]).config == before and "gap" not in options("model") and "gap" not in OPTIONS["model"]
    assert "scans" not in refusal(compose, ["data=scans"]).partition("takes")[2]


def test_own_data_networks_and_augmentations_have_the_settings_of_their_files(named):
    config = compose(["recipe=night", "data.count=60", "augmentation.share=0.25", "data.validation_seed=3"]).config
    assert dict(config.data)["count"] == 60 and dict(config.augmentation) == {"name": "flip", "share": 0.25}
    assert flatten(config)["data.size"] == "8" and config.data.validation_seed == 3
    assert digest(config) != digest(compose(["recipe=night"]).config)
    for typed, words in {
        "data.count=many": "takes a whole number from 0",
        "data.cuont=3": "there is no such setting; did you mean data.count?",
        "data.validation_size=0": "takes a count of images from 1 up, or a share between 0 and 1",
        "augmentation.share=x": "takes a number; type augmentation.share=0.5",
        "model.width=1.5": "takes a whole number",
        "data=scasn": " or scans; type data=scans",
        "augmentation=filp": "augmentation=filp: takes affine or flip or images or none; type augmentation=flip",
    }.items():
        line = refusal(compose, ["recipe=night", typed])
        assert line.startswith(typed) and words in line, line


def test_a_place_of_own_data_is_absolute_asked_for_and_no_part_of_the_experiment(folder, tmp_path, monkeypatch):
    own.use(make_lab(folder, **{"data/scans.yaml": "name: scans\ndir: null\ncount: 3\n"}))
    monkeypatch.chdir(tmp_path)
    assert "data.dir=null: takes the path of a file or folder; type data.dir=PATH" in refusal(compose, ["data=scans"])
    one, other = (compose(["data=scans", f"data.dir={place}"]).config for place in ("1e3", "there"))
    assert dict(one.data)["dir"] == str(tmp_path / "1e3") and digest(one) == digest(other)


def test_a_sweep_tries_own_settings_and_its_groups_stand_in_the_folder(named):
    planned = plan(["recipe=night", "sweep=widths"])
    assert [dict(planned.settle(point).config.model)["width"] for point in planned.points] == [2, 4]
    assert len(plan(["recipe=night", "augmentation=flip,none"]).points) == 2
    assert "sweep=width: takes grid or seeds or study or widths; type sweep=widths" in refusal(plan, ["sweep=width"])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("model/gap.yaml", "name: gap\nwidth: [", "line 2"),
        ("model/gap.yaml", "name: other\n", "the first of them: name: gap"),
        ("data/scans.yaml", "- 1\n", "the first of them: name: scans, or of another data, as name: mnist"),
        ("augmentation/flip.yaml", "name: flip\nseed: 3\n", "seed: cannot be the name of a setting"),
        ("optimizer/adam.yaml", "name: &a adam\nlearning_rate: *a\n", "YAML aliases"),
        ("recipe/night.yaml", "seed: 3\n", "begin it with # @package _global_"),
        ("models/gap.yaml", "name: gap\n", "models/ is no group, did you mean model/?"),
        ("hydra/x.yaml", "a: 1\n", "hydra/ is no group; there are data/, model/"),
        ("config.yaml", "seed: 1\n", "belongs into the folder of its group"),
        ("model/gap.yml", "name: gap\n", "is not read; settings are"),
        ("model/mine/gap.yaml", "name: gap\n", "is not read; settings are"),
    ],
)
def test_a_file_that_is_wrong_or_would_not_be_read_is_one_line_that_names_it(folder, name, text, words):
    own.use(make_lab(folder, **{name: text}))
    line = refusal(compose, ["recipe=night"])
    assert line.startswith(str(folder / name)) and words in line, line


def test_what_else_lies_in_the_folder_is_nobodys_business(folder):
    files = {
        "mlruns/runs/r/config.yaml": "x",
        ".github/x.yaml": "[",
        "notes.md": "x",
        "docs/x.md": "",
        "model/.x.yml": "",
    }
    own.use(make_lab(folder, **files))
    assert compose(["recipe=night"])


@pytest.mark.parametrize("said", ["--config-dir", "BESTRUN_CONFIG_DIR"])
def test_a_folder_that_is_none_is_one_line_and_the_line_wins_over_the_environment(folder, said, monkeypatch):
    def use(path):
        if said == "--config-dir":
            own.use_named(str(path))
        else:
            monkeypatch.setenv(said, str(path))
            own.use_named(None)

    assert said in refusal(use, folder / "gone") and "there is no such folder" in refusal(use, folder / "gone")
    assert "is no folder" in refusal(use, make_lab(folder) / "code.py")
    if said == "--config-dir":  # an empty variable is none
        assert "there is no such folder" in refusal(use, "")
    use(folder)
    assert lab.current().directory == folder
    monkeypatch.setenv(CONFIG_DIR, "/gone")
    own.use_named(str(folder))
    own.use(None)


# ---- code.py, read as text


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import bestrun\ndef f(:\n", ", line 2: invalid syntax"),
        ("import bestrun\n@bestrun.network\ndef f(): pass\n", ", line 2: takes a name written out in quotes, as in @b"),
        (
            "import bestrun\nN = 'a'\n@bestrun.network(N)\ndef f(): pass\n",
            ", line 3: takes a name written out in quotes",
        ),
        ("import bestrun\n@bestrun.network('a', 'b')\ndef f(): pass\n", ", line 2: takes a name written out"),
        (
            "import bestrun\n@bestrun.dataset('a', size=3)\ndef f(): pass\n",
            ", line 2: dataset 'a': takes its name alone",
        ),
        ("import bestrun\n@bestrun.network('a/b')\ndef f(): pass\n", ", line 2: network a/b: takes a name of letters"),
        ("import bestrun\n@bestrun.network('../a')\ndef f(): pass\n", "takes a name of letters"),
        ("import bestrun\n@bestrun.network('a')\nclass F: pass\n", ", line 2: @bestrun.network registers a function"),
        (
            "import bestrun\n@bestrun.network('a')\ndef f(): pass\n@bestrun.network('a')\ndef g(): pass\n",
            ", line 4: network 'a' is registered twice, first in line 2; rename one",
        ),
        ("import bestrun as b\n@b.network('cnn')\ndef f(): pass\n", ", line 2: network 'cnn': there is one of ours"),
        ("from bestrun import dataset as d\n@d('mnist')\ndef f(): pass\n", ", line 2: dataset 'mnist': there is one"),
        (
            "import bestrun\n@bestrun.augmentation(name='affine')\ndef f(): pass\n",
            ", line 2: augmentation 'affine': there",
        ),
        ("import bestrun\n@bestrun.metric('val/loss')\ndef f(): pass\n", ", line 2: metric val/loss: takes val/NAME"),
        ("import bestrun\n@bestrun.metric('test/x')\ndef f(): pass\n", "metric test/x: takes val/NAME"),
        ("import bestrun\n@bestrun.metric('val/x', unit='m')\ndef f(): pass\n", "metric 'val/x': takes unit=\"share\""),
        ("import bestrun\n@bestrun.metric('val/x', direction='up')\ndef f(): pass\n", 'direction="maximize"'),
        ("import bestrun\n@bestrun.metric('val/x', direction=D)\ndef f(): pass\n", "written out"),
        ("import bestrun\n@bestrun.metric('val/x', better='up')\ndef f(): pass\n", "takes unit="),
        ("x = 1\0\n", ": source code string cannot contain null bytes"),
        ("(" * 5000, ""),
        ("# " + "x" * (1 << 20), ": more than 1,048,576 bytes"),
        (b"# \xff\n", ": is not UTF-8 (byte 2)"),
    ],
)
def test_a_mistake_in_code_py_is_one_line_with_its_place(folder, code, words):
    make_lab(folder)
    (folder / "code.py").write_bytes(code.encode() if isinstance(code, str) else code)
    line = refusal(own.use, folder)
    assert line.startswith(str(folder / "code.py")) and words in line, line
    assert lab.current() is None


def test_after_a_mistake_in_code_py_our_own_settings_are_what_they_were(folder):
    before = compose([]).config
    refusal(own.use, make_lab(folder, "import bestrun\ndef f(:\n"))
    assert compose([]).config == before and "gap" not in options("model")


def test_code_py_is_read_however_it_spells_the_decorators(folder):
    make_lab(
        folder, "\ufefffrom bestrun import network as n\r\nimport bestrun as b, os\r\n\r\n@n('one')\r\ndef f(): 1\r\n"
    )
    with open(folder / "code.py", "a", newline="") as file:
        file.write("@b.metric(name='two', unit='share')\r\ndef g(): pass\r\n@other.network('no')\r\ndef h(): pass\r\n")
    own.use(folder)
    assert sorted(lab.current().registered) == [("metric", "two"), ("network", "one")]
    (folder / "code.py").unlink()
    own.use(folder)
    assert lab.current().text is None and lab.metrics() == []
    (folder / "code.py").mkdir()
    assert "code.py: is no file" in refusal(own.use, folder)


def test_settings_are_checked_without_running_code_py_and_the_folder_is_on_no_path(folder):
    own.use(make_lab(folder, CODE + "\nraise RuntimeError('it was run')\n"))
    config = compose(["recipe=night"]).config
    assert config.objective.metric == "val/margin" and config.objective.direction == "minimize"
    assert config.objective.improves(1.0, 2.0) and not config.objective.improves(None, 2.0)
    assert "did you" in refusal(compose, ["objective.metrik=val/margin"])
    line = refusal(compose, ["objective.metric=val/magrin"])
    assert (
        line == "objective.metric=val/magrin: takes val/accuracy, val/balanced_accuracy, val/f1, val/top5, val/loss or "
        "val/margin; type objective.metric=val/margin"
    )
    assert str(folder) not in sys.path
    assert refusal(lab.load).startswith(f"{folder}/code.py, line ") and "RuntimeError: it was run" in refusal(lab.load)


def test_a_function_that_is_not_there_is_told_with_where_to_write_it(folder):
    own.use(make_lab(folder, "import bestrun\n" + NETWORK))
    line = refusal(compose, ["data=scans"])
    assert line == f'data=scans: has no function; write it into {folder}/code.py, below @bestrun.dataset("scans")'
    own.use(make_lab(folder, "import bestrun\n" + AUGMENTATION))
    assert "model=gap: has no function; write it into" in refusal(compose, ["model=gap"])
    (folder / "code.py").unlink()
    own.use(folder)
    assert f"augmentation=flip: has no function; write it into {folder}/code.py" in refusal(
        compose, ["augmentation=flip"]
    )


# ---- code.py, run


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import bestrun\n1 / 0\n", ", line 2: ZeroDivisionError: division by zero"),
        ("import bestrun\nimport sys\nsys.exit('done')\n", ", line 3: SystemExit: done"),
        (
            "import bestrun\nbestrun.networks('a')\n",
            ", line 2: AttributeError: module 'bestrun' has no attribute 'networks'",
        ),
        ("import nowhere_at_all\n", ", line 1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("import beside\n", "is not on Python's path: write beside into code.py, which is kept with each run"),
        (
            "import bestrun\nif False:\n    @bestrun.network('a')\n    def f(): pass\n",
            "line 3: network 'a' is not registered",
        ),
        (
            "import bestrun\nbestrun.network('a')(print)\n",
            "network 'a' is registered by no decorator; write @bestrun.net",
        ),
        ("def f():\n    raise KeyError\nf()\n", ", line 2: KeyError"),
    ],
)
def test_what_goes_wrong_when_code_py_is_run_is_one_line_with_its_place(folder, code, words):
    own.use(make_lab(folder, code, **{"beside.py": ""}))
    line = refusal(lab.load)
    assert line.startswith(str(folder / "code.py")) and words in line, line
    assert not (folder / "__pycache__").exists()


def test_code_py_is_run_once_and_again_where_it_has_changed(folder):
    count = "\nimport builtins\nbuiltins._bestrun_count = getattr(builtins, '_bestrun_count', 0) + 1\n"
    make_lab(folder, "import numpy as np\nimport bestrun\n" + METRIC + count)
    for _ in range(2):
        own.use(folder)
        assert lab.function("metric", "margin")(np.eye(3), np.arange(3)) == 0
    (folder / "code.py").write_text((folder / "code.py").read_text().replace("return float(", "return 7 + float("))
    own.use(folder)
    assert lab.function("metric", "margin")(np.eye(3), np.arange(3)) == 7
    import builtins

    assert builtins._bestrun_count == 2


def test_a_decorated_function_elsewhere_is_a_function_and_nothing_more():
    import bestrun

    @bestrun.network("loose")
    def build():
        return 3

    assert build() == 3 and lab.current() is None
    assert {"network", "dataset", "augmentation", "metric"} <= set(dir(bestrun))


# ---- data


DATA = {
    "a mapping": "dict(x_train=X, y_train=Y, x_test=X[:4], y_test=Y[:4], class_names=['a', 'b', 'c'])",
    "two pairs": "(X, Y), (X[:4], Y[:4])",
    "three pairs": "[(X, Y), (X[5:], Y[5:]), (X[:4], Y[:4])]",
    "lists": "([x.tolist() for x in X], Y.tolist()), (X[:4].tolist(), Y[:4].tolist())",
    "a file": "FILE",
    "an open file": "np.load(FILE)",
}


def own_data(folder, returned, **settings):
    code = f"""
import pathlib
import numpy as np
import bestrun
X = np.random.default_rng(0).integers(0, 255, (30, 5, 6), np.uint8)
Y = np.arange(30) % 3
FILE = pathlib.Path(__file__).with_name("file.npz")
np.savez(FILE, x_train=X, y_train=Y, x_test=X[:4], y_test=Y[:4])
@bestrun.dataset("scans")
def scans(**settings):
    return {returned}
"""
    own.use(make_lab(folder, code))
    return load_dataset(**own.data_arguments(compose(["data=scans"]).config.data))


@pytest.mark.parametrize("returned", DATA.values(), ids=DATA)
def test_own_data_may_be_arrays_pairs_or_a_file(folder, returned):
    data = own_data(folder, returned)
    assert data.name == "scans" and data.image_shape == (5, 6, 1) and data.num_classes == 3
    assert len(data.test) == 4 and len(data.validation) == (25 if returned.startswith("[(X") else 6)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("None", "data=scans: found NoneType; expected a mapping of x_train"),
        ("(X, Y)", "data=scans: found a tuple of 2; expected"),
        ("dict(x_train=X, y_train=Y)", "data=scans: found no x_test and no y_test, only x_train, y_train"),
        ("dict(x_train=X, y_train=Y, x_test=X, y_test=Y, x_val=X)", "found no y_val"),
        ("dict(x_train=X, y_train=Y, x_test=X, y_test=Y, more=1)", "found more; expected x_train"),
        ("(X, Y[:3]), (X, Y)", "3 labels, but data=scans[x_train] has 30 images"),
        ("([X, X[0]], Y), (X, Y)", "data=scans[x_train]: list is no array"),
        ("(X[:0], Y[:0]), (X, Y)", "at least one item"),
        ("(np.array([print]), Y), (X, Y)", "type object"),
        (
            "dict(x_train=X, y_train=Y, x_test=X, y_test=Y, class_names=3)",
            "data=scans[class_names]: found int 3; expected",
        ),
        ("dict(x_train=X, y_train=Y, x_test=X, y_test=Y, class_names='abc')", "[class_names]: found str 'abc'"),
        ("'/nowhere/at/all.npz'", "/nowhere/at/all.npz: found no such file"),
    ],
)
def test_own_data_that_is_none_is_refused_in_one_line(folder, returned, words):
    with pytest.raises((DataError, SettingsError)) as caught:
        own_data(folder, returned)
    (line,) = str(caught.value).splitlines()
    assert words in line, line


def test_own_data_that_fails_names_its_line(folder):
    line = refusal(own_data, folder, "1 / 0")
    assert line == f"data=scans: {folder}/code.py, line 11: ZeroDivisionError: division by zero"


# ---- runs of other people


def test_stored_settings_of_ones_own_are_data_and_load_no_code(named, tmp_path):
    config = compose(["recipe=night"]).config
    stored = tmp_path / "config.yaml"
    stored.write_text(to_yaml(config))
    own.use(None)
    again = read_config(stored)
    assert again == config and dict(override(again, ["data.count=6"])[0].data)["count"] == 6
    assert override(again, ["objective.metric=val/loss"])[0].objective.direction == "minimize"
    assert "val/other" in refusal(override, again, ["objective.metric=val/other"])
    with pytest.raises(SettingsError, match="dataset scans: no folder was named that registers one"):
        load_dataset(**own.data_arguments(again.data))


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """The stored settings of a run of `recipe=night`."""
    own.use(make_lab(tmp_path_factory.mktemp("night") / "lab"))
    settings = to_yaml(compose(["recipe=night"]).config)
    own.use(None)
    return settings


@pytest.mark.parametrize("name", ["../../evil", "os.system", "a b", "", "x" * 200, "__init__", "/tmp/x", "é"])
@pytest.mark.parametrize("group", ["model", "data", "augmentation"])
def test_a_hostile_name_of_a_run_leads_to_no_code(night, named, tmp_path, group, name):
    settings = yaml.safe_load(night)
    settings[group] = {"name": name}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    try:
        config = read_config(tmp_path / "config.yaml")
    except VerificationError:
        return
    assert own.missing(own.needed(config)) or lab.NAME.fullmatch(name)
    with pytest.raises(SettingsError):
        lab.function(own.KINDS[group], name)


def test_mistakes_and_help_with_a_folder_import_no_tensorflow(folder):
    make_lab(folder)
    program = """
import sys
from bestrun.cli.main import cli
for words in (["model=gpa"], ["--help"], ["recipe=night", "--cfg", "job"]):
    try:
        cli.main(["train", "--config-dir", sys.argv[1], *words], standalone_mode=False)
    except Exception as error:
        print(error)
    print("TENSORFLOW", "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=100)
    *said, rest = done.stdout.split("TENSORFLOW False\n")
    assert len(said) == 3 and rest == "" and all("gap" in each for each in said), done
