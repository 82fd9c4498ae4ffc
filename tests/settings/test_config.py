import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import yaml

from bestrun.errors import SettingsError
from bestrun.formatting import mask_uri
from bestrun.settings import compose as settings
from bestrun.settings.compose import Composed, compose, conf_dir
from bestrun.settings.config import FIELDS, Config, digest, flatten, to_yaml
from bestrun.settings.mistakes import validate
from bestrun.sweep.backends.work import places
from bestrun.sweep.space import plan


def refusal(*overrides: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        compose(overrides)
    assert all(line.isprintable() for line in caught.value.args), "each argument is one line"
    assert str(caught.value).splitlines() == list(caught.value.args)
    return list(caught.value.args)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes conf/recipe/mine.yaml in a copy of conf/, for `recipe=mine`."""
    conf = shutil.copytree(conf_dir(), tmp_path / "conf")
    monkeypatch.setattr(settings, "conf_dir", lambda: conf)

    def write(text: str | bytes) -> None:
        body = text if isinstance(text, bytes) else f"# @package _global_\n{text}\n".encode()
        (conf / "recipe/mine.yaml").write_bytes(body)

    return write


def rows(key: str, *values: str) -> list[str]:
    return [f"{key}={value}" for value in values]


LEARNING_RATES = ["nan", "inf", "-inf", "0", "-0.001", "1e400", "true", "null", "fast", "'1e-3'", "[0.1]"]
FILTERS = ["[]", "[0]", "[-8]", "[8.5]", "[8,null]", "[8,true]", "'8,16'", "8", "[16,4097]", "null", "{a:1}"]
OPTIMIZERS = ["rmsprop", "Adam", "ADAM", "torch.optim.Adam", "null", "{name:adam}", "[adam]", "../data/mnist"]
STORES = ["", "http://", "https:///x", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:////tmp"]
STORES += ["ftp://host/x", "mlruns", "/tmp", "file:///tmp", "http://h:port"]
FOLDERS = [f"size={size}" for size in ("", "0x4", "64", "64X4", "4x4x3", "99999x4", "-4x4", "[64,48]", "true")]
FOLDERS += ["fit=cut", "fit=null", "channels=2", "channels=true", "channels=[3]", "damaged=ignore", "damaged=null"]
FOLDERS += [
    f"{share}={value}" for share in ("test_size", "validation_size") for value in ("0", "1", "5", "1.0", "null")
]
FOLDERS += ["split_seed=null", "split_seed=-1", "validation_seed=3"]
RUN_NAMES = ["", "'  '", "x" * 1000, "a/b", "..", ".hidden", "-m", "ä", "'a b'", "latest", "best"]

# Table 2.3 of the test plan, on the command line: one row, one value
REFUSED = [
    *rows("optimizer.learning_rate", *LEARNING_RATES),
    *rows("training.batch_size", "0", "-1", "1.5", "true", "32px", "null", "1e9", "1000001", "'64'"),
    *rows("training.evaluation_batch_size", "0", "1e9"),
    *rows("model.num_filters", *FILTERS, f"[{','.join(200 * '8')}]"),
    *rows("model.filter_sizes", "[0,5]", "[5,-1]", "[5,64]", "[5.0,5]", "[5,nan]", "5"),
    *rows("model.fc_size", "0", "1.5", "65537"),
    *rows("training.patience_steps", "0", "-1", "nan", "1.5", "null", "50"),
    *rows("training.evaluate_every_steps", "0", "-100", "10001"),
    *rows("training.max_steps", "0", "-1", "inf", "1e400", "null", "1000000001"),
    *rows("training.max_epochs", "0", "-1", "nan", "true", "many", "1e7"),
    *rows("training.max_hours", "0", "-0.5", "inf", "1h"),
    *rows("data.validation_size", "0", "1.0", "-0.1", "1.2", "-5", "true", "null", "nan", "half"),
    *rows("data.validation_seed", "-1", "1.5"),
    *rows("data.class_names", "cat", "3", "[]", "[cat]", "[cat,cat]", "[cat,' ']", "[cat,[dog]]", "{cat:0}", "cat,dog"),
    *rows("data.in_memory", "1", "maybe"),
    *rows("seed", "-1", "2147483648", "18446744073709551616", "1.5", "null", "true", "abc"),
    *rows("optimizer", *OPTIMIZERS),
    *rows("schedule", "cosin", "One_Cycle", "bestrun.schedule.constant"),
    *rows("augmentation", "mixup", "Affine", "true"),
    *rows("training.label_smoothing", "1.0", "-0.1", "true", "nan", "null"),
    *rows("training.class_weights", "balance", "1", "[]", "[-1,1]", "[0,0]", "[1,nan]", "[1,true]", "true"),
    *rows("optimizer.clip_norm", "0", "-1", "inf", "true"),
    *rows("optimizer.ema", "0", "1", "1.5", "true", "nan"),
    *rows("optimizer.beta_1", "1", "-0.1", "null"),
    *rows("precision", "float16", "bfloat16", "16", "null", "true"),
    *rows("training.micro_batches", "0", "1.5", "null", "3", "128"),
    *rows("model", "resnet", "CNN", "keras.Model"),
    *rows("data", "cifar", "MNIST"),
    *rows("recipe", "quik"),
    *rows("objective.metric", "val/acc", "accuracy", "Val/Accuracy", "train/loss", "null"),
    *rows("objective.direction", "maxx", "MAXIMIZE", "max", "minimize"),
    *rows("tracking.uri", *STORES),
    *rows("experiment", "", "'  '", "x" * 1000, "'a\tb'", "a\nb", "a/b", ".hidden"),
    *rows("name", *RUN_NAMES),
    *rows("from_run", "", "'  '"),
    *rows("note", "x" * 5001),
    *rows("threads", "0", "-1", "1.5", "true", "1025", "all"),
    *rows("training", "3", "null"),
    *["tags.a=null", "tags.a=[1]", "tags.mlflow={user:x}", "tags.a?=1"],
    # Keys: misspelt, extra, of Hydra, of `instantiate`, of an option that was not chosen
    *["lerning_rate=1", "optimizer.lerning_rate=1", "training.batchsize=3", "Seed=1", "seed.x=1", "lr=1"],
    *["+training.batchsize=3", "++new=3", "+new.key=3", "grupe=mnist", "data/mnist=x", "model.num_filters.0=3"],
    *["_target_=os.system", "optimizer._target_=os.system", "+optimizer._args_=[ls]", "model._recursive_=false"],
    *["hydra.run.dir=x", "hydra.job_logging.root.level=INFO", "hydra.searchpath=[/tmp]", "hydra/launcher=joblib"],
    *["+hydra.job.env_set.A=b", "hydra=x", "optimizer.name=sgd", "optimizer.momentum=0.9"],
    *["model.dropout=0.5", "augmentation.shift_pixels=2"],
    # Hydra's grammar
    *["=3", "seed", "seed==", "seed=[1", "seed={", "a=[1", "--seed", "~seed", "~optimizer", "data@x=mnist", "seed=3;x"],
    f"seed={1500 * '['}",
    # Values that are a sweep
    *["seed=1,2", "data=mnist,idx", "data=glob(*)", "seed=range(1,3)", "optimizer.learning_rate=interval(0.1,1)"],
    *["seed=choice(1,2)", "model.num_filters=8,16", "name=a,b"],
]


# Rows of the table that are a value of a setting, not a fault of the command line's grammar or of YAML's
VALUES = [row for row in REFUSED[: REFUSED.index("lerning_rate=1")] if row.isprintable() and row[-1] not in ":}"]
# Values that only contradict others, which is looked for once each is right in itself
CONTRADICT = ["training.evaluate_every_steps=10001", "training.patience_steps=50", "objective.direction=minimize"]
CONTRADICT += ["training.micro_batches=3", "training.micro_batches=128"]


def apart(rows: list[str]) -> list[list[str]]:
    """The rows in lines in which no setting stands twice."""
    lines: list[dict[str, str]] = []
    for row in rows:
        key = row.partition("=")[0]
        line = next((line for line in lines if key not in line), None)
        if line is None:
            lines.append(line := {})
        line[key] = row
    return [list(line.values()) for line in lines]


def is_plain(row: str) -> bool:
    """Whether it is a value of a setting that is no option of a group, and is wrong whatever the others are."""
    key = row.partition("=")[0]
    return key in FIELDS and key not in settings.OPTIONS and row not in CONTRADICT


def lines_of(rows: list[str]) -> list[list[str]]:
    return apart([row for row in rows if is_plain(row)])


def of_row(row: str, lines: Iterable[str]) -> list[str]:
    return [line for line in lines if line.startswith(f"{row.partition('=')[0]}=")]


@cache
def said_of_bad_values() -> dict[str, list[str]]:
    """What is said of each row: together of those that a line can have together, as composing takes 0.2 s."""
    said: dict[str, list[str]] = {}
    for rows in lines_of(VALUES):
        lines = refusal(*rows)
        said |= {row: of_row(row, lines) for row in rows}
    return said | {row: refusal(row) for row in REFUSED if row not in said}


@pytest.mark.parametrize("override", REFUSED, ids=[row[:60] for row in REFUSED])
def test_a_bad_value_is_refused_on_one_line_that_names_it(override: str) -> None:
    (line,) = said_of_bad_values()[override]
    name = override.partition("=")[0]
    assert line.startswith(override[:70] if override.isprintable() else f"{name}="), line
    assert re.search(r"type |did you mean|`bestrun train --help`|leave it out", line), "says what to type next"


@pytest.mark.sampled(12)
@pytest.mark.parametrize("override", REFUSED, ids=[row[:60] for row in REFUSED])
def test_a_bad_value_is_refused_alone_as_among_others(override: str) -> None:
    assert refusal(override) == said_of_bad_values()[override]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.lerning_rate=1"], "did you mean optimizer.learning_rate?"),
        (["learning_rate=1"], "type optimizer.learning_rate=1"),
        (["+training.batchsize=3"], "did you mean training.batch_size?"),
        (["Training.Batch_Size=3"], "did you mean training.batch_size?"),
        (["optimizer=sgdd"], "takes adam or adamw or sgd; type optimizer=sgd"),
        (["schedule=OneCycle"], "type schedule=one_cycle"),
        (["objective.metric=val/Loss"], "type objective.metric=val/loss"),
        (["optimizer.name=sgd"], "type optimizer=sgd"),
        (["optimizer.momentum=0.9"], "only with optimizer=sgd"),
        (["optimizer=sgd", "optimizer.momentum=1.0"], "optimizer.momentum=1.0: takes a number from 0 to just below 1"),
        (["optimizer=sgd", "optimizer.momentum=0.0", "optimizer.nesterov=true"], "type optimizer.momentum=0.9"),
        (["optimizer=adamw", "optimizer.weight_decay=-0.1"], "optimizer.weight_decay=-0.1: takes a number from 0 to 1"),
        (["schedule=one_cycle", "schedule.warmup_share=2"], "schedule.warmup_share=2: takes"),
        (["schedule=plateau", "schedule.factor=1"], "schedule.factor=1: takes a number between 0 and 1"),
        (["schedule=plateau", "schedule.after_steps=0"], "schedule.after_steps=0: takes a whole number from 1"),
        (["schedule=plateau", "schedule.final_share=0"], "only with schedule=one_cycle or schedule=cosine"),
        (["augmentation=affine", "augmentation.rotation_degrees=181"], "takes a number from 0 to 180"),
        (["augmentation=affine", "augmentation.shift=2"], "did you mean augmentation.shift_pixels?"),
        (["model=cnn_bn", "model.fc_size=64"], "there is such a setting only with model=cnn"),
        (["training.batch_size=0"], "takes a whole number from 1 to 1000000; type training.batch_size="),
        (["data=idx"], "type data.dir=FOLDER"),
        (["data.class_names=[cat,dog,cat]"], "2 classes are called cat; type a name for each class"),
        (["data.class_names=cat"], "takes a list of texts, one for each class"),
        (["data=npz"], "type data.path=FILE"),
        (["data=idx", "data.dir=''"], "type data.dir=FOLDER"),
        (["model.num_filters=[8]"], "2 and 1 blocks; type two lists of equal length"),
        (["model.filter_sizes=[63,63]", "model.num_filters=[4096,4096]"], "at most 100,000,000 allowed"),
        (["training.patience_steps=50"], "takes at least training.evaluate_every_steps=100"),
        (["training.evaluate_every_steps=10001"], "takes at most training.max_steps=10000"),
        (
            ["objective.metric=val/loss", "objective.direction=maximize"],
            "type objective.direction=minimize, or leave it out",
        ),
        (["optimizer.learning_rate=1e-3,1e-4"], "one run takes one value"),
        (["tracking.uri=file:///tmp"], "MLflow 3 closed its file store"),
        (["seed=${oc.env:BESTRUN_NOT_SET}"], "BESTRUN_NOT_SET"),
        (["seed=${seed}"], "seed=${seed}: Recursive interpolation"),
        (["seed=???"], "seed=???: Missing mandatory value"),
        (["note=${hydra:job.name}"], "note=${hydra:job.name}: "),
        (["note=${no_such_resolver:1}"], "note=${no_such_resolver:1}: "),
        (["experiment=a\nb"], r"experiment='a\nb': takes 1 to 100 characters on one line"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_refusal_says_what_is_allowed_and_what_to_type(overrides: list[str], words: str) -> None:
    (line,) = refusal(*overrides)
    assert words in line


ADVICE = re.compile(r"type ([a-z_.]+=(?:\[.*?\]|\S+?))(?:[,;]| or |$)")
PLACEHOLDERS = {"FILE", "FOLDER", "VALUE", "URI", "NAME", "TEXT"}


def test_what_a_refusal_says_to_type_is_taken() -> None:
    followed: dict[str, None] = {}
    for override in REFUSED:
        (line,) = said_of_bad_values()[override]
        if (advice := ADVICE.search(line)) and advice[1].partition("=")[2] not in PLACEHOLDERS:
            followed[advice[1]] = None
    together = lines_of(list(followed))
    for words in [*together, *([word] for word in followed if not any(word in line for line in together))]:
        compose(words)
    assert len(followed) > 30, followed


def test_several_mistakes_are_listed_together() -> None:
    lines = refusal("optimizer=sdg", "optimizer.momentum=2", "training.batch_size=0", "sed=1", "seed=-1", "a=[1")
    starts = ["optimizer=sdg:", "sed=1:", "a=[1:", "seed=-1:", "training.batch_size=0:"]
    assert [line.split()[0] for line in lines] == starts, "nothing on the momentum of an optimizer that is not known"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.learning_rate=10", "optimizer.learning_rate=10.0: above 1"),
        ("training.patience_steps=150", "training.patience_steps=150: no multiple of"),
        ("training.patience_steps=20000", "can never stop early"),
        ("training.freeze=[layer_conv1]", "type from_run=RUN too"),
        ("training.mixup_alpha=1", "type training.mixup_share too"),
        ("model.filter_sizes=[4,5]", "model.filter_sizes=[4, 5]: an even filter"),
        ("tracking.uri=http://***@host", "type tracking.uri=URI once more"),
    ],
)
def test_a_doubtful_value_warns_and_goes_on(override: str, words: str) -> None:
    (warning,) = compose([override]).warnings
    assert words in warning


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("+training.batch_size=32", "training.batch_size", "32"),
        ("++training.batch_size=32", "training.batch_size", "32"),
        ("optimizer.learning_rate=1", "optimizer.learning_rate", "1.0"),
        ("data.validation_size=0.5", "data.validation_size", "0.5"),
        ("data.validation_size=1", "data.validation_size", "1"),
        ("training.patience_steps=10000", "training.patience_steps", "10000"),
        ("name=1e3", "name", "1e3"),
        ("from_run=1234e567", "from_run", "1234e567"),
        ("experiment=2024", "experiment", "2024"),
        ("note=größer, a=b", "note", "größer, a=b"),
        ("tags.fold=3", "tags.fold", "3"),
        ("data.class_names=[Äpfel,007,1.50,yes,null,1e3]", "data.class_names", "[Äpfel, 007, 1.50, yes, null, 1e3]"),
        ("data.class_names=['a, b',\"it's\"]", "data.class_names", """["a, b", "it's"]"""),
        ("data.class_names=[T-shirt/top,ring-tailed cat]", "data.class_names", "[T-shirt/top, ring-tailed cat]"),
        ("data.class_names=['${seed}',\"$x_1$\"]", "data.class_names", """["${seed}", "$x_1$"]"""),
        ("tags.share=1e-3", "tags.share", "1e-3"),
        ("recipe=null", "seed", "0"),
        ("seed=${training.batch_size}", "seed", "64"),
        ("tracking.uri=sqlite:////tmp/a b/m.db", "tracking.uri", "sqlite:////tmp/a b/m.db"),
        ("tracking.uri=http://[::1]:5000", "tracking.uri", "http://[::1]:5000"),
        ("tracking.uri=mysql+pymysql://u:pw@h/db", "tracking.uri", "mysql+pymysql://***@h/db"),
    ],
)
def test_a_good_value_arrives_as_typed(override: str, key: str, value: str) -> None:
    composed = compose([override])
    assert flatten(composed.config)[key] == value
    assert composed.warnings == []


def test_an_environment_variable_can_be_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTRUN_NOTE", "from outside")
    assert compose(["note=${oc.env:BESTRUN_NOTE}"]).config.note == "from outside"


def test_paths_do_not_depend_on_the_folder_a_later_command_runs_in(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose(["data=idx", "data.dir=images", "tracking.uri=sqlite:///m.db"]).config
    assert getattr(config.data, "dir", None) == str(tmp_path / "images")
    assert config.tracking.uri == f"sqlite:///{tmp_path}/m.db"


RECIPES = {
    "learning_rate: fast": ("optimizer: {learning_rate: fast}", "optimizer.learning_rate=fast: takes a number"),
    "batch_size: 0": ("training: {batch_size: 0}", "training.batch_size=0: takes a whole number"),
    "number as text": ("training: {batch_size: '64'}", "training.batch_size=64: takes a whole number"),
    "filters [8, null]": ("model: {num_filters: [8, null]}", "model.num_filters=[8, null]: takes a list"),
    "misspelt key": ("training: {batchsize: 3}", "did you mean training.batch_size?"),
    "key that is a number": ("3: 4", "3=null: there is no such setting"),
    "duplicate key": ("seed: 1\nseed: 2", "mine.yaml, line 3: found duplicate key seed"),
    "tab": ("training:\n\tbatch_size: 3", "mine.yaml: line 3: found character"),
    "byte order mark": (b"\xef\xbb\xbf# @package _global_\nseed: 1\n", "byte order mark"),
    "not UTF-8": (b"\xff\xfe\x00", "mine.yaml: "),
    "empty file": (b"", "begin it with # @package _global_"),
    "no header": (b"seed: 3\n", "begin it with # @package _global_"),
    "list": ("- 1", "recipe/mine"),
    "bomb of anchors": ("a: &a [1, 1]\nb: &b [*a, *a]\nnote: [*b, *b]", "aliases (*NAME) are not allowed"),
    "deep nesting": ("note: " + "[" * 1500, "mine.yaml: "),
    "cycle": ("seed: ${seed}", "seed: Recursive interpolation"),
    "unset variable": ("note: ${oc.env:BESTRUN_NOT_SET}", "BESTRUN_NOT_SET"),
    "unknown resolver": ("note: ${os.system:ls}", "note: "),
    "python tag": ("note: !!python/object/apply:os.system ['touch pwned']", "could not determine a constructor"),
    "_target_": ("_target_: os.system\n_args_: ['touch pwned']", "_target_=os.system: there is no such setting"),
    "_target_ in a group": ("model: {_target_: os.system}", "model._target_=os.system: there is no such setting"),
    "hydra section": ("hydra: {job_logging: {version: 1}}", "hydra: there is no such setting"),
    "option by name": ("optimizer: {name: sgd}", "optimizer.momentum: is missing"),
    "unknown option": ("model: {name: os.system}", "model=os.system: takes cnn"),
    "unknown default": ("defaults: [{override /optimizer: rmsprop}]", "optimizer/rmsprop"),
    "section as number": ("training: 3", "training=3: is a section"),
    "contradiction": ("objective: {metric: val/loss, direction: maximize}", "contradict each other"),
}


@pytest.mark.parametrize("row", RECIPES)
def test_a_bad_recipe_file_is_refused_and_nothing_in_it_runs(row: str, recipe, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, words = RECIPES[row]
    recipe(text)
    assert words in refusal("recipe=mine")[0]
    assert [file.name for file in tmp_path.iterdir()] == ["conf"]


@cache
def said_of_pictures() -> dict[str, list[str]]:
    said: dict[str, list[str]] = {}
    for rows in lines_of([f"data.{word}" for word in FOLDERS]):
        lines = refusal("data=folder", "data.dir=x", *rows)
        said |= {row: of_row(row, lines) for row in rows}
    return said


@cache
def is_taken_of_pictures(advice: str) -> bool:
    return bool(compose(["data=folder", "data.dir=x", advice]))


@pytest.mark.parametrize("word", FOLDERS)
def test_a_bad_setting_of_pictures_is_refused_with_what_to_type(word: str) -> None:
    key = word.partition("=")[0]
    (line,) = said_of_pictures()[f"data.{word}"]
    assert line.startswith(f"data.{word}: ") and ("; type data." in line or "there is such a setting only" in line)
    advice = line.rpartition("; type ")[2]
    if advice.startswith(f"data.{key}"):
        assert is_taken_of_pictures(advice)


NAMES_TO_TRY = "data.class_names=cat,dog"  # two values to a sweep, which it looks at last


def in_a_recipe(rows: list[str]) -> str:
    sections: dict[str, str] = {}
    for row in rows:
        key, _, value = row.partition("=")
        section, _, name = key.rpartition(".")
        sections[section] = sections.get(section, "") + f"{name}: {value or repr('')}\n"
    plain = sections.pop("", "")
    return plain + "".join(f"{section}:\n{indented(text)}" for section, text in sections.items())


@pytest.mark.parametrize("number", range(len(lines_of(VALUES))))
def test_bad_values_are_refused_together_in_a_recipe_file_and_in_a_sweep(number: int, recipe) -> None:
    rows = lines_of(VALUES)[number]
    in_a_sweep = [row for row in rows if not row.startswith("name=") and row != NAMES_TO_TRY]  # it refuses any name
    recipe(in_a_recipe(rows))
    of_recipe = refusal("recipe=mine")
    with pytest.raises(SettingsError) as caught:
        plan([*in_a_sweep, "seed=1,2"])
    for row, lines in [*((row, of_recipe) for row in rows), *((row, caught.value.args) for row in in_a_sweep)]:
        assert [line for line in lines if line.startswith(row.partition("=")[0])], row


def test_a_bad_option_is_refused_in_a_sweep() -> None:
    rows = [row for row in VALUES if not is_plain(row) and row not in CONTRADICT]
    assert len(rows) > 15
    for line in apart(rows):
        with pytest.raises(SettingsError) as caught:
            plan([*line, "seed=1,2"])
        for row in line:
            assert [said for said in caught.value.args if said.startswith(row.partition("=")[0])], row


@pytest.mark.parametrize("override", [*CONTRADICT, NAMES_TO_TRY])
def test_a_contradiction_is_refused_in_a_recipe_file_and_in_a_sweep(override: str, recipe) -> None:
    assert_refused_everywhere(override, recipe)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("override", VALUES, ids=[row[:60] for row in VALUES])
def test_a_bad_value_is_refused_in_a_recipe_file_and_in_a_sweep(override: str, recipe) -> None:
    assert_refused_everywhere(override, recipe)


def assert_refused_everywhere(override: str, recipe) -> None:
    key, _, value = override.partition("=")
    section, _, rest = key.rpartition(".")
    value = value or "''"  # as YAML writes it
    groups = ("optimizer", "schedule", "augmentation", "model", "data")
    if key not in (*groups, "recipe"):  # options are chosen by a recipe's defaults, which is another table
        recipe(f"{section}:\n  {rest}: {value}" if section else f"{key}: {value}")
        assert key.split(".")[0] in refusal("recipe=mine")[0]
    with pytest.raises(SettingsError) as caught:
        plan([override, "seed=1,2"])
    assert key.split(".")[0] in str(caught.value)


def test_command_line_beats_recipe_beats_group_beats_config(recipe) -> None:
    recipe("defaults: [{override /optimizer: sgd}]\nseed: 1\noptimizer: {momentum: 0.5}\ntraining: {batch_size: 32}")
    group = settings.conf_dir() / "model/cnn.yaml"
    group.write_text(f"# @package _global_\nseed: 9\nnote: group\nmodel:\n{indented(group.read_text())}")
    composed = compose(["recipe=mine", "training.batch_size=16"])
    config = composed.config
    assert (config.training.batch_size, config.seed, config.note) == (16, 1, "group")
    assert flatten(config)["optimizer.momentum"] == "0.5" and config.optimizer.learning_rate == 0.05
    assert composed.choices["optimizer"] == "sgd" and composed.choices["recipe"] == "mine"
    assert compose(["recipe=mine", "schedule=one_cycle"]).choices["schedule"] == "one_cycle"


def indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


def test_defaults_are_the_tutorials() -> None:
    flat = flatten(compose([]).config)
    assert [flat[key] for key in ("data", "model", "optimizer", "schedule")] == ["mnist", "cnn", "adam", "constant"]
    assert (flat["seed"], flat["data.validation_size"], flat["data.validation_seed"]) == ("0", "5000", "null")
    assert (flat["model.filter_sizes"], flat["model.num_filters"]) == ("[5, 5]", "[16, 36]")
    assert flat["model.fc_size"] == "128"
    assert (flat["optimizer.learning_rate"], flat["training.batch_size"]) == ("0.0001", "64")
    assert (flat["training.max_steps"], flat["training.evaluate_every_steps"]) == ("10000", "100")
    assert (flat["training.patience_steps"], flat["training.evaluation_batch_size"]) == ("1000", "1000")
    assert (flat["objective.metric"], flat["objective.direction"]) == ("val/accuracy", "maximize")


EVERYTHING = ["data=npz", "data.path=/x/ü.npz", "optimizer=sgd", "schedule=one_cycle", "optimizer.learning_rate=1e-5"]
EVERYTHING += ["tags.day=2024-01-01", "tags.on=yes", "note=a: b # c", "name=1e3", "threads=2"]
EVERYTHING += ["model.num_filters=[1,2]", """data.class_names=['a, b',"it's",'${x}',"[",3,'\\\\',' é: #c']"""]


@pytest.mark.parametrize(
    "overrides",
    [[], EVERYTHING, ["recipe=quick"], ["recipe=fast"], ["recipe=accurate"]],
    ids=["defaults", "everything", "quick", "fast", "accurate"],
)
def test_settings_survive_their_yaml(overrides: list[str]) -> None:
    config = compose(overrides).config
    assert validate(yaml.safe_load(to_yaml(config)))[0] == config


@pytest.mark.parametrize("overrides", [[], EVERYTHING], ids=["defaults", "everything"])
def test_flat_settings_can_be_typed_again(overrides: list[str]) -> None:
    config = compose(overrides).config
    typed = [f"{key}={value}" for key, value in flatten(config).items() if "," not in value or value[0] == "["]
    assert compose(typed).config == config


def test_names_of_classes_that_yaml_read_as_something_else_are_asked_for_in_quotes(recipe) -> None:
    recipe("data: {class_names: [3, cat]}")
    assert compose(["recipe=mine"]).config.data.class_names == ("3", "cat")
    recipe("data: {class_names: [yes, no]}")
    (line,) = refusal("recipe=mine")
    assert "true is no text; type it in quotes" in line


def test_a_setting_that_older_runs_had_not_leaves_their_digest_alone() -> None:
    # Checkpoints of before augmentation and label smoothing carry these
    assert digest(compose([]).config) == "8a906dc78601a6d4481498a58654de0860489e6dbe74743ec9c63bd27a5f6759"
    changes = ["augmentation=affine", "training.label_smoothing=0.1", "training.class_weights=balanced"]
    changes += ["training.micro_batches=2", "optimizer.ema=0.9", "optimizer.clip_norm=1.0", "optimizer.beta_1=0.8"]
    changes += ["precision=mixed_bfloat16"]
    assert (
        len({digest(compose([words]).config) for words in changes} | {digest(compose([]).config)}) == len(changes) + 1
    )


def test_a_config_from_another_run_is_only_data(tmp_path: Path) -> None:
    stored = yaml.safe_load(to_yaml(compose([]).config))
    stored["note"] = "${oc.env:HOME}"
    assert validate(stored)[0].note == "${oc.env:HOME}", "no resolver runs"
    stored["model"]["_target_"] = "os.system"
    with pytest.raises(SettingsError, match=r"model\._target_=os\.system: there is no such setting"):
        validate(stored)
    for nonsense in ([], None, {}, {"seed": {"seed": 1}}, {"model": {"name": ["cnn"]}}, {1: 2}, {"data": {"name": {}}}):
        with pytest.raises(SettingsError):
            validate(nonsense)  # type: ignore[arg-type]


def test_config_cannot_be_changed_after_the_checks() -> None:
    config = compose([]).config
    with pytest.raises(ValueError, match="frozen"):
        config.training.batch_size = 0
    assert isinstance(config.model.num_filters, tuple)


@pytest.mark.parametrize("override", ["seed=1", "threads=1", "optimizer.learning_rate=0.1", "training.max_steps=500"])
def test_digest_changes_with_what_decides_the_result(override: str) -> None:
    base = ["training.patience_steps=500"]
    assert digest(compose([override, *base]).config) != digest(compose(base).config)


def test_digest_does_not_change_with_names_and_places() -> None:
    plain = compose(["data=idx", "data.dir=/a"]).config
    other = ["data=idx", "data.dir=/b", "data.class_names=[a,b]", "name=x", "note=x", "tags.a=1", "experiment=x"]
    assert digest(compose([*other, "tracking.uri=http://h"]).config) == digest(plain)
    assert re.fullmatch("[0-9a-f]{64}", digest(plain))


SECRETS = [
    "http://lovelace:hidden@host:5000/x",
    "https://lovelace:pw@hidden@host",
    "https://lovelace:pw/hidden@host",
    "https://lovelace:pw hidden@host",
    "https://lovelace:pw=hidden@host",
    "http://lovelace:hidden@host:port",
    f"http://lovelace:{20 * 'hidden'}@host",
    "postgresql+psycopg2://lovelace:hidden@host/db",
    "postgresql://host/db?user=lovelace&password=hidden",
    "mssql+pyodbc:///?odbc_connect=PWD%3Dhidden",
    "ftp://lovelace:hidden@host",
]


@pytest.mark.parametrize("uri", SECRETS)
def test_credentials_never_show(uri: str) -> None:
    for override in (f"tracking.uri={uri}", f"tracking.ur={uri}", f"=[{uri}"):
        try:
            composed = compose([override])
        except SettingsError as error:
            shown = str(error)
        else:
            shown = f"{composed.overrides} {composed.warnings} {to_yaml(composed.config)} {flatten(composed.config)}"
        assert "***" in shown
        assert not re.search("lovelace|hidden|pw", shown), shown


def test_masking_keeps_what_is_no_secret() -> None:
    for uri in ("http://host:5000/x", "sqlite:////home/a@b/mlflow.db", "postgresql://host/db"):
        assert mask_uri(uri) == uri


def test_a_settings_error_imports_nothing_heavy_and_leaves_nothing_behind(tmp_path: Path) -> None:
    program = (
        "import sys; from bestrun.settings.compose import compose; from bestrun.errors import SettingsError\n"
        "try: compose(['training.batch_size=0'])\n"
        "except SettingsError as error: print(error)\n"
        "print(sorted({'tensorflow', 'keras', 'mlflow', 'optuna', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.startswith("training.batch_size=0: takes") and done.stdout.endswith("\n[]\n")
    assert list(tmp_path.iterdir()) == []


def test_every_setting_stands_in_conf_with_a_comment() -> None:
    for file in sorted(conf_dir().rglob("*.yaml")):
        lines = file.read_text().splitlines()
        assert lines[0].startswith("# "), f"{file.name} begins by saying what it is"
        for line in lines:
            if re.match(r"\s*(- )?\w+: ", line) and not line.startswith("name: "):
                assert re.search(r"\s# \S", line), f"{file.name}: {line}"


def test_conf_and_classes_name_the_same_options_and_keys() -> None:
    for group, classes in settings.OPTIONS.items():
        assert settings.options(group) == sorted(classes)
        for option, kind in classes.items():
            file = yaml.safe_load((conf_dir() / group / f"{option}.yaml").read_text())
            assert set(file) == set(kind.model_fields)
    plain = set(yaml.safe_load((conf_dir() / "config.yaml").read_text())) - {"defaults"}
    assert plain | set(settings.OPTIONS) == set(Config.model_fields)


def test_help_shows_every_setting_and_option() -> None:
    text = settings.settings_help()
    for key in settings.FIELDS:
        assert re.search(rf"^\s*{key.rpartition('.')[2]}:", text, re.MULTILINE), key
    for group in (*settings.OPTIONS, "recipe"):
        for option in settings.options(group):
            assert f"\n{group}={option}\n" in text


def test_composing_twice_in_one_process_gives_the_same() -> None:
    first, second = compose(["seed=3"]), compose(["seed=3"])
    assert first == second and isinstance(first, Composed)


ODD_TEXTS = [
    "a b",
    "a,b",
    "a'b",
    'a"b',
    "a=b",
    "a{b}",
    "a[0]",
    "a$b",
    "a${b}",
    "a\\b",
    "~x",
    "#",
    "a:b",
    "日",
    "null",
    "1e3",
]
ODD_TEXTS += [" lead", "trail ", "a%b", "a(b)", "a\\'b", "true", "a\\", "a\\\\", "'", "''"]


@pytest.fixture(scope="module")
def in_a_file() -> Config:
    return compose(["data=npz", "data.path=/a.npz"]).config


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_what_we_type_ourselves_is_read_back_as_it_is(text: str, in_a_file: Config) -> None:
    """A sweep types where data and store are for a trial that goes on; a comma there was taken for a list."""
    config = in_a_file
    data = config.data.model_copy(update={"path": f"/odd/{text}.npz/{text}"})
    tracking = config.tracking.model_copy(update={"uri": f"sqlite:////odd/{text}.db"})
    moved = config.model_copy(update={"data": data, "tracking": tracking})
    found, _ = settings.override(config, places(moved))
    assert (found.data.path, found.tracking.uri) == (data.path, tracking.uri)
